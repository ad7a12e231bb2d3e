"""A list of recordings: where each is, who speaks, what is said, and where its words and phones are in time.

A manifest is a `.jsonl` file, one object a line, or a `.csv` or `.tsv` file with a header. Its columns are `path`
(relative to the manifest; `audio` and NeMo's `audio_filepath` will do) and optionally `id`, `speaker`, `text`,
`licence` and `alignment`, a file of words in time. A folder may hold one by the name of `manifest.jsonl`. Without one,
every recording below the folder is listed: the speaker is its folder's name, the text what a `.txt` or `.lab` file of
the recording's name says, the alignment a `.TextGrid` or `.ctm` of that name.
"""

import csv
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio import find_recordings

logger = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"
TABLE_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PATH_COLUMNS = ("path", "audio", "audio_filepath")
TEXT_SUFFIXES = (".txt", ".lab")
ALIGNMENT_SUFFIXES = (".TextGrid", ".textgrid", ".ctm")


@dataclass(frozen=True)
class Utterance:
    """One recording of a manifest.

    Attributes:
        id: Unique in the manifest.
        path: The recording.
        speaker: Who speaks.
        text: What is said, or None.
        licence: Of the recording, or None.
        alignment: A file of words in seconds, or None.
        problem: Why there is no text where there should be some, or None.
    """

    id: str
    path: Path
    speaker: str
    text: str | None = None
    licence: str | None = None
    alignment: Path | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Span:
    """A word or a phone, from `start` to `end` seconds."""

    label: str
    start: float
    end: float


def read_manifest(source: str | Path) -> list[Utterance]:
    """The recordings of a manifest, in its order, or of a folder, sorted by path.

    Args:
        source: A manifest, or a folder with or without one.

    Raises:
        FileNotFoundError: If there is no such file or folder, or neither a manifest nor a recording in it.
        ValueError: If a line of the manifest has no path, or a table lacks its columns.
    """
    source = Path(source)
    if source.is_file():
        return _read_file(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder of recordings: {source}")
    if (source / MANIFEST).is_file():
        return _read_file(source / MANIFEST)
    recordings, left_out = find_recordings(source)
    for name, reason in left_out:
        logger.warning(f"left out: {name}: {reason}")
    return [_utterance_of(path, source) for path in recordings]


def _utterance_of(recording: Path, folder: Path) -> Utterance:
    text, problem = _text_beside(recording)
    return Utterance(
        id=str(recording.relative_to(folder)),
        path=recording,
        speaker=recording.parent.name,
        text=text,
        alignment=_beside(recording, ALIGNMENT_SUFFIXES),
        problem=problem,
    )


def _read_file(manifest: Path) -> list[Utterance]:
    suffix = manifest.suffix.lower()
    try:
        if suffix in TABLE_DELIMITERS:
            with open(manifest, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=TABLE_DELIMITERS[suffix], restkey="")
                return [_utterance(row, f"{manifest}, line {reader.line_num}", manifest.parent) for row in reader]
        if suffix == ".jsonl":
            lines = manifest.read_text(encoding="utf-8").split("\n")
            return [
                _read_line(line, f"{manifest}, line {number}", manifest.parent)
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{manifest} must be a manifest in UTF-8 ({error}).") from error
    raise ValueError(
        f"{manifest} must be a folder or a manifest in .jsonl, .csv or .tsv, not {suffix or 'without a suffix'}."
    )


def _beside(recording: Path, suffixes: tuple[str, ...]) -> Path | None:
    candidates = (recording.with_suffix(suffix) for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)


def _text_beside(recording: Path) -> tuple[str | None, str | None]:
    # What is said; or why that is not to be had.
    path = _beside(recording, TEXT_SUFFIXES)
    if path is None:
        return None, None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()), None
    except UnicodeDecodeError as error:
        return None, f"{path} must be a transcript in UTF-8 ({error})"
    except OSError as error:
        return None, f"its transcript cannot be read ({error})"


def read_words(alignment: Path) -> list[Span]:
    """The words of an alignment, in order.

    Raises:
        ValueError: If the file is no such alignment.
    """
    return _read_spans(alignment, lambda word: [_span(word, "word")])


def read_phones(alignment: Path) -> list[Span]:
    """The phones of an alignment's words, in order.

    Raises:
        ValueError: If the file is no such alignment.
    """
    return _read_spans(alignment, lambda word: [_span(phone, "phone") for phone in word["phones"]])


def _read_spans(alignment: Path, spans_of: Callable[[dict], list[Span]]) -> list[Span]:
    try:
        return [span for word in json.loads(alignment.read_text())["words"] for span in spans_of(word)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{alignment} must be a json with words, each with word, start, end and phones, each with phone, start "
            f"and end ({error!r})."
        ) from error


def _span(entry: dict, label: str) -> Span:
    return Span(entry[label], float(entry["start"]), float(entry["end"]))


def _read_line(line: str, name: str, folder: Path) -> Utterance:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        entry = None
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: expected an object with a path, got {line[:60]!r}.")
    return _utterance(entry, name, folder)


def _utterance(entry: dict[str, Any], name: str, folder: Path) -> Utterance:
    given = next((entry[column] for column in PATH_COLUMNS if entry.get(column)), None)
    alignment = entry.get("alignment") or None
    if not isinstance(given, str) or not isinstance(alignment, str | None):
        raise ValueError(f"{name}: expected an object with a path, got {json.dumps(entry)[:60]!r}.")
    path = folder / given

    def text_of(column: str) -> str | None:
        value = entry.get(column)
        return None if value is None or value == "" else str(value)

    return Utterance(
        id=text_of("id") or given,
        path=path,
        speaker=text_of("speaker") or path.parent.name,
        text=text_of("text"),
        licence=text_of("licence"),
        alignment=None if alignment is None else folder / alignment,
    )
