"""Where recordings and transcripts come from: a folder, a manifest, or a data set, local or on the Hub."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...audio.files import resample
from ...audio.reading import Tell
from ..manifest import Utterance, list_recordings
from ..segments import read_file, read_segment
from ..tables import COMPRESSED, SUFFIXES
from .dataset_source import DatasetSource

FILE_SUFFIXES = (".txt", COMPRESSED, *SUFFIXES)  # of what is meant to be a manifest, not a Hub's id


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
        self,
        index: int,
        sampling_rate: int,
        max_seconds: float = math.inf,
        only_whole: bool = False,
        tell: Tell | None = None,
    ) -> tuple[Tensor, int]:
        """Its samples, `(1, samples)`, at a rate, and the rate (Hz) that it was recorded at.

        Args:
            index: Which recording.
            sampling_rate: Hz.
            max_seconds: A longer one is refused.
            only_whole: A segment of a file is refused.
            tell: Called with a sentence on each irregularity of a usable recording; by default, it is logged.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no audio, lasts longer than `max_seconds`, or lies where it must not.
        """
        utterance = self._utterances[index]
        for path in (utterance.path, utterance.alignment):
            self._refuse_outside(path)
        name = str(utterance.path)
        if utterance.start is None and utterance.end is None:
            (samples, rate), is_whole = read_file(utterance.path, name, max_seconds, tell), True
        else:
            samples, rate, is_whole = read_segment(utterance, max_seconds, tell)
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


def _refuse_none_and_doubles(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"every recording must have an id of its own, got two of {name!r}.")
        seen.add(name)
    if not seen:
        raise ValueError("there must be at least one recording, got none.")
