"""The recording of a row, however the row holds it: a file, bytes, samples, or what `datasets` decodes audio to."""

import io
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ..audio.files import decode_audio, load_audio, resample
from .values import array_of

FULL_SCALE = 2.0**15  # of samples in 16 bits
MAX_CHANNELS = 16
AUDIO_KEYS = ("audio", "input_values", "audio_path")


def audio_of(row: Mapping[str, Any], name: str, sampling_rate: int) -> Tensor:
    """The recording of a row at a rate (Hz), one channel, `(samples,)`.

    Args:
        row: Holds it under one of `AUDIO_KEYS`.
        name: Of the row, for messages.
        sampling_rate: That is wanted.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none.
    """
    given = next((row[key] for key in AUDIO_KEYS if row.get(key) is not None), None)
    if given is None:
        raise ValueError(
            f"{name} holds neither audio, input_values, audio_path nor latents; its columns are {sorted(row)}. If "
            "the data set has one, the Trainer removed it: set remove_unused_columns=False in its arguments."
        )
    if isinstance(given, str | os.PathLike):
        return load_audio(os.fspath(given), sampling_rate)[0]
    rate: Any = sampling_rate
    if hasattr(given, "get_all_samples"):  # what `datasets` decodes audio to
        samples = given.get_all_samples()
        given, rate = samples.data, samples.sample_rate
    elif isinstance(given, Mapping):
        held = {key for key in ("array", "bytes", "path") if given.get(key) is not None}
        if "array" in held:
            given, rate = given["array"], given.get("sampling_rate")
        elif "bytes" in held:
            return decode_audio(io.BytesIO(given["bytes"]), sampling_rate, f"audio of {name}")[0]
        elif "path" in held:
            return load_audio(given["path"], sampling_rate)[0]
        else:
            raise ValueError(
                f"audio of {name} holds neither array, bytes nor path, only {sorted(given)}; drop the row, or "
                "give it its recording."
            )
    rate = rate.item() if getattr(rate, "shape", None) == () else rate  # of a data set in numpy's or torch's format
    if not isinstance(rate, Real) or rate <= 0 or rate != int(float(rate)):
        raise ValueError(
            f"audio of {name} needs its sampling_rate in Hz, a whole number, beside its array, got {rate!r}; for "
            f"samples at {sampling_rate} Hz, give them as input_values."
        )
    audio = with_full_scale_1(array_of(given, f"audio of {name}"), f"audio of {name}")
    if audio.ndim == 2 and audio.shape[0] <= MAX_CHANNELS:
        audio = audio.mean(axis=0)
    if audio.ndim != 1:
        raise ValueError(f"audio of {name} must be samples, (samples,) or (channels, samples), got {audio.shape}.")
    return resample(audio, int(float(rate)), sampling_rate, name=f"audio of {name}")[0]


def with_full_scale_1(audio: np.ndarray, name: str) -> np.ndarray:
    """Samples of any shape as float32 whose full scale is 1.

    Args:
        audio: Floats, or integers of 16 bits, which `datasets` may have widened to 64.
        name: For messages.

    Raises:
        ValueError: If they are other integers, of which nobody says what their full scale is.
    """
    if np.issubdtype(audio.dtype, np.floating) or audio.size == 0:
        return audio.astype(np.float32)
    if audio.dtype not in (np.int16, np.int64) or max(-int(audio.min()), int(audio.max()) + 1) > FULL_SCALE:
        span = f" from {audio.min()} to {audio.max()}" if audio.dtype == np.int64 else ""
        raise ValueError(
            f"{name} must be floats in [-1, 1] or integers of 16 bits, got {audio.dtype}{span}; divide it by "
            "its full scale, 2147483648 for 32 bits."
        )
    return audio.astype(np.float32) / np.float32(FULL_SCALE)
