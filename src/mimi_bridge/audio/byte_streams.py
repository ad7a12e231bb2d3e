"""Bytes of a file of sound: some of them as a file that is read, and where others begin."""

import io
import re
from typing import Any, BinaryIO

AT_ONCE = 2**16  # bytes, in a search
LONGEST = 17  # bytes of what is searched for


class Part(io.RawIOBase):
    """Some of a file's bytes, as a file that is read.

    Args:
        file: Open, and seekable.
        start: The first of its bytes.
        end: One after the last.
        head: Bytes that come before them.
        remark: What is to be said of it, or None.

    Attributes:
        share_said: How many times as many bytes of samples the header said, where libsndfile is not told.
        count_said: How many samples the header said, where libsndfile is not told; else None.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, head: bytes = b"", remark: str | None = None):
        self._file, self._start, self._head, self._position = file, start, head, 0
        self.size = len(head) + end - start
        self.remark = remark
        self.share_said = 1.0
        self.count_said: int | None = None

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

    def beginning(self) -> bytes:
        """What a header of some length holds."""
        self.seek(0)
        return self.read(1024)


def bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    """So many bytes, fewer at the end of the file."""
    file.seek(position)
    return file.read(count)


def find(file: BinaryIO, wanted: re.Pattern[bytes], position: int) -> int | None:
    """Where what is wanted begins, from a position on; None if nowhere."""
    while block := bytes_at(file, position, AT_ONCE + LONGEST - 1):
        if (found := wanted.search(block)) is not None:
            return position + found.start()
        position += AT_ONCE
    return None


def after_tag(file: BinaryIO, position: int) -> int:
    """The position, or the one behind an ID3 tag of version 2 that is there; its size has seven bits a byte."""
    tag = bytes_at(file, position, 10)
    if len(tag) < 10 or tag[:3] != b"ID3":
        return position
    return position + 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
