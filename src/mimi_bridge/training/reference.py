"""The anchor: the quantizer as it was when training began, kept while its heads are trained.

In a freshly converted model that is the original Mimi: what its prosody and acoustic heads made of the latents, both
fed the latents themselves, is what the frozen decoder was trained for. In a model that was trained before, it is that
model's own chain. The quantized latents are held near it. And it tells how far transplanted codebooks have drifted.
"""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from ..frames import RealFrames
from ..heads import QuantizerHead, contexts_of, with_context
from ..quantizer import CausalBridgeQuantizer

TRANSPLANTED = ("prosody", "acoustic")


class Reference(nn.Module):
    """A frozen copy of a quantizer's heads.

    Args:
        quantizer: Its heads are copied as they are.

    Attributes:
        is_original: Whether these are the original Mimi's, beside a content head that is silent.
        residual_weight: The quantizer's λ.
    """

    def __init__(self, quantizer: CausalBridgeQuantizer):
        super().__init__()
        copies = {name: deepcopy(head) for name, head in quantizer.heads.items()}
        for copy in copies.values():
            copy.learner = None
        self.heads = nn.ModuleDict(copies)
        self.eval().requires_grad_(False)
        self.is_original = quantizer.is_freshly_converted
        self.residual_weight = float(quantizer.residual_weight)

    def train(self, mode: bool = True):
        """Stays in eval mode: its codebooks never move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, latents: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The quantized latents, `(batch, frames, codec_dim)`, zero on masked frames.

        Those of Mimi's parallel split if these heads are the original's, else of their chain; never under autocast.
        """
        frames = RealFrames(frame_mask)
        contexts = {} if self.is_original else contexts_of(self._named_heads, latents, frame_mask)
        contexts = {name: frames.gather(context) for name, context in contexts.items()}
        latents = frames.gather(latents)
        if self.is_original:
            prosody, acoustic = (self.heads[name](latents).quantized for name in TRANSPLANTED)
            return frames.scatter(prosody + acoustic)
        content = self.heads["content"](with_context(contexts, "content", latents)).quantized
        prosody = self.heads["prosody"](with_context(contexts, "prosody", latents - content)).quantized
        taken = self.residual_weight * (content + prosody)
        return frames.scatter(content + prosody + self.heads["acoustic"](latents - taken).quantized)

    @property
    def _named_heads(self) -> dict[str, QuantizerHead]:
        return {name: cast(QuantizerHead, head) for name, head in self.heads.items()}

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
