"""Forced alignment of English by pocketsphinx, without a download.

The package carries an acoustic model and a dictionary of 134,000 words. Its free recognition is poor, its alignment is
good, and its mean score a frame tells whether the text is what was said at all: about -11 for the right text of real
speech, -50 for another, 0 for what the model likes best. How a word is said that the dictionary lacks (a name, a
number in digits), espeak-ng knows. An alignment depends on its recording and text alone. Needs the extra `align`.

Source: Huggins-Daines et al. 2006, PocketSphinx; the settings that make alignment hold are explained where they are.
"""

import re
from typing import Any

import numpy as np
import soxr
from torch import Tensor

from ...audio.pronunciation import pronounce
from ..manifest import Span
from .types import Alignment

SAMPLING_RATE = 16_000
FRAMES_PER_SECOND = 100
MARGIN_SECONDS = 0.2  # on both sides: the model wants silence before the first word
NOISE_LEVEL = 40 / 32768  # everywhere: digital silence sounds like nothing that the model knows
WIDE_BEAM = 1e-200  # for a second search, where the first finds no way through
OTHER_THAN_LETTERS = re.compile(r"\d|[^\W_a-zA-Z]")  # digits, and letters with accents or of other scripts
CAN_BE_SAID = re.compile(r"[0-9A-Za-zÀ-ɏ]")
BESIDE_A_WORD = re.compile(r"^[^\w$£€]+|[^\w%]+$")


class PocketsphinxAligner:
    """Aligns English text; holds one decoder, for one thread.

    Attributes:
        min_score: Keeps every right text of real speech, and next to no wrong one. Voices made by espeak-ng lie
            lower, from -16 to -49, and their wrong texts below -40.

    Raises:
        ModuleNotFoundError: If pocketsphinx is not installed.
    """

    min_score = -22.0

    def __init__(self) -> None:
        try:
            from pocketsphinx import Config, Decoder
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "aligning needs the package pocketsphinx; run pip install 'mimi-bridge[align]'."
            ) from error
        self._config, self._decoder_class = Config, Decoder
        self._names: dict[str, str | None] = {}  # of written words that the dictionary lacks; None: nobody says them
        self._learned: dict[str, str] = {}  # the phones of those names
        self._decoder = self._new_decoder()

    def _new_decoder(self, wide: bool = False) -> Any:
        # With bestpath on, two of five utterances fail.
        beams = dict.fromkeys(("beam", "wbeam", "pbeam"), WIDE_BEAM) if wide else {}
        decoder = self._decoder_class(self._config(lm=None, bestpath=False, loglevel="FATAL", **beams))
        for name, phones in self._learned.items():
            decoder.add_word(name, phones, True)
        return decoder

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the dictionary lacks, digits among them: such a text cannot be aligned."""
        spelled_with_digits = re.findall(r"\S*\d\S*", text)
        return spelled_with_digits + [word for word in normalized_words(text) if not self._decoder.lookup_word(word)]

    def align(self, audio: Tensor, sampling_rate: int, text: str) -> Alignment | None:
        """Lay a text over a recording; see `Aligner`.

        Words have the spelling of the text. What nobody can say (an emoji, another script) is passed over.
        """
        spoken = self._spoken_words(text)
        if not spoken:
            raise ValueError(f"text must hold at least one word that can be said in English, got {text[:60]!r}.")
        samples = _with_margins(audio, sampling_rate)
        found = self._two_passes(samples, spoken) or self._two_passes(samples, spoken, wide=True)
        if found is None:
            return None
        # Entries are copied at once: read later, they crash.
        seconds = audio.shape[-1] / sampling_rate
        entries = [
            (_span(word, seconds), word.score, word.duration, [_span(p, seconds) for p in word]) for word in found
        ]
        said = [entry for entry in entries if not entry[0].label.startswith("<")]
        if len(said) != len(spoken):
            return None
        return Alignment(
            words=[Span(written, span.start, span.end) for (written, _), (span, *_) in zip(spoken, said, strict=True)],
            phones=[phone for *_, phones in said for phone in phones],
            score=sum(score for _, score, *_ in entries) / sum(duration for _, _, duration, _ in entries),
        )

    def _spoken_words(self, text: str) -> list[tuple[str, str]]:
        # Each word as written, and as the decoder calls it.
        spoken: list[tuple[str, str | None]] = []
        for token in text.split():
            words = normalized_words(token)
            if words and not OTHER_THAN_LETTERS.search(token) and all(map(self._decoder.lookup_word, words)):
                spoken += [(word, word) for word in words]
            elif CAN_BE_SAID.search(token):
                spoken.append((BESIDE_A_WORD.sub("", token), None))
        self._learn({written for written, name in spoken if name is None})
        named = ((written, name or self._names[written]) for written, name in spoken)
        return [(written, name) for written, name in named if name is not None]

    def _learn(self, words: set[str]) -> None:
        new = sorted(words - self._names.keys())
        for written, phones in zip(new, pronounce(new), strict=True):
            name = f"learned{len(self._names)}" if phones else None
            self._names[written] = name
            if name is not None:
                self._learned[name] = phones
                self._decoder.add_word(name, phones, True)

    def _two_passes(self, samples: bytes, words: list[tuple[str, str]], wide: bool = False) -> Any:
        # The first pass places words, the second their phones; either may find no way through.
        decoder = self._new_decoder(wide) if wide else self._decoder
        decoder.reinit_feat()  # else the mean of earlier audio stays, and moves the times
        try:
            decoder.set_align_text(" ".join(name for _, name in words))
            _decode(decoder, samples)
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            _decode(decoder, samples)
            return decoder.get_alignment()
        except RuntimeError:  # "Failed to stop utterance processing": the decoder is of no more use
            if not wide:
                self._decoder = self._new_decoder()
            return None


def _decode(decoder: Any, samples: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()


def normalized_words(text: str) -> list[str]:
    """Lower-case words of letters and apostrophes: what the dictionary is asked for."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def _with_margins(audio: Tensor, sampling_rate: int) -> bytes:
    samples = audio[0].detach().cpu().float().numpy()
    if sampling_rate != SAMPLING_RATE:
        samples = soxr.resample(samples, sampling_rate, SAMPLING_RATE, quality="HQ")
    whole = np.pad(samples, round(MARGIN_SECONDS * SAMPLING_RATE))
    noise = np.random.default_rng(0).standard_normal(len(whole), np.float32)
    whole = (whole + NOISE_LEVEL * noise).clip(-1, 1)
    return (whole * 32767).astype(np.int16).tobytes()


def _span(entry, seconds: float) -> Span:
    def in_recording(frame: int) -> float:
        return min(max(frame / FRAMES_PER_SECOND - MARGIN_SECONDS, 0.0), seconds)

    name = entry.name.partition("(")[0]  # the dictionary numbers a word's other pronunciations
    return Span(name, in_recording(entry.start), in_recording(entry.start + entry.duration))
