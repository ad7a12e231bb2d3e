"""Where each word and phone of a transcript is in a recording: forced alignment by pocketsphinx, without a download.

The package carries an English acoustic model and a dictionary of 134,000 words. Its free recognition is poor, its
alignment is good, and its mean score a frame tells whether the text is what was said at all: about -13 for the right
text, -45 for another. Needs the extra `align`.

Source: Huggins-Daines et al. 2006, PocketSphinx; the settings that make alignment hold are explained where they are.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from torch import Tensor

from .manifest import Span

SAMPLING_RATE = 16_000
FRAMES_PER_SECOND = 100
MARGIN_SECONDS = 0.2  # of faint noise on both sides: the model wants silence before the first word
MARGIN_LEVEL = 20 / 32768


@dataclass(frozen=True)
class Alignment:
    """A transcript laid over a recording.

    Attributes:
        words: As the aligner spells them, in order; silence between them belongs to no word.
        phones: ARPAbet without stress, in order.
        score: Mean log score of a frame; higher fits better.
    """

    words: list[Span]
    phones: list[Span]
    score: float


class PocketsphinxAligner:
    """Aligns English text; holds one decoder, for one thread.

    Raises:
        ModuleNotFoundError: If pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        try:
            from pocketsphinx import Config, Decoder
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "aligning needs the package pocketsphinx; run pip install 'mimi-bridge[align]'."
            ) from error
        # With bestpath on, two of five utterances fail.
        self._new_decoder = lambda: Decoder(Config(lm=None, bestpath=False, loglevel="FATAL"))
        self._decoder = self._new_decoder()

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the dictionary lacks, digits among them: such a text cannot be aligned."""
        spelled_with_digits = re.findall(r"\S*\d\S*", text)
        return spelled_with_digits + [word for word in normalized_words(text) if not self._decoder.lookup_word(word)]

    def align(self, audio: Tensor, sampling_rate: int, text: str) -> Alignment | None:
        """Lay a text over a recording.

        Args:
            audio: `(1, samples)`.
            sampling_rate: Hz.
            text: What is said; punctuation and case do not matter.

        Returns:
            None if the search finds no way through: the text is too long for the recording, or quite another.

        Raises:
            ValueError: If the text holds no word, or one that the dictionary lacks.
        """
        unknown = self.unknown_words(text)
        if unknown:
            raise ValueError(f"text must hold words of the dictionary only, got {', '.join(unknown)}; spell them out.")
        words = normalized_words(text)
        if not words:
            raise ValueError(f"text must hold at least one word, got {text!r}.")
        found = self._two_passes(_with_margins(audio, sampling_rate), words)
        if found is None:
            return None
        # Entries are copied at once: read later, they crash.
        seconds = audio.shape[-1] / sampling_rate
        entries = [
            (_span(word, seconds), word.score, word.duration, [_span(p, seconds) for p in word]) for word in found
        ]
        spoken = [entry for entry in entries if not entry[0].label.startswith("<")]
        return Alignment(
            words=[span for span, *_ in spoken],
            phones=[phone for *_, phones in spoken for phone in phones],
            score=sum(score for _, score, *_ in entries) / sum(duration for _, _, duration, _ in entries),
        )

    def _two_passes(self, samples: bytes, words: list[str]) -> Any:
        # The first pass places words, the second their phones; either may find no way through.
        decoder = self._decoder
        decoder.set_align_text(" ".join(words))
        try:
            self._decode(samples)
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            self._decode(samples)
        except RuntimeError:  # "Failed to stop utterance processing": the decoder is of no more use
            self._decoder = self._new_decoder()
            return None
        return decoder.get_alignment()

    def _decode(self, samples: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()


def normalized_words(text: str) -> list[str]:
    """Lower-case words of letters and apostrophes: what the dictionary is asked for."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def _with_margins(audio: Tensor, sampling_rate: int) -> bytes:
    samples = audio[0].detach().cpu().float().numpy()
    if sampling_rate != SAMPLING_RATE:
        samples = soxr.resample(samples, sampling_rate, SAMPLING_RATE, quality="HQ")
    count = round(MARGIN_SECONDS * SAMPLING_RATE)
    margin = (np.random.default_rng(0).standard_normal(count) * MARGIN_LEVEL).astype(np.float32)
    whole = np.concatenate([margin, samples, margin]).clip(-1, 1)
    return (whole * 32767).astype(np.int16).tobytes()


def _span(entry, seconds: float) -> Span:
    def in_recording(frame: int) -> float:
        return min(max(frame / FRAMES_PER_SECOND - MARGIN_SECONDS, 0.0), seconds)

    name = entry.name.partition("(")[0]  # the dictionary numbers a word's other pronunciations
    return Span(name, in_recording(entry.start), in_recording(entry.start + entry.duration))
