"""Files that are there whole or not at all, whatever ends the process that writes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

GROWING = ".growing"  # how the name of a file ends that is being written, or that a killed process was at


@contextmanager
def growing_file(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` in the end; if there is an error, it is gone, and `path` as it was.

    Any number of processes, on any number of machines, may be at one `path`: the last one wins.
    """
    growing = path.with_name(f"{path.name}.{uuid4().hex}{GROWING}")
    try:
        yield growing
        with open(growing, "rb") as file:
            os.fsync(file.fileno())
        os.replace(growing, path)
    finally:
        growing.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with growing_file(path) as growing:
        growing.write_bytes(content)
