"""Codebooks that live: filled from data by k-means, and kept in use while they train.

Both work on a `QuantizerHead` through the library's own buffers: entries, running counts, and the running sums whose
ratio the entries are. Given the same vectors and generator state they do the same on every process.

Source: moshi `quantization/core_vq.py` (an entry used less than a share of the mean is replaced by a latent of the
batch, its running sum and count with it); k-means: Lloyd 1982.
"""

from typing import Any

import torch
from torch import Tensor

from ..codebook import nearest_entries
from ..heads import QuantizerHead


@torch.no_grad()
def project_to_principal_directions(head: QuantizerHead, latents: Tensor) -> float:
    """Set a head's projections so that in and out together keep as much of the latents as their size can.

    Args:
        head: Both of its projections are overwritten.
        latents: Of many batches, `(frames, codec_dim)`; their mean counts as one of the directions, as the
            projections have no bias.

    Returns:
        The share of the latents' power that is kept, 0 to 1.
    """
    power, directions = torch.linalg.eigh(latents.T.double() @ latents.double())
    size = head.project_in.weight.shape[0]
    kept = directions[:, -size:].to(latents.dtype)
    head.project_in.weight.copy_(kept.T[:, :, None])
    head.project_out.weight.copy_(kept[:, :, None])
    return float(power[-size:].sum() / power.sum())


@torch.no_grad()
def fill_from_data(
    head: QuantizerHead, latents: Tensor, frames_per_step: int, generator: torch.Generator, steps: int = 12
) -> list[float]:
    """Set a head's codebooks to the k-means centres of what each gets to see.

    Args:
        head: Its projection in stays as it is.
        latents: Of many batches, `(frames, codec_dim)`; more frames than entries, many times over. If there are fewer
            frames, entries repeat them.
        frames_per_step: Real frames of a training batch, over all processes; the running counts begin at its scale.
        generator: Of the first centres, on the CPU.
        steps: Of k-means.

    Returns:
        For each codebook, the perplexity of the codes of `latents`.

    Raises:
        ValueError: If there is no frame.
    """
    if len(latents) == 0:
        raise ValueError("latents must hold at least one frame, got none.")
    residual = head.project_in(latents.T[None].to(head.project_in.weight.dtype))[0].T.float()
    scale, perplexities = frames_per_step / len(latents), []
    for codebook in head.vq_codebooks:
        size = codebook.embed.shape[1]
        entries, counts = k_means(residual, size, generator, steps)
        set_entries(codebook, torch.arange(size, device=entries.device), entries, counts * scale)
        share = counts / counts.sum()
        perplexities.append(float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())))
        residual = residual - entries[nearest_entries(residual, entries)]
    return perplexities


@torch.no_grad()
def revive_unused(head: QuantizerHead, latents: Tensor, generator: torch.Generator, below: float = 0.1) -> list[int]:
    """Replace entries that are hardly used by vectors of the batch.

    Args:
        head: The head after a training forward.
        latents: The batch's real frames, `(frames, codec_dim)`; of all processes, where there are several.
        generator: Chooses the vectors, on the CPU.
        below: An entry is replaced if its running count is under this share of the mean count.

    Returns:
        Entries replaced, for each codebook.
    """
    return revive_unused_from(head, head.project_in(latents.T[None])[0].T.float(), generator, below)


@torch.no_grad()
def revive_unused_from(head: QuantizerHead, inputs: Tensor, generator: torch.Generator, below: float) -> list[int]:
    """As `revive_unused`, from what the head's first codebook was asked for, `(frames, codebook_dim)`."""
    residual, replaced = inputs, []
    for codebook in head.vq_codebooks:
        counts = codebook.cluster_size[0]
        unused = (counts < below * counts.mean()).nonzero()[:, 0]
        entries = codebook.embed[0]
        nearest = entries[nearest_entries(residual, entries)]
        if len(unused):
            chosen = torch.randint(len(residual), (len(unused),), generator=generator).to(residual.device)
            set_entries(codebook, unused, residual[chosen], counts.mean().expand(len(unused)))
        replaced.append(len(unused))
        residual = residual - nearest
    return replaced


@torch.no_grad()
def k_means(vectors: Tensor, size: int, generator: torch.Generator, steps: int) -> tuple[Tensor, Tensor]:
    """Centres `(size, dim)` of vectors `(count, dim)`, and how many vectors each has, `(size,)`.

    A centre that has no vectors starts again at a random one. Where there are fewer vectors than centres, each is the
    first of several.
    """
    first = torch.randperm(len(vectors), generator=generator)
    first = first.repeat(-(-size // len(vectors)))[:size]
    centres = vectors[first.to(vectors.device)].clone()
    for _ in range(steps):
        nearest = nearest_entries(vectors, centres)
        counts = torch.bincount(nearest, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        drawn = torch.randint(len(vectors), (size,), generator=generator).to(vectors.device)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], vectors[drawn])
    return centres, torch.bincount(nearest_entries(vectors, centres), minlength=size).float()


def set_entries(codebook: Any, indices: Tensor, entries: Tensor, counts: Tensor) -> None:
    """Overwrite entries of one of the library's codebooks, with their running counts and sums."""
    codebook.embed[0, indices] = entries
    codebook.cluster_size[0, indices] = counts
    codebook.embed_avg[0, indices] = entries * counts[:, None]
    codebook.initted.fill_(True)
