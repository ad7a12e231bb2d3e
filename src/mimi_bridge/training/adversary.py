"""A discriminator beside the model: adversarial and feature matching loss, its optimizer, its part of a checkpoint."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..losses.adversarial import (
    MultiScaleSpectrogramDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)

LEARNING_RATE = 3e-4
BETAS = (0.8, 0.99)
QUIETEST = 1e-3  # what is scored is brought to one rms, but silence is not


class Adversary:
    """Scores decoded audio, and learns once a step from all that it scored.

    Args:
        num_filters: The discriminator's width.
        seed: Of its weights, the same on every process.
        accelerator: Device and processes.
    """

    def __init__(self, num_filters: int, seed: int, accelerator: Accelerator):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = MultiScaleSpectrogramDiscriminator(num_filters).to(accelerator.device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=LEARNING_RATE, betas=BETAS)
        self._accelerator = accelerator

    def losses(self, audio: Tensor, decoded: Tensor, share: float, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The codec's losses, scalars: `adversarial` and `features`, each recording by its length.

        The discriminator keeps what it scored for its next step.

        Args:
            audio: The original, `(batch, 1, samples)`.
            decoded: Of the same shape.
            share: Of the step's audio that this is.
            lengths: Real samples of each recording, `(batch,)`; what is beyond is not scored. None: all.
        """
        found: dict[str, Tensor] = {}
        rows_by_length = _rows_by_length(audio, lengths)
        total = sum(length * len(rows) for length, rows in rows_by_length.items())
        with torch.autocast(audio.device.type, enabled=False):  # losses are computed in float32
            for length, rows in rows_by_length.items():
                own = length * len(rows) / total
                real, made = (sound[rows, :, :length].float() for sound in (audio, decoded))
                for name, loss in self._losses_of_one_length(real, made, share * own).items():
                    found[name] = found.get(name, 0.0) + own * loss
        return found

    def _losses_of_one_length(self, audio: Tensor, decoded: Tensor, share: float) -> dict[str, Tensor]:
        rms = audio.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=QUIETEST)
        audio, decoded = audio / rms, decoded / rms
        real, fake = self.discriminator(audio), self.discriminator(decoded.detach())
        (share * discriminator_loss(real, fake)).backward()
        self.discriminator.requires_grad_(False)
        scored = self.discriminator(decoded)
        self.discriminator.requires_grad_(True)
        return {"adversarial": adversarial_loss(scored), "features": feature_matching_loss(real, scored)}

    def step(self) -> None:
        """Learn from everything scored since the last step, on all processes; from nothing, nothing."""
        parameters = list(self.discriminator.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if self._accelerator.num_processes > 1:
            flat = self._accelerator.reduce(nn.utils.parameters_to_vector(gradients), "sum")
            nn.utils.vector_to_parameters(flat, gradients)
        if not any(bool(gradient.any()) for gradient in gradients):
            return  # AdamW would move the weights by its averages and its decay
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def _rows_by_length(audio: Tensor, lengths: Tensor | None) -> dict[int, list[int]]:
    """Places of a batch's recordings by their length in samples; empty ones are left out."""
    widths = [audio.shape[-1]] * len(audio) if lengths is None else lengths.tolist()
    places: dict[int, list[int]] = {}
    for place, length in enumerate(widths):
        if length > 0:
            places.setdefault(length, []).append(place)
    return places
