"""A list of recordings: where each is, who speaks, what is said, and where its words and phones are in time.

A folder may hold a `manifest.jsonl`, one object a line, with `path` (relative to it) and optionally `id`, `speaker`,
`text`, `licence` and `alignment` (a json with `words`, each with `word`, `start`, `end` in seconds and `phones`).
Without one, every recording below the folder is listed, the speaker being its folder's name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..audio import find_recordings

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Utterance:
    """One recording of a manifest.

    Attributes:
        id: Unique in the manifest.
        path: The recording.
        speaker: Who speaks.
        text: What is said, or None.
        licence: Of the recording, or None.
        alignment: A json of words and phones in seconds, or None.
    """

    id: str
    path: Path
    speaker: str
    text: str | None = None
    licence: str | None = None
    alignment: Path | None = None


@dataclass(frozen=True)
class Span:
    """A word or a phone, from `start` to `end` seconds."""

    label: str
    start: float
    end: float


def read_manifest(folder: str | Path) -> list[Utterance]:
    """The recordings of a folder, in its manifest's order, or sorted by path.

    Raises:
        FileNotFoundError: If there is no such folder, or neither a manifest nor a recording in it.
        ValueError: If a line of the manifest is not an object with a path.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of recordings: {folder}")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return [
            Utterance(id=str(path.relative_to(folder)), path=path, speaker=path.parent.name)
            for path in find_recordings(folder)
        ]
    return [
        _read_line(line, f"{manifest}, line {number}", folder)
        for number, line in enumerate(manifest.read_text().split("\n"), start=1)
        if line.strip()
    ]


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
        path = folder / entry["path"]
        alignment = folder / entry["alignment"] if entry.get("alignment") else None
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: expected a json object with a path, got {line[:60]!r}.") from error
    return Utterance(
        id=str(entry["path"] if entry.get("id") is None else entry["id"]),
        path=path,
        speaker=str(path.parent.name if entry.get("speaker") is None else entry["speaker"]),
        text=entry.get("text"),
        licence=entry.get("licence"),
        alignment=alignment,
    )
