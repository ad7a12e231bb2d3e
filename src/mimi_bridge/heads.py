"""One head: project the latents in, look them up in one codebook or a residual chain of them, project out.

The codebooks are those of vector-quantize-pytorch: its modules hold the entries and their running counts and sums, and
its arithmetic moves them in training. The lookup is transformers' (see `codebook`), in inference and in training, so
both give the same codes and, to the bit, the same quantized latents: gradients pass the lookup by an identity that
adds exactly zero to its value. The projections stay outside the library's class and are Mimi's: bias-free, kernel 1.
Autocast casts nothing down here, so that a training under it gives the codes of inference.

A head knows no padding: it is given real frames alone (see `frames.RealFrames`).

A head may have a context: causal transformer layers of its own over the latents, whose result is added to what the
head quantizes. It begins as zero, so that a head with a new context gives the codes it gave without.

Codebooks move at the end of each training forward, or, where a trainer gives the head a `learner`, once an optimizer
step (see `codebook`).

Source: van den Oord et al. 2017 (arXiv:1711.00937); the projections follow transformers' `models/mimi`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiTransformerModel
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from .codebook import CodebookLearner, learn_from, nearest_entries
from .offloading import brings_weights


@dataclass
class HeadOutput:
    """What one head makes of its latents.

    Attributes:
        quantized: The head's share of the decoded latents, `(batch, frames, codec_dim)`.
        codes: `(batch, codebooks, frames)`, int64.
        commitment: Mean squared distance of the projected latents from their codebook entries, a scalar (mean over the
            head's codebooks), or None if it was not asked for.
        codebook_loss: The same distance as a loss of the codebooks, where they learn by gradients, else None.
    """

    quantized: Tensor
    codes: Tensor
    commitment: Tensor | None = None
    codebook_loss: Tensor | None = None


class ZeroLinear(nn.Linear):
    """A linear map that begins as zero."""

    def reset_parameters(self) -> None:
        """Begin again as zero."""
        nn.init.zeros_(self.weight)


class HeadContext(nn.Module):
    """What one head knows of the frames before: Mimi's causal transformer over the latents, a map that begins as zero.

    Args:
        config: Whose sizes, window and rotary embedding the layers have; the window is in frames here.
        num_layers: Layers, at least 1.
    """

    def __init__(self, config: MimiConfig, num_layers: int):
        super().__init__()
        own = deepcopy(config)
        own.num_hidden_layers, own.use_cache = num_layers, False
        own._attn_implementation = config._attn_implementation or "sdpa"
        self.transformer = MimiTransformerModel(own)
        self.out = ZeroLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """What is added to what the head quantizes: latents `(batch, frames, codec_dim)` -> the same shape.

        A frame's value depends on the frames up to it alone: what stands in padding on the right reaches no real one,
        unless it is NaN.
        """
        with without_autocast(latents.device.type):
            hidden = self.transformer(latents.to(self.out.weight.dtype)).last_hidden_state
            return self.out(hidden).to(latents.dtype)


class QuantizerHead(nn.Module):
    """A head of `num_codebooks` codebooks in a chain, each quantizing what the ones before it left.

    Args:
        codec_dim: Size of the latents.
        codebook_dim: Size of a codebook's entries.
        codebook_size: Entries of a codebook.
        num_codebooks: Codebooks in the chain, or None for a single `VectorQuantize` without one.
        decay: Decay of the codebooks' moving averages, per training forward. May be changed at any time.
        context: See `HeadContext`; None: the head knows a frame alone.
    """

    def __init__(
        self,
        codec_dim: int,
        codebook_dim: int,
        codebook_size: int,
        num_codebooks: int | None,
        decay: float,
        context: HeadContext | None = None,
    ):
        super().__init__()
        self.context = context
        self.project_in = nn.Conv1d(codec_dim, codebook_dim, 1, bias=False)
        options = {
            "dim": codebook_dim,
            "codebook_size": codebook_size,
            "decay": decay,
            "rotation_trick": False,
            "route_gradients_to_input": False,
        }
        self.vq = (
            VectorQuantize(**options) if num_codebooks is None else ResidualVQ(num_quantizers=num_codebooks, **options)
        )
        self.project_out = nn.Conv1d(codebook_dim, codec_dim, 1, bias=False)
        self.decay = decay
        for codebook in self.vq_codebooks:
            codebook.float()  # a model may be built in half precision; its codebooks may not
        self.learner: CodebookLearner | None = None  # None: every training forward moves the codebooks

    @property
    def layers(self) -> list[VectorQuantize]:
        """The library's quantizers, one a codebook, first to last."""
        return list(self.vq.layers) if isinstance(self.vq, ResidualVQ) else [self.vq]

    @property
    def vq_codebooks(self) -> list[Any]:
        """The library's objects that hold entries, running counts and running sums, one a codebook."""
        return [layer._codebook for layer in self.layers]

    @property
    def is_silent(self) -> bool:
        """Whether it adds nothing to the latents, as the content head of a fresh conversion does."""
        return not bool(self.project_out.weight.any())

    @property
    def codebooks(self) -> list[Tensor]:
        """The codebooks' entries, first to last, each `(codebook_size, codebook_dim)`."""
        return [codebook.embed[0] for codebook in self.vq_codebooks]

    @property
    def read_modules(self) -> tuple[nn.Module, ...]:
        """The modules whose tensors the methods read; by PyTorch's tables, because it is asked at each step."""
        parts: dict[str, Any] = self._modules
        chain = parts["vq"]._modules.get("layers")
        layers = [parts["vq"]] if chain is None else chain._modules.values()
        return parts["project_in"], parts["project_out"], *(layer._modules["_codebook"] for layer in layers)

    @brings_weights
    def forward(
        self,
        latents: Tensor,
        *,
        num_codebooks: int | None = None,
        with_commitment: bool = False,
        may_learn: bool = True,
    ) -> HeadOutput:
        """Quantize latents. In training mode the codebooks move toward them.

        Args:
            latents: Real frames, `(batch, frames, codec_dim)`.
            num_codebooks: Use the first so many only; inference only.
            with_commitment: Also return the commitment loss; a head that learns always does.
            may_learn: False keeps the codebooks where they are, in training mode, too.
        """
        learns = self.training and may_learn
        with without_autocast(latents.device.type):
            inputs = self._project_in(latents)
            entries, codes, commitment, codebook_loss = self._look_up(
                inputs, num_codebooks, with_commitment or learns, learns
            )
            quantized = self._project_out(entries + (inputs - inputs.detach()))
        return HeadOutput(quantized, codes, commitment, codebook_loss)

    @torch.no_grad()
    @brings_weights
    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        """The codes alone; no codebook moves: latents `(batch, frames, codec_dim)` -> `(batch, codebooks, frames)`.

        They are those of `forward`, and `decode` gives its quantized latents of them.
        """
        with without_autocast(latents.device.type):
            inputs = self._project_in(latents)
            codes, codebooks = [], self.codebooks[:num_codebooks]
            for level, codebook in enumerate(codebooks):
                codes.append(nearest_entries(inputs, codebook))
                if level + 1 < len(codebooks):
                    inputs = inputs - nn.functional.embedding(codes[-1], codebook)
        return torch.stack(codes, dim=1)

    @brings_weights
    def decode(self, codes: Tensor) -> Tensor:
        """The head's share of the latents: codes `(batch, codebooks, frames)` -> `(batch, frames, codec_dim)`."""
        pairs = zip(codes.long().unbind(dim=1), self.codebooks, strict=False)
        with without_autocast(codes.device.type):
            return self._project_out(reduce(torch.add, [nn.functional.embedding(*pair) for pair in pairs]))

    def _look_up(
        self, inputs: Tensor, num_codebooks: int | None, with_commitment: bool, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        residual, chosen, codes = inputs, [], []
        commitments, codebook_losses = [], []
        for level, codebook in enumerate(self.codebooks[:num_codebooks]):
            indices = nearest_entries(residual, codebook)
            entries = nn.functional.embedding(indices, codebook)
            if with_commitment:
                commitments.append(_mean_square(residual - entries.detach()))
            if learns:
                if self.learner is None:
                    learn_from(self.vq_codebooks[level], residual.detach(), indices, self.decay)
                else:
                    self.learner.accumulate(level, residual.detach(), indices)
                if codebook.requires_grad:
                    codebook_losses.append(_mean_square(entries - residual.detach()))
            residual = residual - entries.detach()
            chosen.append(entries)
            codes.append(indices)
        commitment, codebook_loss = (
            torch.stack(values).mean() if values else None for values in (commitments, codebook_losses)
        )
        return reduce(torch.add, chosen), torch.stack(codes, dim=1), commitment, codebook_loss

    def _project_in(self, latents: Tensor) -> Tensor:
        return self.project_in(latents.to(self.project_in.weight.dtype).transpose(1, 2)).transpose(1, 2).float()

    def _project_out(self, entries: Tensor) -> Tensor:
        return self.project_out(entries.to(self.project_out.weight.dtype).transpose(1, 2)).transpose(1, 2)


def contexts_of(
    heads: Mapping[str, QuantizerHead], latents: Tensor, frame_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """What the heads' own layers add to what they quantize, by head; nothing of a head that has none.

    Args:
        heads: By name.
        latents: `(batch, frames, codec_dim)`.
        frame_mask: True on real frames, `(batch, frames)`; all are, if None.

    Returns:
        `(batch, frames, codec_dim)` each; anything on masked frames.

    Raises:
        ValueError: If padding is not on the right: the layers would take it for a part of the recording.
    """
    layers = {name: head.context for name, head in heads.items() if head.context is not None}
    if layers and frame_mask is not None:
        if not torch.compiler.is_compiling() and bool((frame_mask[:, 1:] & ~frame_mask[:, :-1]).any()):
            raise ValueError(
                "frame_mask must be True on a recording's frames and False after them, because heads of this model "
                "have layers over time (content_layers, prosody_layers); pad on the right."
            )
        latents = latents.masked_fill(~frame_mask[:, :, None], 0.0)  # NaN would pass even a weight of 0
    return {name: context(latents) for name, context in layers.items()}


def with_context(contexts: Mapping[str, Tensor], name: str, latents: Tensor) -> Tensor:
    """What a head quantizes: what the heads before it left, and its context where it has one."""
    return latents + contexts[name] if name in contexts else latents


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context in which nothing is cast down; a null one where nothing is, as an exported program cannot hold it."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().mean(dim=-1).mean()
