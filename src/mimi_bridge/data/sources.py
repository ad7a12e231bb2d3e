"""Where recordings and transcripts come from: a folder, a manifest, or a data set, local or on the Hub."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..audio import decode_audio, load_audio
from .manifest import Utterance, read_manifest
from .settings import COLUMNS


class FileSource:
    """Recordings in files.

    Args:
        utterances: In order.

    Raises:
        ValueError: If two have one id.
    """

    def __init__(self, utterances: Sequence[Utterance]):
        self._utterances = utterances
        _refuse_doubles([utterance.id for utterance in utterances])

    def __len__(self) -> int:
        return len(self._utterances)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording."""
        return self._utterances[index]

    def audio(self, index: int, sampling_rate: int) -> Tensor:
        """Its samples, `(1, samples)`.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no audio.
        """
        return load_audio(self._utterances[index].path, sampling_rate)

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
        ValueError: If it has no such column.
    """

    def __init__(self, dataset: Any, columns: Mapping[str, str] | None = None):
        from datasets import Audio

        names = {what: _column(dataset, what, (columns or {}).get(what)) for what in COLUMNS}
        audio = names["audio"]
        if audio is None:
            raise ValueError(f"the data set must have a column of audio, got {', '.join(dataset.column_names)}.")
        self._names = names
        self._dataset = dataset.cast_column(audio, Audio(decode=False))
        if names["id"] is not None:
            _refuse_doubles([str(value) for value in dataset.remove_columns(audio)[names["id"]]])

    def __len__(self) -> int:
        return len(self._dataset)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording; its path is one within the data set, where it holds the audio."""
        row = self._dataset[index]
        values = {what: row[name] for what, name in self._names.items() if name and what != "audio"}
        path = row[self._names["audio"]]["path"]
        return Utterance(
            id=str(values["id"]) if values.get("id") is not None else f"{index:08d}",
            path=Path(path or f"{index:08d}"),
            speaker="" if values.get("speaker") is None else str(values["speaker"]),
            text=values.get("text") or None,
        )

    def audio(self, index: int, sampling_rate: int) -> Tensor:
        """As `FileSource.audio`."""
        held = self._dataset[index][self._names["audio"]]
        if held["bytes"] is None:
            return load_audio(held["path"], sampling_rate)
        name = f"recording {index} of the data set"
        return decode_audio(io.BytesIO(held["bytes"]), sampling_rate, held["path"] or name)

    def fingerprint(self) -> str:
        """Changes if the data set does."""
        return str(self._dataset._fingerprint)


Source = FileSource | DatasetSource


def open_source(where: str, split: str | None = None, columns: Mapping[str, str] | None = None) -> Source:
    """Find recordings.

    Args:
        where: A folder of recordings, a manifest, a folder that `Dataset.save_to_disk` wrote, or an id on the Hub.
        split: Of a data set; default `train`.
        columns: Of a data set; see `DatasetSource`.

    Raises:
        OSError: If there is nothing there.
        ValueError: If it holds nothing that can be read, or a split is wanted of what has none.
    """
    path = Path(where)
    is_dataset = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    is_hub = not path.exists() and not where.startswith((".", "/", "~")) and not path.suffix
    if is_dataset or is_hub:
        return DatasetSource(_load_dataset(where, split, is_hub), columns)
    if split is not None or columns:
        raise ValueError(f"{where} is no data set of `datasets`, so it has neither splits nor columns to choose.")
    if not path.exists():
        raise FileNotFoundError(f"no such folder of recordings, manifest or data set: {where}")
    return FileSource(read_manifest(path))


def _load_dataset(where: str, split: str | None, is_hub: bool) -> Any:
    from datasets import load_dataset, load_from_disk

    if is_hub:
        return load_dataset(where, split=split or "train")
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


def _column(dataset: Any, what: str, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"the data set must have the column {wanted!r}, got {', '.join(dataset.column_names)}.")
        return wanted
    return next((name for name in COLUMNS[what] if name in dataset.column_names), None)


def _refuse_doubles(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"every recording must have an id of its own, got two of {name!r}.")
        seen.add(name)
