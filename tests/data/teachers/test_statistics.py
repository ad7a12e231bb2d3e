"""Mean and deviation against numpy's, and that no division of the work changes a byte."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mimi_bridge.data.teachers.statistics import RunningStatistics, stored_statistics


@pytest.fixture
def rows():
    """As a language model's states are: some dimensions are huge, some hardly vary."""
    scales = np.array([1.0, 1e-3, 300.0, 0.0, 5.0])
    return np.random.default_rng(0).normal(size=(500, 5)) * scales + np.array([0.0, 1e-3, 2e4, 1000.0, -7.0])


@pytest.fixture
def weights():
    return np.random.default_rng(1).uniform(0, 4, size=500)


def counted(rows, weights=None) -> RunningStatistics:
    statistics = RunningStatistics(rows.shape[1])
    statistics.add(rows, weights)
    return statistics


def bytes_of(statistics: RunningStatistics, folder) -> bytes:
    statistics.save(folder / "statistics.safetensors")
    return (folder / "statistics.safetensors").read_bytes()


def test_mean_and_deviation_are_numpys(rows):
    statistics = counted(rows)
    assert statistics.weight == 500
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.std, rows.std(axis=0), rtol=1e-7, atol=1e-5)


def test_row_counts_by_its_weight(rows, weights):
    statistics, mean = counted(rows, weights), np.average(rows, axis=0, weights=weights)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-12, atol=1e-12)
    deviation = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights))
    np.testing.assert_allclose(statistics.std, deviation, rtol=1e-7, atol=1e-4)


def test_weight_of_two_is_twice_the_row(rows):
    twice, doubled = counted(np.concatenate([rows, rows])), counted(rows, np.full(500, 2.0))
    assert twice.weight == doubled.weight == 1000
    torch.testing.assert_close(twice.mean, doubled.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twice.std, doubled.std, rtol=1e-7, atol=1e-5)


def test_deviation_of_what_does_not_vary_is_zero():
    assert counted(np.full((1000, 1), 12345.0)).std.item() == 0.0


def test_small_deviation_beside_a_large_mean_is_kept():
    values = 10_000 + 0.01 * np.random.default_rng(0).normal(size=(2000, 1))
    assert counted(values).std.item() == pytest.approx(values.std(), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_any_division_of_the_work_gives_the_same_bytes(rows, weights, tmp_path, seed):
    random = np.random.default_rng(seed)
    processes = [RunningStatistics(5) for _ in range(3)]
    for part in np.array_split(random.permutation(500), 17):
        processes[random.integers(3)].add(torch.from_numpy(rows[part]), torch.from_numpy(weights[part]))
    together = RunningStatistics(5)
    for process in random.permutation(3):
        together.merge(processes[process])
    assert bytes_of(together, tmp_path) == bytes_of(counted(rows, weights), tmp_path)


def test_merging_is_associative(rows, tmp_path):
    parts = [rows[:10], rows[10:300], rows[300:]]
    left, right = [counted(part) for part in parts], [counted(part) for part in parts]
    left[0].merge(left[1])
    left[0].merge(left[2])
    right[1].merge(right[2])
    right[0].merge(right[1])
    assert bytes_of(left[0], tmp_path) == bytes_of(right[0], tmp_path)


def test_more_rows_than_are_summed_at_once_are_all_counted():
    values = np.arange(10_000.0)[:, None]
    assert counted(values).mean.item() == 4999.5


def test_what_is_saved_can_be_read_and_added_to(rows, weights, tmp_path):
    first = counted(rows[:200], weights[:200])
    first.save(tmp_path / "first.safetensors")
    again = RunningStatistics.load(tmp_path / "first.safetensors")
    again.add(rows[200:], weights[200:])
    assert bytes_of(again, tmp_path) == bytes_of(counted(rows, weights), tmp_path)


def test_file_holds_mean_and_deviation_for_readers(rows, tmp_path):
    statistics = counted(rows)
    statistics.save(tmp_path / "some.safetensors")
    tensors = load_file(tmp_path / "some.safetensors")
    assert torch.equal(tensors["mean"], statistics.mean) and torch.equal(tensors["std"], statistics.std)
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]


def test_nothing_can_be_saved_merged_and_added(rows, tmp_path):
    RunningStatistics(5).save(tmp_path / "nothing.safetensors")
    nothing = RunningStatistics.load(tmp_path / "nothing.safetensors")
    nothing.add(np.zeros((0, 5)))
    nothing.add(np.full((2, 5), np.nan), np.zeros(2))
    assert nothing.weight == 0
    nothing.merge(counted(rows))
    assert bytes_of(nothing, tmp_path) == bytes_of(counted(rows), tmp_path)


@pytest.mark.parametrize("moment", ["mean", "std"])
def test_nothing_has_no_mean_and_no_deviation(moment):
    with pytest.raises(ValueError, match="nothing was added"):
        getattr(RunningStatistics(3), moment)


@pytest.mark.parametrize(
    "rows, weights, message",
    [
        (np.zeros((2, 4)), None, r"rows must be \(rows, 3\) with weights \(rows,\), got \(2, 4\) and \(2,\)"),
        (np.zeros(3), None, r"rows must be \(rows, 3\)"),
        (np.zeros((2, 3)), np.ones(3), r"got \(2, 3\) and \(3,\)"),
        (np.zeros((2, 3)), np.array([1.0, -1.0]), "weights must be finite and not negative"),
        (np.zeros((2, 3)), np.array([1.0, np.nan]), "weights must be finite and not negative"),
        (np.full((2, 3), np.inf), None, "rows hold NaN or infinity"),
        (np.full((2, 3), 1e9), None, "rows must be below a million in size, got 1e"),
    ],
)
def test_what_cannot_be_counted_is_an_error_and_changes_nothing(rows, weights, message):
    statistics = counted(np.ones((1, 3)))
    with pytest.raises(ValueError, match=message):
        statistics.add(rows, weights)
    assert statistics.weight == 1 and statistics.mean.tolist() == [1, 1, 1]


def test_sums_that_outgrow_their_numbers_are_an_error():
    statistics = RunningStatistics(1)
    with pytest.raises(OverflowError, match="beyond 2"):
        for _ in range(5):
            statistics.add(np.full((4096, 1), 2.0**25))


def test_statistics_of_other_vectors_cannot_be_merged():
    with pytest.raises(ValueError, match="of one size, got 3 and 4"):
        RunningStatistics(3).merge(RunningStatistics(4))


def test_file_of_something_else_is_an_error(tmp_path):
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors must be written by RunningStatistics.save"):
        RunningStatistics.load(tmp_path / "other.safetensors")


def test_stored_statistics_are_those_beside_a_data_set(tmp_path):
    assert stored_statistics(tmp_path) == {}
    statistics = RunningStatistics(3)
    statistics.add(np.arange(12.0).reshape(4, 3))
    statistics.save(tmp_path / "wavlm_statistics.safetensors")
    assert {name: one.mean.tolist() for name, one in stored_statistics(tmp_path).items()} == {"wavlm": [4.5, 5.5, 6.5]}
