"""The rows of a file that lists recordings: lines of json, a table with a header, or parquet.

Every line is accounted for: it is a row, or blank, or a comment (`# ...`), or named with what is wrong with it. One
row after another is read, so that a file's length takes no memory; but for a `.json` that is one list.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from .delimited import DELIMITERS, table_rows
from .lines import COMPRESSED, MAX_QUOTED, Row, column_name, is_passed_over, is_utf8, text_lines

LINES = (".jsonl", ".json")
PARQUET = ".parquet"
SUFFIXES = (*LINES, *DELIMITERS, PARQUET)
ROWS_AT_ONCE, BUFFER_SIZE = 1024, 2**16  # of a parquet: rows, and bytes of a column


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
    suffix = (path.with_suffix("") if path.suffix.lower() == COMPRESSED else path).suffix.lower()
    if suffix == PARQUET:
        yield from _parquet_rows(path, check)
    elif suffix in DELIMITERS:
        yield from table_rows(path, suffix, check)
    elif suffix in LINES:
        yield from _objects(path, suffix, check)
    else:
        *others, last = SUFFIXES
        raise ValueError(
            f"{path} must be a folder or a manifest in {', '.join(others)} or {last}, not "
            f"{suffix or 'without a suffix'}."
        )


def _objects(path: Path, suffix: str, check: Callable[[Sequence[str]], None]) -> Iterator[Row]:
    names: dict[str, None] = {}
    is_list = suffix == ".json" and next(filter(str.strip, text_lines(path)), "").lstrip().startswith("[")
    for row in _rows_of_list(path) if is_list else _rows_of_lines(path):
        names |= dict.fromkeys(row.values)
        yield row
    if names:
        check(list(names))


def _rows_of_list(path: Path) -> Iterator[Row]:
    try:
        entries = json.loads("\n".join(text_lines(path)), object_pairs_hook=_object)
    except ValueError as error:
        raise ValueError(f"{path} must hold an object a line, or one list of objects ({error}).") from error
    for number, entry in enumerate(entries, start=1):
        yield _object_row(f"entry {number}", entry, str(entry))


def _rows_of_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(text_lines(path), start=1):
        if is_passed_over(line) or line.lstrip().startswith(("#", "//")):
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
