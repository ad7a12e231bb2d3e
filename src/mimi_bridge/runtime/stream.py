"""A live codec: chunks of any length in, codes and audio of whole frames out, exactly as from whole recordings.

A stream holds all that must be remembered between calls: the state of both halves, and for each row the samples that
do not fill a frame yet. Rows are batch slots with a stream each, which starts, pauses and ends on its own. So one
call may complete a frame in some rows and none in others: a row's missing frames are marked by `PAD_CODE`, last, and
`decode` gives silence for them and leaves such a row's state alone.

Everything is checked before anything changes: a call that raises has not happened. Calls from several threads, one for
each row perhaps, run one after the other.

Source: moshi `modules/streaming.py` for masks and resets by row; the layers are those of `codec`.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ..frames import check_tensor, is_finite
from .codec import CodecRuntime, EncoderRuntime, State, for_inference
from .quantizer import PackedQuantizer
from .steps import StreamSteps

PAD_CODE = -1  # in codes: this row has no such frame
HALVES = ("encoder", "decoder")
BEGUN = {"tails", "positions", "context_frames"}  # 0 where a row begins; by positions, old keys are out of sight


def one_at_a_time(method: Callable) -> Callable:
    """`for_inference`, and a stream's other threads wait until the call has ended."""
    method = for_inference(method)

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        with self._lock:
            return method(self, *args, **kwargs)

    return wrapped


