"""Recordings and transcripts in a data set of `datasets`, whatever form its audio has."""

import io
import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...audio.files import resample
from ...audio.reading import Tell
from ..entries import Entries
from ..fields import DURATIONS, ENDS, STARTS, TOLERANCE, as_text, is_nothing, segment_of, utterance_with_text
from ..lines import column_name
from ..row_audio import with_full_scale_1
from ..segments import read_file, refuse_longer
from ..settings import COLUMNS
from ..tables import ROWS_AT_ONCE
from ..undecoded import undecoded
from ..utterance import Utterance

logger = logging.getLogger(__name__)


class DatasetSource:
    """Recordings in a data set of `datasets`, as files, bytes, paths or samples; nothing is decoded by `datasets`.

    Args:
        dataset: One split, with a column of audio.
        columns: Which of its columns hold audio, text, id and speaker, where their names are not usual ones.
        list_path: A new file for the ids of its rows, from which other processes may read; without one, it is a
            temporary one.

    Attributes:
        stored_audio: How their audio is best stored.

    Raises:
        ValueError: If it has no such column or no rows.
    """

    stored_audio = "samples"

    def __init__(self, dataset: Any, columns: Mapping[str, str] | None = None, list_path: str | os.PathLike = ""):
        names = {what: _column(dataset, what, (columns or {}).get(what)) for what in COLUMNS}
        audio = names["audio"]
        if audio is None:
            raise ValueError(f"the data set must have a column of audio, got {', '.join(dataset.column_names)}.")
        if len(dataset) == 0:
            raise ValueError("there must be at least one recording, got none.")
        self._fingerprint = str(dataset._fingerprint)
        dataset = dataset.with_format(None)
        self._audio, self._column = _undecoded(dataset.select_columns(audio), audio), audio
        times = [name for name in dataset.column_names if column_name(name) in (*STARTS, *ENDS, *DURATIONS)]
        known = [*(names[what] for what in ("id", "text", "speaker") if names[what] is not None), *times]
        self._known = dataset.select_columns([*dict.fromkeys(known)] or [audio])
        self._names, self._times = names, times
        is_asked = "id" in (columns or {})
        self._rows = None if names["id"] is None else self._rows_by_id(names["id"], is_asked, list_path)

    def _rows_by_id(self, column: str, is_asked: bool, list_path: str | os.PathLike) -> Entries | None:
        rows, batches = Entries(list_path), self._known.select_columns(column).iter(ROWS_AT_ONCE)
        for row, value in enumerate(value for batch in batches for value in batch[column]):
            is_new = rows.add(as_text(value, "id") or f"{row:08d}", f"row {row}", str(row))
            if not is_new and not is_asked:
                return None  # what is called so is a sentence's, or a book's
        rows.finish()
        return rows

    def __len__(self) -> int:
        return len(self._known if self._rows is None else self._rows)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Rows whose id is taken, and why."""
        return [] if self._rows is None else self._rows.left_out

    def _id_and_row(self, index: int) -> tuple[str, int]:
        if self._rows is None:
            return f"{index:08d}", index
        name, row = self._rows[index]
        return name, int(row)

    def utterance(self, index: int) -> Utterance:
        """What is known of a recording; its path is one within the data set, where it holds the audio."""
        name, row = self._id_and_row(index)
        known = self._known[row]
        held = self._audio[row][self._column]
        path = held.get("path") if isinstance(held, dict) else held
        speaker = known.get(self._names["speaker"])
        return utterance_with_text(
            known.get(self._names["text"]),
            id=name,
            path=Path(path if isinstance(path, str) and path else f"{row:08d}"),
            speaker="" if is_nothing(speaker) else str(speaker),
        )

    def has_text_to_align(self, realign: bool) -> bool:
        """As `FileSource.has_text_to_align`."""
        return self._names["text"] is not None and any(self._known[self._names["text"]])

    def audio(
        self,
        index: int,
        sampling_rate: int,
        max_seconds: float = math.inf,
        only_whole: bool = False,
        tell: Tell | None = None,
    ) -> tuple[Tensor, int]:
        """As `FileSource.audio`; a segment is read only if the audio is longer: most rows hold no more than theirs."""
        _, row = self._id_and_row(index)
        held = self._audio[row][self._column]
        if not isinstance(held, dict):
            held = {"bytes": held} if isinstance(held, bytes) else {"path": held}
        name = str(held.get("path") or f"recording {row} of the data set")
        tell = tell or partial(logger.warning, f"{name}: %s")
        start, end = self._segment(row, tell)
        is_segment = start is not None or end is not None
        samples, rate = _samples(held, name, math.inf if is_segment else max_seconds, tell)
        if is_segment:
            whole, samples = samples, _segment_in(samples, rate, start or 0.0, end, tell)
            if only_whole and len(samples) < len(whole):
                raise ValueError("it is a segment of a file, whose path alone would mean the whole; store samples")
            refuse_longer(len(samples) / rate, max_seconds)
        return resample(samples, rate, sampling_rate, name=name), rate

    def _segment(self, row: int, tell: Tell) -> tuple[float | None, float | None]:
        if not self._times:
            return None, None
        known = self._known[row]
        try:
            return segment_of({column_name(name): known[name] for name in self._times})
        except ValueError as error:
            tell(f"its whole audio is taken, since {error}")
            return None, None

    def fingerprint(self) -> str:
        """Changes if the data set does."""
        return self._fingerprint


def _column(dataset: Any, what: str, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"the data set must have the column {wanted!r}, got {', '.join(dataset.column_names)}.")
        return wanted
    return next((name for name in COLUMNS[what] if name in dataset.column_names), None)


def _undecoded(dataset: Any, column: str) -> Any:
    # With audio as files, bytes, paths or samples, which need no decoder of `datasets`.
    from datasets import Audio, Value

    kind = dataset.features[column]
    if isinstance(kind, Audio):
        return undecoded(dataset)
    if isinstance(kind, dict) and {"array", "sampling_rate"} <= kind.keys():
        return dataset.with_format("numpy")
    names = kind.keys() if isinstance(kind, dict) else ()
    is_plain = isinstance(kind, Value) and kind.dtype in ("string", "large_string", "binary", "large_binary", "null")
    if not is_plain and "bytes" not in names and "path" not in names:
        raise ValueError(f"the column {column!r} must hold audio or paths of it, got {kind}.")
    return dataset


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    # Channels are the shorter side.
    samples = with_full_scale_1(samples, name)
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        raise ValueError(f"{name} must be samples, (samples,) or (channels, samples), got {samples.shape}")
    return samples


def _samples(held: dict[str, Any], name: str, max_seconds: float, tell: Tell) -> tuple[np.ndarray, int]:
    # Mono, at their own rate.
    if held.get("array") is not None and held.get("sampling_rate") is not None:
        samples, rate = _mono(np.asarray(held["array"]), name), int(held["sampling_rate"])
        if rate < 1:
            raise ValueError(f"its sampling_rate must be at least 1 Hz, got {rate}")
        refuse_longer(len(samples) / rate, max_seconds)
        return samples, rate
    file = held.get("path") if held.get("bytes") is None else io.BytesIO(held["bytes"])
    if file is None:
        raise ValueError("its audio is empty (None)")
    return read_file(file, name, max_seconds, tell)


def _segment_in(samples: np.ndarray, rate: int, start: float, end: float | None, tell: Tell) -> np.ndarray:
    seconds = len(samples) / rate
    last = seconds if end is None else end
    if abs(last - start - seconds) <= TOLERANCE:
        return samples  # cut out already
    if start >= seconds or last > seconds + TOLERANCE:
        tell(f"its whole audio of {seconds:.2f} s is taken, in which no segment from {start:g} to {last:g} s lies")
        return samples
    return samples[round(start * rate) : round(last * rate)]
