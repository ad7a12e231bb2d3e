"""Speech made on the spot."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mimi_bridge.audio.espeak import VOICES, given_or_made_speech, natural_speech, synthesize
from mimi_bridge.audio.folders import SPEECH_VARIABLE

TEXT = "Bread, honey, and a bag of rice."


def test_synthesize_gives_audible_speech_of_plausible_length():
    audio = synthesize(TEXT)
    assert audio.shape[0] == 1
    assert 1.0 < audio.shape[1] / 24_000 < 5.0
    assert 0.1 < audio.abs().max() <= 1.0


def test_synthesize_repeats_itself_to_the_bit():
    assert torch.equal(synthesize(TEXT), synthesize(TEXT))


def test_synthesize_speaks_differently_in_every_voice():
    spoken = [synthesize(TEXT, voice) for voice in VOICES]
    assert all(not torch.equal(one, other) for i, one in enumerate(spoken) for other in spoken[:i])


def test_synthesize_speaks_faster_when_asked():
    assert synthesize(TEXT, words_per_minute=240).shape[1] < 0.9 * synthesize(TEXT, words_per_minute=150).shape[1]


def test_synthesize_names_a_voice_that_is_not_there():
    with pytest.raises(ValueError, match="voice must be one that espeak-ng has, got 'en-moon'"):
        synthesize(TEXT, "en-moon")


def test_synthesize_refuses_a_text_without_sound():
    with pytest.raises(ValueError, match="must hold something to say, got ' ... '"):
        synthesize(" ... ")


def test_synthesize_says_what_to_install_when_espeak_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mimi-bridge\[demo\]'"):
        synthesize(TEXT)


def test_natural_speech_repeats_itself_to_the_bit():
    pytest.importorskip("hibari")
    audio = natural_speech(8.0)
    assert audio.shape == (1, 8 * 24_000) and 0.1 < audio.abs().max() <= 1.0
    assert torch.equal(audio, natural_speech(8.0))


def hum(_text: str, seed: int) -> np.ndarray:
    return np.full(12_000, 0.1, np.float32)


@pytest.mark.parametrize(
    ("package", "natural", "name"),
    [
        (SimpleNamespace(Hibari=lambda: hum), True, "made by hibari-tts"),
        (SimpleNamespace(Hibari=lambda: hum), False, "made by espeak-ng"),
        (None, True, "made by espeak-ng"),
    ],
    ids=["installed", "not asked for", "not installed"],
)
def test_speech_is_natural_where_that_is_asked_for_and_installed(monkeypatch, package, natural, name):
    monkeypatch.delenv(SPEECH_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "hibari", package)
    audio, called = given_or_made_speech(None, 2.0, 48_000, natural)
    assert (called, audio.shape) == (name, (1, 96_000))
