"""Recordings in and out: any rate, mono or stereo, any format libsndfile reads (wav, flac, mp3, ogg, opus, ...).

Audio inside the package is float32, `(channels, samples)`, at the model's rate; this file is the border.
"""

import logging
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from ..atomic_files import growing_file
from .reading import BLOCK, NO_RECORDINGS, Tell, check_finite, read_samples

logger = logging.getLogger(__name__)

# Of libsndfile's formats, by suffix: the format's own name, and what else files of it are called.
OTHER_SUFFIXES = {
    **dict.fromkeys((".wave", ".bwf"), "WAV"),
    **dict.fromkeys((".oga", ".opus"), "OGG"),
    **dict.fromkeys((".aif", ".aifc"), "AIFF"),
    **dict.fromkeys((".mp1", ".mp2", ".mpga"), "MP3"),
    ".snd": "AU",
    ".sph": "NIST",
    ".sf": "IRCAM",
    ".8svx": "SVX",
}
FORMATS = {
    suffix: name
    for suffix, name in {
        **{f".{name.lower()}": name for name in soundfile.available_formats()},
        **OTHER_SUFFIXES,
    }.items()
    if name in soundfile.available_formats() and name not in NO_RECORDINGS
}
COMMON = (
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".au",
    ".snd",
    ".caf",
    ".w64",
    ".rf64",
    ".sph",
)
OTHER_AUDIO = frozenset(
    ".3g2 .3gp .aa .aac .aax .ac3 .adts .alac .amr .ape .asf .avi .awb .dff .dsf .dts .eac3 .f4v .flv .g722 .gsm .m4a "
    ".m4b .m4r .m4v .mka .mkv .mov .mp4 .mpc .mpeg .mpg .ogv .pcm .qcp .ra .raw .rm .sds .shn .spx .tta .weba .webm "
    ".wma .wmv .wv".split()
).union(OTHER_SUFFIXES, (".mp3", ".flac", ".ogg"))  # sound, or perhaps, that no or not every libsndfile reads
MAX_NAMED = 20  # files that were left out, in one message
WRITTEN = tuple(suffix for suffix in COMMON if suffix in FORMATS and soundfile.check_format(FORMATS[suffix]))
SPEECH_VARIABLE = "MIMI_BRIDGE_SPEECH"  # a recording or a folder of them, instead of speech made on the spot


def load_audio(path: str | Path, sampling_rate: int, tell: Tell | None = None) -> Tensor:
    """Read a recording to its end, as mono at the given rate; channels are averaged.

    Args:
        path: A file that libsndfile reads.
        sampling_rate: Target rate in Hz; other rates are resampled by soxr at its best quality.
        tell: Called with a sentence on each irregularity of a recording that is read nevertheless, such as an end
            before its header's; by default, it is logged as a warning.

    Returns:
        `(1, samples)`, float32, nominally in [-1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If the file may not be read.
        ValueError: If the path is not a file, or the file is not audio, is empty, or holds NaN.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such recording: {path}")
    if not Path(path).is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device; a recording must be a file: save it to one first.")
    return decode_audio(path, sampling_rate, str(path), tell)


def decode_audio(file: str | Path | BinaryIO, sampling_rate: int, name: str, tell: Tell | None = None) -> Tensor:
    """As `load_audio`, from a file that is open, or in memory; `name` is its name in messages."""
    samples, _ = read_samples(file, name, sampling_rate, tell=tell)
    if len(samples) == 0:
        raise ValueError(f"{name} holds no audio.")
    return torch.from_numpy(samples)[None]


def read_audio(
    file: str | Path | BinaryIO, name: str, max_seconds: float = math.inf, tell: Tell | None = None
) -> tuple[np.ndarray, int]:
    """Read a recording at its own rate: mono samples, `(samples,)`, float32, and their rate in Hz.

    Args:
        file: A path, or a file that is open, or in memory.
        name: Its name in messages.
        max_seconds: A longer recording is refused, before decoding if its header gives its length.
        tell: See `load_audio`.

    Raises:
        PermissionError: If the file may not be read.
        ValueError: If the file is not audio, is damaged, or lasts longer than `max_seconds`.
    """
    return read_samples(file, name, max_seconds=max_seconds, tell=tell)


def resample(samples: np.ndarray, source_rate: int, sampling_rate: int, name: str = "the audio") -> Tensor:
    """Mono samples, `(samples,)` at `source_rate` Hz, as a tensor `(1, samples)` at `sampling_rate` Hz.

    Raises:
        ValueError: If there are no samples or one is not finite; the message begins with `name`.
    """
    if len(samples) == 0:
        raise ValueError(f"{name} holds no audio.")
    check_finite(samples, name)
    if source_rate != sampling_rate:
        samples = soxr.resample(samples.astype(np.float32), source_rate, sampling_rate, quality="VHQ")
    return torch.from_numpy(np.array(samples, dtype=np.float32))[None]  # a copy: the given may be read-only


def save_audio(path: str | Path, audio: Tensor, sampling_rate: int) -> None:
    """Write `(channels, samples)` as a recording, atomically; the suffix names the format.

    Raises:
        OSError: If the file cannot be written; a full disk is named.
        ValueError: If the suffix names no format that is written, or one that does not take this rate or channels.
    """
    path = Path(path)
    kind = written_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with growing_file(path) as growing, open(growing, "wb", buffering=0) as file:
        target = _Target(file)
        try:
            with soundfile.SoundFile(target, "w", sampling_rate, len(audio), **kind) as recording:
                for block in audio.detach().split(BLOCK, dim=-1):
                    recording.write(block.cpu().float().clamp(-1, 1).T.numpy())
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            if target.error is not None:
                raise target.error from error
            raise ValueError(
                f"{path} cannot be written at {sampling_rate} Hz with {len(audio)} channel(s) ({error}); choose "
                "another format, such as .wav."
            ) from error


def written_format(path: Path) -> dict[str, str]:
    """Arguments of `soundfile` for writing a recording of this name.

    Raises:
        ValueError: If the suffix names no format that is written; the message says which do.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        raise ValueError(
            f"{printable(path)} must end in a format that is written ({', '.join(WRITTEN)}), got {path.suffix!r}."
        )
    return {"format": FORMATS[suffix], **({"subtype": "OPUS"} if suffix == ".opus" else {})}


class _Target:
    # A file that libsndfile writes to. It keeps exceptions, which would be lost on their way through C.
    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.read = file.seek, file.tell, file.read
        self._write = file.write
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        written = 0
        try:
            while written < len(content):
                written += self._write(content[written:])
        except OSError as error:
            self.error = self.error or error
        return written


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


def printable(path: str | Path) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 are written in hexadecimal digits."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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
