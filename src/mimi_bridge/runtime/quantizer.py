"""The quantizer for inference: its weights as the products want them, and no table of all distances.

Of |x - e|² / 2 only |e|² / 2 - x·e depends on the entry, so a lookup is one matrix product and its least column. The
equations are those of `CausalBridgeQuantizer`; so are the codes, except where rounding puts a vector as near to one
entry as to another. On a CPU a frame's codes do not depend on the frames beside it (see `linear`), but for those
before it where a head has layers of its own: what these remember between calls are rings of keys and values, which
lie beside the encoder's in a stream's state as `content_keys_values` and `prosody_keys_values`.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ..heads import with_context
from .attention import Transformer
from .codec import State, for_inference
from .layout import lay_out_transformer
from .linear import LinearMap


@dataclass(frozen=True)
class PackedContext:
    """A head's own layers."""

    transformer: Transformer
    out: LinearMap

    def __call__(self, latents: Tensor, keys_values: Tensor, frames: Tensor, is_active: Tensor | None) -> Tensor:
        """What is added to what the head quantizes; moves `keys_values` on in place, as `Transformer` does."""
        hidden = self.transformer(latents, keys_values, frames, is_active)
        return self.out(hidden.flatten(0, 1)).view_as(latents)


@dataclass(frozen=True)
class PackedHead:
    """One head.

    Attributes:
        project_in: To the codebooks' space.
        scores: Of each codebook, from vectors to what the nearest entry has the least of.
        codebooks: Entries, float32, `(codebook_size, codebook_dim)` each.
        project_out: Back to the latents' space.
        context: Layers of its own, or None.
    """

    project_in: LinearMap
    scores: list[LinearMap]
    codebooks: list[Tensor]
    project_out: LinearMap
    context: PackedContext | None = None

    @classmethod
    def of(cls, head: Any, exportable: bool) -> "PackedHead":
        """The packed form of a `QuantizerHead`; `exportable` as in `LinearMap.of`."""
        codebooks, context = [codebook.detach().float() for codebook in head.codebooks], None
        if head.context is not None:
            out = LinearMap.of(head.context.out.weight, exportable=exportable)
            context = PackedContext(lay_out_transformer(head.context.transformer, exportable), out)
        return cls(
            LinearMap.of(head.project_in.weight[:, :, 0], exportable=exportable),
            [LinearMap.of(-codebook, codebook.square().sum(dim=-1) / 2, exportable) for codebook in codebooks],
            codebooks,
            LinearMap.of(head.project_out.weight[:, :, 0], exportable=exportable),
            context,
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
        exportable: As in `LinearMap.of`.
    """

    def __init__(self, quantizer: Any, exportable: bool = False):
        self._settings = quantizer
        self._heads = {name: PackedHead.of(head, exportable) for name, head in quantizer.heads.items()}
        self._content, self._prosody, self._acoustic = self._heads.values()

    @property
    def residual_weight(self) -> float:
        """λ."""
        return self._settings.residual_weight

    def new_rings(self, batch_size: int, num_quantizers: int) -> State:
        """Rings of streams that begin, of the first so many codebooks' heads; none where no head has a context."""
        contexts = self._contexts(num_quantizers).items()
        return {f"{name}_keys_values": context.transformer.new_ring(batch_size) for name, context in contexts}

    @for_inference
    def encode(
        self,
        latents: Tensor,
        num_quantizers: int,
        rings: State | None = None,
        num_seen: Tensor | None = None,
        is_active: Tensor | None = None,
    ) -> Tensor:
        """The first so many codes of whole recordings, or of a stream's next frames.

        Args:
            latents: `(batch, frames, codec_dim)`.
            num_quantizers: Codebooks; those that the rings are for.
            rings: Of the calls before, moved on in place; new ones, if left out.
            num_seen: Frames that each row has seen before, `(batch,)`; none, if left out.
            is_active: False on rows that pause, `(batch,)`: their rings stay, their codes mean nothing.

        Returns:
            `(batch, num_quantizers, frames)`, int64.
        """
        latents = latents.to(self._content.dtype)
        rings = self.new_rings(len(latents), num_quantizers) if rings is None else rings
        num_seen = latents.new_zeros(len(latents), dtype=torch.long) if num_seen is None else num_seen
        contexts = {
            name: context(latents, rings[f"{name}_keys_values"], num_seen, is_active)
            for name, context in self._contexts(num_quantizers).items()
        }
        codes = [self._content.encode(with_context(contexts, "content", latents))]
        if num_quantizers > 1:
            content = self._content.decode(codes[0])
            codes.append(self._prosody.encode(with_context(contexts, "prosody", latents - content)))
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

    def _contexts(self, num_quantizers: int) -> dict[str, PackedContext]:
        heads = list(self._heads.items())[:num_quantizers]
        return {name: head.context for name, head in heads if head.context is not None}
