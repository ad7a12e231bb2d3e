"""Pitch predicted from a codec's latents, a training target that makes the latents carry pitch.

The network that predicts it is not part of the trained codec.
"""

import torch
from torch import Tensor, nn

MIDDLE_OCTAVE = 7.3  # over 1 Hz: 158 Hz, between the voices of women and men


class PitchReader(nn.Module):
    """A small causal network from latents to pitch and voicing.

    Args:
        dim: Of the latents.
        hidden_size: Of its layer.
        num_frames: Its receptive field: each frame and those before.
    """

    def __init__(self, dim: int, hidden_size: int = 64, num_frames: int = 3):
        super().__init__()
        self.see = nn.Conv1d(dim, hidden_size, num_frames)
        self.tell = nn.Conv1d(hidden_size, 2, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents `(batch, frames, dim)` -> octaves over 1 Hz, and log odds of voicing, `(batch, frames)` each."""
        past = self.see.kernel_size[0] - 1
        hidden = self.see(nn.functional.pad(latents.transpose(1, 2), (past, 0)))
        octaves, odds = self.tell(nn.functional.gelu(hidden)).unbind(dim=1)
        return octaves + MIDDLE_OCTAVE, odds

    def loss(self, latents: Tensor, pitch: Tensor, voiced: Tensor) -> Tensor:
        """Cross-entropy of voicing plus the mean absolute error in octaves where speech is voiced, a scalar.

        Args:
            latents: `(batch, frames, dim)`.
            pitch: Octaves over 1 Hz, `(batch, frames)`; ignored where nothing is voiced.
            voiced: Voiced share of each frame, `(batch, frames)`; NaN where it is unknown.
        """
        octaves, odds = self(latents)
        known = ~voiced.isnan()
        share = torch.where(known, voiced, 0.0)
        crossed = nn.functional.binary_cross_entropy_with_logits(odds, share, reduction="none")
        missed = ((octaves - pitch).abs() * share).sum() / share.sum().clamp(min=1.0)
        return (crossed * known).sum() / known.sum().clamp(min=1) + missed
