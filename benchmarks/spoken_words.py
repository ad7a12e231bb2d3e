"""Speech made on the spot whose words have exact times: the truth that aligners are measured against.

The times are espeak-ng's own, to the sample: it tells where each word and phone begins as it speaks. A word ends where
the next begins, or where the pause before it does. Words that espeak-ng says as one ("of the") are one here.
"""

import json
import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mimi_bridge.audio.espeak import VOICES, run_espeak
from mimi_bridge.audio.espeak_process import PHONEME, WORD
from mimi_bridge.audio.files import resample

WRITTEN_WORD = re.compile(r"\S*\w\S*")  # between white space, with a letter or digit
OUTER_PUNCTUATION = re.compile(r"^[^\w$£€&%@°]+|[^\w$£€&%@°]+$")  # signs are read aloud


@dataclass(frozen=True)
class SpokenWord:
    """A written word, or several that are said as one, with its time.

    Attributes:
        label: As written, without the punctuation around it.
        first: Its first character in the text.
        last: One more than its last.
        start: Seconds.
        end: Seconds.
        num_words: How many written words are said as one.
    """

    label: str
    first: int
    last: int
    start: float
    end: float
    num_words: int = 1


def speak_words(
    text: str, voice: str = VOICES[0], sampling_rate: int = 24_000, words_per_minute: int = 165
) -> tuple[Tensor, list[SpokenWord]]:
    """Speak a text, as `synthesize` does, and say when each word is spoken.

    Args:
        text: What to say.
        voice: An espeak-ng voice.
        sampling_rate: Hz.
        words_per_minute: Speed.

    Returns:
        `(1, samples)`, and the words in order.

    Raises:
        ModuleNotFoundError: If the extra `demo` is not installed.
        ValueError: If there is nothing to say, or espeak-ng has no such voice.
    """
    times, _, spoken = run_espeak(text, voice, words_per_minute, "--times").partition(b"\n")
    own_rate = int.from_bytes(spoken[:4], "little")
    samples = np.frombuffer(spoken[4:], np.int16).astype(np.float32) / 32768
    audio = resample(samples, own_rate, sampling_rate, name=f"the speech made of {text!r}")
    return audio, _words(text, json.loads(times), len(samples), own_rate)


def _words(text: str, begun: list[tuple[int, int, int, str]], num_samples: int, rate: int) -> list[SpokenWord]:
    pauses = _pauses([(sample, name) for kind, _, sample, name in begun if kind == PHONEME], num_samples)
    units: list[tuple[int, int, int, int]] = []  # first and last-plus-one character, sample, number of words
    for match in WRITTEN_WORD.finditer(text):
        begins = [s for kind, character, s, _ in begun if kind == WORD and match.start() <= character < match.end()]
        if begins:
            units.append((match.start(), match.end(), begins[0], 1))
        elif units:  # said with the word before it
            units[-1] = (units[-1][0], match.end(), units[-1][2], units[-1][3] + 1)
    words = []
    for number, (first, last, start, num_words) in enumerate(units):
        next_start = units[number + 1][2] if number + 1 < len(units) else num_samples
        end = min((p for p, pause_end in pauses if start < p < next_start <= pause_end + 1), default=next_start)
        leading, trailing = (len(part) for part in _outer_punctuation(text[first:last]))
        first, last = first + leading, last - trailing
        words.append(SpokenWord(text[first:last], first, last, start / rate, end / rate, num_words))
    return words


def _pauses(phones: list[tuple[int, str]], num_samples: int) -> list[tuple[int, int]]:
    # Start and end of each stretch of silence, in samples; neighbouring ones are one.
    ends = [sample for sample, _ in phones[1:]] + [num_samples]
    pauses: list[tuple[int, int]] = []
    for (start, name), end in zip(phones, ends, strict=True):
        if not name.startswith("_"):
            continue
        if pauses and pauses[-1][1] == start:
            pauses[-1] = (pauses[-1][0], end)
        else:
            pauses.append((start, end))
    return pauses


def _outer_punctuation(token: str) -> tuple[str, str]:
    inner = OUTER_PUNCTUATION.sub("", token)
    before, _, after = token.partition(inner)
    return before, after
