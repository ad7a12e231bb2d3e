"""How a written word is said, in the phones of the English dictionary: asked of espeak-ng, which reads anything.

espeak-ng answers in the phonetic alphabet; a table makes ARPAbet of it. It runs as a program of its own, as in
`espeak`. Needs `espeakng-loader`, of the extras `align` and `demo`.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from . import espeak_process

ARPABET = {  # longer ones first, where one begins another
    "tʃ": "CH", "dʒ": "JH", "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "ɔɪ": "OY", "ɜː": "ER",
    "l̩": "AH L", "n̩": "AH N", "m̩": "AH M", "i": "IY", "ɪ": "IH", "ᵻ": "IH", "e": "EH", "ɛ": "EH", "æ": "AE",
    "a": "AA", "ɑ": "AA", "ɒ": "AA", "ɔ": "AO", "o": "AO", "ʊ": "UH", "u": "UW", "ʌ": "AH", "ə": "AH", "ɐ": "AH",
    "ɜ": "ER", "ɚ": "ER", "ɝ": "ER", "y": "UW", "ø": "ER", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "ɡ": "G",
    "g": "G", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH",
    "ç": "HH", "x": "K", "m": "M", "n": "N", "ɲ": "N Y", "ŋ": "NG", "l": "L", "ɬ": "L", "ɫ": "L", "ɹ": "R", "r": "R",
    "ʁ": "R", "ɾ": "T", "j": "Y", "w": "W",
}  # fmt: skip


def pronounce(words: Sequence[str]) -> list[str]:
    """The phones of each word, ARPAbet without stress, divided by spaces; "" for what is not said.

    Args:
        words: As written, digits and all; without white space.

    Returns:
        As many; all "" if `espeakng-loader` is not installed.

    Raises:
        RuntimeError: If espeak-ng fails.
    """
    if not words or importlib.util.find_spec("espeakng_loader") is None:
        return [""] * len(words)
    command = [sys.executable, "-P", str(espeak_process.__file__), "--phonemes"]
    result = subprocess.run(command, input="\n".join(words).encode(), capture_output=True)
    lines = result.stdout.decode().split("\n")[:-1]
    if result.returncode != 0 or len(lines) != len(words):
        raise RuntimeError(f"espeak-ng could not say {' '.join(words)[:60]!r}: {result.stderr.decode()[-200:]}")
    return [to_arpabet(line) for line in lines]


def to_arpabet(ipa: str) -> str:
    """Phonetic alphabet to ARPAbet; stress, length and unknown signs are passed over.

    >>> to_arpabet("ˌfɔːɹtiˈtuː")
    'F AO R T IY T UW'
    """
    phones, place = [], 0
    while place < len(ipa):
        size = next((size for size in (2, 1) if ipa[place : place + size] in ARPABET), 0)
        phones += [ARPABET[ipa[place : place + size]]] if size else []
        place += size or 1
    return " ".join(phones)
