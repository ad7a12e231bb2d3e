"""The search for the nearest entry on a CPU: float32 or bfloat16 say which entries it may be, float64 which it is.

Of |x - e|² / 2 only |e|² / 2 - x·e depends on the entry. That is one matrix product a block of vectors, small enough
to stay in the processor's cache. A product's rounding has a bound, so one in low precision leaves few entries that may
be the nearest: hardly ever two in float32, one or two in bfloat16, whose product takes half the time where the
processor has instructions for it. What is left to decide is decided in float64. So a code is that of exact arithmetic,
whatever stands beside the vector in a batch.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .linear_map import MIN_ROWS, LinearMap

BLOCK = 128  # vectors: 1 MB of products with 2,048 entries
GROUP, FEW = 128, 16
MIN_ROWS_OF_A_SHORTLIST = 64  # for fewer vectors a shortlist saves nothing
MAX_SHORTLIST = 16  # entries a vector, on average: longer lists come of entries that are nearly all the same
HAS_FAST_BFLOAT16 = hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
ROUNDING = 2e-6  # of |x|² / 2 + |e|² / 2: more than ten times what a float32 product of 256 terms was seen to lose
BFLOAT16_PRODUCT = 2**-9 + 2**-14  # of |x| |e|: the product's own rounding, and that of its float32 sum
EQUAL = 1e-13  # of |x|² / 2 + |e|² / 2, in float64: entries this near to each other are equal, and the first is chosen


@dataclass(frozen=True)
class EntryTable:
    """A codebook as the search wants it.

    Attributes:
        codebook: The entries, `(codebook_size, codebook_dim)`, of any type.
        columns: The entries as columns, float32, `(codebook_dim, codebook_size)`.
        norms: Half of each entry's squared norm, `(codebook_size,)`.
        largest: The largest of the norms.
        is_kept: Whether it is for many calls, so that the entries may be laid out anew.
    """

    codebook: Tensor
    columns: Tensor
    norms: Tensor
    largest: float
    is_kept: bool

    @classmethod
    def of(cls, codebook: Tensor, is_kept: bool = False) -> "EntryTable":
        """The table of a codebook; if kept, transposed: a single vector's product reads it twice as fast."""
        codebook = codebook.detach()
        entries = codebook.float()
        norms = torch.linalg.vector_norm(entries, dim=-1).square() / 2
        columns = entries.T.contiguous() if is_kept else entries.T
        return cls(codebook, columns, norms, float(norms.max()), is_kept)

    def scores(self, vectors: Tensor) -> Tensor:
        """What is least for the nearest entry, by float32: `(vectors, codebook_dim)` -> `(vectors, codebook_size)`."""
        if self.is_kept and len(vectors) >= MIN_ROWS:
            return self.blocks(vectors)
        return torch.addmm(self.norms, vectors, self.columns, alpha=-1)

    @cached_property
    def blocks(self) -> LinearMap:
        """The map of a few vectors to scores."""
        return LinearMap.of(-self.codebook.float(), self.norms)

    @cached_property
    def rounded(self) -> tuple[Tensor, float]:
        """The entries in bfloat16, and the longest of the differences that this makes."""
        entries = self.codebook.float()
        rounded = entries.bfloat16()
        return rounded, float(torch.linalg.vector_norm(entries - rounded, dim=-1).max())


def nearest_on_cpu(vectors: Tensor, table: EntryTable) -> Tensor:
    """As `lookup.nearest_entries`."""
    flat = vectors.reshape(-1, vectors.shape[-1]).float()
    if len(flat) == 1:
        return _nearest_to_one(flat, table).view(vectors.shape[:-1])
    codes = [_nearest_in_block(block, table) for block in flat.split(BLOCK)]
    return (codes[0] if len(codes) == 1 else torch.cat(codes)).view(vectors.shape[:-1])


