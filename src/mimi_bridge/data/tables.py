"""The rows of a file that lists recordings: lines of json, a table with a header, or parquet.

Every line is accounted for: it is a row, or blank, or a comment (`# ...`), or named with what is wrong with it. A
`.tsv` has no quoting. In a `.csv` quotation marks hold a text together, also over several lines; a mark that nothing
closes is a character like any other. All but parquet may be compressed by gzip.

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


def read_rows(path: Path, check: Callable[[Sequence[str]], None] = lambda names: None) -> list[Row]:
    """All rows of a file, in order, and all that is wrong with its lines.

    Args:
        path: A `.jsonl` or `.json` (an object a line, or one list of objects), `.csv`, `.tsv` or `.parquet`.
        check: Is given the names of a table's columns; raises `ValueError` for a table that is of no use.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none of these, is not in UTF-8, or is refused by `check`.
    """
    suffix = _suffix(path)
    if suffix == PARQUET:
        return _parquet_rows(path, check)
    if suffix not in SUFFIXES:
        *others, last = SUFFIXES
        raise ValueError(
            f"{path} must be a folder or a manifest in {', '.join(others)} or {last}, not "
            f"{suffix or 'without a suffix'}."
        )
    lines = _lines(path)
    if suffix in DELIMITERS:
        return list(_table_rows(path, lines, DELIMITERS[suffix], check))
    rows = list(_objects(path, lines))
    names = dict.fromkeys(name for row in rows for name in row.values)
    if names:
        check(list(names))
    return rows


def _lines(path: Path) -> list[str]:
    # Bytes that are not UTF-8 become surrogates, so that only their own lines suffer.
    raw = path.read_bytes()
    if path.suffix.lower() == COMPRESSED:
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed ({error}); fetch or write it again.") from error
    if raw.startswith(OTHER_ENCODINGS) or b"\0" in raw[:100]:
        raise ValueError(f"{path} must be a manifest in UTF-8, but it seems to be in UTF-16; save it in UTF-8.")
    text = raw.decode("utf-8", "surrogateescape")
    lines = text.split("\n") if "\n" in text else text.split("\r")
    return [line.removeprefix("\ufeff").removesuffix("\r") for line in lines]


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


def _objects(path: Path, lines: list[str]) -> Iterator[Row]:
    if _suffix(path) == ".json" and "".join(lines).lstrip().startswith("["):
        try:
            entries = json.loads("\n".join(lines), object_pairs_hook=_object)
        except ValueError as error:
            raise ValueError(f"{path} must hold an object a line, or one list of objects ({error}).") from error
        for number, entry in enumerate(entries, start=1):
            yield _object_row(f"entry {number}", entry, str(entry))
        return
    for number, line in enumerate(lines, start=1):
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


def _table_rows(
    path: Path, lines: list[str], delimiters: tuple[str, ...], check: Callable[[Sequence[str]], None]
) -> Iterator[Row]:
    first = next((number for number, line in enumerate(lines) if not _is_nothing(line)), None)
    if first is None:
        return
    if not is_utf8(lines[first]):
        raise ValueError(f"{path}, line {first + 1}: the header must be in UTF-8; save the file in UTF-8.")
    is_ljspeech = _is_ljspeech(path, lines[first:])
    delimiter = "|" if is_ljspeech else max(delimiters, key=lines[first].count)
    table = _Table(lines, delimiter, has_quotes=_suffix(path) != ".tsv" and not is_ljspeech)
    names = [column_name(name) for name in table.fields(first)[0] or []]
    number = first + 1
    if is_ljspeech:
        names, number = list(LJSPEECH[: len(names)]), first
    check([name for name in names if name] + (["path"] if is_ljspeech else []))
    places = {name: place for place, name in enumerate(names) if name}
    while number < len(lines):
        if _is_nothing(lines[number]):
            number += 1
            continue
        fields, count = table.fields(number, len(names))
        place = f"line {number + 1}" if count == 1 else f"lines {number + 1} to {number + count}"
        if not is_utf8("".join(lines[number : number + count])):
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
        number += count


def _is_ljspeech(path: Path, lines: list[str]) -> bool:
    recordings = path.parent / LJSPEECH_FOLDER
    if not 2 <= lines[0].count("|") + 1 <= len(LJSPEECH) or not recordings.is_dir():
        return False
    names = (line.partition("|")[0].strip() for line in lines if not _is_nothing(line) and is_utf8(line))
    return any((recordings / f"{name}.wav").is_file() for name in names if name and "\0" not in name)


def _other_number(found: int, wanted: int, table: "_Table") -> str:
    remedy = "no text may hold a tab or a line break"
    if table.has_quotes:
        remedy = f"a text that holds {table.delimiter!r} must stand in quotation marks"
    return f"it has {found} fields, but the header has {wanted}; {remedy}"


@dataclass(frozen=True)
class _Table:
    lines: list[str]
    delimiter: str
    has_quotes: bool

    def fields(self, first: int, wanted: int | None = None) -> tuple[list[str] | None, int]:
        """The fields that begin in a line, None where a mark is not closed; and how many lines they take."""
        if not self.has_quotes:
            return self._trimmed(self._parts(self.lines[first]), wanted), 1
        reader = self._reader((self.lines[number] + "\n" for number in range(first, len(self.lines))), strict=True)
        try:
            fields = next(reader)
        except csv.Error:  # a mark within a text, or one that nothing closes
            return self._unquoted(self.lines[first], wanted), 1
        more = self.lines[first + 1 : first + reader.line_num]
        if any(Path(part.strip()).suffix.lower() in AUDIO for line in more for part in self._parts(line)):
            return self._unquoted(self.lines[first], wanted), 1  # it swallowed other rows
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


def _parquet_rows(path: Path, check: Callable[[Sequence[str]], None]) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs the package pyarrow to be read; run pip install 'mimi-bridge[train]'."
        ) from error
    try:
        schema = parquet.read_schema(path)
        plain = [one.name for one in schema if not types.is_nested(one.type) and not types.is_binary(one.type)]
        entries = parquet.read_table(path, columns=plain).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} is no parquet that can be read ({error}).") from error
    check([column_name(name) for name in plain])
    return [
        Row(f"row {number}", {column_name(name): value for name, value in entry.items()})
        for number, entry in enumerate(entries, start=1)
    ]
