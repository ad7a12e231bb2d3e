"""A list of any length: what is held in memory, and what each process is handed, does not grow with it."""

import json
import pickle
import tracemalloc
from pathlib import Path

import pytest
from datasets import Dataset

from mimi_bridge.data.entries import Entries
from mimi_bridge.data.manifest import Listing, list_recordings
from mimi_bridge.data.prepare.run import _Work
from mimi_bridge.data.prepare.shards import ShardedDataset
from mimi_bridge.data.prepare.sources import DatasetSource, Source, open_source
from mimi_bridge.data.settings import Settings

FEW, MORE, MANY = 50, 1_100, 1_800  # the last two: above what is read at once
HELD = 150_000  # bytes; a list of utterances takes more than 1,000 a row


def made_rows(count: int) -> list[dict[str, str]]:
    return [{"path": f"speaker {n % 7}/{n}.wav", "id": f"row {n}", "text": f"text {n}"} for n in range(count)]


def write_jsonl(folder: Path, count: int) -> Path:
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, made_rows(count))))
    return folder / "list.jsonl"


def write_csv(folder: Path, count: int) -> Path:
    rows = (f'{row["path"]},{row["id"]},"{row["text"]},\nand more"' for row in made_rows(count))
    (folder / "list.csv").write_text("\n".join(["path,id,text", *rows]))
    return folder / "list.csv"


def write_parquet(folder: Path, count: int) -> Path:
    Dataset.from_list(made_rows(count)).to_parquet(folder / "list.parquet")
    return folder / "list.parquet"


def write_folder(folder: Path, count: int) -> Path:
    for row in made_rows(count):
        path = folder / "speech" / f"speaker {int(row['id'][4:]) // 100:03d}" / Path(row["path"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder / "speech"


def write_dataset(folder: Path, count: int) -> Path:
    Dataset.from_list(made_rows(count)).save_to_disk(folder / "saved")
    return folder / "saved"


WRITERS = [write_jsonl, write_csv, write_parquet, write_folder, write_dataset]


def opened(write, folder: Path, count: int) -> Source:
    folder.mkdir()
    return open_source(str(write(folder, count)), list_path=folder / "list")


@pytest.mark.parametrize("write", WRITERS)
def test_memory_does_not_grow_with_the_list(tmp_path, write):
    peaks = []
    for count in (MANY, MORE, MANY):  # the first time fills what Python keeps: modules, names of folders
        folder = tmp_path / str(len(peaks))
        folder.mkdir()
        where = write(folder, count)
        tracemalloc.start()
        source = open_source(str(where), list_path=folder / "list")
        source.fingerprint()
        assert len(source) == count and source.utterance(count - 1).id
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + HELD


@pytest.mark.parametrize("write", WRITERS)
def test_what_each_process_is_handed_does_not_grow_with_the_list(tmp_path, write):
    sizes = []
    for count in (FEW, MORE):
        source = opened(write, tmp_path / f"{count:05d}", count)
        dataset = ShardedDataset(tmp_path / f"{count:05d}-data", {}, count // 64)
        sizes.append(len(pickle.dumps(_Work(Settings("here"), source, dataset, "cpu", "list"))))
    assert sizes[1] < sizes[0] + 100


@pytest.mark.parametrize("write", WRITERS)
def test_process_that_is_handed_a_list_reads_what_the_first_one_reads(tmp_path, write):
    source = opened(write, tmp_path / "few", FEW)
    handed = pickle.loads(pickle.dumps(source))
    assert [handed.utterance(n) for n in range(FEW)] == [source.utterance(n) for n in range(FEW)]
    assert handed.fingerprint() == source.fingerprint() and handed.stored_audio == source.stored_audio


def test_recording_is_listed_as_it_was_whatever_its_path_and_text_hold(tmp_path):
    lines = [
        {"path": "a\udcfc.wav", "id": "1", "text": "x\x00y\u2028z", "licence": "\ud800"},
        {"path": "b.wav", "alignment": "b\udcfc.TextGrid", "offset": 0.1, "duration": 1 / 3, "text": "[laughs] hi"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = list_recordings(tmp_path / "list.jsonl").utterances
    assert (first.path, first.text, first.licence) == (tmp_path / "a\udcfc.wav", "x\x00y\u2028z", "\ud800")
    assert second.alignment == tmp_path / "b\udcfc.TextGrid" and second.tags == ("[laughs]",)
    assert (second.start, second.end) == (0.1, 0.1 + 1 / 3)


def test_ids_that_are_taken_are_named_in_the_order_of_the_list_with_all_else(tmp_path):
    lines = ['{"path": "a"}', "7", '{"path": "a"}', '{"path": "b", "id": "a"}', "8"]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    before = "list.jsonl, line 1"
    assert list_recordings(tmp_path / "list.jsonl").left_out == [
        ("list.jsonl, line 2", "expected an object with a path, got '7'"),
        ("list.jsonl, line 3", f"it says the same as {before}"),
        ("list.jsonl, line 4", f"its id 'a' is that of {before}; give it an id of its own"),
        ("list.jsonl, line 5", "expected an object with a path, got '8'"),
    ]


def test_column_of_ids_that_names_books_is_read_no_further_than_its_second_row(tmp_path, monkeypatch):
    added = []
    monkeypatch.setattr(Entries, "add", lambda self, *entry: added.append(entry) or len(added) < 2)
    rows = Dataset.from_list([{"path": "a.wav", "id": "book"}] * 5)
    assert len(DatasetSource(rows)) == 5 and len(added) == 2


def test_entry_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="there are 0 entries, got 0"):
        Listing()[0]


def test_list_that_finds_no_room_says_where_it_is_written(tmp_path):
    with pytest.raises(OSError, match=r"the list of recordings cannot be written to .*nowhere.*; make room there, or"):
        Entries(tmp_path / "nowhere" / "list")
