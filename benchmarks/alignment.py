#!/usr/bin/env python
"""How near aligners come to the truth, on speech made by espeak-ng, which knows when it says each word.

    python benchmarks/alignment.py
    python benchmarks/alignment.py --ctc facebook/wav2vec2-base-960h
    python benchmarks/alignment.py --speech FOLDER --every 3

Prints two tables in markdown: errors of word starts and ends by aligner and voice, through characters as the tokens
get them, and whether the score tells right texts from wrong ones. Words that espeak-ng says as one ("out of") have no
known boundary and are left out. With `--speech` only the second table, of real recordings. Needs the extras `demo` and
`align`.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimi_bridge.audio.espeak import SENTENCES
from mimi_bridge.data.alignment.tokens import token_spans
from mimi_bridge.data.alignment.types import Aligner
from mimi_bridge.data.manifest import read_manifest
from mimi_bridge.data.segments import load_recording
from mimi_bridge.evaluation.intelligibility import like_sized_transcripts
from spoken_words import SpokenWord, speak_words

RATE = 24_000
VOICES = ("en-us", "en+f3", "en-gb-scotland+m4", "en-029+m2")
SPEEDS = (150, 190)  # words a minute
NEAR = 0.05  # seconds
TEXTS = (
    *SENTENCES,
    "The ferry to the islands leaves at 7:45, and the last one back is at 22:10.",
    "Dr. Hartley’s clinic moved to 14 Orchard Street in March 2019.",
    "“Well,” said the captain, “we can’t turn back now, can we?”",
    "It’s a small, quiet café — the one with the naïve paintings on its walls.",
    "Could you spell Xylofrax for me, please? I’ve never heard of it!",
    "My grandmother’s recipe needs 250 grams of flour, 3 eggs and half a litre of milk.",
    "Somebody left the gate open; that’s how the goats got into the garden 🐐.",
    "After the rain had stopped, a thin mist rose from the fields beside the road.",
    "They paid $35 for two tickets and sat in the very last row.",
    "The well-known violinist Agnieszka Wójcik played without a single note in front of her.",
    "He counted: one, two, three... and jumped.",
    "Is it true that octopuses have three hearts and blue blood?",
    "The committee will vote on Tuesday, unless the chairman falls ill again.",
    "A tall man in a brown coat asked me the way to the museum.",
    "We hadn’t expected more than 40 guests, but over 120 came!",
    "Light travels about 300,000 kilometres in one second.",
    "Keep the windows shut tonight, because the forecast speaks of heavy storms.",
    "I think we should both apologise, and then never speak of it again.",
)


@dataclass
class Result:
    """What an aligner made of some recordings.

    Attributes:
        starts: Of each word that has a time: how late it was found, seconds.
        ends: The same of its end.
        num_words: Of all that have a known time.
        scores: Of the right texts; None where there was no way.
        wrong_scores: Of wrong texts.
        cpu_seconds: For the right texts.
        speech_seconds: Of the recordings.
    """

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    num_words: int = 0
    scores: list[float | None] = field(default_factory=list)
    wrong_scores: list[float | None] = field(default_factory=list)
    cpu_seconds: float = 0.0
    speech_seconds: float = 0.0

    def add(self, other: "Result") -> None:
        """Take another result in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ctc", action="append", default=[], metavar="MODEL", help="also a CTC model; repeatable")
    parser.add_argument("--voices", nargs="+", default=VOICES, help="of espeak-ng")
    parser.add_argument("--texts", type=int, default=len(TEXTS), metavar="N", help="only the first N")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="real recordings with transcripts instead")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    aligners = {"pocketsphinx": _pocketsphinx} | {name: lambda name=name: _ctc(name) for name in arguments.ctc}
    if arguments.speech is None:
        spoken = {voice: _speak(voice, TEXTS[: arguments.texts]) for voice in arguments.voices}
    else:
        spoken = {"real": _read(arguments.speech, arguments.every)}
    results, min_scores = {}, {}
    for name, make in aligners.items():
        aligner = make()
        min_scores[name] = aligner.min_score
        results[name] = {voice: measure(aligner, recordings) for voice, recordings in spoken.items()}
    if arguments.speech is None:
        print_errors(results)
    print_scores(results, min_scores)


def _pocketsphinx() -> Aligner:
    from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner

    return PocketsphinxAligner()


def _ctc(name: str) -> Aligner:
    from mimi_bridge.data.alignment.ctc import CtcAligner

    return CtcAligner(name)


