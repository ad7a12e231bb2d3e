"""Rows that are read while training, from more shards than a disk holds: no list of them, no length, no end.

Shards are divided among the readers (the workers of all processes) and shuffled again for each pass, rows within a
buffer. The order depends on the seed and the number of readers alone, so that a run that was stopped finds its place
again. A row or a shard that cannot be read is named and left out.

Source: the shuffle by a buffer is that of `datasets` (`IterableDataset.shuffle`), which reads the shards.
"""

import copy
import glob
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from .collator import AUDIO_KEYS, MimiBridgeCollator
from .settings import COLUMNS
from .undecoded import undecoded

logger = logging.get_logger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # of `datasets`, by the files' names
SHARDS_OF_FOLDER = 64  # that a data set on disk is divided into
OF_ARCHIVES = ("wav", "flac", "mp3", "ogg", "opus")  # what a tar calls its audio
MAX_NAMED = 20
MAX_EMPTY_PASSES = 30
SOUND_KEYS = (*AUDIO_KEYS, "latents")  # one of them a row must have


class StreamedRows(IterableDataset):
    """The rows of a `datasets.IterableDataset`, pass after pass, as `MimiBridgeCollator` takes them.

    Args:
        dataset: Of `datasets`, with `streaming=True` or by `to_iterable_dataset`.
        name: For messages.
        seed: Of the order.
        buffer_size: Rows that each reader holds, from which it draws the next; 1 does not shuffle them.
        files: Of the shards, for messages, if they are known.

    Raises:
        ValueError: If it has no row that can be read, or `buffer_size` is less than 1.
    """

    def __init__(
        self,
        dataset: Any,
        name: str = "the data set",
        seed: int = 0,
        buffer_size: int = 256,
        files: list[str] | None = None,
    ):
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, got {buffer_size}.")
        self.name, self.seed, self.buffer_size = name, seed, buffer_size
        self.num_shards: int = dataset.num_shards
        self._files = files if files is not None and len(files) == self.num_shards else None
        self._process, self._num_processes = 0, 1
        self._collate: MimiBridgeCollator | None = None
        self._first_pass = torch.zeros((), dtype=torch.int64).share_memory_()  # workers and copies see it move
        self._named: set[str] = set()
        for as_plain in (True, False):
            self._dataset = undecoded(dataset, as_plain)
            first = next(self._raw_rows(0, range(self.num_shards), 0, 1), None)
            if first is not None:
                break
        else:
            raise ValueError(f"{name} has no row that can be read; look at the warnings above for its shards.")
        self.column_names = [*first]

    def of_process(self, index: int, num_processes: int) -> "StreamedRows":
        """The share of one process."""
        ours = copy.copy(self)
        ours._process, ours._num_processes = index, num_processes
        return ours

    def read_by(self, collate: Any) -> "StreamedRows":
        """Rows whose audio is decoded, and those that `collate` could not take left out and named."""
        ours = copy.copy(self)
        ours._collate = collate if isinstance(collate, MimiBridgeCollator) else None
        return ours

    def begin_with(self, number: int) -> None:
        """Let the first pass have another order, such as that of a run that goes on without skipping rows."""
        self._first_pass.fill_(number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows, again and again; nothing for a worker that has none.

        Raises:
            ValueError: If no row can be read.
        """
        num_empty = 0  # passes in a row: their shards may all be damaged, and others not
        for number in count(int(self._first_pass)):
            num_empty += 1
            for row in self.one_pass(number):
                num_empty = 0
                yield row
            if num_empty >= MAX_EMPTY_PASSES:
                if self._has_fewer_rows_than_readers(number):
                    return
                raise ValueError(f"process {self._process} can read no row of {self.name}; see the warnings above.")

    def one_pass(self, number: int) -> Iterator[dict[str, Any]]:
        """Each row of this process (and this worker of it) once, in the order of a pass."""
        reader, num_readers = self._reader()
        for row in self._shuffled(self._rows_of_reader(number), number * num_readers + reader):
            if self._collate is None:
                yield row
                continue
            try:
                yield self._collate.checked(row)
            except (OSError, ValueError) as error:
                self._name(f"a row of {self.name} is left out: {error}")

    def _reader(self) -> tuple[int, int]:
        # The number of this process's worker among all readers, and theirs.
        worker = get_worker_info()
        if worker is None:
            return self._process, self._num_processes
        return self._process * worker.num_workers + worker.id, self._num_processes * worker.num_workers

    def _rows_of_reader(self, number: int) -> Iterator[dict[str, Any]]:
        reader, num_readers = self._reader()
        order = np.random.default_rng((self.seed, number)).permutation(self.num_shards)
        if self.num_shards >= num_readers:
            return self._raw_rows(number, order[reader::num_readers], 0, 1)
        return self._raw_rows(number, order, reader, num_readers)  # all read all, and take every so many-th row

    def _has_fewer_rows_than_readers(self, number: int) -> bool:
        # Where each takes every so many-th row, and none of those that can be read is this one's.
        if self.num_shards >= self._reader()[1] or next(self._rows_of_reader(number), None) is not None:
            return False
        return next(self._raw_rows(number, range(self.num_shards), 0, 1), None) is not None

    def _raw_rows(self, number: int, shards: Iterable[Any], first: int, step: int) -> Iterator[dict[str, Any]]:
        place = 0
        for shard in shards:
            part = self._dataset.shard(num_shards=self.num_shards, index=int(shard))
            rows = part.iter(batch_size=1)  # `iter(part)` would divide it among workers once more
            while True:
                try:
                    row = {name: values[0] for name, values in next(rows).items()}
                except StopIteration:
                    break
                except Exception as error:  # of whatever library reads it
                    which = f"shard {shard} of {self.num_shards}" if self._files is None else self._files[int(shard)]
                    self._name(
                        f"the rest of {which} of {self.name} is left out, since it cannot be read: "
                        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    )
                    break
                place += 1
                if (place - 1) % step != first:
                    continue
                try:
                    collated = _as_collated(row)
                except Exception as error:  # of whatever library fetches its audio
                    said = " ".join(str(error).split())
                    self._name(f"a row of {self.name} is left out: {type(error).__name__}: {said}")
                    continue
                yield collated | {"pass_number": number}

    def _shuffled(self, rows: Iterator[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng((self.seed, number, 1))
        held: list[dict[str, Any]] = []
        for row in rows:
            if len(held) < self.buffer_size:
                held.append(row)
                continue
            place = int(random.integers(len(held)))
            yield held[place]
            held[place] = row
        for place in random.permutation(len(held)):
            yield held[place]

    def _name(self, sentence: str) -> None:
        # Once, however many passes there are.
        if sentence in self._named or len(self._named) >= MAX_NAMED:
            return
        self._named.add(sentence)
        more = "; further ones are not named" if len(self._named) == MAX_NAMED else ""
        logger.warning("%s%s", sentence.rstrip("."), more)


def open_stream(
    where: str,
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    buffer_size: int = 256,
) -> StreamedRows:
    """A data set that is read while it is used.

    Args:
        where: An id on the Hub; or parquet files, tars of WebDataset or arrow files: one, a folder of them, a pattern
            such as `"speech-*.tar"`; or a folder that `mimi-bridge prepare` or `Dataset.save_to_disk` wrote.
        config: Of a data set on the Hub.
        split: Of a data set on the Hub.
        seed: Of the order.
        buffer_size: As in `StreamedRows`.

    Raises:
        OSError: If there is nothing there.
        ValueError: If there is no row that can be read, or no column of audio or latents; or if files on this machine
            are given a config or split.
    """
    from datasets import load_dataset, load_from_disk

    path, files = Path(where), None
    if path.exists() or _files(path):
        for option, value, default in (("config", config, None), ("split", split, "train")):
            if value != default:
                raise ValueError(
                    f"{option}={value!r} is of a data set on the Hub, but {where} is on this machine and has none; "
                    "leave it out."
                )
    if (path / "state.json").is_file():
        stored = load_from_disk(where)
        dataset = stored.with_format("numpy").to_iterable_dataset(num_shards=min(SHARDS_OF_FOLDER, len(stored)))
    elif files := _files(path):
        builder = BUILDERS[Path(files[0]).suffix]
        options = {"on_bad_files": "warn"} if builder == "parquet" else {}
        try:
            dataset = load_dataset(builder, data_files=files, split="train", streaming=True, **options)
        except Exception as error:  # of whatever library reads the first of them
            raise ValueError(f"{where} holds nothing that can be read ({type(error).__name__}: {error}).") from error
    elif path.exists() or where.startswith((".", "/", "~")) or path.suffix in BUILDERS:
        raise FileNotFoundError(
            f"{where} holds no {', '.join(BUILDERS)} files and is no folder of a data set; give one of these, or an "
            "id on the Hub."
        )
    else:
        dataset = load_dataset(where, config, split=split, streaming=True)
    rows = StreamedRows(dataset, where, seed, buffer_size, files)
    if not {*SOUND_KEYS} & {*rows.column_names}:
        names = ", ".join(name for name in rows.column_names if name != "pass_number")
        raise ValueError(f"{where} must have a column of audio ({', '.join(COLUMNS['audio'])}), got {names}.")
    return rows


def _files(path: Path) -> list[str] | None:
    names = [str(path)] if path.is_file() else glob.glob(str(path / "*") if path.is_dir() else str(path))
    for suffix in BUILDERS:
        if found := sorted(name for name in names if name.endswith(suffix)):
            return found
    return None


def _as_collated(row: Mapping[str, Any]) -> dict[str, Any]:
    # Under the names that the collator knows; a tar holds what is said of a recording in a json.
    found = {name: value for name, value in row.items() if name not in ("json", "txt", "__url__", "__key__")}
    if row.get("txt") is not None:
        found["text"] = row["txt"]
    if isinstance(row.get("json"), Mapping):
        found |= row["json"]
    if "__key__" in row:
        found.setdefault("id", row["__key__"])
    if not any(found.get(name) is not None for name in SOUND_KEYS):
        audio = next((name for name in (*COLUMNS["audio"], *OF_ARCHIVES) if found.get(name) is not None), None)
        if audio is not None:
            found["audio"] = found.pop(audio)
    held = found.get("audio")
    if isinstance(held, bytes):
        found["audio"] = {"bytes": held}
    elif isinstance(held, Mapping) and held.get("bytes") is None and "://" in str(held.get("path")):
        found["audio"] = {"bytes": _read_remote(held["path"])}
    return found


def _read_remote(url: str) -> bytes:
    import fsspec

    with fsspec.open(url, "rb") as file:
        return bytes(file.read())
