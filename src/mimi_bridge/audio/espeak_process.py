"""espeak-ng as a program: `python espeak_process.py TEXT VOICE WORDS_PER_MINUTE` speaks to stdout, with `--times`
before them it says first when each word and phone begins, and `python espeak_process.py --phonemes` writes, for each
line of stdin, how it is said.

The library keeps state from one utterance to the next, so that the same text sounds a little different each time; a
process for each utterance makes speech repeatable. Only ctypes and the wheel `espeakng-loader` are imported here.

Source: espeak-ng `src/include/espeak-ng/speak_lib.h`.
"""

import ctypes
import json
import os
import sys

AUDIO_OUTPUT_SYNCHRONOUS = 2
RATE_WORDS_PER_MINUTE = 1  # an espeak_PARAMETER
CHARACTERS_UTF8 = 1
PHONEMES_IPA = 2
NO_SUCH_VOICE = 3  # exit status
PHONEME_EVENTS = 1  # an option of espeak_Initialize
END, WORD, PHONEME = 0, 1, 7  # kinds of event


class _Event(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),  # of a union with a number and a pointer, of the same size
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def main(text: str, voice: str, words_per_minute: str, times: bool = False) -> int:
    """Speak to stdout: the rate in Hz as 4 bytes, little-endian, then int16 samples.

    Args:
        text: What to say.
        voice: A voice of espeak-ng's.
        words_per_minute: Speed.
        times: Write first a line of json: a list of what begins, each by its kind, character and sample.

    Returns:
        The exit status.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = os.fsencode(espeakng_loader.get_data_path())
    sampling_rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, PHONEME_EVENTS if times else 0)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return NO_SUCH_VOICE
    library.espeak_SetParameter(RATE_WORDS_PER_MINUTE, int(words_per_minute), 0)
    pieces, begun = [sampling_rate.to_bytes(4, "little")], []

    @CALLBACK
    def write(samples, count, events):
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        place = 0
        while events[place].kind != END:
            event = events[place]
            name = event.name.decode(errors="replace") if event.kind == PHONEME else ""
            if event.kind in (WORD, PHONEME):
                begun.append((event.kind, event.text_position - 1, event.sample, name))
            place += 1
        return 0

    library.espeak_SetSynthCallback(write)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, CHARACTERS_UTF8, None, None)
    if times:
        sys.stdout.buffer.write(json.dumps(begun).encode() + b"\n")
    sys.stdout.buffer.write(b"".join(pieces))
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
    if sys.argv[1:] == ["--phonemes"]:
        sys.exit(phonemes())
    *options, text, voice, words_per_minute = sys.argv[1:]
    sys.exit(main(text, voice, words_per_minute, times=options == ["--times"]))
