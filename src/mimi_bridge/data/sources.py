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

import numpy as np
from torch import Tensor

from ..audio import read_audio, resample
from .fields import as_text, is_nothing, utterance_with_text
from .manifest import Utterance, list_recordings
from .segments import read_segment, refuse_longer
from .settings import COLUMNS
from .tables import SUFFIXES

FILE_SUFFIXES = (".txt", *SUFFIXES)  # of what is meant to be a manifest, not a Hub's id
FULL_SCALE = 2.0**15  # of samples in 16 bits


class FileSource:
    """Recordings in files.

    Args:
        utterances: In order.
        within: A folder that none of their files may lie outside of; None lets them lie anywhere. Links may lead out.
        left_out: What else was listed with them: name or place, and reason.

    Attributes:
        left_out: As given.
        stored_audio: How their audio is best stored: `"path"`, or `"samples"` where there are segments of files.

    Raises:
        ValueError: If there are none, or two have one id.
    """

    def __init__(
        self, utterances: Sequence[Utterance], within: Path | None = None, left_out: Sequence[tuple[str, str]] = ()
    ):
        self._utterances = utterances
        self._within = within
        self.left_out = list(left_out)
        is_segment = (one.start is not None or one.end is not None for one in utterances)
        self.stored_audio = "samples" if any(is_segment) else "path"
        _refuse_none_and_doubles(utterance.id for utterance in utterances)

    def __len__(self) -> int:
        return len(self._utterances)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording."""
        return self._utterances[index]

    def audio(
        self, index: int, sampling_rate: int, max_seconds: float = math.inf, only_whole: bool = False
    ) -> tuple[Tensor, int]:
        """Its samples, `(1, samples)`, at a rate, and the rate (Hz) that it was recorded at.

        Args:
            index: Which recording.
            sampling_rate: Hz.
            max_seconds: A longer one is refused.
            only_whole: A segment of a file is refused.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no audio, lasts longer than `max_seconds`, or lies where it must not.
        """
        utterance = self._utterances[index]
        for path in (utterance.path, utterance.alignment):
            self._refuse_outside(path)
        name = str(utterance.path)
        if utterance.start is None and utterance.end is None:
            return _read(utterance.path, name, sampling_rate, max_seconds)
        samples, rate, is_whole = read_segment(utterance, max_seconds)
        if only_whole and not is_whole:
            raise ValueError("it is a segment of a file, whose path alone would mean the whole; store samples")
        return resample(samples, rate, sampling_rate, name=name), rate

    def _refuse_outside(self, path: Path | None) -> None:
        if path is None or self._within is None:
            return
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self._within)):
            raise ValueError(
                f"{path} lies outside the manifest's folder {self._within}; move it there, or allow it by "
                "--allow-outside"
            )

    def has_text_to_align(self, realign: bool) -> bool:
        """Whether a text comes without alignment, or is to be aligned in spite of it."""
        return any(one.text and (one.alignment is None or realign) for one in self._utterances)

    def fingerprint(self) -> str:
        """Changes if the list does; the recordings themselves are not looked at."""
        digest = hashlib.sha256()
        for utterance in self._utterances:
            digest.update(json.dumps(asdict(utterance), default=str, sort_keys=True).encode())
        digest.update(json.dumps(self.left_out).encode())
        return digest.hexdigest()


class DatasetSource:
    """Recordings in a data set of `datasets`, as files, bytes, paths or samples; nothing is decoded by `datasets`.

    Args:
        dataset: One split, with a column of audio.
        columns: Which of its columns hold audio, text, id and speaker, where their names are not usual ones.

    Attributes:
        left_out: Rows whose id is taken, and why.
        stored_audio: How their audio is best stored.

    Raises:
        ValueError: If it has no such column or no rows.
    """

    stored_audio = "samples"

    def __init__(self, dataset: Any, columns: Mapping[str, str] | None = None):
        names = {what: _column(dataset, what, (columns or {}).get(what)) for what in COLUMNS}
        audio = names["audio"]
        if audio is None:
            raise ValueError(f"the data set must have a column of audio, got {', '.join(dataset.column_names)}.")
        if len(dataset) == 0:
            raise ValueError("there must be at least one recording, got none.")
        self._fingerprint = str(dataset._fingerprint)
        dataset = dataset.with_format(None)
        self._audio, self._column = _undecoded(dataset.select_columns(audio), audio), audio
        known = [names[what] for what in ("id", "text", "speaker") if names[what] is not None]
        self._known = dataset.select_columns([*dict.fromkeys(known)] or [audio])
        given = [None] * len(dataset) if names["id"] is None else self._known[names["id"]]
        ids = [as_text(value, "id") or f"{index:08d}" for index, value in enumerate(given)]
        if len({*ids}) < len(ids) and "id" not in (columns or {}):
            ids = [f"{index:08d}" for index in range(len(ids))]  # what is called so is a sentence's, or a book's
        first = {name: index for index, name in reversed([*enumerate(ids)])}
        self._rows = sorted(first.values())
        self.left_out = [
            (f"row {index}", f"its id {name!r} is that of row {first[name]}; give it an id of its own")
            for index, name in enumerate(ids)
            if first[name] != index
        ]
        self._ids, self._names = ids, names

    def __len__(self) -> int:
        return len(self._rows)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording; its path is one within the data set, where it holds the audio."""
        row = self._rows[index]
        known = self._known[row]
        held = self._audio[row][self._column]
        path = held.get("path") if isinstance(held, dict) else held
        speaker = known.get(self._names["speaker"])
        return utterance_with_text(
            known.get(self._names["text"]),
            id=self._ids[row],
            path=Path(path if isinstance(path, str) and path else f"{row:08d}"),
            speaker="" if is_nothing(speaker) else str(speaker),
        )

    def has_text_to_align(self, realign: bool) -> bool:
        """As `FileSource.has_text_to_align`."""
        return self._names["text"] is not None and any(self._known[self._names["text"]])

    def audio(
        self, index: int, sampling_rate: int, max_seconds: float = math.inf, only_whole: bool = False
    ) -> tuple[Tensor, int]:
        """As `FileSource.audio`."""
        row = self._rows[index]
        held = self._audio[row][self._column]
        if not isinstance(held, dict):
            held = {"bytes": held} if isinstance(held, bytes) else {"path": held}
        name = str(held.get("path") or f"recording {row} of the data set")
        if held.get("array") is not None and held.get("sampling_rate") is not None:
            samples, rate = _mono(np.asarray(held["array"]), name), int(held["sampling_rate"])
            refuse_longer(len(samples) / rate, max_seconds)
            return resample(samples, rate, sampling_rate, name=name), rate
        file = held.get("path") if held.get("bytes") is None else io.BytesIO(held["bytes"])
        if file is None:
            raise ValueError("its audio is empty (None)")
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
        columns: Of a data set or a manifest; see `DatasetSource`, `list_recordings`.
        allow_outside: Of a manifest: its recordings may lie outside its folder.

    Raises:
        OSError: If there is nothing there.
        ValueError: If it holds nothing that can be read, or a split or column is wanted of what has none.
    """
    path = Path(where)
    is_dataset = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    is_hub = not path.exists() and not where.startswith((".", "/", "~")) and path.suffix.lower() not in FILE_SUFFIXES
    if config is not None and not is_hub:
        raise ValueError(f"{where} is no data set on the Hub, so it has no configurations to choose.")
    if is_dataset or is_hub:
        return DatasetSource(_load_dataset(where, config, split, is_hub), columns)
    if split is not None:
        raise ValueError(f"{where} is no data set of `datasets`, so it has no splits to choose.")
    if not path.exists():
        raise FileNotFoundError(f"no such folder of recordings, manifest or data set: {where}")
    listing = list_recordings(path, columns)
    within = None if allow_outside else path if path.is_dir() else path.parent
    return FileSource(listing.utterances, within, listing.left_out)


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


def _undecoded(dataset: Any, column: str) -> Any:
    # With audio as files, bytes, paths or samples, which need no decoder of `datasets`.
    from datasets import Audio, Value

    kind = dataset.features[column]
    if isinstance(kind, Audio):
        return dataset.cast_column(column, Audio(decode=False))
    if isinstance(kind, dict) and {"array", "sampling_rate"} <= kind.keys():
        return dataset.with_format("numpy")
    names = kind.keys() if isinstance(kind, dict) else ()
    is_plain = isinstance(kind, Value) and kind.dtype in ("string", "large_string", "binary", "large_binary", "null")
    if not is_plain and "bytes" not in names and "path" not in names:
        raise ValueError(f"the column {column!r} must hold audio or paths of it, got {kind}.")
    return dataset


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    # Integers are in 16 bits, whatever `datasets` widened them to; channels are the shorter side.
    scale = FULL_SCALE if np.issubdtype(samples.dtype, np.integer) else 1.0
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        raise ValueError(f"{name} must be samples, (samples,) or (channels, samples), got {samples.shape}")
    return (samples / scale).astype(np.float32)


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
