"""One head: project the latents in, look them up in one codebook or a residual chain of them, project out.

Training runs vector-quantize-pytorch, which moves the codebooks by exponential moving averages and gives the
commitment loss; inference reads the same buffers by a direct lookup. Both give the same codes and, to the bit, the
same quantized latents: gradients pass the lookup by an identity that adds exactly zero to its value. The projections
stay outside the library's class (its mask and its own projections do not work together) and are Mimi's: bias-free,
kernel 1.

Source: van den Oord et al. 2017 (arXiv:1711.00937); lookup and projections follow transformers' `models/mimi`.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize


@dataclass
class HeadOutput:
    """What one head makes of its latents.

    Attributes:
        quantized: The head's share of the decoded latents, `(batch, frames, codec_dim)`; zero on masked frames.
        codes: `(batch, codebooks, frames)`, int64; 0 on masked frames.
        commitment: Mean squared distance of the projected latents from their codebook entries over real frames, a
            scalar (mean over the head's codebooks), or None if it was not asked for.
    """

    quantized: Tensor
    codes: Tensor
    commitment: Tensor | None = None


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

    @property
    def layers(self) -> list[VectorQuantize]:
        """The library's quantizers, one a codebook, first to last."""
        return list(self.vq.layers) if isinstance(self.vq, ResidualVQ) else [self.vq]

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
        with torch.autocast(inputs.device.type, enabled=False):
            entries, codes, commitment = (
                self._look_up_and_learn(inputs, frame_mask)
                if self.training and may_learn
                else self._look_up(inputs, frame_mask, num_codebooks, with_commitment)
            )
        passed_through = entries + (inputs - inputs.detach())
        if frame_mask is not None:
            passed_through = passed_through.masked_fill(~frame_mask[:, :, None], 0.0)
            codes = codes.masked_fill(~frame_mask[:, None], 0)
        return HeadOutput(self._project_out(passed_through), codes, commitment)

    def decode(self, codes: Tensor) -> Tensor:
        """The head's share of the latents: codes `(batch, codebooks, frames)` -> `(batch, frames, codec_dim)`."""
        pairs = zip(codes.long().unbind(dim=1), self.codebooks, strict=False)
        return self._project_out(reduce(torch.add, [nn.functional.embedding(*pair) for pair in pairs]))

    def _look_up(
        self, inputs: Tensor, frame_mask: Tensor | None, num_codebooks: int | None, with_commitment: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        residual, chosen, codes, commitments = inputs, [], [], []
        for codebook in self.codebooks[:num_codebooks]:
            indices = nearest_entries(residual, codebook)
            entries = nn.functional.embedding(indices, codebook)
            if with_commitment:
                error = (residual - entries).square().mean(dim=-1)
                commitments.append(error.mean() if frame_mask is None else error[frame_mask].mean())
            residual = residual - entries
            chosen.append(entries)
            codes.append(indices)
        commitment = torch.stack(commitments).mean() if commitments else None
        return reduce(torch.add, chosen), torch.stack(codes, dim=1), commitment

    def _look_up_and_learn(self, inputs: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        before = [(codebook.embed.clone(), codebook.cluster_size.clone()) for codebook in self._learners()]
        entries, codes, commitment = self.vq(inputs, mask=frame_mask)
        for codebook, (embed, usage) in zip(self._learners(), before, strict=True):
            _keep_unused_entries(codebook, embed, usage)
        codes = codes[:, None] if codes.ndim == 2 else codes.transpose(1, 2)
        return entries, codes, commitment.mean()

    def _learners(self) -> list[Any]:
        return [layer._codebook for layer in self.layers]

    def _project_out(self, entries: Tensor) -> Tensor:
        return self.project_out(entries.transpose(1, 2).to(self.project_out.weight.dtype)).transpose(1, 2)


@torch.no_grad()
def _keep_unused_entries(codebook: Any, embed: Tensor, usage: Tensor) -> None:
    # The library divides by a smoothed count, which pulls entries that are not used for long toward zero. The counts
    # are its own, so that processes that share them keep the same entries.
    counts = (codebook.cluster_size - usage * codebook.decay) / (1 - codebook.decay)
    unused = counts < 0.5
    codebook.embed[unused] = embed[unused]


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
