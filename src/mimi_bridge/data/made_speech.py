"""Utterances in many voices that espeak-ng makes on the spot: training speech for whoever has none, or too few voices.

Needs the extra `demo`. Words come in random order, so that none of them is a sentence of the demonstration.
"""

import random
from pathlib import Path

from torch import Tensor

from ..audio.espeak import SENTENCES, synthesize
from ..audio.reading import Tell
from .manifest import Utterance
from .segments import load_recording

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
VARIANTS = (
    "",
    *(f"+m{n}" for n in range(1, 9)),
    *(f"+f{n}" for n in range(1, 6)),
    "+Annie",
    "+Andy",
    "+linda",
    "+adam",
)
PACES = (140, 165, 190)  # words a minute
PREFIX = "made/"  # of the id of such an utterance
NO_PATH = Path("made")  # a recording's path has a suffix


def made_utterances(count: int, seed: int) -> list[Utterance]:
    """Texts and voices, `count` of them, the same for the same seed; a speaker is a voice."""
    words = sorted({word.strip(".,;?!") for sentence in SENTENCES for word in sentence.split()})
    voices = [ACCENTS[(n + shift) % len(ACCENTS)] + variant for n, variant in enumerate(VARIANTS) for shift in (0, 3)]
    draw = random.Random(seed)
    return [
        Utterance(
            id=f"{PREFIX}{number:05d}",
            path=NO_PATH,
            speaker=f"espeak/{voices[number % len(voices)]}",
            text=" ".join(draw.sample(words, draw.randint(6, 12))) + ".",
        )
        for number in range(count)
    ]


def is_made(utterance: Utterance) -> bool:
    """Whether it is one of `made_utterances`, which no recording is, whatever its id."""
    return utterance.path == NO_PATH and utterance.id.startswith(PREFIX)


def load_utterance(utterance: Utterance, sampling_rate: int, tell: Tell | None = None) -> Tensor:
    """Its recording, or the speech made of its text; `tell` is that of `load_audio`."""
    if not is_made(utterance):
        return load_recording(utterance, sampling_rate, tell)
    pace = PACES[int(utterance.id.removeprefix(PREFIX)) % len(PACES)]
    return synthesize(utterance.text or "", utterance.speaker.removeprefix("espeak/"), sampling_rate, pace)
