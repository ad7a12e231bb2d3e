"""The rows of a file that lists recordings: lines of json, a table with a header, or parquet.

Every line is accounted for: it is a row, or blank, or a comment (`# ...`), or named with what is wrong with it. A
`.tsv` has no quoting. In a `.csv` quotation marks hold a text together, also over several lines; a mark that nothing
closes is a character like any other. All but parquet may be compressed by gzip.

A file is read line by line, so that its length takes no memory; but for a `.json` that is one list.

The `metadata.csv` of LJSpeech and its likes has no header and no quoting (`id|text|text as it is spoken`); it is known
by the recordings that it names, in the folder `wavs`.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from ..audio.files import FORMATS, OTHER_AUDIO

LINES = (".jsonl", ".json")
DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",)}
PARQUET = ".parquet"
COMPRESSED = ".gz"
LJSPEECH, LJSPEECH_FOLDER = ("id", "raw_text", "normalized_text"), "wavs"
SUFFIXES = (*LINES, *DELIMITERS, PARQUET)
OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
AUDIO = OTHER_AUDIO.union(FORMATS)
COMMENT = re.compile(r"\s*#(\s|#|$)")
MAX_QUOTED = 60  # characters of a line, in a message
ROWS_AT_ONCE, BUFFER_SIZE = 1024, 2**16  # of a parquet: rows, and bytes of a column


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: Where it stands, such as `line 3`.
        values: By name of the column, in lower case, with `_` for blanks and hyphens.
        problem: What is wrong with it, or None.
    """

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


@lru_cache(maxsize=1024)  # each line of json names its columns again
def column_name(name: str) -> str:
    """A column's name as rows have it.

    >>> column_name(" Audio File-Name")
    'audio_file_name'
    """
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def read_rows(path: Path, check: Callable[[Sequence[str]], None] = lambda names: None) -> Iterator[Row]:
    """The rows of a file, in order, and all that is wrong with its lines; one after another is read.

    Args:
        path: A `.jsonl` or `.json` (an object a line, or one list of objects), `.csv`, `.tsv` or `.parquet`.
        check: Is given the names of a table's columns, before its first row or, of objects, after the last; raises
            `ValueError` for a table that is of no use.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none of these, is not in UTF-8, or is refused by `check`.
    """
    suffix = _suffix(path)
    if suffix == PARQUET:
        yield from _parquet_rows(path, check)
    elif suffix in DELIMITERS:
        yield from _table_rows(path, DELIMITERS[suffix], check)
    elif suffix in LINES:
        yield from _objects(path, check)
    else:
        *others, last = SUFFIXES
        raise ValueError(
            f"{path} must be a folder or a manifest in {', '.join(others)} or {last}, not "
            f"{suffix or 'without a suffix'}."
        )


def _lines(path: Path) -> Iterator[str]:
    # Bytes that are not UTF-8 become surrogates, so that only their own lines suffer.
    is_compressed = path.suffix.lower() == COMPRESSED
    try:
        with gzip.open(path) if is_compressed else open(path, "rb") as file:
            head = file.read(100)
            if head.startswith(OTHER_ENCODINGS) or b"\0" in head:
                raise ValueError(
                    f"{path} must be a manifest in UTF-8, but it seems to be in UTF-16; save it in UTF-8."
                )
            file.seek(0)
            for number, raw in enumerate(file):
                has_line_feeds = number > 0 or raw.endswith(b"\n")
                for part in [raw.removesuffix(b"\n")] if has_line_feeds else raw.split(b"\r"):
                    yield part.decode("utf-8", "surrogateescape").removeprefix("\ufeff").removesuffix("\r")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed ({error}); fetch or write it again.") from error


def _suffix(path: Path) -> str:
    # What it holds, compressed or not.
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == COMPRESSED else suffix


def _is_nothing(line: str) -> bool:
    return not line.strip() or COMMENT.match(line) is not None


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: bytes of something else that were read as one cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _objects(path: Path, check: Callable[[Sequence[str]], None]) -> Iterator[Row]:
    names: dict[str, None] = {}
    is_list = _suffix(path) == ".json" and next(filter(str.strip, _lines(path)), "").lstrip().startswith("[")
    for row in _rows_of_list(path) if is_list else _rows_of_lines(path):
        names |= dict.fromkeys(row.values)
        yield row
    if names:
        check(list(names))


def _rows_of_list(path: Path) -> Iterator[Row]:
    try:
        entries = json.loads("\n".join(_lines(path)), object_pairs_hook=_object)
    except ValueError as error:
        raise ValueError(f"{path} must hold an object a line, or one list of objects ({error}).") from error
    for number, entry in enumerate(entries, start=1):
        yield _object_row(f"entry {number}", entry, str(entry))


def _rows_of_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if _is_nothing(line) or line.lstrip().startswith(("#", "//")):
            continue
        place = f"line {number}"
        if not is_utf8(line):
            yield Row(place, problem="it is not in UTF-8")
            continue
        try:
            yield _object_row(place, json.loads(line, object_pairs_hook=_object), line)
        except _NamedTwice as error:
            yield Row(place, problem=str(error))
        except (ValueError, RecursionError):
            yield _object_row(place, None, line)


class _NamedTwice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, value in pairs:
        name = column_name(name)
        if name in entry:
            raise _NamedTwice(f"it names {name!r} twice")
        entry[name] = value
    return entry


def _object_row(place: str, entry: Any, line: str) -> Row:
    if isinstance(entry, dict):
        return Row(place, entry)
    return Row(place, problem=f"expected an object with a path, got {line[:MAX_QUOTED]!r}")


def _table_rows(path: Path, delimiters: tuple[str, ...], check: Callable[[Sequence[str]], None]) -> Iterator[Row]:
    lines = _LinesAhead(_lines(path))
    while (header := lines.first()) is not None and _is_nothing(header):
        lines.take(1)
    if header is None:
        return
    if not is_utf8(header):
        raise ValueError(f"{path}, line {lines.number}: the header must be in UTF-8; save the file in UTF-8.")
    is_ljspeech = _is_ljspeech(path, header)
    delimiter = "|" if is_ljspeech else max(delimiters, key=header.count)
    table = _Table(delimiter, has_quotes=_suffix(path) != ".tsv" and not is_ljspeech)
    names = [column_name(name) for name in table.fields(lines)[0] or []]
    if is_ljspeech:
        names = list(LJSPEECH[: len(names)])
    else:
        lines.take(1)
    check([name for name in names if name] + (["path"] if is_ljspeech else []))
    places = {name: place for place, name in enumerate(names) if name}
    while (line := lines.first()) is not None:
        if _is_nothing(line):
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
    names = (line.partition("|")[0].strip() for line in _lines(path) if not _is_nothing(line) and is_utf8(line))
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


def _parquet_rows(path: Path, check: Callable[[Sequence[str]], None]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs the package pyarrow to be read; run pip install 'mimi-bridge[train]'."
        ) from error
    numbers = count(1)
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_SIZE) as table:
            plain = [
                one.name
                for one in table.schema_arrow
                if not types.is_nested(one.type) and not types.is_binary(one.type)
            ]
            check([column_name(name) for name in plain])
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=plain):
                for entry in batch.to_pylist():
                    yield Row(f"row {next(numbers)}", {column_name(name): value for name, value in entry.items()})
    except ArrowException as error:
        raise ValueError(f"{path} is no parquet that can be read ({error}).") from error
