"""Read a recording to its end, block by block, even where its header declares fewer samples.

Irregularities, such as an end before the declared one, are passed to the caller as remarks.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .parts import Part, parts_of
from .sizes import SAYS_LESS

BLOCK = 2**18  # samples read or written at once
MAX_EXPECTED = 2**26  # samples to allocate by the header alone
UNKNOWN_FRAMES = 2**62  # or more: libsndfile does not know the count
UNKNOWN_BYTES = 0x7FFFF000  # or more: a size written to a pipe
MIN_BYTES = 1000  # of a file that holds more than a header
NO_RECORDINGS = ("RAW", "MAT4", "MAT5", "SDS")  # samples without a header; matrices; what is filled up where it is cut
# In libsndfile's log: the declared size of the samples, or of the whole file, and the actual one.
NAMES = r"data|SSND|Data Size|riff|Riff size|BODY|Data length"
SIZES = re.compile(rf"^\s*(?:{NAMES})(?:\s*:)? (\d+) \(?should be (\d+)\)?$", re.MULTILINE)
COUNT = re.compile(r"^  Frames\s*: (\d+)$", re.MULTILINE)  # of AVR and MPC2K
CUT_OFF = "Seems to be a truncated file."  # a VOC
NIST_COUNT = re.compile(rb"sample_count -i (\d+)")
Tell = Callable[[str], object]
logger = logging.getLogger(__name__)


def read_samples(
    file: str | Path | BinaryIO,
    name: str,
    sampling_rate: int | None = None,
    max_seconds: float = math.inf,
    tell: Tell | None = None,
) -> tuple[np.ndarray, int]:
    """Read mono samples, `(samples,)`, float32, and their rate in Hz.

    Hours of audio are held once, as mono, at the target rate. Later streams of a file are resampled to the rate of the
    first.

    Args:
        file: A path, or a file that is open, or in memory.
        name: Its name in messages.
        sampling_rate: Target rate in Hz; None keeps the recording's own.
        max_seconds: A longer recording is refused, before decoding if its header gives its length.
        tell: Called with each remark on an irregularity; by default, remarks are logged as warnings.

    Raises:
        PermissionError: If the file may not be read.
        ValueError: If the file is not audio, is damaged, holds NaN, or lasts longer than `max_seconds`.
    """
    if isinstance(file, str | Path):
        try:
            with open(file, "rb") as opened:
                return read_samples(opened, name, sampling_rate, max_seconds, tell)
        except PermissionError as error:
            raise PermissionError(f"{name} may not be read by this user.") from error
    remarks: list[str | None] = []
    sound, parts = _Sound(sampling_rate, max_seconds), parts_of(file)
    for number, part in enumerate(parts):
        try:
            remarks += [sound.read(part, name), part.remark]
        except soundfile.LibsndfileError as error:
            what = error.error_string.rstrip(".") or f"its error {error.code}"
            if number == 0:
                raise ValueError(
                    f"{name} is not audio that libsndfile reads ({what}); convert it to wav or flac."
                ) from error
            remarks.append(f"only {number} of its {len(parts)} parts can be read ({what})")
            break
    if sound.seconds == 0 and sum(part.size for part in parts) > MIN_BYTES:
        raise ValueError(
            f"{name} holds no audio: its header says that it lasts 0 s, though the file is not empty; if its recorder "
            "was stopped, repair the header, with ffmpeg or sox."
        )
    for remark in dict.fromkeys(remark for remark in remarks if remark is not None):
        tell(remark) if tell is not None else logger.warning(f"{name}: {remark}")
    return sound.samples.all(), sound.sampling_rate or 0


@dataclass
class _Sound:
    # The audio read so far, as mono, at the target rate or else at the first part's.
    sampling_rate: int | None
    max_seconds: float
    seconds: float = 0.0
    samples: "_Growing" = field(default_factory=lambda: _Growing())

    def read(self, part: Part, name: str) -> str | None:
        """Read a part; returns a remark if it is shorter than declared."""
        with _OneWay(part) as recording:
            if recording.format in NO_RECORDINGS:
                raise ValueError(
                    f"{name} is of the format {recording.format}, which does not tell where it was cut off; convert "
                    "it to wav or flac."
                )
            rate = recording.samplerate
            self.sampling_rate = self.sampling_rate or rate
            num_expected = recording.frames if part.declared_count is None else part.declared_count
            if num_expected < UNKNOWN_FRAMES:
                self._refuse_longer(self.seconds + num_expected / rate)
                self.samples.expect(num_expected * self.sampling_rate / rate)
            stream = None
            if rate != self.sampling_rate:
                stream = soxr.ResampleStream(rate, self.sampling_rate, 1, dtype="float32", quality="VHQ")
            num_read = 0
            for block in _blocks(recording, part):
                mono = block.mean(axis=1)
                check_finite(mono, name)
                self.samples.append(mono if stream is None else stream.resample_chunk(mono))
                num_read += len(block)
                self._refuse_longer(self.seconds + num_read / rate)
            if stream is not None:
                self.samples.append(stream.resample_chunk(np.empty(0, dtype=np.float32), last=True))
            self.seconds += num_read / rate
            return _what_is_short(recording, part, num_read)

    def _refuse_longer(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise ValueError(f"it lasts {seconds:.1f} s, but max_seconds is {self.max_seconds:g}")


def _blocks(recording: soundfile.SoundFile, part: Part) -> Iterator[np.ndarray]:
    # `(samples, channels)`. Some decoders raise at the end of a truncated file: the samples before are yielded, too.
    buffer = np.empty((BLOCK, recording.channels), dtype=np.float32)
    num_read = 0
    while True:
        buffer.fill(np.nan)
        try:
            block = recording.read(out=buffer)
        except soundfile.LibsndfileError:
            block = buffer[: np.count_nonzero(~np.isnan(buffer[:, 0]))]
            num_read += len(block)
            if (
                part.declared_count is None or num_read < part.declared_count
            ):  # else it is a tag that follows the samples
                if part.tell() < part.size or num_read == 0:
                    raise  # damaged, or truncated before the first sample
                part.remark = part.remark or "it ends within a frame, so it may be cut short"
            if len(block):
                yield block
            return
        if len(block) == 0:
            return
        num_read += len(block)
        yield block


class _OneWay(soundfile.SoundFile):
    # Reads from front to back only. A seekable soundfile seeks after each block, which fails in a file that ends
    # before its declared end, or that declares none.
    def seekable(self) -> bool:
        return False


def _what_is_short(recording: soundfile.SoundFile, part: Part, num_read: int) -> str | None:
    # By the count in the header, or by its sizes, where libsndfile corrects the count.
    declared = recording.frames if part.declared_count is None else part.declared_count
    if declared >= UNKNOWN_FRAMES:
        return None
    if declared < num_read:
        part.remark = SAYS_LESS
    log = recording.extra_info
    if declared <= num_read:
        sizes = [tuple(map(int, found)) for found in SIZES.findall(log)]
        shares = [said / found for said, found in sizes if 0 < found < said < UNKNOWN_BYTES]
        declared = max(round(num_read * max(part.declared_share, *shares, 1.0)), *map(int, COUNT.findall(log)), 0)
    if recording.format == "NIST":
        declared = max(declared, *map(int, NIST_COUNT.findall(part.header())))
    if declared <= num_read:
        return "it ends before its header says" if CUT_OFF in log else None
    there, said = num_read / recording.samplerate, declared / recording.samplerate
    part.remark = None  # the next one is more precise
    return f"it ends early: its header says {said:.2f} s, and {there:.2f} s are there"


class _Growing:
    # Samples in one array, allocated by the header's count, which grows where that is too small.
    def __init__(self) -> None:
        self._all, self._length = np.empty(0, dtype=np.float32), 0

    def expect(self, count: float) -> None:
        self._grow(self._length + int(min(count, MAX_EXPECTED)) + 64)

    def append(self, samples: np.ndarray) -> None:
        end = self._length + len(samples)
        if end > len(self._all):
            self._grow(max(end, len(self._all) * 5 // 4))
        self._all[self._length : end] = samples
        self._length = end

    def _grow(self, size: int) -> None:
        self._all.resize(size, refcheck=False)  # in place, where the system can

    def all(self) -> np.ndarray:
        return self._all[: self._length]


def check_finite(samples: np.ndarray, name: str) -> None:
    """Raise a `ValueError` that begins with the name if a sample is not finite."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinity; repair or drop the recording.")
