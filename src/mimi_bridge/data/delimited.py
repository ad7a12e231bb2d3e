"""Tables of text with a header: fields between commas, semicolons, tabs or bars.

A `.tsv` has no quoting. In a `.csv` quotation marks hold a text together, also over several lines; a mark that nothing
closes is a character like any other.

The `metadata.csv` of LJSpeech and its likes has no header and no quoting (`id|text|text as it is spoken`); it is known
by the recordings that it names, in the folder `wavs`.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from ..audio.files import FORMATS, OTHER_AUDIO
from .lines import Row, column_name, is_passed_over, is_utf8, text_lines

DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",)}
LJSPEECH, LJSPEECH_FOLDER = ("id", "raw_text", "normalized_text"), "wavs"
AUDIO = OTHER_AUDIO.union(FORMATS)


def table_rows(path: Path, suffix: str, check: Callable[[Sequence[str]], None]) -> Iterator[Row]:
    """The rows of a table; as `read_rows`, with one of `DELIMITERS` as the suffix."""
    lines = _LinesAhead(text_lines(path))
    while (header := lines.first()) is not None and is_passed_over(header):
        lines.take(1)
    if header is None:
        return
    if not is_utf8(header):
        raise ValueError(f"{path}, line {lines.number}: the header must be in UTF-8; save the file in UTF-8.")
    is_ljspeech = _is_ljspeech(path, header)
    delimiter = "|" if is_ljspeech else max(DELIMITERS[suffix], key=header.count)
    table = _Table(delimiter, has_quotes=suffix != ".tsv" and not is_ljspeech)
    names = [column_name(name) for name in table.fields(lines)[0] or []]
    if is_ljspeech:
        names = list(LJSPEECH[: len(names)])
    else:
        lines.take(1)
    check([name for name in names if name] + (["path"] if is_ljspeech else []))
    places = {name: place for place, name in enumerate(names) if name}
    while (line := lines.first()) is not None:
        if is_passed_over(line):
            lines.take(1)
            continue
        number = lines.number
        fields, num_lines = table.fields(lines, len(names))
        place = f"line {number}" if num_lines == 1 else f"lines {number} to {number + num_lines - 1}"
        if not is_utf8("".join(lines.take(num_lines))):
            yield Row(place, problem="it is not in UTF-8")
        elif fields is None:
            yield Row(place, problem="a quotation mark in it is not closed; double the marks within a text")
        elif len(fields) != len(names) and any(fields):
            yield Row(place, problem=_other_number(len(fields), len(names), table))
        elif any(fields):
            values = {name: fields[at] for name, at in places.items()}
            if is_ljspeech:
                values |= {"path": f"{LJSPEECH_FOLDER}/{values['id']}.wav", "speaker": path.parent.absolute().name}
            yield Row(place, values)


class _LinesAhead:
    """The lines that come next: no more are held than were looked at.

    Attributes:
        number: Of the first of them, from 1 on.
    """

    def __init__(self, lines: Iterator[str]):
        self._rest, self._held, self.number = lines, list[str](), 1

    def __iter__(self) -> Iterator[str]:
        for place in count():
            if place == len(self._held):
                self._held += islice(self._rest, 1)
            if place == len(self._held):
                return
            yield self._held[place]

    def first(self) -> str | None:
        return next(iter(self), None)

    def take(self, num_lines: int) -> list[str]:
        taken = self._held[:num_lines]
        del self._held[:num_lines]
        self.number += num_lines
        return taken


def _is_ljspeech(path: Path, first: str) -> bool:
    recordings = path.parent / LJSPEECH_FOLDER
    if not 2 <= first.count("|") + 1 <= len(LJSPEECH) or not recordings.is_dir():
        return False
    names = (line.partition("|")[0].strip() for line in text_lines(path) if not is_passed_over(line) and is_utf8(line))
    return any((recordings / f"{name}.wav").is_file() for name in names if name and "\0" not in name)


def _other_number(found: int, wanted: int, table: "_Table") -> str:
    remedy = "no text may hold a tab or a line break"
    if table.has_quotes:
        remedy = f"a text that holds {table.delimiter!r} must stand in quotation marks"
    return f"it has {found} fields, but the header has {wanted}; {remedy}"


@dataclass(frozen=True)
class _Table:
    delimiter: str
    has_quotes: bool

    def fields(self, lines: _LinesAhead, wanted: int | None = None) -> tuple[list[str] | None, int]:
        """The fields that begin in the first line, None where a mark is not closed; and how many lines they take."""
        first = lines.first() or ""
        if not self.has_quotes:
            return self._trimmed(self._parts(first), wanted), 1
        reader = self._reader((line + "\n" for line in lines), strict=True)
        try:
            fields = next(reader)
        except csv.Error:  # a mark within a text, or one that nothing closes
            return self._unquoted(first, wanted), 1
        more = islice(lines, 1, reader.line_num)
        if any(Path(part.strip()).suffix.lower() in AUDIO for line in more for part in self._parts(line)):
            return self._unquoted(first, wanted), 1  # it swallowed other rows
        return self._trimmed(fields, wanted), reader.line_num

    def _reader(self, lines: Any, strict: bool = False) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=strict)

    def _parts(self, line: str) -> list[str]:
        return line.split(self.delimiter)

    def _unquoted(self, line: str, wanted: int | None) -> list[str] | None:
        try:
            candidates = [next(self._reader([line])), self._parts(line)]
        except csv.Error:  # longer than it takes
            candidates = [self._parts(line)]
        candidates = [self._trimmed(fields, wanted) for fields in candidates]
        return next((fields for fields in candidates if wanted in (None, len(fields))), None)

    @staticmethod
    def _trimmed(fields: list[str], wanted: int | None) -> list[str]:
        fields = [field.strip() for field in fields]
        while wanted is not None and len(fields) > wanted and not fields[-1]:  # spreadsheets fill up with blanks
            fields.pop()
        return fields
