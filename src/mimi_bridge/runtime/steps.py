"""Steps of a stream: whole frames and a state in, a result and the new state out; on a GPU recorded, if asked for.

Encoder and quantizer, or quantizer and decoder, make a step, for recordings, streams and exported programs alike.

A step of one frame is hundreds of small kernels, and a GPU waits longer for each than it works on it. A CUDA graph is
such a step recorded once and then replayed by a single launch. What it reads and writes has one place in memory: its
inputs and state are copied there where they are not there yet, and results from there. A recording is good for steps
that equal its own: of the same weights, codebooks and λ. Otherwise it is made again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import DecoderRuntime, EncoderRuntime, State, for_inference
from .cuda_graphs import capture, on_a_side_stream
from .quantizer import PackedQuantizer

PAD_CODE = -1  # in codes: this row has no such frame
WARM_UP_RUNS = 3  # before a recording, so that libraries have chosen their kernels; as PyTorch's documentation does


@dataclass(frozen=True)
class EncodeStep:
    """Audio of whole frames to codes.

    Attributes:
        half: The encoder.
        quantizer: The packed quantizer.
        num_quantizers: Codebooks to encode to.
    """

    half: EncoderRuntime
    quantizer: PackedQuantizer
    num_quantizers: int

    def new_state(self, batch_size: int) -> State:
        """The state that begins streams: the encoder's, and the rings of heads with layers of their own."""
        return self.half.new_state(batch_size) | self.quantizer.new_rings(batch_size, self.num_quantizers)

    @for_inference
    def __call__(self, state: State | None, audio: Tensor, is_active: Tensor | None = None) -> tuple[Tensor, State]:
        """Run it.

        Args:
            state: Of the call before; None begins. Its rings are written to: go on with the one that is returned.
            audio: `(batch, channels, frames * frame_size)`.
            is_active: False on rows that pause, `(batch,)`: their state stays, their codes are `PAD_CODE`.

        Returns:
            Codes `(batch, num_quantizers, frames)`, and the new state.
        """
        state = self.new_state(len(audio)) if state is None else state
        latents, moved = self.half(state, audio, is_active)
        num_seen = state["positions"] // self.half.steps_per_frame
        codes = self.quantizer.encode(latents, self.num_quantizers, state, num_seen, is_active)
        return codes if is_active is None else codes.masked_fill(~is_active[:, None, None], PAD_CODE), moved


@dataclass(frozen=True)
class DecodeStep:
    """Codes of frames, from 1 to all codebooks, to audio; see `EncodeStep`."""

    half: DecoderRuntime
    quantizer: PackedQuantizer

    def new_state(self, batch_size: int) -> State:
        """The state that begins streams."""
        return self.half.new_state(batch_size)

    @for_inference
    def __call__(self, state: State | None, codes: Tensor, is_active: Tensor | None = None) -> tuple[Tensor, State]:
        """Codes `(batch, codebooks, frames)`, in range in active rows, to audio; other rows get silence."""
        if is_active is None:
            return self.half(state, self.quantizer.decode(codes))
        pauses = ~is_active[:, None, None]
        audio, state = self.half(state, self.quantizer.decode(codes.masked_fill(pauses, 0)), is_active)
        return audio.masked_fill(pauses, 0), state


Step = EncodeStep | DecodeStep


class StepRecorder:
    """The recordings of one stream's steps, by the shape of what they are given."""

    def __init__(self) -> None:
        self._kept: dict[tuple, RecordedStep] = {}

    def __call__(self, step: Step, state: State, given: Tensor, is_active: Tensor | None) -> tuple[Tensor, State]:
        """As the step."""
        is_active = given.new_ones(len(given), dtype=torch.bool) if is_active is None else is_active
        key = type(step), given.shape
        kept = self._kept.get(key)
        if kept is None or kept.made_of != (step, step.quantizer.residual_weight):
            kept = self._kept[key] = RecordedStep(step, state, given, is_active)
        return kept(state, given, is_active)


class RecordedStep:
    """A step whose inputs, state and result each have one place in memory.

    Args:
        step: Without host synchronisation.
        state: A state of the shapes that it will get.
        given: Audio or codes of the shape that it will get.
        is_active: As in `EncodeStep`.
    """

    @for_inference
    def __init__(self, step: Step, state: State, given: Tensor, is_active: Tensor):
        self.made_of = step, step.quantizer.residual_weight
        self._inputs = torch.zeros_like(given), torch.zeros_like(is_active)
        self._state = {name: torch.zeros_like(value) for name, value in state.items()}

        def run() -> Tensor:
            result, after = step(self._state, *self._inputs)
            self._take(after)
            return result

        self._replay, self._result = record(run, given.device)

    @for_inference
    def __call__(self, state: State, *inputs: Tensor) -> tuple[Tensor, State]:
        """Run it; the state that comes back lies in the step's own memory, which its next run uses up."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._take(state)
        self._replay()
        return self._result.clone(), dict(self._state)

    def _take(self, state: State) -> None:
        for name, value in state.items():
            if value is not self._state[name]:
                self._state[name].copy_(value)


def record(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Record a function as a CUDA graph; returns how to replay it, and where its result will be."""
    for _ in range(WARM_UP_RUNS):
        on_a_side_stream(run, device)
    return capture(run, device)
