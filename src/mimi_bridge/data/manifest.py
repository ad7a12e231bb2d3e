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

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path

from ..audio.folders import find_recordings, recordings_below
from ..paths import printable
from .entries import Entries
from .fields import Fields, utterance_with_text
from .tables import read_rows
from .utterance import Span, Utterance

logger = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TEXT_SUFFIXES = (".txt", ".lab", ".TXT", ".LAB")
ALIGNMENT_SUFFIXES = (".TextGrid", ".textgrid", ".ctm")


class Listing:
    """What a folder or a manifest lists: recordings, each with an id of its own, and all else that was found.

    Args:
        path: A new file to hold them, from which other processes may read; without one, it is a temporary one.

    Attributes:
        has_segments: Whether there are segments of files among them.
        has_text: Whether one of them has a text.
        has_text_to_align: Whether one of them has a text without an alignment.
    """

    def __init__(self, path: str | os.PathLike = ""):
        self._entries = Entries(path)
        self.has_segments = self.has_text = self.has_text_to_align = False

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Utterance:
        return _utterance(self._entries[index][1])

    def __iter__(self) -> Iterator[Utterance]:
        return map(_utterance, self._entries)

    @property
    def utterances(self) -> list[Utterance]:
        """All at once, in order."""
        return [*self]

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Everything else: its name, or its place in the manifest, and the reason."""
        return self._entries.left_out

    def add(self, place: str, make: Callable[[], Utterance]) -> None:
        """Add what is made, or name its place where it cannot be, or its id is taken."""
        try:
            utterance = make()
        except ValueError as error:
            self.leave_out(place, str(error))
            return
        entry = json.dumps(vars(utterance), default=str, sort_keys=True)
        if self._entries.add(utterance.id, place, entry):
            self.has_segments |= utterance.start is not None or utterance.end is not None
            self.has_text |= bool(utterance.text)
            self.has_text_to_align |= bool(utterance.text) and utterance.alignment is None

    def leave_out(self, name: str, reason: str) -> None:
        """Name what is no recording of use."""
        self._entries.leave_out(name, reason)

    def add_manifest(self, manifest: Path, fields: Fields) -> None:
        """Add the rows of a manifest."""
        for row in read_rows(manifest, fields.check):
            self.add(f"{fields.name}, {row.place}", partial(fields.utterance, row))

    def finish(self) -> None:
        """Let other processes read it, and nobody write to it."""
        self._entries.finish()

    def fingerprint(self) -> str:
        """Changes if the list does; the recordings themselves are not looked at."""
        digest = hashlib.sha256()
        for entry in self._entries:
            digest.update(entry.encode())
        digest.update(json.dumps(self.left_out).encode())
        return digest.hexdigest()


def _utterance(entry: str) -> Utterance:
    known = json.loads(entry)
    alignment = known.pop("alignment")
    known |= {"path": Path(known["path"]), "tags": tuple(known["tags"])}
    return Utterance(**known, alignment=None if alignment is None else Path(alignment))


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


def list_recordings(
    source: str | Path, columns: Mapping[str, str] | None = None, path: str | os.PathLike = ""
) -> Listing:
    """The recordings of a manifest, in its order, or of a folder, sorted by path.

    Args:
        source: A manifest, or a folder with or without one.
        columns: Which columns of a manifest hold audio, text, id and speaker, where their names are not usual ones.
        path: As in `Listing`.

    Raises:
        OSError: If there is no such file or folder, or it cannot be read, or no recording is in it.
        ValueError: If it is no manifest, it lacks a column, or it lists nothing that is of use.
    """
    source = Path(source)
    if source.is_dir() and (source / MANIFEST).is_file():
        source /= MANIFEST
    if not source.exists():
        raise FileNotFoundError(f"no such folder of recordings: {source}")
    listing = Listing(path)
    if source.is_dir():
        _add_folder(listing, source, columns)
    else:
        listing.add_manifest(source, Fields(source, columns))
    listing.finish()
    if not len(listing):
        if not listing.left_out:
            raise ValueError(f"{source} must list at least one recording, got none.")
        (name, reason), count = listing.left_out[0], len(listing.left_out)
        raise ValueError(
            f"none of the {count} recordings of {source} is of use; the first, {name}, is not because: {reason}."
        )
    return listing


def _add_folder(listing: Listing, folder: Path, columns: Mapping[str, str] | None) -> None:
    if all(problem is not None for _, problem in recordings_below(folder)) and _metadata_in(folder) is None:
        find_recordings(folder)  # says what else there is
    tables = dict(_metadata(folder))
    if columns and not tables:
        raise ValueError(f"{folder} is a folder without a manifest, so it has no columns to choose.")
    for place, table in [*tables.items()]:
        fields = Fields(table, columns, root=folder)
        try:
            deque(read_rows(table, fields.check), maxlen=0)  # whether it is one shows at its end only
        except ValueError as error:  # something else by this name
            if columns:
                raise
            listing.leave_out(printable(table.relative_to(folder)), str(error))
            del tables[place]
        else:
            listing.add_manifest(table, fields)
    listed = Entries()
    for utterance in listing:
        listed.add(os.fsencode(os.path.abspath(utterance.path)))
    for recording, problem in recordings_below(folder):
        name = printable(recording.relative_to(folder))
        listing_table = next((tables[place] for place in recording.parents if place in tables), None)
        if problem is not None:
            listing.leave_out(name, problem)
        elif listing_table is None:
            listing.add(name, partial(_beside_its_text, recording, folder))
        elif os.fsencode(os.path.abspath(recording)) not in listed:
            where = printable(listing_table.relative_to(folder))
            listing.leave_out(name, f"{where} has no line for it that is of use")


def _metadata(folder: Path) -> Iterator[tuple[Path, Path]]:
    # Each folder, from this one down, that holds a table of its recordings, and the table.
    above: set[Path] = set()
    places = (recording.parent for recording, problem in recordings_below(folder) if problem is None)
    for place, _ in groupby(chain([folder], places)):
        here = {place, *place.parents}
        for entered in sorted(one for one in here - above if one.is_relative_to(folder)):
            table = _metadata_in(entered)
            if table is not None:
                yield entered, table
        above = here


def _metadata_in(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


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
