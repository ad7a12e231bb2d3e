"""Recordings of a folder: which there are, which cannot be read and why, and as much speech of them as is wanted."""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..paths import printable
from .files import FORMATS, OTHER_AUDIO, load_audio

logger = logging.getLogger(__name__)

MAX_NAMED = 20  # files that were left out, in one message
SPEECH_VARIABLE = "MIMI_BRIDGE_SPEECH"  # a recording or a folder of them, instead of speech made on the spot


def find_recordings(path: str | Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The recording itself, or every recording below a folder.

    Links to folders are followed, but not back to a folder that they lie in. Hidden files and folders are ignored. A
    file of an unreadable format is ignored if a readable recording of the same name lies beside it.

    Returns:
        The recordings, sorted by path; and audio files that cannot be used, each by its printable name in the folder,
        with the reason.

    Raises:
        FileNotFoundError: If there is no such path, or no recording below it; the message names what was left out.
    """
    path = Path(path)
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise FileNotFoundError(f"no such recording or folder of recordings: {path}")
    found: list[Path] = []
    named: list[tuple[str, str]] = []
    for file, problem in recordings_below(path):
        if problem is None:
            found.append(file)
        else:
            named.append((printable(file.relative_to(path)), problem))
    if not found:
        others = "; ".join(f"{name}: {reason}" for name, reason in named[:MAX_NAMED])
        raise FileNotFoundError(f"no recording at {printable(path)}" + (f"; left out: {others}" if others else ""))
    return found, named


def recordings_below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """What `find_recordings` finds below a folder, one after another: recordings with None, others with the reason."""
    readable_stems = lru_cache(maxsize=8)(_readable_stems)
    for file, problem in files_below(folder):
        suffix = file.suffix.lower()
        if suffix not in FORMATS and suffix not in OTHER_AUDIO and problem is None:
            continue
        is_utf8 = _is_utf8(file.relative_to(folder))
        if problem is None and not is_utf8:
            problem = "its name is not UTF-8; rename it, or the folder that is called so"
        elif problem is None and suffix not in FORMATS:
            problem = f"libsndfile does not read {suffix} files; convert it to wav or flac"
        if problem is not None and suffix in OTHER_AUDIO and is_utf8 and file.stem in readable_stems(file.parent):
            continue
        yield file, problem


def _readable_stems(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        names = [Path(entry.name) for entry in entries if entry.is_file()]
    return {name.stem for name in names if name.suffix.lower() in FORMATS}


def files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[Path, str | None]]:
    """Every file below a folder with None, or a path that cannot be opened with the reason; without hidden files.

    Args:
        folder: Links in it are followed.
        above: Device and inode of each folder on the way; links back to them are not followed.
    """
    names, others = list[str](), set[str]()  # without all else that is known of them, which takes more memory
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if not entry.is_file(follow_symlinks=False):
                    others.add(entry.name)
    except OSError as error:
        yield folder, f"it cannot be opened ({error.strerror})"
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a link back: its files are listed already
    names.sort()
    for name in names:
        path = folder / name
        if name.startswith("."):
            continue
        if name in others and path.is_symlink() and not path.exists():
            yield path, "it is a link that leads nowhere"
        elif name in others and path.is_dir():
            yield from files_below(path, above | {here})
        else:
            yield path, None


def _is_utf8(path: Path) -> bool:
    return printable(path) == str(path)


def load_speech(path: str | Path, sampling_rate: int, seconds: float) -> Tensor:
    """Recordings of a file or folder, one after another, until there is enough.

    Those of a folder that cannot be read are passed by with a warning.

    Args:
        path: A recording, or a folder of them.
        sampling_rate: Hz.
        seconds: Wanted length; less is returned if the recordings are shorter.

    Returns:
        `(1, samples)`, at most `seconds` long.

    Raises:
        FileNotFoundError: If there is no recording.
        OSError, ValueError: If none can be read.
    """
    files, wanted = find_recordings(path)[0], round(seconds * sampling_rate)
    pieces: list[Tensor] = []
    problems: list[Exception] = []
    for file in files:
        try:
            pieces.append(load_audio(file, sampling_rate))
        except (OSError, ValueError) as error:
            problems.append(error)
            continue
        if sum(piece.shape[-1] for piece in pieces) >= wanted:
            break
    if not pieces:
        raise problems[0]
    for problem in problems:
        logger.warning("left out: %s", problem)
    return torch.cat(pieces, dim=-1)[:, :wanted]
