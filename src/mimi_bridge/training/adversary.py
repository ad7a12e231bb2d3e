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

    def losses(self, audio: Tensor, decoded: Tensor, share: float) -> dict[str, Tensor]:
        """The codec's losses, scalars: `adversarial` and `features`.

        The discriminator keeps what it scored for its next step.

        Args:
            audio: The original, `(batch, 1, samples)`.
            decoded: Of the same shape.
            share: Of the step's audio that this is.
        """
        with torch.autocast(audio.device.type, enabled=False):  # losses are computed in float32
            audio, decoded = audio.float(), decoded.float()
            rms = audio.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=QUIETEST)
            audio, decoded = audio / rms, decoded / rms
            real, fake = self.discriminator(audio), self.discriminator(decoded.detach())
            (share * discriminator_loss(real, fake)).backward()
            self.discriminator.requires_grad_(False)
            scored = self.discriminator(decoded)
            self.discriminator.requires_grad_(True)
            real_scores = [(score.detach(), [feature.detach() for feature in features]) for score, features in real]
            return {"adversarial": adversarial_loss(scored), "features": feature_matching_loss(real_scores, scored)}

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
