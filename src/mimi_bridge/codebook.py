"""One codebook: the nearest entry, and how the entries move in training. vector-quantize-pytorch's objects hold it.

They move at the end of each forward, or when a trainer decides.

Counts and sums by entry take the place of the library's one-hot rows, which are `frames x codebook_size` numbers.

A learner notes, over all the forwards of an optimizer step, how often each entry was the nearest and to what; the sums
of several processes may be added. Then it moves the codebooks once, so that a step is the same however it was divided.
Entries are either moving averages of what was nearest to them (`ema`), or parameters that the optimizer moves
(`gradient`); then the counts alone are averaged. What no vector was nearest to stays as it is, to the bit.

Source: van den Oord et al. 2017 (arXiv:1711.00937), section 3.2 and appendix A.1; the arithmetic of the averages is
vector-quantize-pytorch's.
"""

from typing import Any

import torch
from torch import Tensor, nn

MAX_ROWS = 4096  # of a table of distances: more vectors take several

CODEBOOK_UPDATES = ("ema", "gradient")


@torch.no_grad()
def nearest_entries(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry nearest to each vector, the first of several, in float32.

    Args:
        vectors: `(batch, frames, codebook_dim)`, or any other leading axes.
        codebook: `(codebook_size, codebook_dim)`.

    Returns:
        `(batch, frames)`, int64; those of transformers' Mimi, to the bit.

    Source: transformers `MimiEuclideanCodebook.quantize`.
    """
    flat, entries = vectors.reshape(-1, vectors.shape[-1]).float(), codebook.float()
    blocks = [flat] if torch.compiler.is_compiling() else flat.split(MAX_ROWS)
    codes = [torch.cdist(block[None], entries[None], p=2)[0].argmin(dim=-1) for block in blocks]
    return torch.cat(codes).view(vectors.shape[:-1])


class CodebookLearner:
    """Moves the codebooks of one head once a step.

    Args:
        vq_codebooks: The library's objects that hold the codebooks, first to last.
        update: `"ema"` or `"gradient"`. The latter makes parameters of the codebooks, under the keys they had.
        decay: Of the moving averages, a step.
    """

    def __init__(self, vq_codebooks: list[Any], update: str, decay: float):
        if update not in CODEBOOK_UPDATES:
            raise ValueError(f"codebook_update must be one of {CODEBOOK_UPDATES}, got {update!r}.")
        self.vq_codebooks, self.update, self.decay = vq_codebooks, update, decay
        for codebook in vq_codebooks:
            if update == "gradient" and "embed" in codebook._parameters:
                continue  # an optimizer of an earlier training may hold it
            entries = codebook._buffers.pop("embed", None)
            if entries is None:
                entries = codebook._parameters.pop("embed").data
            if update == "gradient":
                codebook.register_parameter("embed", nn.Parameter(entries))
            else:
                codebook.register_buffer("embed", entries)
        self.reset()

    def reset(self) -> None:
        """Begin a step: nothing was asked of any codebook."""
        self.inputs: list[Tensor] = []
        self._sums: list[Tensor | None] = [None] * len(self.vq_codebooks)

    def accumulate(self, level: int, vectors: Tensor, indices: Tensor) -> None:
        """Remember what a forward asked of one codebook.

        Args:
            level: Of the codebook in the chain.
            vectors: What was quantized, `(batch, frames, codebook_dim)`.
            indices: The nearest entry of each, `(batch, frames)`.
        """
        vectors, indices = vectors.flatten(0, 1), indices.flatten()
        if level == 0:
            self.inputs.append(vectors)
        sums = self._sums[level]
        if sums is None:
            _, size, dim = self.vq_codebooks[level].embed.shape
            sums = self._sums[level] = vectors.new_zeros(size, dim + 1)
        sums[:, -1].index_add_(0, indices, vectors.new_ones(len(vectors)))
        sums[:, :-1].index_add_(0, indices, vectors)

    def statistics(self) -> Tensor:
        """Since `reset`, sums and, last, counts: `(codebooks, codebook_size, codebook_dim + 1)`."""
        shapes = [(codebook.embed.shape[1], codebook.embed.shape[2] + 1) for codebook in self.vq_codebooks]
        return torch.stack(
            [
                codebook.embed.new_zeros(shape) if sums is None else sums
                for codebook, sums, shape in zip(self.vq_codebooks, self._sums, shapes, strict=True)
            ]
        )

    @torch.no_grad()
    def apply_update(self, statistics: Tensor) -> None:
        """Move the codebooks by the statistics of all processes, after the optimizer's step."""
        for codebook, level in zip(self.vq_codebooks, statistics, strict=True):
            sums, counts = level[:, :-1], level[:, -1]
            if self.update == "gradient":
                codebook.cluster_size.lerp_(counts[None], 1 - self.decay)
                codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[..., None])
                continue
            codebook.embed_avg.lerp_(sums[None], 1 - self.decay)
            _move_used_entries(codebook, counts, self.decay)


@torch.no_grad()
def learn_from(codebook: Any, vectors: Tensor, indices: Tensor, decay: float) -> None:
    """Move one codebook's entries by what one forward asked of it, without host synchronisation.

    Processes are summed where the library would: if they shared a process group when the codebook was built.

    Args:
        codebook: The library's object that holds the codebook.
        vectors: What was quantized, `(batch, frames, codebook_dim)`.
        indices: The nearest entry of each, `(batch, frames)`.
        decay: Of the moving averages.
    """
    vectors, indices = vectors.flatten(0, 1), indices.flatten()
    counts = torch.zeros_like(codebook.cluster_size[0]).index_add_(0, indices, vectors.new_ones(len(vectors)))
    if codebook.use_ddp:
        sums = torch.zeros_like(codebook.embed_avg[0]).index_add_(0, indices, vectors)
        codebook.all_reduce_fn(counts)
        codebook.all_reduce_fn(sums)
        codebook.embed_avg.lerp_(sums[None], 1 - decay)
    else:
        codebook.embed_avg.mul_(decay)[0].index_add_(0, indices, vectors, alpha=1 - decay)
    _move_used_entries(codebook, counts, decay)


def _move_used_entries(codebook: Any, counts: Tensor, decay: float) -> None:
    # The library's arithmetic, for the entries that were asked for: it divides by a smoothed count, which would pull
    # those that are not used for long toward zero.
    codebook.cluster_size.lerp_(counts[None], 1 - decay)
    usage = codebook.cluster_size[0]
    total = usage.sum()
    smoothed = (usage + codebook.eps) / (total + len(usage) * codebook.eps) * total
    is_used = (counts > 0.5)[:, None]
    codebook.embed[0] = torch.where(is_used, codebook.embed_avg[0] / smoothed[:, None], codebook.embed[0])
