"""The losses of a step of training a codec: of what it decodes, of what its latents know, and a discriminator's.

Source: Moshi technical report (arXiv:2410.00037), section 3.3; Defossez et al. 2022 (arXiv:2210.13438).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mimi_bridge.distillation import masked_cosine_distance
from mimi_bridge.losses.adversarial import adversarial_loss, balanced_gradient, feature_matching_loss
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance

from .codec import CodecOutput
from .corpus import CropBatch
from .harmonics import harmonic_distance
from .pitch_target import PitchReader

ADVERSARIAL_WEIGHTS = {"distance": 2.0, "adversarial": 1.0, "features": 2.0}
DISTANCES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mel": multi_scale_mel_distance,
    "harmonics": harmonic_distance,
}


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss.

    Attributes:
        distances: Of the decoded audio from the original, by name, among `DISTANCES`; others are not computed.
        labels: Of the cross-entropy of phones, read from the first codebook.
        teacher: Of the distance to a speech model's features, in their place.
        pitch: Of pitch and voicing, predicted from the latents.
        commitment: Of the distance of latents from their entries.
    """

    distances: Mapping[str, float] = field(default_factory=lambda: {"mel": 1.0, "harmonics": 1.0})
    labels: float = 0.4
    teacher: float = 1.0
    pitch: float = 0.5
    commitment: float = 0.25

    def of_distances(self, distances: Mapping[str, Tensor]) -> Tensor:
        """Their weighted sum."""
        return torch.stack([self.distances[name] * distance for name, distance in distances.items()]).sum()


def audio_distances(decoded: Tensor, audio: Tensor, sampling_rate: int, weights: LossWeights) -> dict[str, Tensor]:
    """Of decoded audio from the original, both `(batch, 1, samples)`, those that have a weight, by name."""
    return {name: DISTANCES[name](decoded, audio, sampling_rate) for name in weights.distances}


def latents_losses(
    output: CodecOutput, batch: CropBatch, pitch_reader: PitchReader | None, weights: LossWeights
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses that do not depend on the decoded audio, by name, and their weighted sum."""
    losses = {}
    if batch.features is not None:
        losses["teacher"] = masked_cosine_distance(output.readout, batch.features, torch.ones_like(batch.labelled))
    else:
        cross_entropy = nn.functional.cross_entropy(
            output.readout.transpose(1, 2), batch.label_shares.transpose(1, 2), reduction="none"
        )
        losses["labels"] = (cross_entropy * batch.labelled).sum() / batch.labelled.sum().clamp(min=1)
    if pitch_reader is not None:
        losses["pitch"] = pitch_reader.loss(output.latents, batch.pitch, batch.voiced)
    if output.commitment is not None:
        losses["commitment"] = output.commitment
    weighted = output.latents.sum() * 0.0
    for name, loss in losses.items():
        weighted = weighted + getattr(weights, name) * loss
    return losses, weighted


def balanced_losses(
    real: list, fake: list, distance: Tensor, decoded: Tensor, with_discriminator: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """A discriminator's losses of the decoded audio, and the gradient at it of these and of its distance, balanced.

    Args:
        real: What the discriminator makes of the original.
        fake: Of the decoded audio.
        distance: Weighted, of the decoded audio from the original; a scalar.
        decoded: The audio, a leaf.
        with_discriminator: False gives the gradient of the distance alone.
    """
    losses = {"adversarial": adversarial_loss(fake), "features": feature_matching_loss(real, fake)}
    counted = {"distance": distance} | (losses if with_discriminator else {})
    return losses, balanced_gradient(counted, ADVERSARIAL_WEIGHTS, decoded, scale_of="distance")
