"""What is known of each frame beside the teachers: the phone that is spoken, pitch, level and voicing.

The inventory of phones is fixed, so that their numbers are the same in every data set and every run: the 39 of
ARPAbet without stress, and silence. Labels that are none of them, such as noise or IPA, are unknown. A frame has the
phone that covers most of it; one that phones cover less than half is silence, as aligners name none between words.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..alignment_targets import spans_to_frame_weights

ARPABET = (
    *(
        "AA",
        "AE",
        "AH",
        "AO",
        "AW",
        "AY",
        "B",
        "CH",
        "D",
        "DH",
        "EH",
        "ER",
        "EY",
        "F",
        "G",
        "HH",
        "IH",
        "IY",
        "JH",
        "K",
    ),
    *("L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
PHONES = ("SIL", *ARPABET)
UNKNOWN = -100  # where no loss is to look
STRESS = re.compile(r"[012]$")
SILENCE = re.compile(r"^(sil|sp|<sil>|<s>|</s>|)$", re.IGNORECASE)
MIN_COVER = 0.5  # of a frame, by all phones together
STEP_RATE = 100  # Hz, of pitch and level
PROSODY = ("pitch", "level", "voicing")
PITCH_UNIT = 0.25  # of log F0 (4.3 semitones): about a speaker's deviation
LEVEL_UNIT = 10.0  # dB: about the deviation of speech
MIN_LEVEL_DB = -80.0

_NUMBERS = {phone: number for number, phone in enumerate(PHONES)}


def phone_number(label: str) -> int:
    """The number of a phone in `PHONES`, whatever its case and stress; `UNKNOWN` if it is none of them."""
    return 0 if SILENCE.match(label) else _NUMBERS.get(STRESS.sub("", label.upper()), UNKNOWN)


def as_mappings(spans: Any) -> list[Any]:
    """A list of mappings, also of what some formats of `datasets` turn it around to: a mapping of lists."""
    if isinstance(spans, Mapping):
        return [dict(zip(spans, values, strict=True)) for values in zip(*spans.values(), strict=True)]
    return list(spans)


def phones_by_frame(phones: Any, num_frames: int, frame_rate: float, name: str) -> Tensor:
    """The phone of each frame, `(frames,)`, int64: its number in `PHONES`, `UNKNOWN` where that is not known.

    Args:
        phones: In time, each with `phone`, `start` and `end` in seconds; none at all says nothing of any frame.
        num_frames: Of the recording.
        frame_rate: Hz.
        name: Of the row, for messages.

    Raises:
        ValueError: If a phone is not such a mapping, or its times make no sense.
    """
    unknown = torch.full((num_frames,), UNKNOWN)
    found = as_mappings(phones)
    if not found:
        return unknown
    try:
        numbers = torch.tensor([phone_number(str(phone["phone"])) for phone in found])
        spans = torch.tensor([[float(phone["start"]), float(phone["end"])] for phone in found])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"phones of {name} must be mappings of phone, start and end (seconds), got {str(found)[:60]}."
        ) from error
    if not bool((torch.isfinite(spans).all(dim=1) & (spans[:, 1] >= spans[:, 0])).all()):
        raise ValueError(f"phones of {name} must begin before they end, in seconds; check their alignment.")
    spans = spans.clamp(0.0, num_frames / frame_rate)
    weights = spans_to_frame_weights(spans[None], torch.ones(1, num_frames, dtype=torch.bool), frame_rate)[0]
    is_said = weights.sum(dim=1) >= MIN_COVER
    return torch.where(is_said, numbers[weights.argmax(dim=1)], 0)


def prosody_by_frame(f0_hz: Tensor, level_db: Tensor, num_frames: int, frame_rate: float, name: str) -> Tensor:
    """Pitch, level and voicing of each frame, `(frames, 3)`, NaN where one is not defined.

    Pitch is the log of F0 less its mean over the recording, in `PITCH_UNIT`, where at least half of a frame is voiced;
    level is the power of a frame in dB less the mean of its frames', in `LEVEL_UNIT`; voicing is 1 or 0.

    Args:
        f0_hz: At 100 Hz, `(steps,)`, 0 where there is no pitch.
        level_db: At 100 Hz, `(steps,)`.
        num_frames: Of the recording.
        frame_rate: Hz.
        name: Of the row, for messages.

    Raises:
        ValueError: If there are not as many steps as belong to so many frames.
    """
    edges = [round(frame * STEP_RATE / frame_rate) for frame in range(num_frames + 1)]
    for column, steps in (("f0_hz", f0_hz), ("level_db", level_db)):
        if not edges[-2] <= len(steps) <= edges[-1] + 1:  # one more or less: rates are converted
            raise ValueError(
                f"{column} of {name} must have {edges[-2]} to {edges[-1] + 1} steps at {STEP_RATE} Hz for its "
                f"{num_frames} frames, got {len(steps)}; is it of another recording?"
            )
    values = torch.full((num_frames, len(PROSODY)), torch.nan)
    power = 10 ** (level_db.double().clamp(min=MIN_LEVEL_DB) / 10)
    for frame, (first, last) in enumerate(pairwise(edges)):
        steps = f0_hz[first:last]
        if not len(steps):
            continue
        voiced = steps[steps > 0]
        is_voiced = 2 * len(voiced) >= len(steps)
        if is_voiced:
            values[frame, 0] = voiced.double().log().mean()
        values[frame, 1] = 10 * power[first:last].mean().log10()
        values[frame, 2] = float(is_voiced)
    means = values[:, :2].double().nanmean(dim=0)
    units = torch.tensor([PITCH_UNIT, LEVEL_UNIT], dtype=torch.float64)
    values[:, :2] = ((values[:, :2] - means) / units).float()
    return values


def level_by_step(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """The level of each 10 ms of a sound, `(samples,)`, in dB of full scale, `(steps,)`; not under `MIN_LEVEL_DB`."""
    num_steps = -(-len(audio) * STEP_RATE // sampling_rate)
    edges = np.arange(num_steps) * sampling_rate // STEP_RATE
    counts = np.diff(np.append(edges, len(audio)))
    power = np.add.reduceat(np.square(audio, dtype=np.float64), edges) / counts
    return (10 * np.log10(np.maximum(power, 10 ** (MIN_LEVEL_DB / 10)))).astype(np.float32)
