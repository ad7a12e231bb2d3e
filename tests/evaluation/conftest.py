"""A report of made speech, and a browser to read it in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation_page import Page
from made_evaluation import write_made_evaluation
from mimi_bridge.audio.espeak import synthesize
from mimi_bridge.audio.files import load_audio, save_audio
from mimi_bridge.data.manifest import read_manifest
from mimi_bridge.evaluation.report.page import write_report


@pytest.fixture(scope="session")
def spoken(speech):
    """Text -> `(1, samples)` at 24 kHz, about a second each."""
    return {
        "The river carried small boats.": speech[:, :30_000],
        'He said: <b>no</b> & "yes".': speech[:, 150_000:176_000],
        "Bread, honey.": speech[:, 300_000:324_000],
    }


@pytest.fixture(scope="session")
def made(spoken, tmp_path_factory) -> tuple[Path, dict]:
    """A folder with an evaluation and its report, and the evaluation; leave both as they are."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation = write_made_evaluation(folder, spoken)
    write_report(folder)
    return folder, evaluation


@pytest.fixture(scope="session")
def page(made) -> Page:
    """The report of `made`."""
    return Page((made[0] / "report.html").read_text())


@pytest.fixture
def short(spoken, tmp_path) -> Iterator[tuple[Path, dict]]:
    """A folder with an evaluation of a fifth of a second, to change and report; and the evaluation."""
    yield tmp_path, write_made_evaluation(tmp_path, {"one": spoken["Bread, honey."][:, :4_800]})


@pytest.fixture(scope="session")
def spoken_folder(tmp_path_factory) -> Path:
    """Six recordings of three made voices, each with its transcript: a folder a speaker."""
    folder = tmp_path_factory.mktemp("spoken")
    texts = ("Bread, honey and a bag of rice.", "Nobody noticed the judge.", "Why would anyone walk?")
    for number, voice in enumerate(("en-us", "en+f3", "en-gb-scotland+m4")):
        for turn in range(2):
            text = texts[(number + turn) % 3]
            path = folder / voice.replace("+", "-") / f"{turn}.wav"
            save_audio(path, synthesize(text, voice), 24_000)
            path.with_suffix(".txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def spoken_utterances(spoken_folder):
    """The recordings of `spoken_folder`, each with an alignment: words and their letters, evenly laid out."""
    utterances = []
    for utterance in read_manifest(spoken_folder):
        words = utterance.text.strip(".?").replace(",", "").split()
        step = load_audio(utterance.path, 24_000).shape[-1] / 24_000 / len(words)
        path = utterance.path.with_suffix(".json")
        path.write_text(json.dumps({"words": [_word(word, n * step, step) for n, word in enumerate(words)]}))
        utterances.append(replace(utterance, alignment=path))
    return utterances


def _word(word: str, start: float, seconds: float) -> dict:
    step = seconds / len(word)
    phones = [
        {"phone": letter.upper(), "start": start + n * step, "end": start + (n + 1) * step}
        for n, letter in enumerate(word)
    ]
    return {"word": word, "start": start, "end": start + seconds, "phones": phones}
