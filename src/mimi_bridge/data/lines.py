"""The lines of a file that lists recordings, and the row that a line holds.

A file is read line by line, so that its length takes no memory; it may be compressed by gzip.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

COMPRESSED = ".gz"
OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMMENT = re.compile(r"\s*#(\s|#|$)")
MAX_QUOTED = 60  # characters of a line, in a message


@dataclass(frozen=True)
class Row:
    """One row, of a line or of a few.

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


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, perhaps compressed; bytes that are not UTF-8 become surrogates, so only theirs suffer.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is in UTF-16, or cannot be decompressed.
    """
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


def is_passed_over(line: str) -> bool:
    """Whether a line is blank or a comment."""
    return not line.strip() or COMMENT.match(line) is not None


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: bytes of something else that were read as one cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
