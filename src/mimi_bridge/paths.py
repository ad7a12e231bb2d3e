"""Paths as text: a name may hold bytes that are not UTF-8."""

import os
from pathlib import Path


def printable(path: str | Path) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 are written in hexadecimal digits."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
