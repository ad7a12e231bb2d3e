"""A live codec: chunks of any length in, codes and audio of whole frames out, exactly as from whole recordings.

A stream holds all that must be remembered between calls: the state of both halves, and for each row the samples that
do not fill a frame yet. Rows are batch slots with a stream each, which starts, pauses and ends on its own. So one
call may complete a frame in some rows and none in others: a row's missing frames are marked by `PAD_CODE`, last, and
`decode` gives silence for them and leaves such a row's state alone.

Everything is checked before anything changes: a call that raises has not happened. Calls from several threads, one for
each row perhaps, run one after the other.

Source: moshi `modules/streaming.py` for masks and resets by row; the layers are those of `codec`.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import groupby
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from .codec import CodecRuntime, EncoderRuntime, State, for_inference
from .quantizer import PackedQuantizer
from .steps import PAD_CODE, DecodeStep, EncodeStep, Step, StepRecorder
from .stream_inputs import (
    Segment,
    active_rows,
    check_batch_size,
    check_chunk,
    check_codes,
    check_device,
    check_state,
    row_numbers,
    segments_of,
    segments_of_codes,
)

HALVES = ("encoder", "decoder")
BEGUN = {"tails", "positions"}  # 0 where a row begins; by positions, old keys are out of sight


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
        check_batch_size(batch_size)
        self.batch_size, self.check_inputs = batch_size, check_inputs
        self.num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)
        self._model = model
        self._lock = RLock()
        quantizer = model.packed.require("quantizer", model.quantizer)
        self._state: dict[str, State] = {}
        for name in HALVES:
            if getattr(model, name) is not None:
                half = model.packed.require(name, getattr(model, name))
                self._state[name] = self._step(half, quantizer).new_state(batch_size)
        if cuda_graphs and half.like.device.type != "cuda":
            raise ValueError(
                f"cuda_graphs needs the model on a GPU, but it is on {half.like.device}; move it there, or leave "
                "cuda_graphs out."
            )
        self._recorder = StepRecorder() if cuda_graphs else None
        self._waiting = half.like.new_zeros(batch_size, half.channels, half.frame_size)
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
        is_active = active_rows(exec_mask, self.batch_size)
        check_chunk(chunk, self._waiting, is_active, self.check_inputs)
        return self._encode(half, chunk, is_active)

    @one_at_a_time
    def flush(self, exec_mask: Tensor | None = None) -> Tensor:
        """Codes of the samples that still wait, filled up with silence to a frame; as the end of a recording.

        Args:
            exec_mask: True on rows to flush, `(batch,)`; all, if left out.

        Returns:
            `(batch, num_quantizers, 1)`, `PAD_CODE` in rows where nothing waited; no frame if there is none anywhere.
        """
        half = self._half("encoder")
        return self._encode(half, self._waiting[..., :0], active_rows(exec_mask, self.batch_size), is_end=True)

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
        is_active = active_rows(exec_mask, self.batch_size)
        check_codes(audio_codes, self.batch_size, self._model.quantizer.num_quantizers)
        audio_codes = audio_codes.long()  # bytes would be taken for a mask
        size = self._model.config.codebook_size if self.check_inputs else None
        segments = segments_of_codes(audio_codes, is_active, half.chunk_frames(self.batch_size), size)
        audio = self._waiting.new_zeros(*self._waiting.shape[:2], audio_codes.shape[-1] * half.frame_size)
        for start, end, found in self._run("decoder", half, audio_codes, 1, segments):
            audio[..., start * half.frame_size : end * half.frame_size] = found
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
        numbers = row_numbers(rows, self.batch_size)
        for state in self._state.values():
            for name in BEGUN & state.keys():
                state[name] = state[name].clone()
                state[name][numbers] = 0
        for row in numbers:
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
        check_state(state, self.state_dict(), self._waiting.shape[-1])
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
        check_device(device)
        for name, state in self._state.items():
            self._state[name] = {key: value.to(device) for key, value in state.items()}
        self._waiting = self._waiting.to(device)
        return self

    def _encode(self, half: EncoderRuntime, chunk: Tensor, is_active: list[bool], is_end: bool = False) -> Tensor:
        # Codes of what waits and of the chunk behind it; what fills no frame waits, or is filled up at the end.
        size, num_samples = half.frame_size, chunk.shape[-1]
        lengths = [(waiting + num_samples) * runs for waiting, runs in zip(self._num_waiting, is_active, strict=True)]
        counts = [-(-length // size) if is_end else length // size for length in lengths]
        num_frames, alike = max(counts), self._rows_alike(is_active)
        audio = chunk.new_zeros(*chunk.shape[:2], max(*lengths, num_frames * size))
        for rows, waiting in alike:
            audio[rows, :, :waiting] = self._waiting[rows, :, :waiting]
            audio[rows, :, waiting : waiting + num_samples] = chunk[rows]
        segments = segments_of(torch.arange(num_frames) < torch.tensor(counts)[:, None], half.chunk_frames(len(chunk)))
        codes = torch.full((self.batch_size, self.num_quantizers, num_frames), PAD_CODE, device=self.device)
        for start, end, found in self._run("encoder", half, audio, size, segments):
            codes[..., start:end] = found
        for rows, _ in alike:
            rest = audio[rows, :, counts[rows.start] * size : lengths[rows.start]]
            self._waiting[rows, :, : rest.shape[-1]] = rest
            self._num_waiting[rows] = [rest.shape[-1]] * len(rest)
        return codes

    def _rows_alike(self, is_active: list[bool]) -> list[tuple[slice, int]]:
        # Neighbours that run and of which as much waits, and how much: copied at once, since each copy is a kernel.
        alike = []
        key = list(zip(is_active, self._num_waiting, strict=True)).__getitem__
        for (runs, waiting), group in groupby(range(self.batch_size), key):
            rows = list(group)
            if runs:
                alike.append((slice(rows[0], rows[-1] + 1), waiting))
        return alike

    def _run(
        self, name: str, half: CodecRuntime, given: Tensor, frame_size: int, segments: list[Segment]
    ) -> Iterator[tuple[int, int, Tensor]]:
        # Results of segments, with their first frame and last + 1; the state is another once all are through.
        step = self._step(half, self._model.packed.require("quantizer", self._model.quantizer))
        state = half.state_to_write(self._state[name], sum(end - start for start, end, _ in segments))
        for start, end, is_active in segments:
            piece = given[..., start * frame_size : end * frame_size].to(self.device)
            is_active = None if is_active is None else is_active.to(self.device)
            if self._recorder is not None and end - start == 1:
                found, state = self._recorder(step, state, piece, is_active)
            else:
                found, state = step(state, piece, is_active)
            yield start, end, found
        self._state[name] = state

    def _step(self, half: Any, quantizer: PackedQuantizer) -> Step:
        is_encoder = isinstance(half, EncoderRuntime)
        return EncodeStep(half, quantizer, self.num_quantizers) if is_encoder else DecodeStep(half, quantizer)

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
