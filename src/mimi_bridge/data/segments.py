"""A segment of a recording: read without the rest of the file where its format allows it."""

import logging
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from torch import Tensor

from ..audio.files import load_audio, read_audio, resample
from ..audio.reading import Tell
from .fields import TOLERANCE
from .utterance import Span, Utterance

logger = logging.getLogger(__name__)
EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF")  # whose every sample can be sought


def load_recording(utterance: Utterance, sampling_rate: int, tell: Tell | None = None) -> Tensor:
    """An utterance's samples, `(1, samples)`, at a rate in Hz: its segment, or the whole recording.

    `tell` is that of `load_audio`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no audio, or the segment does not lie in it.
    """
    if utterance.start is None and utterance.end is None:
        return load_audio(utterance.path, sampling_rate, tell)
    samples, rate, _ = read_segment(utterance, tell=tell)
    return resample(samples, rate, sampling_rate, name=str(utterance.path))


def read_file(
    file: str | Path | BinaryIO, name: str, max_seconds: float = math.inf, tell: Tell | None = None
) -> tuple[np.ndarray, int]:
    """As `read_audio`; a path must be that of a file."""
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise FileNotFoundError(f"no such recording: {name}")
    return read_audio(file, name, max_seconds, tell)


def read_segment(
    utterance: Utterance, max_seconds: float = math.inf, tell: Tell | None = None
) -> tuple[np.ndarray, int, bool]:
    """The mono samples of a segment, `(samples,)`, their rate in Hz, and whether they are the whole recording.

    Lists round times: a segment may end up to a frame (0.08 s) beyond the recording, and one without a start that ends
    so near to the recording's end is the whole of it. `tell` is that of `load_audio`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no audio, or the segment does not lie in it, or lasts longer than `max_seconds`.
    """
    path, first = utterance.path, utterance.start or 0.0
    if not path.is_file():
        raise FileNotFoundError(f"no such recording: {path}")
    if utterance.end is not None:
        refuse_longer(utterance.end - first, max_seconds)
    found = _sought(path, first, utterance.end) if utterance.start is not None else None
    if found is not None:
        return *found, False
    status = path.stat()
    samples, rate, remarks = _whole(path, status.st_mtime_ns, status.st_size)
    for remark in remarks:
        tell(remark) if tell is not None else logger.warning(f"{path}: {remark}")
    seconds = len(samples) / rate
    last = seconds if utterance.end is None else utterance.end
    if last > seconds + TOLERANCE or first >= seconds:
        raise ValueError(
            f"its segment, from {first:g} to {last:g} s, does not lie in the recording, which lasts {seconds:.2f} s; "
            "segments are given in seconds from the recording's beginning"
        )
    if utterance.start is None and last >= seconds - TOLERANCE:
        last = seconds
    refuse_longer(last - first, max_seconds)
    begin, end = round(first * rate), min(round(last * rate), len(samples))
    return samples[begin:end].copy(), rate, end - begin == len(samples)


def spans_in_segment(spans: list[Span], utterance: Utterance) -> list[Span]:
    """Words or phones of a whole recording that lie in an utterance's segment, in seconds from its beginning."""
    if utterance.start is None and utterance.end is None:
        return spans
    first, last = utterance.start or 0.0, math.inf if utterance.end is None else utterance.end
    return [
        Span(span.label, max(span.start, first) - first, min(span.end, last) - first)
        for span in spans
        if first <= (span.start + span.end) / 2 < last
    ]


def refuse_longer(seconds: float, max_seconds: float) -> None:
    """Raise `ValueError` for what lasts too long."""
    if seconds > max_seconds:
        raise ValueError(f"it lasts {seconds:.1f} s, but max_seconds is {max_seconds:g}")


def _sought(path: Path, first: float, last: float | None) -> tuple[np.ndarray, int] | None:
    # None where only the whole can tell: its header may be wrong, or its samples cannot be sought.
    if last is None or not os.access(path, os.R_OK):
        return None
    try:
        with soundfile.SoundFile(path) as recording:
            begin, end = round(first * recording.samplerate), round(last * recording.samplerate)
            if recording.format not in EXACT_FORMATS or end > recording.frames:
                return None
            recording.seek(begin)
            samples = recording.read(end - begin, dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.SoundFileError:
        return None
    return (samples, recording.samplerate) if len(samples) == end - begin else None


@lru_cache(maxsize=1)  # the segments of a file mostly follow one another
def _whole(path: Path, _modified: int, _size: int) -> tuple[np.ndarray, int, list[str]]:
    remarks: list[str] = []
    return *read_audio(path, str(path), tell=remarks.append), remarks
