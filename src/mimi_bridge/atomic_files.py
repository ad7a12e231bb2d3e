"""Atomic files: readers see the old file or the complete new one, whatever ends the process that writes it.

Their mode follows the user's umask, as that of every file that `open` makes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GROWING = ".growing"  # suffix of a file that is being written, or that an interrupted process left


class DiskFullError(OSError):
    """The disk has no room for a file, or for one of its size."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written ({self.strerror}); make room, and give the same command again."


@contextmanager
def growing_file(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which replaces `path` at the end; after an error, `path` is unchanged.

    Any number of processes, on any number of machines, may write to one `path`: the last one wins.

    Raises:
        DiskFullError: If there is no room for it.
    """
    growing = path.with_name(f".{path.name[:40]}.{uuid4().hex}{GROWING}")  # hidden, and not too long for a name
    try:
        yield growing
        with open(growing, "rb") as file:
            os.fsync(file.fileno())
        os.replace(growing, path)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(error.errno, error.strerror, str(path)) from error
        if error.filename == str(growing):  # a name that the user has never given
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        growing.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with growing_file(path) as growing:
        growing.write_bytes(content)
