"""The quantizer for inference: its weights as the products want them, and no table of all distances.

Of |x - e|² / 2 only |e|² / 2 - x·e depends on the entry, so a lookup is one matrix product and its least column. The
equations are those of `CausalBridgeQuantizer`; so are the codes, except where rounding puts a vector as near to one
entry as to another. On a CPU a frame's codes do not depend on the frames beside it (see `linear`).
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from .linear import LinearMap


@dataclass(frozen=True)
class PackedHead:
    """One head.

    Attributes:
        project_in: To the codebooks' space.
        scores: Of each codebook, from vectors to what the nearest entry has the least of.
        codebooks: Entries, float32, `(codebook_size, codebook_dim)` each.
        project_out: Back to the latents' space.
    """

    project_in: LinearMap
    scores: list[LinearMap]
    codebooks: list[Tensor]
    project_out: LinearMap

    @classmethod
    def of(cls, head: Any, plain: bool) -> "PackedHead":
        """The packed form of a `QuantizerHead`; `plain` as in `LinearMap.of`."""
        codebooks = [codebook.detach().float() for codebook in head.codebooks]
        return cls(
            LinearMap.of(head.project_in.weight[:, :, 0], plain=plain),
            [LinearMap.of(-codebook, codebook.square().sum(dim=-1) / 2, plain) for codebook in codebooks],
            codebooks,
            LinearMap.of(head.project_out.weight[:, :, 0], plain=plain),
        )

    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents `(batch, frames, codec_dim)` -> codes `(batch, codebooks, frames)`, int64."""
        residual = self.project_in(latents.flatten(0, 1)).float()
        codes: list[Tensor] = []
        for scores, codebook in zip(self.scores[:num_codebooks], [None, *self.codebooks], strict=False):
            if codebook is not None:
                residual = residual - embedding(codes[-1], codebook)
            codes.append(scores(residual).min(dim=-1).indices)
        return torch.stack(codes).view(len(codes), *latents.shape[:2]).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `(batch, codebooks, frames)` -> the head's share of the latents, `(batch, frames, codec_dim)`."""
        pairs = zip(codes.long().flatten(2).unbind(dim=1), self.codebooks, strict=False)
        entries = reduce(torch.add, [embedding(*pair) for pair in pairs]).to(self.dtype)
        return self.project_out(entries.flatten(0, 1)).view(*entries.shape[:2], -1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the projections."""
        return self.project_out.weight.dtype


class PackedQuantizer:
    """All heads of a `CausalBridgeQuantizer`.

    Args:
        quantizer: What it is made of; λ is read there at each call.
        plain: As in `LinearMap.of`.
    """

    def __init__(self, quantizer: Any, plain: bool = False):
        self._settings = quantizer
        self._content, self._prosody, self._acoustic = (
            PackedHead.of(head, plain) for head in quantizer.heads.values()
        )

    @property
    def residual_weight(self) -> float:
        """λ."""
        return self._settings.residual_weight

    def encode(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """Latents `(batch, frames, codec_dim)` -> the first so many codes, `(batch, num_quantizers, frames)`."""
        latents = latents.to(self._content.dtype)
        codes = [self._content.encode(latents)]
        if num_quantizers > 1:
            content = self._content.decode(codes[0])
            codes.append(self._prosody.encode(latents - content))
        if num_quantizers > 2:
            taken = self.residual_weight * (content + self._prosody.decode(codes[1]))
            codes.append(self._acoustic.encode(latents - taken, num_quantizers - 2))
        return torch.cat(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """The first 1 to all codes, `(batch, codebooks, frames)`, in range -> `(batch, frames, codec_dim)`."""
        total = self._content.decode(codes[:, :1])
        if codes.shape[1] > 1:
            total = total + self._prosody.decode(codes[:, 1:2])
        if codes.shape[1] > 2:
            total = total + self._acoustic.decode(codes[:, 2:])
        return total
