"""What a stream does with whole frames: encoder and quantizer, quantizer and decoder; on a GPU recorded, if asked for.

A step of one frame is hundreds of small kernels, and a GPU waits longer for each than it works on it. A CUDA graph is
such a step recorded once and then replayed by a single launch. What it reads and writes has one place in memory: its
inputs and state are copied there where they are not there yet, and results from there. A recording is good for the
weights, codebooks and rules that it was made with, and made again when one of them is another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .codec import DecoderRuntime, EncoderRuntime, State, for_inference
from .quantizer import PackedQuantizer

Step = Callable[..., tuple[Tensor, State]]
WARM_UP_RUNS = 3  # before a recording, so that libraries have chosen their kernels; as PyTorch's documentation does


class StreamSteps:
    """The two steps of one stream.

    Args:
        num_quantizers: Codebooks to encode to.
        records: Replay steps of one frame as CUDA graphs.
        silent: The code of a row that has no frame.
    """

    def __init__(self, num_quantizers: int, records: bool, silent: int):
        self.num_quantizers, self.records, self.silent = num_quantizers, records, silent
        self._recorded: dict[tuple[str, int], Recording] = {}

    def encode(
        self,
        half: EncoderRuntime,
        quantizer: PackedQuantizer,
        state: State,
        audio: Tensor,
        is_active: Tensor | None,
    ) -> tuple[Tensor, State]:
        """Codes of whole frames, `(batch, num_quantizers, frames)`, and the new state.

        Args:
            half: The encoder.
            quantizer: The packed quantizer.
            state: See `codec`, with the quantizer's in it; it is used up.
            audio: `(batch, channels, frames * frame_size)`.
            is_active: False on rows that pause, `(batch,)`; None if there is none.
        """

        def step(state: State, audio: Tensor, is_active: Tensor | None) -> tuple[Tensor, State]:
            latents, state = half(state, audio, is_active)
            codes, state = quantizer.encode_next(state, latents, self.num_quantizers, is_active)
            return codes if is_active is None else codes.masked_fill(~is_active[:, None, None], self.silent), state

        if not self.records or audio.shape[-1] != half.frame_size:
            return step(state, audio, is_active)
        return self._replay("encode", self.num_quantizers, step, (half, quantizer), state, audio, is_active)

    def decode(
        self,
        half: DecoderRuntime,
        quantizer: PackedQuantizer,
        state: State,
        codes: Tensor,
        is_active: Tensor | None,
    ) -> tuple[Tensor, State]:
        """Audio of frames, `(batch, channels, frames * frame_size)`, and the new state.

        Args:
            half: The decoder.
            quantizer: The packed quantizer.
            state: See `codec`; it is used up.
            codes: `(batch, codebooks, frames)`, in range in active rows.
            is_active: As in `encode`; other rows get silence.
        """

        def step(state: State, codes: Tensor, is_active: Tensor | None) -> tuple[Tensor, State]:
            if is_active is None:
                return half(state, quantizer.decode(codes))
            pauses = ~is_active[:, None, None]
            audio, state = half(state, quantizer.decode(codes.masked_fill(pauses, 0)), is_active)
            return audio.masked_fill(pauses, 0), state

        if not self.records or codes.shape[-1] != 1:
            return step(state, codes, is_active)
        return self._replay("decode", codes.shape[1], step, (half, quantizer), state, codes, is_active)

    def _replay(
        self,
        name: str,
        num_codebooks: int,
        step: Step,
        made_of: tuple[Any, PackedQuantizer],
        state: State,
        given: Tensor,
        is_active: Tensor | None,
    ) -> tuple[Tensor, State]:
        if is_active is None:
            is_active = given.new_ones(len(given), dtype=torch.bool)
        half, quantizer = made_of
        rules = quantizer.residual_weight, given.device
        kept = self._recorded.get((name, num_codebooks))
        if kept is None or kept.half is not half or kept.quantizer is not quantizer or kept.rules != rules:
            kept = Recording(half, quantizer, rules, RecordedStep(step, state, (given, is_active)))
            self._recorded[name, num_codebooks] = kept
        return kept.step(state, given, is_active)


@dataclass(frozen=True)
class Recording:
    """A recorded step and what it was made with."""

    half: Any
    quantizer: PackedQuantizer
    rules: tuple
    step: "RecordedStep"


class RecordedStep:
    """A step whose inputs, state and result each have one place in memory.

    Args:
        step: `(state, *inputs) -> (result, state)`, without host synchronisation.
        state: A state of the shapes that it will get.
        inputs: Inputs of the shapes that it will get.
    """

    @for_inference
    def __init__(self, step: Step, state: State, inputs: Sequence[Tensor]):
        self._inputs = [torch.zeros_like(each) for each in inputs]
        self._state = {name: torch.zeros_like(value) for name, value in state.items()}

        def run() -> Tensor:
            result, after = step(self._state, *self._inputs)
            self._take(after)
            return result

        self._replay, self._result = record(run, inputs[0].device)

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
    """Record a function as a CUDA graph; returns how to replay it, and where its result will be.

    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs": warm up on another stream, then capture.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            result = run()
    return graph.replay, result
