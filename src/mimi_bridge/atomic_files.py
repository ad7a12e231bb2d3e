"""Files that are there whole or not at all, whatever ends the process that writes them.

They have the mode that the user's umask gives, as every file that `open` makes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GROWING = ".growing"  # how the name of a file ends that is being written, or that a killed process was at


class DiskFullError(OSError):
    """There is no room for a file, or for one of its size."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written ({self.strerror}); make room, and give the same command again."


@contextmanager
def growing_file(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` in the end; if there is an error, it is gone, and `path` as it was.

    Any number of processes, on any number of machines, may be at one `path`: the last one wins.

    Raises:
        DiskFullError: If there is no room for it.
    """
    growing = path.with_name(f".{path.name[:40]}.{uuid4().hex}{GROWING}")  # hidden, and no longer than names may be
    try:
        yield growing
        with open(growing, "rb") as file:
            os.fsync(file.fileno())
        os.replace(growing, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(error.errno, error.strerror, str(path)) from error
    finally:
        growing.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with growing_file(path) as growing:
        growing.write_bytes(content)
