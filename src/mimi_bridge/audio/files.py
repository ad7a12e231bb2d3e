"""Recordings in and out: any rate, mono or stereo, any format libsndfile reads (wav, flac, mp3, ogg, opus, ...).

Audio inside the package is float32, `(channels, samples)`, at the model's rate; this file is the border.
"""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from ..atomic_files import growing_file
from ..paths import printable
from .reading import BLOCK, NO_RECORDINGS, Tell, check_finite, read_samples

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
WRITTEN = tuple(suffix for suffix in COMMON if suffix in FORMATS and soundfile.check_format(FORMATS[suffix]))


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
