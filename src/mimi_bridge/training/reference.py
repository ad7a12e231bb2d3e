"""The original Mimi's quantizer, kept while the heads that came from it are trained.

What its prosody and acoustic heads made of the latents, both fed the latents themselves, is what the frozen decoder
was trained for: the quantized latents are held near it. And it tells how far transplanted codebooks have drifted.
"""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from ..heads import QuantizerHead
from ..quantizer import CausalBridgeQuantizer

TRANSPLANTED = ("prosody", "acoustic")


class Reference(nn.Module):
    """A frozen copy of a quantizer's prosody and acoustic heads.

    Args:
        quantizer: Its heads are copied as they are.
    """

    def __init__(self, quantizer: CausalBridgeQuantizer):
        super().__init__()
        copies = {name: deepcopy(quantizer.heads[name]) for name in TRANSPLANTED}
        for copy in copies.values():
            copy.learner = None
        self.heads = nn.ModuleDict(copies)
        self.eval().requires_grad_(False)
        self.is_original = is_fresh(quantizer)

    def train(self, mode: bool = True):
        """Stays in eval mode: its codebooks never move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, latents: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The quantized latents of Mimi's parallel split, `(batch, frames, codec_dim)`, zero on masked frames."""
        prosody, acoustic = (self.heads[name](latents, frame_mask).quantized for name in TRANSPLANTED)
        return prosody + acoustic

    @torch.no_grad()
    def drift(self, quantizer: CausalBridgeQuantizer) -> dict[str, float]:
        """How far each head's entries have moved, relative to their length: 0 is not at all, 1 as far as they are."""
        distances = {}
        for name in TRANSPLANTED:
            original = cast(QuantizerHead, self.heads[name])
            pairs = zip(quantizer.heads[name].codebooks, original.codebooks, strict=True)
            moved = [(now - then).square().sum() / then.square().sum().clamp(min=1e-12) for now, then in pairs]
            distances[name] = torch.stack(moved).mean().sqrt().item()
        return distances


def is_fresh(quantizer: CausalBridgeQuantizer) -> bool:
    """Whether a quantizer is as the conversion left it: its content head still silent."""
    return not bool(quantizer.head_content.project_out.weight.any())
