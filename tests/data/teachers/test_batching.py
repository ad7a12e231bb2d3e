"""Which rows share a forward pass."""

import pytest

from mimi_bridge.data.teachers.batching import batches_by_length

LENGTHS = [5, 1, 30, 7, 7, 12, 5, 100, 2]


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("budget", [1, 20, 60, 10_000])
def test_every_row_is_in_one_batch_and_no_batch_holds_more_than_it_may(budget, equal):
    batches = list(batches_by_length(LENGTHS, budget, equal))
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert all(len(batch) == 1 or len(batch) * max(LENGTHS[row] for row in batch) <= budget for batch in batches)


def test_rows_of_one_batch_have_one_length_if_they_must():
    batches = list(batches_by_length(LENGTHS, 10_000, equal=True))
    assert all(len({LENGTHS[row] for row in batch}) == 1 for batch in batches)
    assert [0, 6] in batches and [3, 4] in batches


def test_all_share_a_batch_that_holds_them():
    assert list(batches_by_length(LENGTHS, 10_000)) == [[7, 2, 5, 3, 4, 0, 6, 8, 1]]


def test_no_rows_make_no_batches():
    assert list(batches_by_length([], 10)) == []
