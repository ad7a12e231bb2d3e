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
from fractions import Fraction
from functools import cache
from threading import Barrier

import torch
from torch import Tensor

from .time_major import Convolution, Layer, Residual, Upsampling, run

MAX_NUMBERS = 2**19  # between two layers, of a piece: 2 MiB in float32, what a core's own cache may hold


def run_in_pieces(
    layers: Sequence[Layer], x: Tensor, tails: Tensor, is_first: Tensor | None, frame_steps: int, out: Tensor
) -> None:
    """As `time_major.run`, row by row and a few steps at a time, on as many threads as torch has.

    Args:
        layers: The layers.
        x: `(batch, steps, channels)`; its memory may be written over.
        tails: See `time_major.Convolution`.
        is_first: See `time_major.Convolution`.
        frame_steps: Steps of the input in a frame; pieces are whole frames.
        out: Where the result goes, `(batch, steps of the output, channels)`; any strides.
    """
    num_threads, num_steps, steps_out = torch.get_num_threads(), x.shape[1], out.shape[1]
    spans_a_row = math.ceil(num_threads / len(x))
    span_steps = math.ceil(num_steps / frame_steps / spans_a_row) * frame_steps
    piece_steps = _steps_at_once(layers, frame_steps)
    reached = _reached_steps(layers)

    def span(row: int, start: int) -> tuple:
        rows, end = slice(row, row + 1), min(num_steps, start + span_steps)
        return (
            x[rows, max(0, start - reached) : start].clone(),  # which the span before may write over
            x[rows, start:end].split(piece_steps, dim=1),
            tails[rows] if end == num_steps else tails[rows].clone(),
            is_first[rows] if is_first is not None and start <= reached else None,
            out[rows, start * steps_out // num_steps : end * steps_out // num_steps],
        )

    @torch.no_grad()  # in threads of their own, too
    def run_span(
        before: Tensor, pieces: Sequence[Tensor], tails: Tensor, is_first: Tensor | None, out: Tensor
    ) -> None:
        filled = 0
        if before.shape[1]:
            run(layers, before, tails, is_first)
            is_first = None
        for piece in pieces:
            result = run(layers, piece, tails, is_first)
            out[:, filled : filled + result.shape[1]] = result
            filled += result.shape[1]
            is_first = None

    spans = [span(row, start) for row in range(len(x)) for start in range(0, num_steps, span_steps)]
    where = map if num_threads == 1 or len(spans) == 1 else _threads(num_threads).map
    for _ in where(run_span, *zip(*spans, strict=True)):
        pass


def _steps_at_once(layers: Sequence[Layer], frame_steps: int) -> int:
    """Steps of a piece, those of one or more whole frames, `frame_steps` each of the input."""
    numbers = max((each.in_channels * rate for each, rate in _with_rates(layers)), default=1)  # of a step of the input
    return max(1, int(MAX_NUMBERS / (numbers * frame_steps))) * frame_steps


def _reached_steps(layers: Sequence[Layer]) -> int:
    """Steps of the input that the layers reach back, filled up to what gives a whole step of the output."""
    reached, end = Fraction(0), Fraction(1)
    for each, rate in _with_rates(layers):
        reached += each.tail_steps / rate
        end = rate * Fraction(each.upsampling, each.stride)
    return math.ceil(reached / end.denominator) * end.denominator


def _with_rates(layers: Sequence[Layer]) -> Iterator[tuple[Convolution | Upsampling, Fraction]]:
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
