"""Distances between a head's features and a teacher's, over the frames that have a target, and what they are worth.

Masked frames may hold anything, NaN included: they reach neither the value nor the gradient. A teacher's states may
all point much the same way, so that a small distance says nothing: it is to be read beside the distance of the best
constant, which knows nothing of the audio.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2, for the cosine distance; the specification for MSE.
"""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # types of devices


def masked_mse(student: Tensor, teacher: Tensor, target_mask: Tensor) -> Tensor:
    """Mean squared error between two feature sequences, over frames with a target.

    Args:
        student: Features of a head, `(batch, frames, dim)`.
        teacher: Frozen teacher features at the same frame rate, `(batch, frames, dim)`.
        target_mask: True on frames that have a target, `(batch, frames)`.

    Returns:
        Scalar, at least 0; 0 when no frame has a target.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    difference = _masked_difference(student, teacher, target_mask)
    return difference.square().mean(dim=-1).sum() / target_mask.sum().clamp(min=1)


def masked_cosine_distance(student: Tensor, teacher: Tensor, target_mask: Tensor) -> Tensor:
    """Mean cosine distance between two feature sequences, over frames with a target.

    Args:
        student: Features of a head, `(batch, frames, dim)`.
        teacher: Frozen teacher features at the same frame rate, `(batch, frames, dim)`.
        target_mask: True on frames that have a target, `(batch, frames)`.

    Returns:
        Scalar in [0, 2]; 0 when every such frame points the same way, and when no frame has a target.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    _check_shapes(student, teacher, target_mask)
    hole = ~target_mask[:, :, None]
    similarity = torch.nn.functional.cosine_similarity(
        student.float().masked_fill(hole, 1.0), teacher.detach().float().masked_fill(hole, 1.0), dim=-1
    )
    return ((1.0 - similarity) * target_mask).sum() / target_mask.sum().clamp(min=1)


def masked_distance(kind: str, student: Tensor, teacher: Tensor, target_mask: Tensor) -> Tensor:
    """The distance named `"mse"` or `"cosine"`; see the two functions above."""
    return {"mse": masked_mse, "cosine": masked_cosine_distance}[kind](student, teacher, target_mask)


@torch.no_grad()
def target_sums(kind: str, teacher: Tensor, target_mask: Tensor) -> Tensor:
    """What `constant_distance` needs to know of a batch's targets; sums of several batches may be added.

    Args:
        kind: `"mse"` or `"cosine"`.
        teacher: `(batch, frames, dim)`.
        target_mask: True on frames that have a target, `(batch, frames)`.

    Returns:
        `(dim + 2,)`, float64: the sum of the targets (for cosine, of their directions), of squares, and the number. On
        the teacher's device, or on the CPU where that knows no float64.
    """
    if teacher.device.type in WITHOUT_FLOAT64:
        teacher, target_mask = teacher.cpu(), target_mask.cpu()
    targets = teacher.masked_fill(~target_mask[:, :, None], 0.0).double().flatten(0, 1)
    if kind == "cosine":
        targets = torch.nn.functional.normalize(targets, dim=-1)
    return torch.cat([targets.sum(dim=0), targets.square().sum()[None], target_mask.sum().double()[None]])


def constant_distance(kind: str, sums: Tensor, fitted_on: Tensor | None = None) -> float:
    """The mean distance of a constant to the targets that were summed; what a head must be below.

    Args:
        kind: `"mse"` or `"cosine"`.
        sums: Of `target_sums`, over any number of batches.
        fitted_on: Of other targets, whose mean (for cosine, mean direction) the constant is; None: of the same, which
            no constant can beat.

    Returns:
        NaN if there are no targets.
    """
    fitted_on = sums if fitted_on is None else fitted_on
    count = sums[-1].item()
    if count == 0 or fitted_on[-1] == 0:
        return float("nan")
    constant, mean = fitted_on[:-2] / fitted_on[-1], sums[:-2] / count
    if kind == "cosine":
        return 1.0 - (torch.nn.functional.normalize(constant, dim=0) @ mean).item()
    return (sums[-2] / count - 2 * constant @ mean + constant @ constant).item() / len(mean)


def _masked_difference(student: Tensor, teacher: Tensor, target_mask: Tensor) -> Tensor:
    _check_shapes(student, teacher, target_mask)
    hole = ~target_mask[:, :, None]
    return student.float().masked_fill(hole, 0.0) - teacher.detach().float().masked_fill(hole, 0.0)


def _check_shapes(student: Tensor, teacher: Tensor, target_mask: Tensor) -> None:
    if student.shape != teacher.shape or student.shape[:2] != target_mask.shape:
        raise ValueError(
            f"student, teacher and target_mask must be (batch, frames, dim) twice and (batch, frames), got "
            f"{tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(target_mask.shape)}; bring the teacher to the "
            "codec's frames and the projection's size."
        )
