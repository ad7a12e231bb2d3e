"""A data set written shard by shard: the same bytes however it comes about, and nothing half written."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Features, List, Value, load_from_disk

from mimi_bridge.data.prepare.shards import ShardedDataset, ShardNote
from mimi_bridge.data.teachers.statistics import RunningStatistics

FEATURES = Features({"id": Value("string"), "states": List(List(Value("float16"), length=3))})
PLAN = {"source": "here", "layer": 3}


def write(dataset: ShardedDataset, shard: int, num_rows: int = 4) -> None:
    note, statistics = ShardNote(dropped=[(f"{shard}-bad", "no audio")]), {"qwen": RunningStatistics(3)}

    def rows():
        for row in range(num_rows):
            states = np.random.default_rng((shard, row)).standard_normal((row, 3)).astype(np.float16)
            statistics["qwen"].add(states)
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
    dataset.finish({"hours": 1}, ["qwen"])
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
    (first.partial / "data/data-00002-of-00003.arrow.4711.growing").write_bytes(b"what a killed process was at")
    (first.partial / "data/plan.json.4711.growing").write_bytes(b"and another")
    second = ShardedDataset(tmp_path / "data", PLAN, 3)
    second.begin()
    assert second.missing() == [0, 2]
    for shard in second.missing():
        write(second, shard)
    second.finish({"hours": 1}, ["qwen"])
    assert contents(tmp_path / "data") == whole(tmp_path / "whole", [0, 1, 2])


def test_what_was_left_out_is_kept_with_its_reason(tmp_path):
    dataset = ShardedDataset(tmp_path / "data", PLAN, 2)
    dataset.begin()
    write(dataset, 0)
    write(dataset, 1)
    assert [note.dropped for note in dataset.notes()] == [[["0-bad", "no audio"]], [["1-bad", "no audio"]]]
    assert sum(note.num_rows for note in dataset.notes()) == 8
    dataset.finish({}, ["qwen"])
    assert RunningStatistics.load(tmp_path / "data/qwen_statistics.safetensors").weight == 2 * (0 + 1 + 2 + 3)


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

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
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
    ShardedDataset(tmp_path / "data", PLAN | {"layer": 5}, 2).begin()
    begun = ShardedDataset(tmp_path / "data", PLAN, 2)
    begun.begin()  # nothing was written by the plan before
    write(begun, 0)
    with pytest.raises(ValueError, match="was begun in another way .layer 3, now 4.; go on with the same command"):
        ShardedDataset(tmp_path / "data", PLAN | {"layer": 4}, 2).begin()
    assert json.loads((tmp_path / "data.partial/data/plan.json").read_text()) == PLAN


@pytest.mark.parametrize("plan", [None, PLAN | {"layer": 4}])
def test_folder_of_something_else_is_never_touched(tmp_path, plan):
    (tmp_path / "data").mkdir()
    if plan is not None:
        (tmp_path / "data/plan.json").write_text(json.dumps(plan))
    with pytest.raises(FileExistsError, match="exists already.*; choose another --output"):
        ShardedDataset(tmp_path / "data", PLAN, 2).is_finished()


def test_what_is_finished_is_known_by_its_plan(tmp_path):
    assert not ShardedDataset(tmp_path / "data", PLAN, 2).is_finished()
    whole(tmp_path, [0, 1])
    again = ShardedDataset(tmp_path / "data", PLAN, 2)
    assert again.is_finished() and again.report() == {"hours": 1}


def test_kill_at_any_step_on_disk_loses_nothing_and_doubles_nothing(tmp_path):
    """A process that ends before its first, second, third ... step, and then one that goes on from there."""
    make(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for step in range(1, 100):
        output = tmp_path / str(step)
        if not is_killed(lambda output=output, step=step: (end_at(step), make(output))):
            break
        make(output)
        assert contents(output) == expected
        assert not (tmp_path / f"{step}.partial").exists()
    assert 20 < step < 100


def make(output: Path) -> None:
    dataset = ShardedDataset(output, PLAN, 2)
    if not dataset.is_finished():
        dataset.begin()
        for shard in dataset.missing():
            write(dataset, shard, num_rows=2)
        dataset.finish({"hours": 1}, ["qwen"])


def end_at(last: int) -> None:
    """Let this process end before its step of that number."""
    steps = iter(range(1, 1000))

    def counted(do):
        def step(*given, **more):
            if next(steps) == last:
                os._exit(9)
            return do(*given, **more)

        return step

    os.fsync = lambda descriptor: None  # a kill loses nothing of what the system has
    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def is_killed(work) -> bool:
    """Whether a child that does it ends before it is done."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9
