"""Where recordings and transcripts come from: a folder, a manifest, or a data set, local or on the Hub."""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..audio import read_audio, resample
from .manifest import TABLE_DELIMITERS, Utterance, read_manifest
from .settings import COLUMNS

FILE_SUFFIXES = (".jsonl", ".json", ".txt", *TABLE_DELIMITERS)  # of what is meant to be a manifest, not a Hub's id


class FileSource:
    """Recordings in files.

    Args:
        utterances: In order.
        within: A folder that none of their files may lie outside of; None lets them lie anywhere. Links may lead out.

    Raises:
        ValueError: If there are none, or two have one id.
    """

    def __init__(self, utterances: Sequence[Utterance], within: Path | None = None):
        self._utterances = utterances
        self._within = within
        _refuse_none_and_doubles(utterance.id for utterance in utterances)

    def __len__(self) -> int:
        return len(self._utterances)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording."""
        return self._utterances[index]

    def audio(self, index: int, sampling_rate: int, max_seconds: float = math.inf) -> tuple[Tensor, int]:
        """Its samples, `(1, samples)`, at a rate, and the rate (Hz) that it was recorded at.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no audio, lasts longer than `max_seconds`, or lies where it must not.
        """
        utterance = self._utterances[index]
        for path in (utterance.path, utterance.alignment):
            self._refuse_outside(path)
        return _read(utterance.path, str(utterance.path), sampling_rate, max_seconds)

    def _refuse_outside(self, path: Path | None) -> None:
        if path is None or self._within is None:
            return
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self._within)):
            raise ValueError(
                f"{path} lies outside the manifest's folder {self._within}; move it there, or allow it by "
                "--allow-outside"
            )

    def fingerprint(self) -> str:
        """Changes if the list does; the recordings themselves are not looked at."""
        digest = hashlib.sha256()
        for utterance in self._utterances:
            digest.update(json.dumps(asdict(utterance), default=str, sort_keys=True).encode())
        return digest.hexdigest()


class DatasetSource:
    """Recordings in a data set of `datasets`.

    Args:
        dataset: One split, with a column of audio.
        columns: Which of its columns hold audio, text, id and speaker, where their names are not usual ones.

    Raises:
        ValueError: If it has no such column or no rows, or two have one id.
    """

    def __init__(self, dataset: Any, columns: Mapping[str, str] | None = None):
        from datasets import Audio

        names = {what: _column(dataset, what, (columns or {}).get(what)) for what in COLUMNS}
        audio = names["audio"]
        if audio is None:
            raise ValueError(f"the data set must have a column of audio, got {', '.join(dataset.column_names)}.")
        self._names, self._audio = names, audio
        self._fingerprint = str(dataset._fingerprint)
        try:
            self._dataset = dataset.with_format(None).cast_column(audio, Audio(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"the column {audio!r} must hold audio or paths of it, got {dataset.features[audio]}."
            ) from error
        given = [None] * len(dataset) if names["id"] is None else self._dataset[names["id"]]
        _refuse_none_and_doubles(_id(index, value) for index, value in enumerate(given))

    def __len__(self) -> int:
        return len(self._dataset)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording; its path is one within the data set, where it holds the audio."""
        row = self._dataset[index]
        name, text, speaker = (row.get(self._names[what]) for what in ("id", "text", "speaker"))
        return Utterance(
            id=_id(index, name),
            path=Path(row[self._audio]["path"] or f"{index:08d}"),
            speaker="" if speaker is None else str(speaker),
            text=None if text is None else str(text),
        )

    def audio(self, index: int, sampling_rate: int, max_seconds: float = math.inf) -> tuple[Tensor, int]:
        """As `FileSource.audio`."""
        held = self._dataset[index][self._audio]
        name = str(held["path"] or f"recording {index} of the data set")
        file = held["path"] if held["bytes"] is None else io.BytesIO(held["bytes"])
        return _read(file, name, sampling_rate, max_seconds)

    def fingerprint(self) -> str:
        """Changes if the data set does."""
        return self._fingerprint


Source = FileSource | DatasetSource


def open_source(
    where: str,
    config: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
) -> Source:
    """Find recordings.

    Args:
        where: A folder of recordings, a manifest, a folder that `Dataset.save_to_disk` wrote, or an id on the Hub.
        config: Of a data set on the Hub.
        split: Of a data set; default `train`.
        columns: Of a data set; see `DatasetSource`.
        allow_outside: Of a manifest: its recordings may lie outside its folder.

    Raises:
        OSError: If there is nothing there.
        ValueError: If it holds nothing that can be read, or a split is wanted of what has none.
    """
    path = Path(where)
    is_dataset = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    is_hub = not path.exists() and not where.startswith((".", "/", "~")) and path.suffix.lower() not in FILE_SUFFIXES
    if config is not None and not is_hub:
        raise ValueError(f"{where} is no data set on the Hub, so it has no configurations to choose.")
    if is_dataset or is_hub:
        return DatasetSource(_load_dataset(where, config, split, is_hub), columns)
    if split is not None or columns:
        raise ValueError(f"{where} is no data set of `datasets`, so it has neither splits nor columns to choose.")
    if not path.exists():
        raise FileNotFoundError(f"no such folder of recordings, manifest or data set: {where}")
    return FileSource(read_manifest(path), None if allow_outside else path if path.is_dir() else path.parent)


def _load_dataset(where: str, config: str | None, split: str | None, is_hub: bool) -> Any:
    from datasets import load_dataset, load_from_disk

    if is_hub:
        return load_dataset(where, config, split=split or "train")
    dataset = load_from_disk(where)
    if not hasattr(dataset, "cast_column") or isinstance(dataset.column_names, dict):
        chosen = split or "train"
        if chosen not in dataset:
            raise ValueError(
                f"{where} must have the split {chosen!r}, got {', '.join(dataset)}; choose one by --split."
            )
        return dataset[chosen]
    if split is not None:
        raise ValueError(f"{where} is one split already; leave --split out.")
    return dataset


def _id(index: int, given: Any) -> str:
    return f"{index:08d}" if given is None else str(given)


def _read(file: str | Path | BinaryIO, name: str, sampling_rate: int, max_seconds: float) -> tuple[Tensor, int]:
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise FileNotFoundError(f"no such recording: {name}")
    samples, source_rate = read_audio(file, name, max_seconds)
    return resample(samples, source_rate, sampling_rate, name=name), source_rate


def _column(dataset: Any, what: str, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"the data set must have the column {wanted!r}, got {', '.join(dataset.column_names)}.")
        return wanted
    return next((name for name in COLUMNS[what] if name in dataset.column_names), None)


def _refuse_none_and_doubles(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"every recording must have an id of its own, got two of {name!r}.")
        seen.add(name)
    if not seen:
        raise ValueError("there must be at least one recording, got none.")
