"""A data set written shard by shard: the same bytes however it comes about, and nothing half written."""

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Features, List, Value, load_from_disk

from mimi_bridge.data import shards as shards_module
from mimi_bridge.data.running_statistics import RunningStatistics
from mimi_bridge.data.shards import ShardedDataset, ShardNote

FEATURES = Features({"id": Value("string"), "states": List(List(Value("float16"), length=3))})
PLAN = {"source": "here", "layer": 3}


def write(dataset: ShardedDataset, shard: int, num_rows: int = 4) -> None:
    note, statistics = ShardNote(dropped=[(f"{shard}-bad", "no audio")]), RunningStatistics(3)

    def rows():
        for row in range(num_rows):
            states = np.random.default_rng((shard, row)).standard_normal((row, 3)).astype(np.float16)
            statistics.add(states)
            note.seconds += 1.5
            yield {"id": f"{shard}-{row}", "states": states}

    dataset.write(shard, rows(), FEATURES, note, statistics)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def whole(folder: Path, order: list[int]) -> dict[str, str]:
    dataset = ShardedDataset(folder / "data", PLAN, len(order))
    dataset.begin()
    for shard in order:
        write(dataset, shard)
    dataset.finish({"hours": 1})
    return contents(folder / "data")


def test_finished_folder_is_a_data_set(tmp_path):
    whole(tmp_path, [0, 1, 2])
    loaded = load_from_disk(str(tmp_path / "data")).with_format("numpy")
    assert list(loaded["id"]) == [f"{shard}-{row}" for shard in range(3) for row in range(4)]
    assert loaded.features == FEATURES
    expected = np.random.default_rng((1, 3)).standard_normal((3, 3)).astype(np.float16)
    assert np.array_equal(loaded[7]["states"], expected)
    assert not (tmp_path / "data.partial").exists()


def test_bytes_do_not_depend_on_the_order_of_the_shards(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert whole(tmp_path / "a", [0, 1, 2, 3]) == whole(tmp_path / "b", [3, 1, 0, 2])


def test_another_object_goes_on_where_the_first_was(tmp_path):
    (tmp_path / "whole").mkdir()
    first = ShardedDataset(tmp_path / "data", PLAN, 3)
    first.begin()
    write(first, 1)
    (first.partial / "data-00002-of-00003.arrow.4711").write_bytes(b"what a killed process was at")
    second = ShardedDataset(tmp_path / "data", PLAN, 3)
    second.begin()
    assert second.missing() == [0, 2]
    for shard in second.missing():
        write(second, shard)
    second.finish({"hours": 1})
    assert contents(tmp_path / "data") == whole(tmp_path / "whole", [0, 1, 2])


def test_what_was_left_out_is_kept_with_its_reason(tmp_path):
    dataset = ShardedDataset(tmp_path / "data", PLAN, 2)
    dataset.begin()
    write(dataset, 0)
    write(dataset, 1)
    assert [note.dropped for note in dataset.notes()] == [[["0-bad", "no audio"]], [["1-bad", "no audio"]]]
    assert sum(note.num_rows for note in dataset.notes()) == 8
    assert dataset.statistics().weight == 2 * (0 + 1 + 2 + 3)


def test_shard_without_rows_leaves_no_file(tmp_path):
    dataset = ShardedDataset(tmp_path / "data", PLAN, 2)
    dataset.begin()
    write(dataset, 0, num_rows=0)
    write(dataset, 1)
    dataset.finish({})
    assert len(load_from_disk(str(tmp_path / "data"))) == 4
    assert [path.name for path in (tmp_path / "data").glob("*.arrow")] == ["data-00001-of-00002.arrow"]


def test_shard_that_fails_half_way_leaves_nothing_and_the_others_stay(tmp_path, monkeypatch):
    dataset = ShardedDataset(tmp_path / "data", PLAN, 2)
    dataset.begin()
    write(dataset, 0)
    before = contents_below(dataset.partial)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards_module, "_flush", full)
    with pytest.raises(
        OSError, match=r"shard 1 of .*data\.partial could not be written \(No space left on device\); what"
    ):
        write(dataset, 1)
    assert contents_below(dataset.partial) == before
    monkeypatch.undo()
    assert dataset.missing() == [1]


def contents_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_other_plan_for_what_was_begun_is_refused_by_what_differs(tmp_path):
    ShardedDataset(tmp_path / "data", PLAN, 2).begin()
    with pytest.raises(ValueError, match="was begun in another way .layer 3, now 4.; go on with the same command"):
        ShardedDataset(tmp_path / "data", PLAN | {"layer": 4}, 2).begin()
    assert json.loads((tmp_path / "data.partial/plan.json").read_text()) == PLAN


def test_folder_that_is_there_is_never_touched(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        ShardedDataset(tmp_path / "data", PLAN, 2)
