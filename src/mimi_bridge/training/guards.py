"""When training must stop: a loss that is no number, a codebook that is not used.

What was saved before stays sound.
"""

import math

import torch
from torch import Tensor

from .metrics import TrainingMetrics
from .terms import BLAME, Term

CERTAIN_COLLAPSE = 1.5  # a perplexity that no codebook may have, however small it is
STILL_SOUND = "the checkpoints written so far are sound."


class HeadCollapsedError(RuntimeError):
    """A codebook that learns uses hardly any of its entries."""


def raise_if_not_finite(terms: dict[str, Term], step: int) -> None:
    """Refuse a batch whose losses are not all finite, before anything has changed by it.

    Raises:
        FloatingPointError: Naming the step, the loss and the head.
    """
    values = torch.stack([term.value.detach().float() for term in terms.values()])
    if bool(torch.isfinite(values).all()):
        return
    name = next(name for name, term in terms.items() if not bool(torch.isfinite(term.value)))
    raise FloatingPointError(
        f"step {step}: the loss {name} of the {BLAME.get(name, 'whole model')} is not finite. Lower the learning "
        f"rate, or look for broken recordings or teachers; {STILL_SOUND}"
    )


def raise_if_nothing_learns(loss: Tensor, rates: dict[str, float]) -> None:
    """Refuse a batch whose losses reach nothing that learns, such as latents where the decoder alone does.

    Raises:
        ValueError: Naming the parts that have a rate.
    """
    if not loss.requires_grad:
        learning = ", ".join(part for part, rate in rates.items() if rate > 0)
        raise ValueError(
            f"no loss of this batch reaches what learns ({learning}); the decoder learns from audio, where mel_weight "
            "or adversarial_weight has a weight. Use a data set of audio, or give other parts a rate in "
            "head_learning_rates."
        )


def raise_if_gradient_not_finite(norm: float, step: int) -> None:
    """Refuse a step whose gradient is not finite.

    Raises:
        FloatingPointError: Naming the step.
    """
    if not bool(torch.isfinite(torch.as_tensor(norm))):
        raise FloatingPointError(
            f"step {step}: the gradient is not finite. Lower the learning rate, or look for broken recordings; "
            f"{STILL_SOUND}"
        )


def raise_if_worker_died(error: RuntimeError) -> None:
    """Say what to do where a process that makes batches was killed.

    Raises:
        ChildProcessError: If that is what the error says.
    """
    if "DataLoader worker" in str(error):
        raise ChildProcessError(
            "a data loader's worker died, perhaps for want of memory; go on with --resume_from_checkpoint True, and "
            f"fewer --dataloader_num_workers or a smaller --shuffle_buffer: {STILL_SOUND}"
        ) from error


def raise_if_collapsed(
    metrics: TrainingMetrics, levels: dict[str, range], share: float, step: int, num_frames: float = math.inf
) -> None:
    """Refuse to go on with a codebook whose codes have hardly any perplexity left.

    Args:
        metrics: Of many frames; with fewer than a codebook has entries, nothing is said.
        levels: Of each head that learns, by name, the numbers of its codebooks.
        share: Least perplexity, of the codebook's size; 0 never refuses.
        step: For the message.
        num_frames: Frames of the whole data set: a codebook can use no more entries than these.

    Raises:
        HeadCollapsedError: Naming the step and the head.
    """
    size = metrics.code_counts.shape[1]
    possible = min(size, num_frames)
    if share == 0 or metrics.code_counts[0].sum() < size:
        return
    perplexity = metrics.perplexity()
    for name, numbers in levels.items():
        for number in numbers:
            if perplexity[number] < max(CERTAIN_COLLAPSE, share * possible):
                raise HeadCollapsedError(
                    f"step {step}: the {name} head collapsed: codebook {number} uses its {size} entries with a "
                    f"perplexity of {perplexity[number]:.1f}. Lower its learning rate, or raise commitment_weight; "
                    f"{STILL_SOUND}"
                )
