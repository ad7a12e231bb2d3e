"""Where a command writes: what would lose something, or leads nowhere, is refused before any work is done."""

import argparse
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from ..paths import printable


def let_names_be_printed() -> None:
    """Let standard output take any text: the name of a file may be none, and a terminal may not know λ."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def refuse_empty(options: argparse.Namespace) -> None:
    """Refuse an empty argument, which `Path` takes for the folder that one is in.

    Raises:
        ValueError: If there is one.
    """
    for name, value in vars(options).items():
        if value == "":
            what = name.replace("_", " ")
            raise ValueError(f"the argument for {what} is empty; is a variable of the shell not set?")


def folder_to_write(name: str, source: str | None = None) -> Path:
    """The folder `name`, which may be made.

    Args:
        name: As given to `--output`.
        source: What is read, if the folder must be another one.

    Raises:
        FileExistsError: If it is what is read.
        NotADirectoryError: If it, or what is above it, is no folder.
        PermissionError: If this user may not write there.
        ValueError: If its name is not UTF-8, which the files in it would have to be.
    """
    folder = place_to_write(name)
    if printable(folder) != str(folder):
        raise ValueError(f"the name of {printable(folder)} is not UTF-8; choose another --output.")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file or a device, not a folder; choose another --output.")
    if source is not None and folder.exists() and Path(source).exists() and folder.samefile(source):
        raise FileExistsError(f"{folder} is what is read itself; choose another --output.")
    return folder


def place_to_write(name: str) -> Path:
    """A file or a folder that can be made, or is there already.

    Raises:
        NotADirectoryError: If what is above it is no folder.
        OSError: If a link on the way leads nowhere.
        PermissionError: If this user may not write there.
    """
    place = Path(name)
    for part in (place, *place.parents):
        if part.is_symlink() and not part.exists():
            raise OSError(f"{printable(part)} is a link that leads nowhere; remove it, or choose another --output.")
    above = next(folder for folder in place.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(
            f"{printable(above)} is no folder, so nothing can be written below it; choose another --output."
        )
    if not os.access(place if place.is_dir() else above, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing may be written to {printable(place)} by this user; choose another --output.")
    return place
