"""Killed in any moment, on a full disk, with a worker that dies: training goes on, or says why not."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming_training import trainer_of, write_shards
from test_trainer import assert_same, audio_model, silence_content, state_of

from mimi_bridge.data.streaming import open_stream
from mimi_bridge.training.checkpoints import is_complete, newest_checkpoint

KILLED = {"max_steps": 36, "save_strategy": "steps", "save_steps": 3, "content_init": "k-means", "save_total_limit": 3}


def train_until_killed(output: str) -> None:
    """What each of the two processes runs, from wherever the last one was stopped."""
    torch.set_num_threads(1)
    stream = open_stream(f"{output}/data", buffer_size=3)
    trained = trainer_of(Path(output) / "run", stream, silence_content(audio_model()), **KILLED)
    found = newest_checkpoint(f"{output}/run")
    trained.train(resume_from_checkpoint=found)
    if trained.is_world_process_zero():
        torch.save(state_of(trained.bridge_model), Path(output) / "model.pt")
    torch.distributed.destroy_process_group()


def start(output: Path) -> subprocess.Popen:
    script = output / "run.py"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
    script.write_text(
        f"import sys\n\nsys.path[:0] = {folders}\nfrom test_interrupted_training import train_until_killed\n\n"
        "train_until_killed(sys.argv[1])\n"
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return subprocess.Popen(
        [sys.executable, *torchrun, str(script), str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=(output / "log").open("a"),
        stderr=subprocess.STDOUT,
    )


def workers_of(process: int) -> list[int]:
    """The processes that torchrun started, if it still runs."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def steps_done(output: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in (output / "run").glob("checkpoint-*")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 10])
def test_run_of_two_processes_that_is_killed_ends_with_the_weights_of_one_that_is_not(tmp_path, kills):
    draw, finals = random.Random(kills), []
    for name, count in (("whole", 0), ("killed", kills)):
        output = tmp_path / name
        output.mkdir()
        write_shards(output / "data")
        for _ in range(count):
            process, before = start(output), steps_done(output)
            while process.poll() is None and steps_done(output) <= before:  # else it would be killed while it imports
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            for pid in (process.pid, *workers_of(process.pid)):
                kill(pid)
            process.wait()
        assert start(output).wait(timeout=300) == 0, (output / "log").read_text()[-3000:]
        finals.append(torch.load(output / "model.pt", weights_only=True))
    assert_same(*finals)


def test_checkpoint_that_was_not_written_to_its_end_is_passed_over_and_named(tmp_path, caplog):
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"cut off'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    for step in (12, 14):
        assert f"checkpoint-{step} is incomplete, since what wrote it was interrupted" in caplog.text
    assert newest_checkpoint(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "rows"])
def test_run_that_has_all_its_steps_is_not_trained_further(tmp_path, caplog, is_stream):
    """transformers takes one step more, whenever a finished job is started again."""
    write_shards(tmp_path / "data")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "residual_weight_end": 0.5}

    def trainer():
        stream = open_stream(f"{tmp_path}/data")
        return trainer_of(tmp_path / "run", stream if is_stream else list(stream.one_pass(0))[:3], **options)

    first, again = trainer(), trainer()
    first.train()
    caplog.clear()
    result = again.train(resume_from_checkpoint=True)
    assert "checkpoint-4 has all 4 steps already, so nothing is trained; raise max_steps to go on" in caplog.text
    assert (result.global_step, again.state.global_step) == (4, 4)
    assert_same(state_of(first.bridge_model), state_of(again.bridge_model))
    assert again.bridge_model.config.residual_weight == first.bridge_model.config.residual_weight == 0.5
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_full_disk_stops_training_and_leaves_the_checkpoints_before(tmp_path, small_files):
    write_shards(tmp_path / "data")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = trainer_of(tmp_path / "run", open_stream(f"{tmp_path}/data"), **options | {"max_steps": 2})
    first.train()
    second = trainer_of(tmp_path / "run", open_stream(f"{tmp_path}/data"), **options)
    with (
        small_files(),
        pytest.raises(OSError, match=r"checkpoint-4 could not be written \(.*\); the"),
    ):
        second.train(resume_from_checkpoint=True)
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert is_complete(str(tmp_path / "run" / "checkpoint-2"))
    third = trainer_of(tmp_path / "run", open_stream(f"{tmp_path}/data"), **options)
    third.train(resume_from_checkpoint=True)
    assert third.state.global_step == 4


class _Dying(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Any]]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._rows[index]


def test_worker_that_dies_is_named_in_one_sentence(tmp_path):
    write_shards(tmp_path / "data")
    rows = [next(open_stream(f"{tmp_path}/data").one_pass(0)) for _ in range(4)]
    trained = trainer_of(tmp_path / "run", _Dying(rows), dataloader_num_workers=1)
    with pytest.raises(ChildProcessError, match="a data loader's worker died, perhaps for want of memory; go on with"):
        trained.train()
