"""A bridge: the linear map from a head's latents to a teacher's space, and how far it is from the teacher.

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

from .distillation import masked_distance, target_sums
from .offloading import brings_weights
from .quantizer_settings import change_setting, setting

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

    @brings_weights
    def compare(self, latents: Tensor, targets: Tensor, target_mask: Tensor) -> TeacherDistance:
        """Distance of the mapped latents from a teacher.

        Args:
            latents: `(batch, frames, codec_dim)`.
            targets: The teacher's vectors, `(batch, frames, teacher_dim)`; anything on frames without a target.
            target_mask: True on frames that have a target, `(batch, frames)`.
        """
        standard = self.standardise(targets.masked_fill(~target_mask[:, :, None], 0.0))
        loss = masked_distance(self.distance, self(latents), standard, target_mask)
        return TeacherDistance(loss, target_mask.sum(), target_sums(self.distance, standard, target_mask))
