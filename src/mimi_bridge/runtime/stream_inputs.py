"""What a stream is given, checked before anything changes: chunks, codes, masks, rows, devices, states.

And which rows have which frames of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..frames import check_tensor, is_finite
from .steps import PAD_CODE

Segment = tuple[int, int, Tensor | None]  # see `segments_of`


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no number of rows."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, a whole number, got {batch_size!r}.")


def active_rows(exec_mask: Tensor | None, batch_size: int) -> list[bool]:
    """Whether each row runs; all do without a mask, `(batch,)`."""
    if exec_mask is None:
        return [True] * batch_size
    check_tensor(exec_mask, "exec_mask")
    if exec_mask.dtype != torch.bool or exec_mask.shape != (batch_size,):
        raise ValueError(
            f"exec_mask must be bool with one value for each of the {batch_size} rows, got {exec_mask.dtype} "
            f"of shape {tuple(exec_mask.shape)}."
        )
    return exec_mask.tolist()


def row_numbers(rows: Any, batch_size: int) -> list[int]:
    """Rows as a list of numbers; all, if None."""
    rows = range(batch_size) if rows is None else rows
    if isinstance(rows, Tensor):
        check_tensor(rows, "rows")
        rows = rows.tolist()
    if not isinstance(rows, list | tuple | range) or any(type(row) is not int for row in rows):
        raise ValueError(
            f"rows must be a list of numbers from 0 to {batch_size - 1}, got {rows!r}; a mask of rows to "
            "reset becomes one by mask.nonzero()[:, 0]."
        )
    wrong = [row for row in rows if not 0 <= row < batch_size]
    if wrong:
        raise ValueError(f"rows must be 0 to {batch_size - 1} in this stream, got {wrong[0]}.")
    return list(rows)


def check_chunk(chunk: Tensor, like: Tensor, is_active: list[bool], check_values: bool) -> None:
    """Refuse a chunk that does not fit the stream, and NaN and infinity in a row that runs.

    Args:
        chunk: `(batch, channels, samples)`.
        like: A tensor of the stream's batch, channels, type and device.
        is_active: Whether each row runs.
        check_values: Whether values are looked at.
    """
    check_tensor(chunk, "a chunk")
    if chunk.ndim != 3 or chunk.shape[:2] != like.shape[:2]:
        raise ValueError(
            f"a chunk must be ({like.shape[0]}, {like.shape[1]}, samples) in this stream, got "
            f"{tuple(chunk.shape)}; rows that have nothing to say pause by exec_mask."
        )
    if chunk.dtype != like.dtype or chunk.device != like.device:
        raise ValueError(
            f"a chunk must be {like.dtype} on {like.device}, as the model, got {chunk.dtype} on "
            f"{chunk.device}; convert it first."
        )
    if check_values and not is_finite(chunk):
        broken = [row for row, runs in enumerate(is_active) if runs and not is_finite(chunk[row])]
        if broken:
            raise ValueError(f"row {broken[0]} of the chunk holds NaN or infinity; repair it, or let the row pause.")


def check_codes(codes: Tensor, batch_size: int, num_quantizers: int) -> None:
    """Refuse what are no codes of this stream, by type and shape alone."""
    check_tensor(codes, "audio_codes", "pass what encode returned")
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"audio_codes must be integers, got {codes.dtype}; pass what encode returned.")
    if codes.ndim != 3 or len(codes) != batch_size or not 1 <= codes.shape[1] <= num_quantizers:
        raise ValueError(
            f"audio_codes must be ({batch_size}, 1 to {num_quantizers} codebooks, frames) in this stream, got "
            f"{tuple(codes.shape)}."
        )


def segments_of_codes(
    codes: Tensor, is_active: list[bool], max_frames: int, codebook_size: int | None
) -> list[Segment]:
    """As `segments_of`, of the frames that codes are given for, `(batch, codebooks, frames)`.

    Args:
        codes: `PAD_CODE` where a row has no frame.
        is_active: Whether each row runs.
        max_frames: As in `segments_of`.
        codebook_size: What codes of frames must be below, or a `ValueError` is raised; None: no value is looked at.
    """
    runs = torch.tensor(is_active)
    if codebook_size is None and codes.shape[-1] == 1 and codes.device.type != "cpu":
        rows = (codes[..., 0] != PAD_CODE).any(dim=1)  # stays on the device, which is not waited for
        return [(0, 1, rows if all(is_active) else rows & runs.to(rows.device))]
    codes = codes.cpu()
    has_frame = (codes != PAD_CODE).any(dim=1) & runs[:, None]
    if codebook_size is not None:
        _check_range(codes, has_frame, codebook_size)
    return segments_of(has_frame, max_frames)


def segments_of(has_frame: Tensor, max_frames: int) -> list[Segment]:
    """Runs of frames that the same rows have: first, last + 1, and the rows, `(batch,)`, or None if all have them."""
    segments: list[Segment] = []
    start, num_frames = 0, has_frame.shape[1]
    while start < num_frames:
        rows, end = has_frame[:, start], start + 1
        while end < min(num_frames, start + max_frames) and torch.equal(has_frame[:, end], rows):
            end += 1
        if bool(rows.any()):
            segments.append((start, end, None if bool(rows.all()) else rows))
        start = end
    return segments


def check_device(device: Any) -> None:
    """Refuse what is no device, or none that holds numbers."""
    try:
        is_meta = torch.empty(0, device=torch.device(device)).is_meta
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that is available, as the model's is, got {device!r} ({reason})."
        ) from error
    if is_meta:
        raise ValueError("a stream cannot be on the meta device, which holds no numbers; move it where the model is.")


def check_state(state: Any, expected: dict[str, Tensor], frame_size: int) -> None:
    """Refuse a state that has not the names, types and shapes of the expected one, or in which a whole frame waits."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state must be a dict, as state_dict() gives it, got {type(state).__name__}.")
    wrong = sorted(expected.keys() ^ state.keys())
    if wrong:
        raise ValueError(f"the state must hold {sorted(expected)}, but {wrong} are missing or too many.")
    for key, value in expected.items():
        check_tensor(state[key], f"{key} of the state", "pass what state_dict() gave")
        if state[key].shape != value.shape or state[key].dtype != value.dtype:
            raise ValueError(
                f"{key} of the state must be {value.dtype} of shape {tuple(value.shape)}, got {state[key].dtype} "
                f"of shape {tuple(state[key].shape)}; is it of another model or batch size?"
            )
    waiting = state["num_waiting"]
    if bool(((waiting < 0) | (waiting >= frame_size)).any()):
        raise ValueError(
            f"num_waiting of the state must lie in [0, {frame_size}), which is a frame, got {waiting.tolist()}; pass "
            "what state_dict() gave."
        )


def _check_range(codes: Tensor, has_frame: Tensor, codebook_size: int) -> None:
    wrong = ((codes < 0) | (codes >= codebook_size)) & has_frame[:, None]
    if bool(wrong.any()):
        row, codebook, frame = (int(index) for index in wrong.nonzero()[0])
        raise ValueError(
            f"audio_codes must lie in [0, {codebook_size}), or be {PAD_CODE} in all codebooks where a row has no "
            f"frame; row {row} holds {int(codes[row, codebook, frame])} in codebook {codebook}."
        )
