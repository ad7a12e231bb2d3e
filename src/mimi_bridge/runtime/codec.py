"""The codec's two halves for inference, one function each: state and whole frames in, frames and new state out.

A half is its layers in time-major layout; what it must remember between calls is a flat dict of tensors, its state, so
that one call over a recording and many calls over its chunks compute the same thing. Hours run in constant memory,
because a long recording *is* a stream. The layers at audio rate run a few frames at a time (see `pieces`); the
transformer and the layers near it run on many frames at once, which reads their weights once.

    state   tails       what the convolutions need of the call before, (batch, size)
            keys_values rings of the transformer's layers, (layers, batch, heads, slots, size)
            positions   transformer steps that each row has seen, (batch,); 0 means that the row's stream begins

Source: transformers `MimiEncoderModel` and `MimiDecoderModel`, whose numbers these are up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional

from .attention import SPARE_SLOTS, Transformer
from .pieces import WaveformLayers
from .time_major import Layer, run

State = dict[str, Tensor]

CHUNK_FRAMES = 125  # frames of a long recording at a time: 10 s
MAX_FRAMES_AT_ONCE = 1000  # of all rows together


def with_own_rings(state: State) -> State:
    """The state with its rings copied: a call writes to them in place, and to nothing else."""
    return {name: value.clone() if name.endswith("keys_values") else value for name, value in state.items()}


def for_inference(function: Callable) -> Callable:
    """Run without gradients, on normal tensors: a stream may go on outside of the inference mode it was used in."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        if torch.compiler.is_compiling():  # an exported program knows no modes
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


@dataclass(frozen=True, eq=False)
class CodecRuntime:
    """What encoder and decoder have in common: layers, the transformer, and layers again.

    Attributes:
        before: Layers before the transformer, with those at audio rate as one of them.
        transformer: See `Transformer`.
        after: Layers after it.
        tails_size: Of all tails together.
        frame_size: Samples of a frame.
        channels: Of the audio.
        steps_per_frame: Transformer steps of a frame.
    """

    before: Sequence[Layer | WaveformLayers]
    transformer: Transformer
    after: Sequence[Layer | WaveformLayers]
    tails_size: int
    frame_size: int
    channels: int
    steps_per_frame: int

    @property
    def like(self) -> Tensor:
        """A tensor of the half's device and type."""
        return self.transformer.layers[0].attention_scale

    @for_inference
    def new_state(self, batch_size: int) -> State:
        """The state of streams that begin."""
        return {
            "tails": self.like.new_zeros(batch_size, self.tails_size),
            "keys_values": self.transformer.new_ring(batch_size),
            "positions": self.like.new_zeros(batch_size, dtype=torch.long),
        }

    def chunk_frames(self, batch_size: int) -> int:
        """Frames of a long recording at a time."""
        return max(1, min(CHUNK_FRAMES, MAX_FRAMES_AT_ONCE // batch_size))

    def state_to_write(self, state: State, num_frames: int) -> State:
        """The state for calls of so many frames together that may fail: then the given one is still as good as it was.

        Rings alone are written in place; few frames fit beside their windows, so that nothing is lost.
        """
        if num_frames * self.steps_per_frame <= SPARE_SLOTS:
            return state
        return with_own_rings(state)

    def _run(self, state: State | None, x: Tensor, num_frames: int, is_active: Tensor | None) -> tuple[Tensor, State]:
        state = self.new_state(len(x)) if state is None else state
        tails, positions = state["tails"].clone(), state["positions"]
        is_first = positions == 0
        x = run(self.before, x, tails, is_first)
        x = self.transformer(x, state["keys_values"], positions, is_active)
        x = run(self.after, x, tails, is_first)
        moved = positions + num_frames * self.steps_per_frame
        if is_active is not None:
            tails = torch.where(is_active[:, None], tails, state["tails"])
            moved = torch.where(is_active, moved, positions)
        return x, {**state, "tails": tails, "positions": moved}


class EncoderRuntime(CodecRuntime):
    """Audio to latents."""

    def in_chunks(self, audio: Tensor, step: Callable | None = None) -> Iterator[Tensor]:
        """Latents of a recording of any length, some frames at a time; its last frame is filled up with silence.

        Args:
            audio: `(batch, channels, samples)`.
            step: What gives something else than latents, called as this half is.

        Yields:
            `(batch, frames, hidden_size)`, as many chunks as it takes.
        """
        state = None
        for chunk in audio.split(self.chunk_frames(len(audio)) * self.frame_size, dim=-1):
            missing = -chunk.shape[-1] % self.frame_size
            result, state = (step or self)(state, functional.pad(chunk, (0, missing)) if missing else chunk)
            yield result

    @for_inference
    def __call__(self, state: State | None, audio: Tensor, is_active: Tensor | None = None) -> tuple[Tensor, State]:
        """Encode whole frames.

        Args:
            state: Of the call before; None begins. Its rings are written to: go on with the one that is returned.
            audio: `(batch, channels, frames * frame_size)`.
            is_active: False on rows that pause: their state stays, their latents mean nothing, `(batch,)`.

        Returns:
            Latents `(batch, frames, hidden_size)`, and the new state.
        """
        return self._run(state, audio.transpose(1, 2), audio.shape[-1] // self.frame_size, is_active)


class DecoderRuntime(CodecRuntime):
    """Latents to audio."""

    @for_inference
    def __call__(self, state: State | None, latents: Tensor, is_active: Tensor | None = None) -> tuple[Tensor, State]:
        """As `EncoderRuntime`: latents `(batch, frames, hidden_size)` -> `(batch, channels, frames * frame_size)`."""
        audio, state = self._run(state, latents, latents.shape[1], is_active)
        return audio.transpose(1, 2), state
