"""The quantizer for inference: its weights as the products want them, and no table of all distances.

Of |x - e|² / 2 only |e|² / 2 - x·e depends on the entry, so a lookup is one matrix product and its least column. The
equations are those of `CausalBridgeQuantizer`; so are the codes, except where rounding puts a vector as near to one
entry as to another. On a CPU a frame's codes do not depend on the frames beside it (see `linear`), but for those
before it where a head has layers of its own: what these remember between calls is a dict of tensors, as in `codec`.

    state   content_keys_values, prosody_keys_values    rings of the head's layers, (layers, batch, heads, slots, size)
            context_frames                              frames that each row has seen, (batch,)
"""

from collections.abc import Sequence
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

    @classmethod
    def of(cls, context: Any, exportable: bool) -> "PackedContext":
        """The packed form of a `HeadContext`; `exportable` as in `LinearMap.of`."""
        return cls(
            lay_out_transformer(context.transformer, exportable),
            LinearMap.of(context.out.weight, exportable=exportable),
        )

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
        codebooks = [codebook.detach().float() for codebook in head.codebooks]
        return cls(
            LinearMap.of(head.project_in.weight[:, :, 0], exportable=exportable),
            [LinearMap.of(-codebook, codebook.square().sum(dim=-1) / 2, exportable) for codebook in codebooks],
            codebooks,
            LinearMap.of(head.project_out.weight[:, :, 0], exportable=exportable),
            None if head.context is None else PackedContext.of(head.context, exportable),
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

    def state_names(self, num_quantizers: int) -> Sequence[str]:
        """Names of the state that encoding to the first so many codebooks needs, in order; none without contexts."""
        names = [f"{name}_keys_values" for name in self._contexts(num_quantizers)]
        return [*names, "context_frames"] if names else []

    @for_inference
    def new_state(self, batch_size: int, num_quantizers: int) -> State:
        """The state of streams that begin, of the first so many codebooks; empty where no head has a context."""
        state, frames = {}, None
        for name, context in self._contexts(num_quantizers).items():
            transformer = context.transformer
            like = transformer.layers[0].attention_scale
            shape = len(transformer.layers), batch_size, *transformer.ring_shape
            state[f"{name}_keys_values"] = like.new_zeros(shape)
            frames = like.new_zeros(batch_size, dtype=torch.long)
        return state if frames is None else {**state, "context_frames": frames}

    def encode(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """Latents `(batch, frames, codec_dim)` of whole recordings -> `(batch, num_quantizers, frames)`."""
        return self.encode_next(self.new_state(len(latents), num_quantizers), latents, num_quantizers)[0]

    @for_inference
    def encode_next(
        self, state: State, latents: Tensor, num_quantizers: int, is_active: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The first so many codes of the next frames, and the new state.

        Args:
            state: Of the call before, or `new_state`; whatever else it holds is handed on. It is used up.
            latents: `(batch, frames, codec_dim)`.
            num_quantizers: Codebooks; those that the state is for.
            is_active: False on rows that pause, `(batch,)`: their state stays, their codes mean nothing.

        Returns:
            `(batch, num_quantizers, frames)`, int64, and the new state.
        """
        latents = latents.to(self._content.dtype)
        contexts, state = self._run_contexts(state, latents, num_quantizers, is_active)
        codes = [self._content.encode(with_context(contexts, "content", latents))]
        if num_quantizers > 1:
            content = self._content.decode(codes[0])
            codes.append(self._prosody.encode(with_context(contexts, "prosody", latents - content)))
        if num_quantizers > 2:
            taken = self.residual_weight * (content + self._prosody.decode(codes[1]))
            codes.append(self._acoustic.encode(latents - taken, num_quantizers - 2))
        return torch.cat(codes, dim=1), state

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

    def _run_contexts(
        self, state: State, latents: Tensor, num_quantizers: int, is_active: Tensor | None
    ) -> tuple[dict[str, Tensor], State]:
        results, num_frames = {}, latents.shape[1]
        for name, context in self._contexts(num_quantizers).items():
            ring = state[f"{name}_keys_values"]
            if num_frames > context.transformer.steps_at_once:
                ring = ring.clone()  # so that the given state stays as good as it was
            results[name] = context(latents, ring, state["context_frames"], is_active)
            state = {**state, f"{name}_keys_values": ring}
        if results:
            moved = state["context_frames"] + (num_frames if is_active is None else num_frames * is_active)
            state = {**state, "context_frames": moved}
        return results, state
