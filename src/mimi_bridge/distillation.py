"""Distances between a head's features and a teacher's, over the frames that have a target.

Masked frames may hold anything, NaN included: they reach neither the value nor the gradient.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2, for the cosine distance; the specification for MSE.
"""

import torch
from torch import Tensor


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