class MimiBridgeStream:
    """A live codec of a fixed number of rows; `MimiBridgeModel.stream` makes it.

    Several streams may use one model at once, and several threads one stream, each with an `exec_mask` of its rows:
    their calls run one after the other. After training steps a stream goes on with the new weights.

    Attributes:
        batch_size: Rows.
        num_quantizers: Codebooks that `encode` gives.
        check_inputs: Whether values are looked at: NaN in chunks, codes out of range. A GPU is waited for once a call
            for it. Without, such values give wrong audio, or an error of the GPU; shapes are checked nevertheless.
    """

    @for_inference
    def __init__(
        self,
        model: Any,
        batch_size: int = 1,
        num_quantizers: int | None = None,
        cuda_graphs: bool = False,
        check_inputs: bool = True,
    ):
        config = model.config
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, a whole number, got {batch_size!r}.")
        self.batch_size, self.check_inputs = batch_size, check_inputs
        self.num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)
        self._model = model
        self._lock = RLock()
        self._frame_size, self._channels = config.frame_size, config.audio_channels
        self._state: dict[str, State] = {}
        quantizer: PackedQuantizer = model.packed.require("quantizer", model.quantizer)
        for name in HALVES:
            if getattr(model, name) is not None:
                half = model.packed.require(name, getattr(model, name))
                self._state[name] = half.new_state(batch_size)
                self._like = half.like.new_empty(0)
        if "encoder" in self._state:
            self._state["encoder"] |= quantizer.new_state(batch_size, self.num_quantizers)
        if cuda_graphs and self._like.device.type != "cuda":
            raise ValueError(
                f"cuda_graphs needs the model on a GPU, but it is on {self._like.device}; move it there, or leave "
                "cuda_graphs out."
            )
        self._steps = StreamSteps(self.num_quantizers, cuda_graphs, PAD_CODE)
        self._waiting = self._like.new_zeros(batch_size, self._channels, self._frame_size)
        self._num_waiting = [0] * batch_size

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}  # a copy has one of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    def __enter__(self) -> "MimiBridgeStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        return self._waiting.device

    @property
    def num_waiting_samples(self) -> Tensor:
        """Samples of each row that do not fill a frame yet, `(batch,)`."""
        return torch.tensor(self._num_waiting)

    @one_at_a_time
    def encode(self, chunk: Tensor, exec_mask: Tensor | None = None) -> Tensor:
        """Codes of the frames that a chunk completes; what is left of it waits.

        Args:
            chunk: The rows' next samples, `(batch, channels, samples)`; any number of them, also none.
            exec_mask: False on rows that pause, `(batch,)`: their samples are not looked at, their state stays.

        Returns:
            `(batch, num_quantizers, frames)`, int64; `PAD_CODE` where a row has fewer frames than the others.

        Raises:
            ValueError: If the chunk does not fit the stream, or holds NaN or infinity, which names the row.
        """
        half = self._half("encoder")
        active = self._active_rows(exec_mask)
        self._check_chunk(chunk, active)
        num_samples = chunk.shape[-1]
        lengths = [self._num_waiting[row] + num_samples if row in active else 0 for row in range(self.batch_size)]
        counts = [length // self._frame_size for length in lengths]
        if len(active) == self.batch_size and len(set(lengths)) == 1:  # no loop over rows, each a few small kernels
            return self._encode_all_alike(half, chunk, counts)
        audio = chunk.new_zeros(self.batch_size, self._channels, max(lengths))
        for row in active:
            start = self._num_waiting[row]
            audio[row, :, :start] = self._waiting[row, :, :start]
            audio[row, :, start : lengths[row]] = chunk[row]
        codes, state = self._encode_frames(half, audio, counts)
        for row in active:
            rest = audio[row, :, counts[row] * self._frame_size : lengths[row]]
            self._waiting[row, :, : rest.shape[-1]] = rest
            self._num_waiting[row] = rest.shape[-1]
        self._state["encoder"] = state
        return codes

    @one_at_a_time
    def flush(self, exec_mask: Tensor | None = None) -> Tensor:
        """Codes of the samples that still wait, filled up with silence to a frame; as the end of a recording.

        Args:
            exec_mask: True on rows to flush, `(batch,)`; all, if left out.

        Returns:
            `(batch, num_quantizers, 1)`, `PAD_CODE` in rows where nothing waited; no frame if there is none anywhere.
        """
        half = self._half("encoder")
        active = self._active_rows(exec_mask)
        counts = [int(row in active and self._num_waiting[row] > 0) for row in range(self.batch_size)]
        audio = torch.zeros_like(self._waiting)
        for row in active:
            audio[row, :, : self._num_waiting[row]] = self._waiting[row, :, : self._num_waiting[row]]
        codes, self._state["encoder"] = self._encode_frames(half, audio, counts)
        for row in active:
            self._num_waiting[row] = 0
        return codes

    @one_at_a_time
    def decode(self, audio_codes: Tensor, exec_mask: Tensor | None = None) -> Tensor:
        """Audio of the next frames.

        Args:
            audio_codes: `(batch, codebooks, frames)`, integers, of the first 1 to all codebooks; `PAD_CODE` in all
                codebooks of a frame that a row does not have.
            exec_mask: False on rows that pause, `(batch,)`: their codes are not looked at, their state stays.

        Returns:
            `(batch, channels, frames * frame_size)`; silence where a row has no frame or pauses.

        Raises:
            ValueError: If the codes do not fit the stream or the model; the message names the row.
        """
        half = self._half("decoder")
        active = self._active_rows(exec_mask)
        self._check_codes(audio_codes)
        num_frames = audio_codes.shape[-1]
        audio = self._waiting.new_zeros(self.batch_size, self._channels, num_frames * self._frame_size)
        segments = self._segments_of(audio_codes, active, half.chunk_frames(self.batch_size))
        state, quantizer = self._ready(half, self._state["decoder"], segments), self._quantizer()
        for start, end, is_active in segments:
            codes = audio_codes[..., start:end].to(self.device)
            is_active = None if is_active is None else is_active.to(self.device)
            decoded, state = self._steps.decode(half, quantizer, state, codes, is_active)
            audio[..., start * self._frame_size : end * self._frame_size] = decoded
        self._state["decoder"] = state
        return audio

    @one_at_a_time
    def reset(self, rows: list[int] | None = None) -> None:
        """Restart rows and drop their buffered audio; other rows are not affected.

        Args:
            rows: Which; all, if left out.

        Raises:
            ValueError: If there is no such row.
        """
        self._check_open()
        rows = list(range(self.batch_size)) if rows is None else rows
        if isinstance(rows, Tensor):
            check_tensor(rows, "rows")
            rows = rows.tolist()
        if not isinstance(rows, list | tuple | range) or any(type(row) is not int for row in rows):
            raise ValueError(
                f"rows must be a list of numbers from 0 to {self.batch_size - 1}, got {rows!r}; a mask of rows to "
                "reset becomes one by mask.nonzero()[:, 0]."
            )
        wrong = [row for row in rows if not 0 <= row < self.batch_size]
        if wrong:
            raise ValueError(f"rows must be 0 to {self.batch_size - 1} in this stream, got {wrong[0]}.")
        rows = list(rows)
        for state in self._state.values():
            for name in BEGUN & state.keys():
                state[name] = state[name].clone()
                state[name][rows] = 0
        for row in rows:
            self._num_waiting[row] = 0

    @one_at_a_time
    def close(self) -> None:
        """Let go of the state and the model; the stream cannot be used again."""
        self._state, self._model = {}, None

    @one_at_a_time
    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as a flat dict of tensors, a copy: safetensors can save it, another process go on."""
        self._check_open()
        state = {f"{name}.{key}": value.clone() for name in self._state for key, value in self._state[name].items()}
        return state | {"waiting": self._waiting.clone(), "num_waiting": self.num_waiting_samples}

    @one_at_a_time
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another stream of the same model and batch size stood.

        Raises:
            ValueError: If it is no such state; then this stream stays as it was.
            TypeError: If it holds something else than tensors.
        """
        expected = self.state_dict()
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
        moved = {key: value.to(self.device, copy=True) for key, value in state.items()}
        for name in self._state:
            self._state[name] = {key: moved[f"{name}.{key}"] for key in self._state[name]}
        self._waiting, self._num_waiting = moved["waiting"], moved["num_waiting"].tolist()

    @one_at_a_time
    def to(self, device: torch.device | str) -> "MimiBridgeStream":
        """Move the state to where the model was moved; returns the stream.

        Raises:
            ValueError: If it is no device, or one that is not available; then this stream stays as it was.
        """
        self._check_open()
        _check_device(device)
        for name, state in self._state.items():
            self._state[name] = {key: value.to(device) for key, value in state.items()}
        self._waiting = self._waiting.to(device)
        return self

    def _encode_all_alike(self, half: EncoderRuntime, chunk: Tensor, counts: list[int]) -> Tensor:
        # As `encode`, where as many samples wait in every row, and none pauses.
        audio = torch.cat([self._waiting[..., : self._num_waiting[0]], chunk], dim=-1)
        codes, self._state["encoder"] = self._encode_frames(half, audio, counts)
        rest = audio[..., counts[0] * self._frame_size :]
        self._waiting[..., : rest.shape[-1]] = rest
        self._num_waiting = [rest.shape[-1]] * self.batch_size
        return codes

    def _encode_frames(self, half: EncoderRuntime, audio: Tensor, counts: list[int]) -> tuple[Tensor, State]:
        frames = torch.arange(max(counts))
        segments = _segments(frames < torch.tensor(counts)[:, None], half.chunk_frames(self.batch_size))
        codes = torch.full((self.batch_size, self.num_quantizers, max(counts)), PAD_CODE, device=self.device)
        state, quantizer = self._ready(half, self._state["encoder"], segments), self._quantizer()
        for start, end, is_active in segments:
            piece = audio[..., start * self._frame_size : end * self._frame_size]
            is_active = None if is_active is None else is_active.to(self.device)
            found, state = self._steps.encode(half, quantizer, state, piece, is_active)
            codes[..., start:end] = found
        return codes, state

    def _ready(self, half: CodecRuntime, state: State, segments: list) -> State:
        """A state that may be used up: more than one call in a row would write over keys of the one we hold."""
        return half.copied(state) if len(segments) > 1 else state

    def _check_open(self) -> None:
        if self._model is None:
            raise ValueError("this stream is closed; open another with model.stream().")

    def _half(self, name: str) -> Any:
        self._check_open()
        if name not in self._state:
            raise ValueError(f"this model was loaded without its {name} ({name}_config=None); load it whole for this.")
        half = self._model.packed.require(name, getattr(self._model, name))
        if half.like.device != self.device or half.like.dtype != self._waiting.dtype:
            raise ValueError(
                f"the model must be {self._waiting.dtype} on {self.device} as when the stream began, but now it is "
                f"{half.like.dtype} on {half.like.device}; move the stream with stream.to(device), or open another."
            )
        return half

    def _quantizer(self) -> PackedQuantizer:
        return self._model.packed.require("quantizer", self._model.quantizer)

    def _active_rows(self, exec_mask: Tensor | None) -> list[int]:
        if exec_mask is None:
            return list(range(self.batch_size))
        check_tensor(exec_mask, "exec_mask")
        if exec_mask.dtype != torch.bool or exec_mask.shape != (self.batch_size,):
            raise ValueError(
                f"exec_mask must be bool with one value for each of the {self.batch_size} rows, got {exec_mask.dtype} "
                f"of shape {tuple(exec_mask.shape)}."
            )
        return exec_mask.nonzero()[:, 0].tolist()

    def _check_chunk(self, chunk: Tensor, active: list[int]) -> None:
        check_tensor(chunk, "a chunk")
        if chunk.ndim != 3 or chunk.shape[:2] != (self.batch_size, self._channels):
            raise ValueError(
                f"a chunk must be ({self.batch_size}, {self._channels}, samples) in this stream, got "
                f"{tuple(chunk.shape)}; rows that have nothing to say pause by exec_mask."
            )
        if chunk.dtype != self._waiting.dtype or chunk.device != self.device:
            raise ValueError(
                f"a chunk must be {self._waiting.dtype} on {self.device}, as the model, got {chunk.dtype} on "
                f"{chunk.device}; convert it first."
            )
        if self.check_inputs and not is_finite(chunk):
            broken = [row for row in active if not is_finite(chunk[row])]
            if broken:
                raise ValueError(
                    f"row {broken[0]} of the chunk holds NaN or infinity; repair it, or let the row pause."
                )

    def _check_codes(self, codes: Tensor) -> None:
        total = self._model.quantizer.num_quantizers
        check_tensor(codes, "audio_codes", "pass what encode returned")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"audio_codes must be integers, got {codes.dtype}; pass what encode returned.")
        if codes.ndim != 3 or len(codes) != self.batch_size or not 1 <= codes.shape[1] <= total:
            raise ValueError(
                f"audio_codes must be ({self.batch_size}, 1 to {total} codebooks, frames) in this stream, got "
                f"{tuple(codes.shape)}."
            )

    def _segments_of(self, codes: Tensor, active: list[int], max_frames: int) -> list[tuple[int, int, Tensor | None]]:
        if not self.check_inputs and codes.shape[-1] == 1 and codes.device.type != "cpu":
            rows = (codes[..., 0] != PAD_CODE).any(dim=1)  # stays on the device, which is not waited for
            is_active = [row in active for row in range(self.batch_size)]
            return [(0, 1, rows if all(is_active) else rows & torch.tensor(is_active).to(rows.device))]
        codes = codes.cpu()
        has_frame = torch.zeros(self.batch_size, codes.shape[-1], dtype=torch.bool)
        has_frame[active] = (codes[active] != PAD_CODE).any(dim=1)
        if self.check_inputs:
            self._check_range(codes, has_frame)
        return _segments(has_frame, max_frames)

    def _check_range(self, codes: Tensor, has_frame: Tensor) -> None:
        size = self._model.config.codebook_size
        wrong = ((codes < 0) | (codes >= size)) & has_frame[:, None]
        if bool(wrong.any()):
            row, codebook, frame = (int(index) for index in wrong.nonzero()[0])
            raise ValueError(
                f"audio_codes must lie in [0, {size}), or be {PAD_CODE} in all codebooks where a row has no frame; "
                f"row {row} holds {int(codes[row, codebook, frame])} in codebook {codebook}."
            )


def _check_device(device: torch.device | str) -> None:
    try:
        is_meta = torch.empty(0, device=torch.device(device)).is_meta
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that is available, as the model's is, got {device!r} ({reason})."
        ) from error
    if is_meta:
        raise ValueError("a stream cannot be on the meta device, which holds no numbers; move it where the model is.")


def _segments(has_frame: Tensor, max_frames: int) -> list[tuple[int, int, Tensor | None]]:
    """Runs of frames that the same rows have: first, last + 1, and the rows, `(batch,)`, or None if all have them."""
    segments: list[tuple[int, int, Tensor | None]] = []
    start, num_frames = 0, has_frame.shape[1]
    while start < num_frames:
        rows, end = has_frame[:, start], start + 1
        while end < min(num_frames, start + max_frames) and torch.equal(has_frame[:, end], rows):
            end += 1
        if bool(rows.any()):
            segments.append((start, end, None if bool(rows.all()) else rows))
        start = end
    return segments
