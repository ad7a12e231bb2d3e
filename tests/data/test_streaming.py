"""Rows from parquet, tars and folders, each once a pass, however many read; what is damaged is named and left out."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from torch.utils.data import DataLoader

from mimi_bridge import MimiBridgeConfig
from mimi_bridge.data import streaming
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.streaming import StreamedRows, open_stream

COLLATE = MimiBridgeCollator.for_model(MimiBridgeConfig())


def flac(number: int) -> bytes:
    """A tone of half a second."""
    file = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * (200 + 20 * number) * np.arange(8_000) / 16_000)
    soundfile.write(file, tone, 16_000, format="FLAC")
    return file.getvalue()


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """As a data set of audio on the Hub."""
    held = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({name: Value("string") for name in rows[0]} | {"audio": held})
    Dataset.from_list(rows, features=features).cast_column("audio", Audio(decode=False)).to_parquet(path)


def write_parquet(folder: Path, num_shards: int = 4, per_shard: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for shard in range(num_shards):
        rows = [
            {"id": f"{shard}-{number}", "audio": {"bytes": flac(number), "path": None}, "text": "hello"}
            for number in range(per_shard)
        ]
        write_rows(rows, folder / f"part-{shard}.parquet")
    return folder


def write_tars(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"speech-{shard}.tar", "w") as tar:
            for number in range(3):
                said = {"text": "hello", "token_ids": [1, 2], "token_spans": [[0.0, 0.1], [0.1, 0.3]]}
                for suffix, content in (("flac", flac(number)), ("json", json.dumps(said).encode())):
                    entry = tarfile.TarInfo(f"{shard}-{number}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def ids(rows: Any) -> list[str]:
    return [str(row["id"]) for row in rows]


ALL = [f"{shard}-{number}" for shard in range(4) for number in range(3)]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    return str(write_parquet(tmp_path_factory.mktemp("parquet") / "data"))


@pytest.fixture
def warned(caplog):
    streaming.logger.propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog


@pytest.mark.parametrize("pattern", ["", "/part-*.parquet"])
def test_every_row_of_parquet_files_comes_once_a_pass_in_another_order(parquet, pattern):
    stream = open_stream(parquet + pattern, buffer_size=5)
    first, second = (ids(stream.one_pass(number)) for number in (0, 1))
    assert sorted(first) == sorted(second) == ALL
    assert first != second and first != ALL
    assert ids(open_stream(parquet, buffer_size=5).one_pass(0)) == first
    assert ids(open_stream(parquet, buffer_size=5, seed=1).one_pass(0)) != first


@pytest.mark.parametrize("num_processes, workers", [(2, 0), (2, 2), (3, 2), (1, 3)])
def test_readers_share_a_pass_whether_there_are_enough_shards_or_not(parquet, num_processes, workers):
    stream = open_stream(parquet, buffer_size=2)
    found = []
    for process in range(num_processes):
        ours = _Pass(stream.of_process(process, num_processes))
        found += ids(DataLoader(ours, batch_size=None, num_workers=workers))
    assert sorted(found) == ALL


class _Pass(torch.utils.data.IterableDataset):
    """One pass of a stream."""

    def __init__(self, stream: StreamedRows):
        self._stream = stream

    def __iter__(self):
        return self._stream.one_pass(0)


def test_audio_is_decoded_and_rows_fit_into_batches(parquet):
    stream = open_stream(parquet).read_by(COLLATE)
    batch = COLLATE([*stream.one_pass(0)])
    assert batch["input_values"].shape == (12, 1, 7 * 1920)


def test_rows_of_tars_hold_what_their_json_says(tmp_path):
    stream = open_stream(str(write_tars(tmp_path / "tars")))
    assert {"audio", "text", "token_ids", "token_spans", "id"} <= {*stream.column_names}
    rows = [*stream.read_by(COLLATE).one_pass(0)]
    assert sorted(ids(rows)) == sorted(ALL[:6])
    assert all(list(row["token_ids"]) == [1, 2] and len(row["input_values"]) == 12_000 for row in rows)


def test_folder_on_disk_is_streamed(tmp_path):
    rows = [{"id": number, "input_values": np.zeros(4000, np.int16)} for number in range(100)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    found = ids(open_stream(str(tmp_path / "data")).one_pass(0))
    assert sorted(map(int, found)) == [*range(100)]


def test_passes_follow_each_other_and_crop_elsewhere(parquet):
    stream = open_stream(parquet).read_by(COLLATE)
    rows = iter(stream)
    numbers = [next(rows)["pass_number"] for _ in range(30)]
    assert numbers == [0] * 12 + [1] * 12 + [2] * 6
    cropping = MimiBridgeCollator.for_model(MimiBridgeConfig(), crop_seconds=0.08)
    row = next(stream.one_pass(0))
    crops = [cropping([row | {"pass_number": number}])["input_values"] for number in range(6)]
    assert any(not torch.equal(crops[0], crop) for crop in crops)


def test_row_without_audio_and_one_with_damaged_audio_are_named_and_left_out(tmp_path, warned):
    rows = [
        {"id": "good", "audio": {"bytes": flac(0), "path": None}},
        {"id": "none", "audio": None},
        {"id": "broken", "audio": {"bytes": b"no audio", "path": None}},
    ]
    write_rows(rows, tmp_path / "a.parquet")
    stream = open_stream(str(tmp_path)).read_by(COLLATE)
    for number in range(2):
        assert ids(stream.one_pass(number)) == ["good"]
    assert warned.text.count("is left out: row 'none' holds neither audio") == 1
    assert warned.text.count("is left out: audio of row 'broken' is not audio") == 1


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_damaged_shard_is_named_and_the_others_are_read(tmp_path, warned, kind):
    folder = write_parquet(tmp_path / "data") if kind == "parquet" else write_tars(tmp_path / "data")
    shard = sorted(folder.iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    stream = open_stream(str(folder))
    found = ids(stream.one_pass(0))
    assert {name for name in ALL[: 12 if kind == "parquet" else 6] if name[0] != "1"} <= {*found}
    of_datasets, ours = (
        f"Skipping bad file '{shard}'",
        f"the rest of {shard} of {folder} is left out, since it cannot be",
    )
    assert (of_datasets if kind == "parquet" else ours) in warned.text


def test_stream_without_any_row_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"nothing")
    (tmp_path / "b.tar").write_bytes(b"nothing")
    with pytest.raises(
        (ValueError, OSError), match="tar.* has no row that can be read|holds nothing that can be read"
    ):
        open_stream(str(tmp_path))


def test_stream_whose_rows_are_all_bad_is_refused(tmp_path):
    write_rows([{"id": "none", "audio": None}], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="process 0 can read no row of .*; see the warnings above"):
        next(iter(open_stream(str(tmp_path)).read_by(COLLATE)))


def test_stream_without_a_column_of_audio_is_refused(tmp_path):
    Dataset.from_list([{"text": "hello", "length": 3}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"must have a column of audio \(audio, .*\), got text, length\."):
        open_stream(str(tmp_path))


def test_folder_without_files_of_a_data_set_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no \.parquet, \.tar, \.arrow files and is no folder of a data set"
    ):
        open_stream(str(tmp_path))


def test_buffer_of_nothing_is_refused(parquet):
    with pytest.raises(ValueError, match="buffer_size must be at least 1, got 0"):
        open_stream(parquet, buffer_size=0)


def test_reader_whose_shard_is_damaged_reads_others_in_the_next_passes(tmp_path, caplog):
    folder = write_parquet(tmp_path, num_shards=2)
    damaged = folder / "part-1.parquet"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    for process in (0, 1):
        rows = iter(open_stream(str(folder)).of_process(process, 2).read_by(COLLATE))
        assert {next(rows)["id"] for _ in range(9)} == {"0-0", "0-1", "0-2"}
    assert "part-1.parquet" in caplog.text


def test_worker_without_a_row_of_its_own_leaves_them_to_the_others(tmp_path):
    folder = write_parquet(tmp_path, num_shards=1, per_shard=2)
    rows = open_stream(str(folder)).read_by(COLLATE)
    batches = iter(DataLoader(rows, batch_size=1, num_workers=3, collate_fn=COLLATE))
    assert len([next(batches) for _ in range(8)]) == 8


def test_row_whose_audio_cannot_be_fetched_is_named_and_left_out(tmp_path, caplog):
    here, gone = {"bytes": flac(0), "path": None}, {"bytes": None, "path": f"file://{tmp_path}/gone.flac"}
    held = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"id": Value("string"), "audio": held})
    rows = [{"id": "gone", "audio": gone}, {"id": "here", "audio": here}]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    stream = open_stream(str(tmp_path)).read_by(COLLATE)
    assert [row["id"] for row in stream.one_pass(0)] == ["here"]
    assert "left out: FileNotFoundError" in caplog.text


@pytest.mark.parametrize(("option", "value"), [("config", "clean"), ("split", "validation")])
def test_what_files_on_this_machine_have_none_of_is_refused(tmp_path, option, value):
    folder = write_parquet(tmp_path, num_shards=1)
    with pytest.raises(ValueError, match=f"{option}='{value}' is of a data set on the Hub, but .* leave it out"):
        open_stream(str(folder), **{option: value})
