"""The codec's two halves for inference, one function each: state and whole frames in, frames and new state out.

A half is its layers in time-major layout; what it must remember between calls is a flat dict of tensors, its state, so
that one call over a recording and many calls over its chunks compute the same thing. Hours run in constant memory,
because a long recording *is* a stream. The layers at audio rate run a few frames at a time, which keeps what lies
between them in a CPU's cache; the transformer and the layers near it run on many frames at once, which reads their
weights once.

    state   tails       what the convolutions need of the call before, (batch, size)
            keys_values rings of the transformer's layers, (layers, batch, heads, slots, size)
            positions   transformer steps that each row has seen, (batch,); 0 means that the row's stream begins

Source: transformers `MimiEncoderModel` and `MimiDecoderModel`, whose numbers these are up to rounding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor

from .attention import Transformer
from .pieces import WaveformLayers
from .time_major import Convolution, Layer, Upsampling, run

State = dict[str, Tensor]

CHUNK_FRAMES = 125  # frames of a long recording at a time: 10 s
MAX_FRAMES_AT_ONCE = 1000  # of all rows together


def for_inference(function: Callable) -> Callable:
    """Run without gradients, on normal tensors: a stream may go on outside of the inference mode it was used in."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        if torch.compiler.is_compiling():  # an exported program knows no modes
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class CodecRuntime:
    """What encoder and decoder have in common.

    Attributes:
        waveform_layers: The layers that run in pieces.
        latent_layers: The other SEANet layers.
        transformer: See `Transformer`.
        resampling: Between the transformer's rate and the frame rate.
        tails_size: Of all tails together.
        frame_size: Samples of a frame.
        channels: Of the audio.
        hidden_size: Of the latents.
        steps_per_frame: Transformer steps of a frame.
        waveform_ratio: Samples of a step where the two groups of SEANet layers meet.
    """

    waveform_layers: WaveformLayers
    latent_layers: Sequence[Layer]
    transformer: Transformer
    resampling: Convolution | Upsampling
    tails_size: int
    frame_size: int
    channels: int
    hidden_size: int
    steps_per_frame: int
    waveform_ratio: int

    @property
    def like(self) -> Tensor:
        """A tensor of the half's device and type."""
        return self.transformer.layers[0].attention_scale

    @for_inference
    def new_state(self, batch_size: int) -> State:
        """The state of streams that begin."""
        like, transformer = self.like, self.transformer
        return {
            "tails": like.new_zeros(batch_size, self.tails_size),
            "keys_values": like.new_zeros(len(transformer.layers), batch_size, *transformer.ring_shape),
            "positions": like.new_zeros(batch_size, dtype=torch.long),
        }

    def copied(self, state: State) -> State:
        """A copy, for several calls in a row that may fail in the middle."""
        return {name: value.clone() for name, value in state.items()}

    def _begin(self, state: State | None, batch_size: int, num_frames: int) -> State:
        """A state to work on, which leaves the given one as good as it was."""
        if state is None:
            return self.new_state(batch_size)
        working = {**state, "tails": state["tails"].clone()}
        if num_frames * self.steps_per_frame > self.transformer.steps_at_once:
            working["keys_values"] = state["keys_values"].clone()
        return working

    def _end(self, state: State | None, working: State, num_frames: int, is_active: Tensor | None) -> State:
        moved = working["positions"] + num_frames * self.steps_per_frame
        if is_active is None or state is None:
            return {**working, "positions": moved}
        return {
            **working,
            "tails": torch.where(is_active[:, None], working["tails"], state["tails"]),
            "positions": torch.where(is_active, moved, state["positions"]),
        }

    def chunk_frames(self, batch_size: int) -> int:
        """Frames of a long recording at a time."""
        return max(1, min(CHUNK_FRAMES, MAX_FRAMES_AT_ONCE // batch_size))


class EncoderRuntime(CodecRuntime):
    """Audio to latents."""

    def in_chunks(self, audio: Tensor) -> Iterator[Tensor]:
        """Latents of a recording of any length, some frames at a time; its last frame is filled up with silence.

        Args:
            audio: `(batch, channels, samples)`.

        Yields:
            `(batch, frames, hidden_size)`, as many chunks as it takes.
        """
        state = None
        for chunk in audio.split(self.chunk_frames(len(audio)) * self.frame_size, dim=-1):
            missing = -chunk.shape[-1] % self.frame_size
            latents, state = self(state, torch.nn.functional.pad(chunk, (0, missing)) if missing else chunk)
            yield latents

    @for_inference
    def __call__(self, state: State | None, audio: Tensor, is_active: Tensor | None = None) -> tuple[Tensor, State]:
        """Encode whole frames.

        Args:
            state: Of the call before; None begins. It is used up: go on with the one that is returned.
            audio: `(batch, channels, frames * frame_size)`.
            is_active: False on rows that pause: their state stays, their latents mean nothing, `(batch,)`.

        Returns:
            Latents `(batch, frames, hidden_size)`, and the new state.
        """
        batch_size, _, num_samples = audio.shape
        num_frames = num_samples // self.frame_size
        working = self._begin(state, batch_size, num_frames)
        tails, is_first = working["tails"], working["positions"] == 0
        between = audio.new_empty(batch_size, num_samples // self.waveform_ratio, self.latent_channels)
        self.waveform_layers(audio.transpose(1, 2), tails, is_first, between)
        hidden = run(self.latent_layers, between, tails, is_first)
        hidden = self.transformer(hidden, working["keys_values"], working["positions"], is_active)
        latents = self.resampling(hidden, tails, is_first)
        return latents, self._end(state, working, num_frames, is_active)

    @property
    def latent_channels(self) -> int:
        """Channels where the two groups of SEANet layers meet."""
        return _in_channels(self.latent_layers[0])


class DecoderRuntime(CodecRuntime):
    """Latents to audio."""

    @for_inference
    def from_chunks(self, chunks: Iterable[Tensor], batch_size: int, num_frames: int) -> Tensor:
        """Audio of a recording of any length, from its latents some frames at a time.

        Args:
            chunks: `(batch, frames, hidden_size)` each.
            batch_size: Rows.
            num_frames: Of all chunks together.

        Returns:
            `(batch, channels, num_frames * frame_size)`.
        """
        audio = self.like.new_empty(batch_size, self.channels, num_frames * self.frame_size)
        state, filled = None, 0
        for latents in chunks:
            end = filled + latents.shape[1] * self.frame_size
            _, state = self(state, latents, out=audio[..., filled:end])
            filled = end
        return audio

    @for_inference
    def __call__(
        self, state: State | None, latents: Tensor, is_active: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Decode frames.

        Args:
            state: As in `EncoderRuntime`.
            latents: `(batch, frames, hidden_size)`.
            is_active: As in `EncoderRuntime`.
            out: Where the audio goes, instead of new memory.

        Returns:
            Audio `(batch, channels, frames * frame_size)`, and the new state.
        """
        batch_size, num_frames, _ = latents.shape
        working = self._begin(state, batch_size, num_frames)
        tails, is_first = working["tails"], working["positions"] == 0
        hidden = self.before_transformer(latents, tails, is_first)
        hidden = self.transformer(hidden, working["keys_values"], working["positions"], is_active)
        audio = self.after_transformer(hidden, tails, is_first, out)
        return audio, self._end(state, working, num_frames, is_active)

    def before_transformer(self, latents: Tensor, tails: Tensor, is_first: Tensor) -> Tensor:
        """Latents at the transformer's rate, `(batch, steps, hidden_size)`; moves the tails on."""
        return self.resampling(latents, tails, is_first)

    def after_transformer(self, hidden: Tensor, tails: Tensor, is_first: Tensor, out: Tensor | None = None) -> Tensor:
        """Audio, `(batch, channels, samples)`, from what the transformer gave; moves the tails on."""
        between = run(self.latent_layers, hidden, tails, is_first)
        if out is None:
            out = hidden.new_empty(len(hidden), self.channels, between.shape[1] * self.waveform_ratio)
        self.waveform_layers(between, tails, is_first, out.transpose(1, 2))
        return out


def _in_channels(layer: Layer) -> int:
    while not isinstance(layer, Convolution | Upsampling):
        layer = layer.convolutions[0]
    return layer.in_channels
