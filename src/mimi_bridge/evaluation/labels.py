"""Labels of each frame of a recording: phone, word, pitch, level.

Phones and words come from the manifest's alignment, else from pocketsphinx, by the transcript. A frame has the phone
that covers most of it; frames that no phone covers have none, so that silence, which is easily predicted from any
codes, is not counted.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..alignment_targets import spans_to_frame_weights
from ..audio.sound import PITCH_RATE, Sound
from ..data.alignment.files import given_alignment
from ..data.alignment.types import Aligner
from ..data.manifest import Span, Utterance

MIN_COVER = 0.5  # of a frame, by all phones (or words) together
FLOOR_DB = -80.0
NO_PHONE = re.compile(r"^(sil|sp|spn|nsn|\+.*\+|<.*>|)$", re.IGNORECASE)
STRESS = re.compile(r"[012]$")


@dataclass
class FrameLabels:
    """Lists with an entry a frame; None where nothing is known.

    Attributes:
        phone: ARPAbet without stress, or the alignment's own labels.
        word: Lower case.
        pitch: Log2 of Hz, where at least half of the frame is voiced.
        energy: Mean power in dB of full scale.
    """

    phone: list[str | None]
    word: list[str | None]
    pitch: list[float | None]
    energy: list[float | None]


def spans_of(utterance: Utterance, sound: Sound, aligner: Aligner | None = None) -> tuple[list[Span], list[Span]]:
    """Phones and words of a recording in time.

    Args:
        utterance: With an alignment, or a text.
        sound: The recording.
        aligner: For one without alignment.

    Raises:
        ValueError: If there is no alignment and none can be made; the message says why.
    """
    if utterance.alignment is not None:
        given = given_alignment(utterance)
        return given.phones, given.words
    if utterance.text is None:
        raise ValueError("the recording has neither an alignment nor a transcript.")
    if aligner is None:
        raise ValueError("aligning needs the package pocketsphinx; run pip install 'mimi-bridge[align]'.")
    alignment = aligner.align(sound.audio, sound.sampling_rate, utterance.text)
    if alignment is None or (alignment.score is not None and alignment.score < aligner.min_score):
        raise ValueError("the transcript does not fit the recording.")
    return alignment.phones, alignment.words


def label_frames(spans: list[Span], num_frames: int, frame_rate: float) -> list[str | None]:
    """The label that covers most of each frame, None where all of them together cover less than half."""
    seconds = num_frames / frame_rate
    times = [(min(max(span.start, 0.0), seconds), min(max(span.end, 0.0), seconds)) for span in spans]
    kept = [(span.label, start, end) for span, (start, end) in zip(spans, times, strict=True) if end > start]
    if not kept:
        return [None] * num_frames
    weights = spans_to_frame_weights(
        torch.tensor([[[start, end] for _, start, end in kept]], dtype=torch.float64),
        torch.ones(1, num_frames, dtype=torch.bool),
        frame_rate,
    )[0]
    best, covered = weights.argmax(dim=1).tolist(), weights.sum(dim=1) >= MIN_COVER
    return [kept[span][0] if enough else None for span, enough in zip(best, covered.tolist(), strict=True)]


def phone_labels(phones: list[Span], num_frames: int, frame_rate: float) -> list[str | None]:
    """As `label_frames`, without silence, noise and stress marks."""
    said = [Span(STRESS.sub("", p.label), p.start, p.end) for p in phones if not NO_PHONE.match(p.label)]
    return label_frames(said, num_frames, frame_rate)


def word_labels(words: list[Span], num_frames: int, frame_rate: float) -> list[str | None]:
    """As `label_frames`, in lower case."""
    said = [Span(w.label.lower(), w.start, w.end) for w in words if not NO_PHONE.match(w.label)]
    return label_frames(said, num_frames, frame_rate)


def pitch_labels(f0_hz: Tensor, num_frames: int, frame_rate: float) -> list[float | None]:
    """Mean log2 of a frame's voiced steps, None where fewer than half of them are voiced.

    Args:
        f0_hz: `(steps,)` at 100 Hz, 0 where unvoiced.
        num_frames: Of the recording.
        frame_rate: Hz.
    """
    edges = [round(frame * PITCH_RATE / frame_rate) for frame in range(num_frames + 1)]
    labels: list[float | None] = []
    for first, last in pairwise(edges):
        voiced = f0_hz[first:last][f0_hz[first:last] > 0]
        labels.append(voiced.log2().mean().item() if 2 * len(voiced) >= last - first else None)
    return labels


def energy_labels(audio: Tensor, num_frames: int, frame_size: int) -> list[float | None]:
    """Mean power of each frame in dB of full scale, not under `FLOOR_DB`; of audio `(1, samples)`."""
    padded = torch.nn.functional.pad(audio[0], (0, num_frames * frame_size - audio.shape[-1]))
    power = padded.view(num_frames, frame_size).double().square().mean(dim=1)
    return [10 * math.log10(max(value, 10 ** (FLOOR_DB / 10))) for value in power.tolist()]
