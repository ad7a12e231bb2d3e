"""Training on rows that are streamed: one order each time, by one process and by two, stopped and gone on with."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_trainer import arguments, assert_same, audio_model, audio_rows, silence_content, state_of

from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.streaming import StreamedRows, open_stream
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments, stream_loader
from two_processes import run_in_two_processes

QUICK = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 6, "mel_weight": 0.0}
LOGGED = {"logging_strategy": "steps", "logging_steps": 1}


class Noting(MimiBridgeCollator):
    """Notes what it is given, in order."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self.seen: list[str] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        self.seen += [str(row["id"]) for row in rows]
        return super().__call__(rows)


def write_shards(folder: Path, num_shards: int = 4) -> str:
    folder.mkdir()
    rows = [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in row.items()}
        for row in audio_rows(12)
    ]
    for row in rows:
        row.setdefault("qwen_hidden", None)
        row.setdefault("token_spans", None)
        row.setdefault("wavlm_features", None)
    for shard in range(num_shards):
        Dataset.from_list(rows[shard::num_shards]).to_parquet(folder / f"{shard}.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards") / "data")


def trainer_of(output: Path, dataset: Any, model: Any = None, **options: Any) -> MimiBridgeTrainer:
    model = audio_model() if model is None else model
    args = arguments(output, **QUICK | LOGGED | options)
    return MimiBridgeTrainer(model, args, Noting.for_model(model.config), dataset)


def test_stream_trains_pass_after_pass_to_the_same_weights_each_time(shards, tmp_path):
    first, second = (trainer_of(tmp_path / name, open_stream(shards, buffer_size=3)) for name in "ab")
    first.train()
    second.train()
    assert_same(state_of(first.bridge_model), state_of(second.bridge_model))
    assert first.data_collator.seen == second.data_collator.seen
    assert sorted(first.data_collator.seen[:12], key=int) == [str(number) for number in range(12)]


def test_stream_goes_on_in_the_same_order(shards, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    whole = trainer_of(tmp_path / "whole", open_stream(shards, buffer_size=3), **saving)
    whole.train()
    parts = trainer_of(tmp_path / "parts", open_stream(shards, buffer_size=3), **saving)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same(state_of(parts.bridge_model), state_of(whole.bridge_model))


def test_stream_that_skips_no_rows_goes_on_in_another_order(shards, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    whole = trainer_of(tmp_path / "whole", open_stream(shards, buffer_size=3), **saving)
    whole.train()
    parts = trainer_of(tmp_path / "parts", open_stream(shards, buffer_size=3), ignore_data_skip=True, **saving)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    seen = parts.data_collator.seen[:8]
    assert seen != whole.data_collator.seen[:8] and seen != whole.data_collator.seen[8:16]


def test_stream_goes_by_the_batch_size_that_fits(shards, tmp_path, monkeypatch):
    trained = trainer_of(
        tmp_path, open_stream(shards), auto_find_batch_size=True, per_device_train_batch_size=4, max_steps=3
    )
    sizes, step = [], trained.training_step

    def too_much_for_more_than_2(model: Any, inputs: dict[str, Any], *others: Any) -> Any:
        sizes.append(len(inputs["input_values"]))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory.")
        return step(model, inputs, *others)

    monkeypatch.setattr(trained, "training_step", too_much_for_more_than_2)
    trained.train()
    assert trained.state.global_step == 3
    assert sizes[0] == 4 and sizes[-3:] == [2, 2, 2]


def test_iterable_data_set_of_datasets_is_streamed(tmp_path, shards):
    dataset = open_stream(shards)._dataset
    trained = trainer_of(tmp_path, dataset)
    assert isinstance(trained.train_dataset, StreamedRows)
    trained.train()
    assert trained.state.global_step == 6


def test_rows_in_a_list_need_no_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(stream_loader, "is_datasets_available", lambda: False)
    rows = [{"input_values": [0.1] * 1920}]
    assert stream_loader.streamed(rows, MimiBridgeTrainingArguments(str(tmp_path))) is rows


def test_stream_without_max_steps_is_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        trainer_of(tmp_path, open_stream(shards), max_steps=-1)


def test_bad_row_of_a_stream_stops_nothing(shards, tmp_path, caplog):
    bad = [{"id": "bad", "input_values": [float("nan")] * 4000}]
    Dataset.from_list(bad).to_parquet(tmp_path / "bad.parquet")
    for path in Path(shards).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING):
        trained = trainer_of(tmp_path / "run", open_stream(str(tmp_path / "*.parquet")))
        trained.train()
    assert "bad" not in trained.data_collator.seen
    assert trained.state.global_step == 6


# --- two processes ---


def train_stream(output: str) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    for case, workers in (("fresh", 0), ("workers", 1)):
        model = silence_content(audio_model())
        options = {"content_init": "k-means", "dataloader_num_workers": workers}
        trained = trainer_of(Path(output) / "run", open_stream(f"{output}/data", buffer_size=3), model, **options)
        trained.train()
        rank = trained.accelerator.process_index
        found = {"model": state_of(trained.bridge_model), "seen": trained.data_collator.seen}
        torch.save(found, Path(output) / f"{case} {rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_a_stream_and_hold_the_same_model(tmp_path):
    write_shards(tmp_path / "data")
    run_in_two_processes(train_stream, tmp_path)
    for case in ("fresh", "workers"):
        ours, theirs = (torch.load(tmp_path / f"{case} {rank}.pt", weights_only=True) for rank in range(2))
        assert_same(ours["model"], theirs["model"])
    ours, theirs = (torch.load(tmp_path / f"fresh {rank}.pt", weights_only=True)["seen"] for rank in range(2))
    looked_at = 6  # rows of each process's first pass, which the first step's statistics are read off, too
    assert sorted({*ours[looked_at : 2 * looked_at], *theirs[looked_at : 2 * looked_at]}, key=int) == [
        str(n) for n in range(12)
    ]
