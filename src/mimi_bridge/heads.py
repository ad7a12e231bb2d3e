"""One head: project the latents in, look them up in one codebook or a residual chain of them, project out.

Training runs vector-quantize-pytorch, which moves the codebooks by exponential moving averages and gives the
commitment loss; inference reads the same buffers by a direct lookup. Both give the same codes and, to the bit, the
same quantized latents: gradients pass the lookup by an identity that adds exactly zero to its value. The projections
stay outside the library's class (its mask and its own projections do not work together) and are Mimi's: bias-free,
kernel 1.

A trainer may take over: then a training forward looks up directly, too, and leaves with the head's `learner` what was
asked of each codebook, which moves them once an optimizer step (see `codebook_learning`).

Source: van den Oord et al. 2017 (arXiv:1711.00937); lookup and projections follow transformers' `models/mimi`.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from .codebook_learning import CodebookLearner, keep_unused_entries


@dataclass
class HeadOutput:
    """What one head makes of its latents.

    Attributes:
        quantized: The head's share of the decoded latents, `(batch, frames, codec_dim)`; zero on masked frames.
        codes: `(batch, codebooks, frames)`, int64; 0 on masked frames.
        commitment: Mean squared distance of the projected latents from their codebook entries over real frames, a
            scalar (mean over the head's codebooks), or None if it was not asked for.
        attraction: The same distance as a loss of the codebooks, where they learn by gradients, else None.
    """

    quantized: Tensor
    codes: Tensor
    commitment: Tensor | None = None
    attraction: Tensor | None = None


class QuantizerHead(nn.Module):
    """A head of `num_codebooks` codebooks in a chain, each quantizing what the ones before it left.

    Args:
        codec_dim: Size of the latents.
        codebook_dim: Size of a codebook's entries.
        codebook_size: Entries of a codebook.
        num_codebooks: Codebooks in the chain, or None for a single `VectorQuantize` without one.
        decay: Decay of the codebooks' moving averages, per training forward.
    """

    def __init__(self, codec_dim: int, codebook_dim: int, codebook_size: int, num_codebooks: int | None, decay: float):
        super().__init__()
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
        self.learner: CodebookLearner | None = None  # None: the library moves the codebooks

    @property
    def layers(self) -> list[VectorQuantize]:
        """The library's quantizers, one a codebook, first to last."""
        return list(self.vq.layers) if isinstance(self.vq, ResidualVQ) else [self.vq]

    @property
    def stores(self) -> list[Any]:
        """The library's objects that hold entries, running counts and running sums, one a codebook."""
        return [layer._codebook for layer in self.layers]

    @property
    def codebooks(self) -> list[Tensor]:
        """The codebooks' entries, first to last, each `(codebook_size, codebook_dim)`."""
        return [layer.codebook for layer in self.layers]

    def forward(
        self,
        latents: Tensor,
        frame_mask: Tensor | None = None,
        num_codebooks: int | None = None,
        with_commitment: bool = False,
        may_learn: bool = True,
    ) -> HeadOutput:
        """Quantize latents. In training mode the codebooks move toward the real frames of the batch.

        Args:
            latents: `(batch, frames, codec_dim)`, finite on masked frames too.
            frame_mask: True on real frames, `(batch, frames)`; None if all are.
            num_codebooks: Use the first so many only; inference only.
            with_commitment: Also return the commitment loss; a head that learns always does.
            may_learn: False keeps the codebooks where they are, in training mode, too.
        """
        inputs = self.project_in(latents.transpose(1, 2)).transpose(1, 2).float()
        learns = self.training and may_learn
        attraction: Tensor | None = None
        with torch.autocast(inputs.device.type, enabled=False):
            if learns and self.learner is None:
                entries, codes, commitment = self._look_up_and_learn(inputs, frame_mask)
            else:
                learner = self.learner if learns else None
                entries, codes, commitment, attraction = self._look_up(
                    inputs, frame_mask, num_codebooks, with_commitment or learns, learner
                )
        passed_through = entries + (inputs - inputs.detach())
        if frame_mask is not None:
            passed_through = passed_through.masked_fill(~frame_mask[:, :, None], 0.0)
            codes = codes.masked_fill(~frame_mask[:, None], 0)
        return HeadOutput(self._project_out(passed_through), codes, commitment, attraction)

    def decode(self, codes: Tensor) -> Tensor:
        """The head's share of the latents: codes `(batch, codebooks, frames)` -> `(batch, frames, codec_dim)`."""
        pairs = zip(codes.long().unbind(dim=1), self.codebooks, strict=False)
        return self._project_out(reduce(torch.add, [nn.functional.embedding(*pair) for pair in pairs]))

    def _look_up(
        self,
        inputs: Tensor,
        frame_mask: Tensor | None,
        num_codebooks: int | None,
        with_commitment: bool,
        learner: CodebookLearner | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        residual, chosen, codes = inputs, [], []
        commitments, attractions = [], []

        def mean_square(difference: Tensor) -> Tensor:
            error = difference.square().mean(dim=-1)
            return error.mean() if frame_mask is None else error[frame_mask].mean()

        for level, codebook in enumerate(self.codebooks[:num_codebooks]):
            indices = nearest_entries(residual, codebook)
            entries = nn.functional.embedding(indices, codebook)
            if with_commitment:
                commitments.append(mean_square(residual - entries.detach()))
            if learner is not None:
                learner.note(level, residual.detach(), indices, frame_mask)
                if codebook.requires_grad:
                    attractions.append(mean_square(entries - residual.detach()))
            residual = residual - entries.detach()
            chosen.append(entries)
            codes.append(indices)
        commitment, attraction = (
            torch.stack(values).mean() if values else None for values in (commitments, attractions)
        )
        return reduce(torch.add, chosen), torch.stack(codes, dim=1), commitment, attraction

    def _look_up_and_learn(self, inputs: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        before = [(codebook.embed.clone(), codebook.cluster_size.clone()) for codebook in self.stores]
        entries, codes, commitment = self.vq(inputs, mask=frame_mask)
        for codebook, (embed, usage) in zip(self.stores, before, strict=True):
            keep_unused_entries(codebook, embed, usage)
        codes = codes[:, None] if codes.ndim == 2 else codes.transpose(1, 2)
        return entries, codes, commitment.mean()

    def _project_out(self, entries: Tensor) -> Tensor:
        return self.project_out(entries.transpose(1, 2).to(self.project_out.weight.dtype)).transpose(1, 2)


@torch.no_grad()
def nearest_entries(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry nearest to each vector, searched in float32.

    Args:
        vectors: `(batch, frames, codebook_dim)`.
        codebook: `(codebook_size, codebook_dim)`.

    Returns:
        `(batch, frames)`, int64.

    Source: transformers `MimiEuclideanCodebook.quantize`, the same operation on the same shapes.
    """
    flat = vectors.reshape(1, -1, vectors.shape[-1]).float()
    return torch.cdist(flat, codebook[None].float(), p=2)[0].argmin(dim=-1).view(vectors.shape[:-1])
