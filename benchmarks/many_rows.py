"""So many rows to prepare or to train on, in every form that is read: lists, tables, a data set, a folder, a stream.

Every row has the same recording, a stream's row the same silence, under an id of its own, so that a million of them
cost little.
"""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset

TEXT = "Fresh snow fell."  # what each recording says
FILES_OF_FOLDER = 1000


def _make_jsonl(folder: Path, count: int, spoken: Path) -> Path:
    with open(folder / "list.jsonl", "w") as file:
        file.writelines(f'{{"path": "{spoken}", "id": "recording {n}", "text": "{TEXT}"}}\n' for n in range(count))
    return folder / "list.jsonl"


def _make_csv(folder: Path, count: int, spoken: Path) -> Path:
    with open(folder / "list.csv", "w") as file:
        file.write("path,id,text\n")
        file.writelines(f'{spoken},recording {n},"{TEXT}"\n' for n in range(count))
    return folder / "list.csv"


def _make_parquet(folder: Path, count: int, spoken: Path) -> Path:
    _rows(count, spoken).to_parquet(folder / "list.parquet")
    return folder / "list.parquet"


def _make_dataset(folder: Path, count: int, spoken: Path) -> Path:
    _rows(count, spoken).save_to_disk(folder / "saved")
    return folder / "saved"


def _make_folder(folder: Path, count: int, spoken: Path) -> Path:
    for n in range(count):
        speaker = folder / "speech" / f"{n // FILES_OF_FOLDER:06d}"
        if n % FILES_OF_FOLDER == 0:  # no file may have too many names
            speaker.mkdir(parents=True)
            recording, text = speaker / f"{n}.wav", speaker / f"{n}.txt"
            shutil.copy(spoken, recording)
            text.write_text(TEXT)
        else:
            os.link(recording, speaker / f"{n}.wav")
            os.link(text, speaker / f"{n}.txt")
    return folder / "speech"


def _make_stream(folder: Path, count: int, spoken: Path) -> Path:
    silence = io.BytesIO()  # since a million of it have to lie on the disk
    soundfile.write(silence, np.zeros(4800, np.int16), 24_000, format="FLAC")
    audio = {"bytes": silence.getvalue(), "path": None}
    for shard in range(10):
        numbers = range(shard * count // 10, (shard + 1) * count // 10)
        rows = {"id": [f"{n:08d}" for n in numbers], "audio": [audio] * len(numbers)}
        Dataset.from_dict(rows).to_parquet(folder / f"{shard}.parquet")
    return folder


def _rows(count: int, spoken: Path) -> Dataset:
    ids = [f"recording {n}" for n in range(count)]
    return Dataset.from_dict({"path": [str(spoken)] * count, "id": ids, "text": [TEXT] * count})


MAKERS = {  # of what is measured; of a list for prepare, by its form
    "stream": _make_stream,
    "jsonl": _make_jsonl,
    "csv": _make_csv,
    "parquet": _make_parquet,
    "dataset": _make_dataset,
    "folder": _make_folder,
}
