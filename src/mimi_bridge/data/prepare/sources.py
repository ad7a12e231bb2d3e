"""Where recordings and transcripts come from: a folder, a manifest, or a data set, local or on the Hub."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...audio.files import resample
from ...audio.reading import Tell
from ..lines import COMPRESSED
from ..manifest import Listing, Utterance, list_recordings
from ..segments import read_file, read_segment
from ..tables import SUFFIXES
from .dataset_source import DatasetSource

FILE_SUFFIXES = (".txt", COMPRESSED, *SUFFIXES)  # of what is meant to be a manifest, not a Hub's id


class FileSource:
    """Recordings in files.

    Args:
        listing: Of them.
        within: A folder that none of their files may lie outside of; None lets them lie anywhere. Links may lead out.

    Attributes:
        stored_audio: How their audio is best stored: `"path"`, or `"samples"` where there are segments of files.
    """

    def __init__(self, listing: Listing, within: Path | None = None):
        self._utterances, self._within = listing, within
        self.stored_audio = "samples" if listing.has_segments else "path"

    def __len__(self) -> int:
        return len(self._utterances)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """What else was listed with them: name or place, and reason."""
        return self._utterances.left_out

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
        return self._utterances.has_text if realign else self._utterances.has_text_to_align

    def fingerprint(self) -> str:
        """Changes if the list does; the recordings themselves are not looked at."""
        return self._utterances.fingerprint()


Source = FileSource | DatasetSource


def open_source(
    where: str,
    config: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    list_path: str | os.PathLike = "",
) -> Source:
    """Find recordings.

    Args:
        where: A folder of recordings, a manifest, a folder that `Dataset.save_to_disk` wrote, or an id on the Hub.
        config: Of a data set on the Hub.
        split: Of a data set; default `train`.
        columns: Of a data set or a manifest; see `DatasetSource`, `list_recordings`.
        allow_outside: Of a manifest: its recordings may lie outside its folder.
        list_path: A new file for the list of them, from which other processes may read; without one, it is a
            temporary one.

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
        return DatasetSource(_load_dataset(where, config, split, is_hub), columns, list_path)
    if split is not None:
        raise ValueError(f"{where} is no data set of `datasets`, so it has no splits to choose.")
    if not path.exists():
        raise FileNotFoundError(f"no such folder of recordings, manifest or data set: {where}")
    within = None if allow_outside else path if path.is_dir() else path.parent
    return FileSource(list_recordings(path, columns, list_path), within)


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
