"""The nearest entry of a codebook, for many vectors at once: no table of all distances, no one-hot rows.

On a CPU a vector's code is that of exact arithmetic, whatever stands beside it in a batch (see `nearest_on_cpu`).
Elsewhere it is that of a float32 product, whose rounding can choose between two entries that lie equally near.
`nearest_like_transformers` is what transformers' Mimi does, to the bit, its rounding included.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .nearest_on_cpu import EntryTable, nearest_on_cpu

BLOCK_ELSEWHERE = 8192  # vectors
NUM_PARTS = 16  # of the entries: for a single vector the values of one part are compared


@dataclass(frozen=True)
class _KeptTable:
    """A table and what its codebook looked like; one object, so that threads see all of it or none."""

    table: EntryTable
    version: int
    first_values: Tensor


class LookupTable:
    """One codebook's entries as the search wants them, kept until the codebook changes.

    A codebook has changed when it is another tensor or was written to, as PyTorch counts it. Fused optimizers, and
    whoever writes through `.data`, count nothing: so each entry's first value is compared, too (for a single vector,
    as a stream's step has it, those of a part of the entries, another one each time), and `forget` is for those who
    know of a change. Elsewhere than on a CPU nothing is kept: it would save nothing, and a recorded CUDA graph would
    go on with the old norms. Several threads may look up at once.
    """

    def __init__(self) -> None:
        self._next_part = 0
        self._kept: _KeptTable | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return LookupTable, ()  # a copy's counts of writes begin anew, so it keeps nothing

    def forget(self) -> None:
        """Make it anew at the next lookup."""
        self._kept = None

    @torch.no_grad()
    def nearest(self, vectors: Tensor, codebook: Tensor) -> Tensor:
        """As `nearest_entries`."""
        if torch.compiler.is_compiling() or codebook.device.type != "cpu" or codebook.is_inference():
            return nearest_entries(vectors, codebook)
        kept = self._kept  # read once: another thread may forget it, or put another in its place
        if kept is None or not self._is_made_of(kept, codebook, thoroughly=vectors[..., 0].numel() > 1):
            version, first_values = codebook._version, codebook.detach()[:, 0].clone()
            # the table keeps the tensor itself, too: its memory cannot become another codebook's meanwhile
            self._kept = kept = _KeptTable(EntryTable.of(codebook, is_kept=True), version, first_values)
        return nearest_on_cpu(vectors, kept.table)

    def _is_made_of(self, kept: _KeptTable, codebook: Tensor, thoroughly: bool) -> bool:
        if kept.table.codebook.data_ptr() != codebook.data_ptr() or kept.version != codebook._version:
            return False
        if thoroughly:
            return torch.equal(codebook[:, 0], kept.first_values)
        part = slice(self._next_part, None, NUM_PARTS)
        self._next_part = (self._next_part + 1) % NUM_PARTS
        return torch.equal(codebook[part, 0], kept.first_values[part])


@torch.no_grad()
def nearest_entries(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry nearest to each vector, the first of several; searched in float32 or better.

    Args:
        vectors: `(batch, frames, codebook_dim)`, or any other leading axes.
        codebook: `(codebook_size, codebook_dim)`.

    Returns:
        `(batch, frames)`, int64.
    """
    if vectors.device.type == "cpu" and not torch.compiler.is_compiling():
        return nearest_on_cpu(vectors, EntryTable.of(codebook))
    flat, entries = vectors.reshape(-1, vectors.shape[-1]).float(), codebook.float()
    norms = entries.square().sum(dim=-1) / 2
    blocks = [flat] if torch.compiler.is_compiling() else flat.split(BLOCK_ELSEWHERE)
    found = [torch.addmm(norms, block, entries.T, alpha=-1).min(dim=-1).indices for block in blocks]
    return torch.cat(found).view(vectors.shape[:-1])


@torch.no_grad()
def nearest_like_transformers(vectors: Tensor, codebook: Tensor) -> Tensor:
    """As `nearest_entries`, by the very operation of transformers' Mimi on tensors of the same shapes.

    Source: transformers `MimiEuclideanCodebook.quantize`.
    """
    flat = vectors.reshape(1, -1, vectors.shape[-1]).float()
    return torch.cdist(flat, codebook[None].float(), p=2)[0].argmin(dim=-1).view(vectors.shape[:-1])
