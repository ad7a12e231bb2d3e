"""The codebooks of a run: which of them learn and how fast, and how they move once a step, on all processes alike."""

from collections.abc import Mapping
from typing import cast

import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes, reduce
from torch import Tensor

from ..codebook import CodebookLearner
from ..quantizer import CausalBridgeQuantizer
from .codebooks import revive_unused_from


def install_learners(
    quantizer: CausalBridgeQuantizer,
    rates: Mapping[str, float],
    usual: float,
    update: str = "ema",
    decay: float | None = None,
) -> None:
    """Let the heads that have a rate leave their codebooks to `move_codebooks`.

    Args:
        quantizer: Whose heads they are.
        rates: Of every part.
        usual: The rate at which a head forgets by the decay; 0: the highest one.
        update: How codebooks move, `"ema"` or `"gradient"`.
        decay: Of the moving averages; None: the quantizer's.

    Raises:
        ValueError: If a head would forget all in less than a step.
    """
    decay = quantizer.codebook_decay if decay is None else decay
    usual = usual or max(rates.values())  # all rates were given by name
    for name, head in quantizer.heads.items():
        speed = (1 - decay) * rates[name] / usual
        if update == "ema" and speed > 1:
            raise ValueError(
                f"{name} learns at {rates[name] / usual:g} times learning_rate, so its codebooks would forget all in "
                "less than a step; raise learning_rate or codebook_decay, or set codebook_update to gradient."
            )
        if rates[name] > 0:
            head.learner = CodebookLearner(head.vq_codebooks, update, max(0.0, 1 - speed))


def remove_learners(quantizer: CausalBridgeQuantizer) -> None:
    """Let the heads move their codebooks themselves again, at every forward in training mode."""
    for head in quantizer.heads.values():
        head.learner = None


def move_codebooks(
    quantizer: CausalBridgeQuantizer, step: int, seed: int, revive_every: int, revive_below: float
) -> None:
    """Move every codebook that learns by what the step asked of it, on all processes; see `CodebookUpdates`."""
    for name, head in quantizer.heads.items():
        learner = head.learner
        if learner is None:
            continue
        learner.apply_update(cast(Tensor, reduce(learner.statistics(), "sum")))
        if name == "content" and revive_every and (step + 1) % revive_every == 0:
            inputs = _gathered_rows(torch.cat(learner.inputs))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            revive_unused_from(head, inputs, generator, revive_below)
        learner.reset()


def learning_codebooks(quantizer: CausalBridgeQuantizer) -> dict[str, range]:
    """The numbers of the codebooks that learn, by head."""
    levels, first = {}, 0
    for name, head in quantizer.heads.items():
        last = first + len(head.codebooks)
        if head.learner is not None:
            levels[name] = range(first, last)
        first = last
    return levels


def _gathered_rows(rows: Tensor) -> Tensor:
    # Rows of all processes, in their order.
    if PartialState().num_processes == 1:
        return rows
    counts = cast(Tensor, gather(torch.tensor([len(rows)], device=rows.device)))
    padded = cast(Tensor, gather(pad_across_processes(rows)))
    blocks = padded.view(len(counts), -1, rows.shape[-1])
    return torch.cat([block[: int(count)] for block, count in zip(blocks, counts, strict=True)])
