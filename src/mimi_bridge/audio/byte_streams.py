"""Parts of an audio file as readable files, and searches for byte patterns in it."""

import io
import re
from typing import Any, BinaryIO

AT_ONCE = 2**16  # bytes, in a search
LONGEST = 17  # bytes of what is searched for


class Part(io.RawIOBase):
    """A range of a file's bytes, as a readable file.

    Args:
        file: Open, and seekable.
        start: Position of the first byte.
        end: Position after the last byte.
        head: Bytes to read before them, such as a corrected header.
        remark: A remark for the caller, or None.

    Attributes:
        declared_share: Bytes of samples that the original header declared, over those that `head` declares.
        declared_count: Samples that the original header declared, if `head` does not; else None.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, head: bytes = b"", remark: str | None = None):
        self._file, self._start, self._head, self._position = file, start, head, 0
        self.size = len(head) + end - start
        self.remark = remark
        self.declared_share = 1.0
        self.declared_count: int | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's."""
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As a file's."""
        wanted = max(0, min(len(buffer), self.size - self._position))
        content = self._head[self._position : self._position + wanted]
        if len(content) < wanted:
            self._file.seek(self._start + self._position + len(content) - len(self._head))
            content += self._file.read(wanted - len(content))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def header(self) -> bytes:
        """The first 1024 bytes."""
        self.seek(0)
        return self.read(1024)


def bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Read `count` bytes at a position; fewer at the end of the file."""
    file.seek(position)
    return file.read(count)


def find(file: BinaryIO, wanted: re.Pattern[bytes], position: int) -> int | None:
    """Position of the first match at or after `position`; None if there is none."""
    while block := bytes_at(file, position, AT_ONCE + LONGEST - 1):
        if (found := wanted.search(block)) is not None:
            return position + found.start()
        position += AT_ONCE
    return None


def after_tag(file: BinaryIO, position: int) -> int:
    """The position after an ID3 tag of version 2, or `position` if there is none; its size has seven bits a byte."""
    tag = bytes_at(file, position, 10)
    if len(tag) < 10 or tag[:3] != b"ID3":
        return position
    return position + 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
