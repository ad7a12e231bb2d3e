"""What the rows of a list say of a recording, by the usual names of columns."""

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .lines import MAX_QUOTED, Row, column_name, is_utf8
from .settings import COLUMNS
from .tags import without_tags
from .utterance import Utterance

FIELDS: dict[str, tuple[str, ...]] = {  # of a manifest, the first that is filled
    "audio": (
        *("path", "audio", "audio_filepath", "audio_path", "audio_file", "file_name", "audio_file_name"),
        *("filename", "filepath", "file_path", "file", "wav", "wav_path"),
    ),
    "text": COLUMNS["text"],
    "id": ("id", "utt_id", "segment_id"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "licence": ("licence", "license"),
    "alignment": ("alignment",),
}
STARTS = ("offset", "start", "start_time", "begin_time", "onset")
ENDS = ("end", "end_time")
DURATIONS = ("duration",)
CLIPS = "clips"  # where Common Voice has the files that its tables name
TOLERANCE = 0.08  # seconds: how exactly lists are taken to know times


class Fields:
    """Finds what is known of a recording in a row of a manifest.

    Args:
        manifest: The file.
        columns: Which columns hold audio, text, id and speaker, where their names are not usual ones.
        root: The folder that ids are relative to; default: the manifest's.

    Attributes:
        name: Of the manifest, in its root.
    """

    def __init__(self, manifest: Path, columns: Mapping[str, str] | None = None, root: Path | None = None):
        self.manifest, self._folder = manifest, manifest.parent
        self._asked = {what: column_name(name) for what, name in (columns or {}).items()}
        self._names = FIELDS | {what: (name,) for what, name in self._asked.items()}
        self.name = manifest.name if root is None else str(manifest.relative_to(root))
        self._within = Path(self.name).parent  # of the root
        self._has_clips = (self._folder / CLIPS).is_dir()

    def check(self, names: Sequence[str]) -> None:
        """Refuse a table without paths, without a column that was asked for, or with one of use named twice.

        Raises:
            ValueError: If it is such a table.
        """
        used = {name for group in (*self._names.values(), STARTS, ENDS, DURATIONS) for name in group}
        twice = [name for name, count in Counter(names).items() if count > 1 and name in used]
        if twice:
            raise ValueError(f"{self.manifest} must name each column once, got {twice[0]!r} twice.")
        for what, name in self._asked.items():
            if name not in names:
                raise ValueError(
                    f"{self.manifest} must have the column {name!r} for its {what}, got {', '.join(names)}."
                )
        if not any(name in names for name in self._names["audio"]):
            raise ValueError(
                f"{self.manifest} must have a column of paths ({', '.join(self._names['audio'])}), got "
                f"{', '.join(names) or 'none'}; the first line of a table must name its columns."
            )

    def utterance(self, row: Row) -> Utterance:
        """The recording of a row.

        Raises:
            ValueError: If it names none, or says something impossible; the message can follow the row's place.
        """
        if row.problem is not None:
            raise ValueError(row.problem)
        given = self._path_in(row.values)
        path = self._path(given)
        alignment = self._text(row.values, "alignment")
        speaker = self._text(row.values, "speaker") or path.parent.name
        start, end = segment_of(row.values)
        name = self._text(row.values, "id")
        if name is None:
            name = given if self._within == Path() else str(self._within / given)
            name += "" if start is None else f"#{_seconds_name(start)}-{_seconds_name(end)}"
        return utterance_with_text(
            self._value(row.values, "text"),
            id=name,
            path=path,
            speaker=speaker,
            licence=self._text(row.values, "licence"),
            alignment=None if alignment is None else self._path(alignment),
            start=start,
            end=end,
        )

    def _value(self, values: Mapping[str, Any], what: str) -> Any:
        return next((values[name] for name in self._names[what] if not is_nothing(values.get(name))), None)

    def _text(self, values: Mapping[str, Any], what: str) -> str | None:
        value = self._value(values, what)
        if what == "alignment" and not isinstance(value, str | None):
            raise ValueError(f"its alignment must be a path, got {value!r}")
        return as_text(value, what)

    def _path_in(self, values: Mapping[str, Any]) -> str:
        given = self._value(values, "audio")
        if isinstance(given, Mapping):  # as `datasets` has it
            given = given.get("path")
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"expected an object with a path, got {json.dumps(values, default=str)[:MAX_QUOTED]!r}")
        return given

    def _path(self, given: str) -> Path:
        if given.startswith("~/"):
            given = os.path.expanduser(given)
        names = [given, given.replace("\\", "/")] if "\\" in given else [given]
        if not given.isascii():  # some systems write an accent as a character of its own
            names += [unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names]
        folders = [self._folder, self._folder / CLIPS] if self._has_clips else [self._folder]
        paths = [folder / name for folder in folders for name in names]
        return paths[0] if len(paths) == 1 else next(filter(os.path.exists, paths), paths[0])


def utterance_with_text(text: Any, **known: Any) -> Utterance:
    """An utterance of what is known of a recording, its text without tags.

    Raises:
        ValueError: If its id, speaker or text cannot be stored as UTF-8.
    """
    try:
        written, problem = as_text(text, "text"), None
    except ValueError as error:
        written, problem = None, str(error)
    words, tags = (None, ()) if written is None else without_tags(written, known["speaker"])
    if tags and not any(map(str.isalnum, words or "")):
        words, problem = None, f"its transcript is nothing but {' '.join(tags)}"
    for what, value in {"its name": known["id"], "its speaker's name": known["speaker"], "its text": words}.items():
        if value is not None and not is_utf8(value):
            raise ValueError(f"{what} is not UTF-8; rename it")
    return Utterance(text=words, problem=problem, tags=tags, **known)


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: None, an empty text, not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, what: str) -> str | None:
    """A value as a text; numbers will do, and what says nothing is None.

    Raises:
        ValueError: If it is something else; the message calls it `what`.
    """
    if is_nothing(value):
        return None
    if isinstance(value, float) and value.is_integer():  # numbers with gaps among them become floats in tables
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its {what} must be a text, got {type(value).__name__}")
    return str(value)


def segment_of(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Where a row says that its segment begins and ends, in seconds of the file; None where it does not say.

    Raises:
        ValueError: If no segment can lie there.
    """
    start, end, duration = (_seconds(values, names) for names in (STARTS, ENDS, DURATIONS))
    if duration is not None:
        until = (start or 0.0) + duration
        if end is not None and abs(until - end) > TOLERANCE:
            raise ValueError(
                f"it ends at {end:g} s, but its beginning and duration give {until:g} s; give one of them"
            )
        end = until if end is None else end
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"its segment must have a length, but runs from {start or 0:g} to {end:g} s")
    return start, end


def _seconds(values: Mapping[str, Any], names: Sequence[str]) -> float | None:
    given = {name: values[name] for name in names if name in values and not is_nothing(values[name])}
    seconds = []
    for name, value in given.items():
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise ValueError(f"its {name} must be seconds from 0 on, got {value!r}")
        seconds.append(number)
    if len(set(seconds)) > 1:
        raise ValueError("its columns contradict each other: " + ", ".join(f"{k} {v}" for k, v in given.items()))
    return seconds[0] if seconds else None


def _seconds_name(seconds: float | None) -> str:
    return "" if seconds is None else str(round(seconds, 3))