Spoken = tuple[str, Tensor, list[SpokenWord], str]  # text, audio, words, another text


def _speak(voice: str, texts: tuple[str, ...]) -> list[Spoken]:
    said = [(text, *speak_words(text, voice, RATE, speed)) for text in texts for speed in SPEEDS]
    return [(*one, said[(number + 2 * len(SPEEDS) + 1) % len(said)][0]) for number, one in enumerate(said)]


def _read(folder: Path, every: int) -> list[Spoken]:
    utterances = [utterance for utterance in read_manifest(folder)[::every] if utterance.text]
    texts = [utterance.text for utterance in utterances]
    return [(u.text, load_recording(u, RATE), [], like_sized_transcripts(u.text, texts, 1)[0]) for u in utterances]


def measure(aligner: Aligner, recordings: list[Spoken]) -> Result:
    """Align each recording with its text and with another."""
    result = Result()
    for text, audio, words, wrong in recordings:
        result.add(_measure_one(aligner, text, audio, words))
        found = aligner.align(audio, RATE, wrong)
        result.wrong_scores.append(None if found is None else found.score)
    return result


def _measure_one(aligner: Aligner, text: str, audio: Tensor, words: list[SpokenWord]) -> Result:
    began = time.process_time()
    found = aligner.align(audio, RATE, text)
    result = Result(cpu_seconds=time.process_time() - began, speech_seconds=audio.shape[-1] / RATE)
    known = [word for word in words if word.num_words == 1]
    result.num_words = len(known)
    result.scores = [None if found is None else found.score]
    if found is not None:
        spans = token_spans(text, [(word.first, word.last) for word in known], found.words).tolist()
        timed = [(word, *span) for word, span in zip(known, spans, strict=True) if span[1] > span[0]]
        result.starts = [start - word.start for word, start, _ in timed]
        result.ends = [end - word.end for word, _, end in timed]
    return result


def print_errors(results: dict[str, dict[str, Result]]) -> None:
    """How far word boundaries are from the truth, by aligner and voice, in markdown."""
    print("| aligner | voice | words | aligned | start: median, p90 | within 50 ms | end: median, p90 |", end="")
    print(" within 50 ms | lean of start, end | real time |\n|---|---|---|---|---|---|---|---|---|---|")
    for name, by_voice in results.items():
        for voice, result in by_voice.items():
            print(_row(name, voice, result))
        print(_row(name, "**all**", _together(by_voice)))
    print()


def print_scores(results: dict[str, dict[str, Result]], min_scores: dict[str, float]) -> None:
    """Whether scores tell right texts from wrong ones, by aligner, in markdown."""
    print("| aligner | score of right texts: median, lowest | of wrong ones: median, highest | no way for |", end="")
    print(" least score | right kept | wrong kept |\n|---|---|---|---|---|---|---|")
    for name, least in min_scores.items():
        total = _together(results[name])
        right, wrong = ([s for s in scores if s is not None] for scores in (total.scores, total.wrong_scores))
        kept = [sum(score >= least for score in scores) / len(total.scores) for scores in (right, wrong)]
        nowhere = [1 - len(scores) / len(total.scores) for scores in (right, wrong)]
        print(
            f"| {name} | {np.median(right):.1f}, {min(right):.1f} | {np.median(wrong):.1f}, {max(wrong):.1f} | "
            f"{nowhere[0]:.1%} right, {nowhere[1]:.1%} wrong | {least:g} | {kept[0]:.1%} of {len(total.scores)} | "
            f"{kept[1]:.1%} |"
        )


def _together(by_voice: dict[str, Result]) -> Result:
    total = Result()
    for result in by_voice.values():
        total.add(result)
    return total


def _row(name: str, voice: str, result: Result) -> str:
    cells = [name, voice, str(result.num_words), f"{len(result.starts) / result.num_words:.1%}"]
    for errors in (result.starts, result.ends):
        sizes = np.abs(errors)
        cells += [_milliseconds(np.median(sizes), np.quantile(sizes, 0.9)), f"{(sizes <= NEAR).mean():.1%}"]
    cells += [_milliseconds(np.median(result.starts), np.median(result.ends))]
    return f"| {' | '.join(cells)} | {result.cpu_seconds / result.speech_seconds:.3f} × |"


def _milliseconds(*seconds: float) -> str:
    return ", ".join(f"{1000 * value:.0f}" for value in seconds) + " ms"


if __name__ == "__main__":
    main()
