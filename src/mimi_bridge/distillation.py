"""Distances between a head's features and a teacher's, over the frames that have a target, and what they are worth.

Masked frames may hold anything, NaN included: they reach neither the value nor the gradient. A teacher's states may
all point much the same way, so that a small distance says nothing: it is to be read beside the distance of the best
constant, which knows nothing of the audio.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2, for the cosine distance; the specification for MSE.

A bridge: the linear map from a head's latents to a teacher's space, and how far it is from the teacher.

A language model's states have a few huge dimensions that would swallow a squared error. So the bridge leads to the
*standardised* teacher, each dimension with mean 0 and deviation 1, and holds the statistics that lead back. They are
part of the checkpoint; a new bridge has mean 0 and deviation 1, which leaves the teacher as it is.

Source: the specification's `proj_qwen` and `proj_wavlm`.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_mimi_bridge import change_setting, setting
from .offloading import brings_weights

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


STD_FLOOR = 1e-4  # of the middle dimension's deviation: a dimension below it does not vary
ROUNDING = 1e-6  # of a dimension's mean: a deviation below it is float32's rounding


@dataclass
class TeacherDistance(ModelOutput):
    """How far a head is from a teacher; tensors alone, so that whatever carries a model's output carries this.

    Args:
        loss: Mean distance over the frames that have a target, a scalar; 0 if there is none.
        num_frames: Frames that have a target, a scalar.
        target_sums: Of the standardised targets; see `distillation.target_sums`.
    """

    # A `ModelOutput` may require its first field alone, since a dictionary can take the place of all.
    loss: Tensor
    num_frames: Tensor = None  # type: ignore[assignment]
    target_sums: Tensor = None  # type: ignore[assignment]


class TeacherBridge(nn.Linear):
    """A linear map to a standardised teacher.

    Args:
        codec_dim: Size of the latents.
        teacher_dim: Size of the teacher's vectors.
        name: What the caller calls the teacher's vectors, for messages.
        distance: `"mse"` or `"cosine"`. May be changed at any time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, codec_dim: int, teacher_dim: int, name: str, distance: str):
        super().__init__(codec_dim, teacher_dim)
        self.name, self.teacher = name, name.split("_")[0]
        self.settings: Any = SimpleNamespace()
        self.distance = distance
        self.register_buffer("mean", torch.zeros(teacher_dim, dtype=torch.float32))
        self.register_buffer("std", torch.ones(teacher_dim, dtype=torch.float32))

    @property
    def read_modules(self) -> tuple[nn.Module, ...]:
        """The modules whose tensors the methods read."""
        return (self,)

    def check(self, features: Tensor) -> None:
        """Refuse a teacher of another size.

        Raises:
            ValueError: If `features` are not `(batch, length, teacher_dim)`.
        """
        if features.ndim != 3 or features.shape[-1] != self.out_features:
            raise ValueError(
                f"{self.name} must be (batch, length, {self.out_features}) for this model, got "
                f"{tuple(features.shape)}; set the config's {self.teacher}_dim to your teacher's hidden "
                "size."
            )

    @property
    def has_statistics(self) -> bool:
        """Whether it knows its teacher's mean and deviation; a new one has 0 and 1."""
        return bool(self.mean.any()) or bool((self.std != 1).any())

    @property
    def distance(self) -> str:
        """`"mse"` or `"cosine"`."""
        return setting(self.settings, f"{self.teacher}_distance")

    @distance.setter
    def distance(self, value: str) -> None:
        change_setting(self.settings, f"{self.teacher}_distance", value)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the teacher's mean and standard deviation, each `(teacher_dim,)`.

        A dimension that does not vary has a scale of 1, as in scikit-learn's `StandardScaler`: divided by next to
        nothing, a later value beside its mean would outweigh all other dimensions.

        Raises:
            ValueError: If they are of another size, not finite, or a deviation is negative.
        """
        mean, std = mean.to(self.mean), std.to(self.std)
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.out_features,) or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"the {name} of {self.name} must be {self.out_features} finite numbers, got shape "
                    f"{tuple(value.shape)}; compute it over the targets that you train on."
                )
        if bool((std < 0).any()):
            raise ValueError(f"the std of {self.name} must be at least 0, got {float(std.min()):g}; is it the mean?")
        is_constant = std <= torch.maximum(STD_FLOOR * std.median(), ROUNDING * mean.abs())
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(is_constant, 1.0))

    def standardise(self, features: Tensor) -> Tensor:
        """The teacher's vectors with mean 0 and deviation 1, float32."""
        return (features.float() - self.mean) / self.std

    @brings_weights
    def to_teacher(self, latents: Tensor) -> Tensor:
        """What latents `(batch, frames, codec_dim)` say in the teacher's own space, `(batch, frames, teacher_dim)`."""
        std, mean = self.std, self.mean  # before the call, which puts offloaded ones away again
        return self(latents) * std + mean

    def compare(self, latents: Tensor, targets: Tensor, target_mask: Tensor) -> TeacherDistance:
        """Distance of the mapped latents from a teacher.

        Args:
            latents: `(batch, frames, codec_dim)`.
            targets: The teacher's vectors, `(batch, frames, teacher_dim)`; anything on frames without a target.
            target_mask: True on frames that have a target, `(batch, frames)`.
        """
        return self.compare_predicted(self(latents), targets, target_mask)

    @brings_weights
    def compare_predicted(self, predicted: Tensor, targets: Tensor, target_mask: Tensor) -> TeacherDistance:
        """As `compare`, for standardised vectors that something else predicted, `(batch, frames, teacher_dim)`."""
        standard = self.standardise(targets.masked_fill(~target_mask[:, :, None], 0.0))
        loss = masked_distance(self.distance, predicted, standard, target_mask)
        return TeacherDistance(loss, target_mask.sum(), target_sums(self.distance, standard, target_mask))
