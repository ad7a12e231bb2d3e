"""Runs the layers at audio rate a few steps at a time, and several such spans of a recording side by side.

What lies between these layers then stays in a CPU's cache. With several threads, each takes a span of the recording
through all its pieces and all layers. Dividing every operation among the threads instead would have them wait for each
other at thousands of ends of small operations; where other programs want the same processors, that takes longer than
one thread alone.

A span begins where the one before has not yet come to. The layers are causal, so the steps that they can still reach
back to tell all that their tails must hold: these few are computed twice.
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from threading import Barrier

import torch
from torch import Tensor

from .time_major import Convolution, Layer, Residual, Upsampling, run

MAX_NUMBERS = 2**19  # between two layers, of a piece: 2 MiB in float32, what a core's own cache may hold


@dataclass(frozen=True)
class WaveformLayers:
    """The layers at audio rate as one layer, which `time_major.run` takes; see above.

    Attributes:
        layers: First to last.
        frame_steps: Steps of their input in a frame; pieces are whole frames.
        out_channels: Channels of their output.
    """

    layers: Sequence[Layer]
    frame_steps: int
    out_channels: int

    @cached_property
    def steps_out(self) -> Fraction:
        """Steps of the output for one of the input."""
        return math.prod(
            (Fraction(each.upsampling, each.stride) for each, _ in with_rates(self.layers)), start=Fraction(1)
        )

    @cached_property
    def piece_steps(self) -> int:
        """Steps of a piece."""
        numbers = max((each.in_channels * rate for each, rate in with_rates(self.layers)), default=1)  # of a step
        return max(1, int(MAX_NUMBERS / (numbers * self.frame_steps))) * self.frame_steps

    @cached_property
    def reached_steps(self) -> int:
        """Steps of the input that the layers reach back, filled up to what gives a whole step of the output."""
        reached = sum(each.tail_steps / rate for each, rate in with_rates(self.layers))
        return math.ceil(reached / self.steps_out.denominator) * self.steps_out.denominator

    def __call__(self, x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
        """As `time_major.Convolution`, but the input's memory may be written over.

        One frame, and elsewhere than on a CPU all, are run at once.
        """
        in_pieces = x.device.type == "cpu" and (len(x) > 1 or x.shape[1] > self.frame_steps)
        if in_pieces and not torch.compiler.is_compiling():  # an exported program would repeat the layers for each
            return self._run_in_pieces(x, tails, is_first)
        return run(self.layers, x, tails, is_first)

    def _run_in_pieces(self, x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
        # Row by row and a piece at a time, on as many threads as torch has.
        num_threads, num_steps = torch.get_num_threads(), x.shape[1]
        out = x.new_empty(len(x), int(num_steps * self.steps_out), self.out_channels)
        spans_a_row = math.ceil(num_threads / len(x))
        span_steps = math.ceil(num_steps / self.frame_steps / spans_a_row) * self.frame_steps

        def span(row: int, start: int) -> tuple:
            rows, end = slice(row, row + 1), min(num_steps, start + span_steps)
            return (
                x[rows, max(0, start - self.reached_steps) : start].clone(),  # which the span before may write over
                x[rows, start:end].split(self.piece_steps, dim=1),
                tails[rows] if end == num_steps else tails[rows].clone(),
                is_first[rows] if is_first is not None and start <= self.reached_steps else None,
                out[rows, int(start * self.steps_out) : int(end * self.steps_out)],
            )

        spans = [span(row, start) for row in range(len(x)) for start in range(0, num_steps, span_steps)]
        where = map if num_threads == 1 or len(spans) == 1 else _threads(num_threads).map
        for _ in where(self._run_span, *zip(*spans, strict=True)):
            pass
        return out

    @torch.no_grad()  # in threads of their own, too
    def _run_span(
        self, before: Tensor, pieces: Sequence[Tensor], tails: Tensor, is_first: Tensor | None, out: Tensor
    ) -> None:
        filled = 0
        if before.shape[1]:
            run(self.layers, before, tails, is_first)
            is_first = None
        for piece in pieces:
            result = run(self.layers, piece, tails, is_first)
            out[:, filled : filled + result.shape[1]] = result
            filled += result.shape[1]
            is_first = None


def with_rates(layers: Sequence[Layer]) -> Iterator[tuple[Convolution | Upsampling, Fraction]]:
    """Convolutions in order, each with its input's steps for a step of the first one's."""
    rate = Fraction(1)
    for layer in layers:
        for each in layer.convolutions if isinstance(layer, Residual) else [layer]:
            yield each, rate
            rate *= Fraction(each.upsampling, each.stride)


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    """Threads for spans, in each of which torch's operations stay in one."""
    pool, have_begun = ThreadPoolExecutor(number, "mimi_bridge"), Barrier(number)

    def begin(_: int) -> None:
        torch.set_num_threads(1)  # of this thread, and of those that begin after it
        have_begun.wait()

    list(pool.map(begin, range(number)))
    torch.set_num_threads(number)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child process has none of its parent's threads
