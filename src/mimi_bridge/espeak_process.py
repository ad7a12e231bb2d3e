"""espeak-ng as a program: `python espeak_process.py TEXT VOICE WORDS_PER_MINUTE` speaks to stdout, and
`python espeak_process.py --phonemes` writes, for each line of stdin, how it is said.

The library keeps state from one utterance to the next, so that the same text sounds a little different each time; a
process for each utterance makes speech repeatable. Only ctypes and the wheel `espeakng-loader` are imported here.

Source: espeak-ng `src/include/espeak-ng/speak_lib.h`.
"""

import ctypes
import os
import sys

AUDIO_OUTPUT_SYNCHRONOUS = 2
RATE_WORDS_PER_MINUTE = 1  # an espeak_PARAMETER
CHARACTERS_UTF8 = 1
PHONEMES_IPA = 2
NO_SUCH_VOICE = 3  # exit status
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main(text: str, voice: str, words_per_minute: str) -> int:
    """Speak to stdout: the rate in Hz as 4 bytes, little-endian, then int16 samples; returns the exit status."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = os.fsencode(espeakng_loader.get_data_path())
    sampling_rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return NO_SUCH_VOICE
    library.espeak_SetParameter(RATE_WORDS_PER_MINUTE, int(words_per_minute), 0)
    sys.stdout.buffer.write(sampling_rate.to_bytes(4, "little"))

    @CALLBACK
    def write(samples, count, _events):
        if samples and count > 0:
            sys.stdout.buffer.write(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(write)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, CHARACTERS_UTF8, None, None)
    return 0


def phonemes() -> int:
    """For each line of stdin, one to stdout: how American English says it, in the phonetic alphabet."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), 0)
    library.espeak_SetVoiceByName(b"en-us")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    for line in sys.stdin.buffer.read().split(b"\n"):
        rest, said = ctypes.c_char_p(line), []
        while rest.value:  # a clause at a time
            said.append(library.espeak_TextToPhonemes(ctypes.byref(rest), CHARACTERS_UTF8, PHONEMES_IPA) or b"")
        sys.stdout.buffer.write(b" ".join(said).replace(b"\n", b" ") + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(phonemes() if sys.argv[1:] == ["--phonemes"] else main(*sys.argv[1:]))
