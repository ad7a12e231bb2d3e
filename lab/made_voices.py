"""Speech of many made voices, for training: python lab/made_voices.py TEXTS OUTPUT --hours 6

Speaks the lines of a text file by hibari-tts (`pip install hibari-tts`: one natural voice at 24 kHz) and makes other
voices of it by praat's "Change gender" (praat-parselmouth), each line by the next voice. Writes FLAC files and a
`manifest.jsonl` that `lab/train_codec.py --speech` reads. A line that cannot be spoken is named and left out.
"""

import argparse
import itertools
import json
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import parselmouth
import soundfile

SAMPLING_RATE = 24_000
PITCH_RANGE_HZ = (75.0, 500.0)  # in which praat looks for the pitch of the first voice
SPEEDS = (0.8, 1.3)
PITCH_RANGE_FACTORS = (0.8, 1.2)  # from about 1.3 on, praat's lowest pitch becomes negative, and it never ends
PEAK = 0.95


@dataclass(frozen=True)
class Voice:
    """What praat makes of the first voice."""

    median_pitch_hz: float
    formant_shift: float
    pitch_range_factor: float


def main() -> None:
    """Speak until the hours are full."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", type=Path, help="a sentence a line")
    parser.add_argument("output", type=Path)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--voices", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    texts = [line.strip() for line in arguments.texts.read_text().splitlines() if line.strip()]
    if not texts:
        sys.exit(f"made_voices: {arguments.texts} holds no line of text.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    random.Random(arguments.seed).shuffle(texts)
    voices = made_voices(arguments.voices, arguments.seed)
    jobs = ((number, text, number % len(voices), voices, arguments) for number, text in enumerate(texts))
    seconds = 0.0
    with (
        open(arguments.output / "manifest.jsonl", "w") as manifest,
        ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool,
    ):
        while seconds < 3600 * arguments.hours and (some := list(itertools.islice(jobs, 64))):
            for row in filter(None, pool.map(spoken, some)):
                seconds += row["seconds"]
                manifest.write(json.dumps(row) + "\n")
            manifest.flush()
    print(f"{seconds / 3600:.2f} hours of {len(voices)} voices in {arguments.output}")


def made_voices(number: int, seed: int) -> list[Voice]:
    """Voices whose formants follow their pitch, as those of people of different sizes do, but not strictly."""
    drawn = random.Random(seed)
    voices = []
    for _ in range(number):
        height = drawn.uniform(0, 1)  # of the voice: a low one of a large person to a high one of a small
        pitch_hz = 85 * (270 / 85) ** height * drawn.uniform(0.9, 1.1)
        voices.append(
            Voice(pitch_hz, 0.82 + 0.38 * height + drawn.uniform(-0.06, 0.06), drawn.uniform(*PITCH_RANGE_FACTORS))
        )
    return voices


def spoken(job: tuple[int, str, int, list[Voice], argparse.Namespace]) -> dict | None:
    """A line in a voice, as a row of a manifest; None, after saying so, if it cannot be spoken."""
    number, text, voice, voices, arguments = job
    speed = random.Random(f"{arguments.seed}/{number}").uniform(*SPEEDS)
    try:
        audio = np.asarray(first_voice()(text, speed=speed, seed=number), dtype=np.float64)
        audio = changed(audio, voices[voice])
    except Exception as error:  # one line must not stop the hours after it
        print(f"made_voices: line {number} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    path = arguments.output / f"{number:06d}.flac"
    soundfile.write(path, audio.astype(np.float32), SAMPLING_RATE)
    seconds = len(audio) / SAMPLING_RATE
    return {
        "id": f"voices/{number:06d}",
        "path": path.name,
        "speaker": f"voices/{voice}",
        "text": text,
        "seconds": seconds,
    }


def first_voice():  # type: ignore[no-untyped-def]  # hibari has no types
    """The speaker of this process."""
    if "hibari" not in _speakers:
        from hibari import Hibari

        _speakers["hibari"] = Hibari()
    return _speakers["hibari"]


_speakers: dict = {}


def changed(audio: np.ndarray, voice: Voice) -> np.ndarray:
    """The same words by another voice, `(samples,)`, no louder than `PEAK`."""
    sound = parselmouth.praat.call(
        parselmouth.Sound(audio, SAMPLING_RATE),
        "Change gender",
        *PITCH_RANGE_HZ,
        voice.formant_shift,
        voice.median_pitch_hz,
        voice.pitch_range_factor,
        1.0,
    )
    samples = sound.values[0]
    return samples * (PEAK / max(PEAK, float(np.abs(samples).max())))


if __name__ == "__main__":
    main()
