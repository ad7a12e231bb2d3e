"""Which rows share a forward pass of a teacher: like lengths together, so that little is padding."""

from collections.abc import Iterator, Sequence


def batches_by_length(lengths: Sequence[int], budget: int, equal: bool = False) -> Iterator[list[int]]:
    """Rows in batches, the longest first, so that memory runs out at once or never.

    Args:
        lengths: Of each row, in any unit.
        budget: What a batch may hold, padding included, in the same unit. A row that is longer goes alone.
        equal: Only rows of one length share a batch.

    Yields:
        Row numbers; every row is in one batch. Rows of one length stay in order.

    >>> list(batches_by_length([3, 9, 4, 4], budget=12))
    [[1], [2, 3, 0]]
    >>> list(batches_by_length([3, 9, 4, 4], budget=12, equal=True))
    [[1], [2, 3], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch:
            longest = lengths[batch[0]]
            if longest * (len(batch) + 1) > budget or (equal and lengths[row] != longest):
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch
