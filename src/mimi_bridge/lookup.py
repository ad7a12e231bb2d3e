"""The nearest entry of a codebook, for many vectors at once.

Of |x - e|² / 2 only |e|² / 2 - x·e depends on the entry: one matrix product a block of vectors, small enough to stay
in the processor's cache, instead of a table of all distances and, in training, one-hot rows as long as the codebook.
Rounding can choose between two entries that lie equally near; on a CPU such vectors, a few in a hundred thousand, are
looked up again in float64. So a vector's code there is that of exact arithmetic, whatever stands beside it in a batch.

`nearest_like_transformers` is what transformers' Mimi does, to the bit, its rounding included.
"""

import torch
from torch import Tensor

BLOCK_ON_CPU = 128  # vectors: 1 MB of products with 2,048 entries
BLOCK_ELSEWHERE = 8192
GROUP, FEW = 128, 16
ROUNDING = 2e-6  # of |x|² / 2 + |e|² / 2: more than ten times what a float32 product of 256 terms was seen to lose
EQUAL = 1e-13  # as above, in float64: entries this near to each other are equal, and the first is chosen


class LookupTable:
    """One codebook's entries as the product wants them, kept until the codebook changes.

    Transposed, a single vector's product reads them twice as fast. A codebook has changed when it is another tensor or
    was written to, as PyTorch counts it. Fused optimizers, and whoever writes through `.data`, count nothing: so each
    entry's first value is compared, too, and `forget` is for those who know of a change. Elsewhere than on a CPU
    nothing is kept: it would save nothing, and a recorded CUDA graph would go on with the old norms.
    """

    def __init__(self) -> None:
        self.forget()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return LookupTable, ()  # a copy's counts of writes begin anew, so it keeps nothing

    def forget(self) -> None:
        """Make it anew at the next lookup."""
        self._made_of: tuple[Tensor, int, Tensor] | None = None
        self._table: tuple[Tensor, Tensor, float] | None = None

    def nearest(self, vectors: Tensor, codebook: Tensor) -> Tensor:
        """As `nearest_entries`."""
        if torch.compiler.is_compiling() or codebook.device.type != "cpu" or codebook.is_inference():
            return nearest_entries(vectors, codebook)
        if self._table is None or not self._is_made_of(codebook):
            self._table = _table(codebook, transposed=True)
            # the tensor itself is kept, too: its memory cannot become another codebook's meanwhile
            self._made_of = (codebook.detach(), codebook._version, codebook.detach()[:, 0].clone())
        return _nearest_on_cpu(vectors, codebook, *self._table)

    @torch.no_grad()
    def _is_made_of(self, codebook: Tensor) -> bool:
        if self._made_of is None:
            return False
        tensor, version, first_values = self._made_of
        if tensor.data_ptr() != codebook.data_ptr() or version != codebook._version:
            return False
        return torch.equal(codebook[:, 0], first_values)


@torch.no_grad()
def nearest_entries(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the entry nearest to each vector, the first of several; searched in float32.

    Args:
        vectors: `(batch, frames, codebook_dim)`, or any other leading axes.
        codebook: `(codebook_size, codebook_dim)`.

    Returns:
        `(batch, frames)`, int64.
    """
    if vectors.device.type == "cpu" and not torch.compiler.is_compiling():
        return _nearest_on_cpu(vectors, codebook, *_table(codebook))
    flat, entries = vectors.reshape(-1, vectors.shape[-1]).float(), codebook.float()
    norms = entries.square().sum(dim=-1) / 2
    blocks = [flat] if torch.compiler.is_compiling() else flat.split(BLOCK_ELSEWHERE)
    found = [torch.addmm(norms, block, entries.T, alpha=-1).min(dim=-1).indices for block in blocks]
    return torch.cat(found).view(vectors.shape[:-1])


@torch.no_grad()
def _table(codebook: Tensor, transposed: bool = False) -> tuple[Tensor, Tensor, float]:
    # Entries as columns, half of each one's squared norm, and the largest of those.
    entries = codebook.detach().float()
    norms = torch.linalg.vector_norm(entries, dim=-1).square() / 2
    return entries.T.contiguous() if transposed else entries.T, norms, float(norms.max())


@torch.no_grad()
def _nearest_on_cpu(vectors: Tensor, codebook: Tensor, columns: Tensor, norms: Tensor, largest: float) -> Tensor:
    flat = vectors.reshape(-1, vectors.shape[-1]).float()
    found = []
    for block in (flat,) if len(flat) <= BLOCK_ON_CPU else flat.split(BLOCK_ON_CPU):
        scores = torch.addmm(norms, block, columns, alpha=-1)
        best, indices, second = _least_two(scores)
        if len(block) == 1:  # numbers are quicker than tensors of one
            square = float(torch.linalg.vecdot(block, block))
            if float(second) - float(best) <= ROUNDING * (square / 2 + largest):
                indices[0] = _nearest_in_double(block, codebook)
        else:
            limits = torch.linalg.vecdot(block, block).mul_(ROUNDING / 2).add_(ROUNDING * largest)
            doubtful = second.sub_(best)[:, 0] <= limits
            if bool(doubtful.any()):
                indices[doubtful, 0] = _nearest_in_double(block[doubtful], codebook)
        found.append(indices)
    return (found[0] if len(found) == 1 else torch.cat(found)).view(vectors.shape[:-1])


def _least_two(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The least of each row, its index and the second least, each (rows, 1); scores are overwritten. Where there is
    # enough to search, first the least of every GROUP-th one, which needs no index and is several times as fast.
    rows, size = scores.shape
    if rows < FEW or size % GROUP:
        least, indices = scores.min(dim=-1, keepdim=True)  # argmin alone is slower for many rows
        return least, indices, scores.scatter_(1, indices, torch.inf).amin(dim=-1, keepdim=True)
    grouped = scores.view(rows, size // GROUP, GROUP)
    group_least = grouped.amin(dim=1)
    least, group = group_least.min(dim=-1, keepdim=True)
    members = grouped.gather(2, group[:, None].expand(-1, size // GROUP, 1))[:, :, 0]
    member = members.min(dim=-1, keepdim=True).indices
    second_of_group = members.scatter_(1, member, torch.inf).amin(dim=-1, keepdim=True)
    second = torch.minimum(group_least.scatter_(1, group, torch.inf).amin(dim=-1, keepdim=True), second_of_group)
    return least, member * GROUP + group, second


def _nearest_in_double(vectors: Tensor, codebook: Tensor) -> Tensor:
    vectors, entries = vectors.double(), codebook.double()
    norms = entries.square().sum(dim=-1) / 2
    scores = torch.addmm(norms, vectors, entries.T, alpha=-1)
    limits = scores.amin(dim=-1) + EQUAL * (vectors.square().sum(dim=-1) / 2 + norms.max())
    return (scores <= limits[:, None]).byte().argmax(dim=-1)  # the first of them


@torch.no_grad()
def nearest_like_transformers(vectors: Tensor, codebook: Tensor) -> Tensor:
    """As `nearest_entries`, by the very operation of transformers' Mimi on tensors of the same shapes.

    Source: transformers `MimiEuclideanCodebook.quantize`.
    """
    flat = vectors.reshape(1, -1, vectors.shape[-1]).float()
    return torch.cdist(flat, codebook[None].float(), p=2)[0].argmin(dim=-1).view(vectors.shape[:-1])
