"""A list of recordings: where each is, who speaks, what is said, and where its words and phones are in time.

A manifest is a `.jsonl` file, one object a line, a `.csv` or `.tsv` file with a header, or a `.parquet` file. Its
columns are `path` (relative to the manifest) and optionally `id`, `speaker`, `text`, `licence`, `alignment`, a file of
words in time, and `offset` with `duration`, or `start` with `end`, where only a segment is meant; `fields` has the
other names that they may go by. A folder may hold one by the name of `manifest.jsonl`, or, in itself and below, the
`metadata` files of an audio folder of `datasets`. Without one, every recording below the folder is listed: the
speaker is its folder's name, the text what a `.txt` or `.lab` file of the recording's name says, the alignment a
`.TextGrid` or `.ctm` of that name.

Nothing is left out silently: what cannot be listed has its name and reason in the `Listing`.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..audio.files import find_recordings, printable
from .fields import Fields, utterance_with_text
from .tables import read_rows
from .utterance import Span, Utterance

logger = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TEXT_SUFFIXES = (".txt", ".lab", ".TXT", ".LAB")
ALIGNMENT_SUFFIXES = (".TextGrid", ".textgrid", ".ctm")


@dataclass
class Listing:
    """What a folder or a manifest lists.

    Attributes:
        utterances: In order, each with an id of its own.
        left_out: Everything else: its name, or its place in the manifest, and the reason.
    """

    utterances: list[Utterance] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    _places: dict[str, tuple[str, Utterance]] = field(default_factory=dict, repr=False)  # by id

    def add(self, place: str, make: Callable[[], Utterance]) -> None:
        """Add what is made, or name its place where it cannot be, or its id is taken."""
        try:
            utterance = make()
        except ValueError as error:
            self.left_out.append((place, str(error)))
            return
        before, other = self._places.setdefault(utterance.id, (place, utterance))
        if other is utterance:
            self.utterances.append(utterance)
        elif other == utterance:
            self.left_out.append((place, f"it says the same as {before}"))
        else:
            self.left_out.append((place, f"its id {utterance.id!r} is that of {before}; give it an id of its own"))

    def add_manifest(self, manifest: Path, fields: Fields) -> None:
        """Add the rows of a manifest."""
        for row in read_rows(manifest, fields.check):
            self.add(f"{fields.name}, {row.place}", partial(fields.utterance, row))


def read_manifest(source: str | Path) -> list[Utterance]:
    """The recordings of `list_recordings`; what is left out is logged as a warning.

    Raises:
        OSError: If there is no such file or folder, or it cannot be read.
        ValueError: If it is no manifest, or lists nothing that is of use.
    """
    listing = list_recordings(source)
    for name, reason in listing.left_out:
        logger.warning(f"left out: {name}: {reason}")
    return listing.utterances


def list_recordings(source: str | Path, columns: Mapping[str, str] | None = None) -> Listing:
    """The recordings of a manifest, in its order, or of a folder, sorted by path.

    Args:
        source: A manifest, or a folder with or without one.
        columns: Which columns of a manifest hold audio, text, id and speaker, where their names are not usual ones.

    Raises:
        OSError: If there is no such file or folder, or it cannot be read, or no recording is in it.
        ValueError: If it is no manifest, it lacks a column, or it lists nothing that is of use.
    """
    source = Path(source)
    if source.is_dir() and (source / MANIFEST).is_file():
        source /= MANIFEST
    if source.is_dir():
        listing = _of_folder(source, columns)
    elif source.exists():
        listing = Listing()
        listing.add_manifest(source, Fields(source, columns))
    else:
        raise FileNotFoundError(f"no such folder of recordings: {source}")
    if not listing.utterances:
        if not listing.left_out:
            raise ValueError(f"{source} must list at least one recording, got none.")
        (name, reason), count = listing.left_out[0], len(listing.left_out)
        raise ValueError(
            f"none of the {count} recordings of {source} is of use; the first, {name}, is not because: {reason}."
        )
    return listing


def _of_folder(folder: Path, columns: Mapping[str, str] | None) -> Listing:
    try:
        found, left_out = find_recordings(folder)
    except FileNotFoundError:
        if not any((folder / name).is_file() for name in METADATA):
            raise
        found, left_out = [], []
    listing, tables = Listing(left_out=left_out), dict(_metadata(folder, found))
    if columns and not tables:
        raise ValueError(f"{folder} is a folder without a manifest, so it has no columns to choose.")
    for place, table in [*tables.items()]:
        try:
            listing.add_manifest(table, Fields(table, columns, root=folder))
        except ValueError as error:  # something else by this name
            if columns:
                raise
            listing.left_out.append((printable(table.relative_to(folder)), str(error)))
            del tables[place]
    listed = {os.path.abspath(utterance.path) for utterance in listing.utterances}
    for recording in found:
        name = printable(recording.relative_to(folder))
        listing_table = next((tables[place] for place in recording.parents if place in tables), None)
        if listing_table is None:
            listing.add(name, partial(_beside_its_text, recording, folder))
        elif os.path.abspath(recording) not in listed:
            where = printable(listing_table.relative_to(folder))
            listing.left_out.append((name, f"{where} has no line for it that is of use"))
    return listing


def _metadata(folder: Path, recordings: list[Path]) -> Iterator[tuple[Path, Path]]:
    # Each folder, from this one down, that holds a table of its recordings, and the table.
    places = {place for recording in recordings for place in recording.parents}
    for place in sorted(place for place in {*places, folder} if place.is_relative_to(folder)):
        table = next((place / name for name in METADATA if (place / name).is_file()), None)
        if table is not None:
            yield place, table


def _beside_its_text(recording: Path, folder: Path) -> Utterance:
    text, problem = _text_beside(recording)
    utterance = utterance_with_text(
        text,
        id=str(recording.relative_to(folder)),
        path=recording,
        speaker=recording.parent.name,
        alignment=_beside(recording, ALIGNMENT_SUFFIXES),
    )
    words = None if utterance.text is None else " ".join(utterance.text.split())
    return replace(utterance, text=words, problem=problem or utterance.problem)


def _beside(recording: Path, suffixes: tuple[str, ...]) -> Path | None:
    candidates = (recording.with_suffix(suffix) for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)


def _text_beside(recording: Path) -> tuple[str | None, str | None]:
    # The transcript, or the reason why it cannot be read.
    path = _beside(recording, TEXT_SUFFIXES)
    if path is None:
        return None, None
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, None if text.strip() else "its transcript is empty"
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
