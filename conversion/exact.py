"""The source in float64: which codes and which sound are right, where two ways of computing round differently.

Entries and weights are the source's own float32 numbers; only the arithmetic is in float64. A code is a tie where a
shift of the projected latent as small as float32's rounding makes the other entry the nearest.

Source: transformers `models/mimi/modeling_mimi.py`, the split quantizer of two residual chains.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MimiModel


@dataclass(frozen=True)
class Chain:
    """A residual chain of codebooks in float64.

    Attributes:
        project_in: `(codebook_dim, hidden_size)`.
        codebooks: First to last, each `(codebook_size, codebook_dim)`.
        project_out: `(hidden_size, codebook_dim)`.
    """

    project_in: Tensor
    codebooks: Sequence[Tensor]
    project_out: Tensor

    def encode(self, latents: Tensor) -> Tensor:
        """The nearest entries, level by level: `(frames, hidden_size)` -> `(codebooks, frames)`."""
        residual, codes = latents @ self.project_in.T, []
        for codebook in self.codebooks:
            codes.append(torch.cdist(residual, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=-1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """The chain's share of the latents: `(codebooks, frames)` -> `(frames, hidden_size)`."""
        entries = torch.stack([codebook[each] for codebook, each in zip(self.codebooks, codes, strict=True)])
        return entries.sum(dim=0) @ self.project_out.T

    def margins(self, latents: Tensor, codes: Tensor, others: Tensor) -> list[Tensor]:
        """How far from the boundary between two entries a latent lies, where one of two searches chose each.

        Only the first code of a frame in which they differ is looked at: what comes after it quantizes something else.

        Args:
            latents: `(frames, hidden_size)`.
            codes: Of one search, `(codebooks, frames)`.
            others: Of the other.

        Returns:
            For each codebook a distance for each such code, as a share of the projected latent's length.
        """
        residual = latents @ self.project_in.T
        lengths, are_equal, margins = residual.norm(dim=-1), torch.ones(len(latents)).bool(), []
        for codebook, one, other in zip(self.codebooks, codes, others, strict=True):
            frames = (are_equal & (one != other)).nonzero()[:, 0]
            first, second, x = codebook[one[frames]], codebook[other[frames]], residual[frames]
            apart = (first - second).norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
            difference = (x - first).square().sum(dim=-1) - (x - second).square().sum(dim=-1)
            margins.append(difference.abs() / (2 * apart * lengths[frames]))
            are_equal &= one == other
            residual = residual - codebook[one]
        return margins


class ExactSource:
    """A Mimi in float64.

    Args:
        source: transformers' own model; left as it is.
        num_codebooks: The first so many are looked at.
    """

    def __init__(self, source: MimiModel, num_codebooks: int):
        whole: Any = source
        self._encoder, self._decoder = deepcopy(whole.encoder).double(), deepcopy(whole.decoder).double()
        quantizer = whole.quantizer
        self.chains = [
            _chain(quantizer.semantic_residual_vector_quantizer, 1),
            _chain(quantizer.acoustic_residual_vector_quantizer, num_codebooks - 1),
        ]

    @torch.no_grad()
    def latents(self, audio: Tensor) -> Tensor:
        """`(1, channels, samples)` -> `(frames, hidden_size)`."""
        return self._encoder(audio.double()).latents[0].T

    def encode(self, latents: Tensor) -> Tensor:
        """`(frames, hidden_size)` -> `(codebooks, frames)`."""
        return torch.cat([chain.encode(latents) for chain in self.chains])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """`(codebooks, frames)` -> `(1, channels, samples)`."""
        prosody, acoustic = (chain.decode(each) for chain, each in zip(self.chains, self._split(codes), strict=True))
        return self._decoder((prosody + acoustic).T[None]).audio_values

    def margins(self, latents: Tensor, codes: Tensor, others: Tensor) -> list[Tensor]:
        """As `Chain.margins`, of all codebooks."""
        pairs = zip(self.chains, self._split(codes), self._split(others), strict=True)
        return [margin for chain, *each in pairs for margin in chain.margins(latents, *each)]

    def _split(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        return codes[:1], codes[1:]


def _chain(quantizer: Any, num_codebooks: int) -> Chain:
    return Chain(
        quantizer.input_proj.weight.detach()[:, :, 0].double(),
        [layer.codebook.embed.double() for layer in quantizer.layers[:num_codebooks]],
        quantizer.output_proj.weight.detach()[:, :, 0].double(),
    )