def _nearest_in_block(vectors: Tensor, table: EntryTable) -> Tensor:
    size = len(table.norms)
    if HAS_FAST_BFLOAT16 and len(vectors) >= MIN_ROWS_OF_A_SHORTLIST and size > GROUP and size % GROUP == 0:
        codes = _nearest_of_shortlist(vectors, table)
        if codes is not None:
            return codes
    return _nearest_in_float32(vectors, table)


def _nearest_to_one(vector: Tensor, table: EntryTable) -> Tensor:
    # As `_nearest_in_float32`; numbers are quicker than tensors of one.
    best, code, second = _least_two(table.scores(vector))
    flat = vector[0]
    if second.item() - best.item() <= ROUNDING * (torch.dot(flat, flat).item() / 2 + table.largest):
        return _nearest_in_double(vector, table.codebook)
    return code[0]


def _nearest_in_float32(vectors: Tensor, table: EntryTable) -> Tensor:
    best, codes, second = _least_two(table.scores(vectors))
    limits = torch.linalg.vecdot(vectors, vectors).mul_(ROUNDING / 2).add_(ROUNDING * table.largest)
    doubtful = second.sub_(best)[:, 0] <= limits
    codes = codes[:, 0]
    if bool(doubtful.any()):
        codes[doubtful] = _nearest_in_double(vectors[doubtful], table.codebook)
    return codes


def _nearest_of_shortlist(vectors: Tensor, table: EntryTable) -> Tensor | None:
    # None: some vector has no shortlist, because it holds NaN, or the lists are too long to gain anything.
    num_rows, size = len(vectors), len(table.norms)
    rounded, entry_error = table.rounded
    rounded_vectors = vectors.bfloat16()
    lengths, errors = (torch.linalg.vector_norm(each, dim=-1) for each in (vectors, vectors - rounded_vectors))
    longest = (2 * table.largest) ** 0.5
    error = lengths * (1.01 * entry_error + BFLOAT16_PRODUCT * longest) + errors * longest + ROUNDING * table.largest

    grouped = (table.norms - rounded_vectors @ rounded.T).view(num_rows, size // GROUP, GROUP)
    group_least = grouped.amin(dim=1)  # of every GROUP-th entry: many times as fast as a search for the entries
    limits = (group_least.amin(dim=-1) + 2 * error)[:, None]
    row, group = (group_least <= limits).nonzero(as_tuple=True)
    if len(row) > MAX_SHORTLIST * num_rows:
        return None
    of_pair, member = (grouped[row, :, group] <= limits[row]).nonzero(as_tuple=True)
    row, entry = row[of_pair], member * GROUP + group[of_pair]
    counts = torch.bincount(row, minlength=num_rows)
    if not bool(counts.all()) or len(row) > MAX_SHORTLIST * num_rows:
        return None

    codes = torch.empty(num_rows, dtype=torch.long).index_put_((row,), entry)  # where there is one: done
    contested = (counts > 1)[row]
    row, entry = row[contested], entry[contested]
    scores, limits = _scores_in_double(vectors[row], table.codebook[entry], table.largest)
    least = scores.new_full((num_rows,), torch.inf).scatter_reduce_(0, row, scores, "amin")
    chosen = scores <= least[row] + limits
    return codes.scatter_reduce_(0, row[chosen], entry[chosen], "amin", include_self=False)  # the first of equals


def _scores_in_double(vectors: Tensor, entries: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    # Of pairs, and how near to each other two scores of a vector are equal.
    vectors, entries = vectors.double(), entries.double()
    scores = torch.linalg.vecdot(entries, entries) / 2 - torch.linalg.vecdot(vectors, entries)
    return scores, EQUAL * (torch.linalg.vecdot(vectors, vectors) / 2 + largest)


def _nearest_in_double(vectors: Tensor, codebook: Tensor) -> Tensor:
    vectors, entries = vectors.double(), codebook.double()
    norms = entries.square().sum(dim=-1) / 2
    scores = torch.addmm(norms, vectors, entries.T, alpha=-1)
    limits = scores.amin(dim=-1) + EQUAL * (vectors.square().sum(dim=-1) / 2 + norms.max())
    return (scores <= limits[:, None]).byte().argmax(dim=-1)  # the first of them


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
