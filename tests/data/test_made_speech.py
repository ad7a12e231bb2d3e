"""Utterances that espeak-ng makes on the spot."""

import re
from pathlib import Path

import pytest
import torch

from mimi_bridge.audio.espeak import SENTENCES
from mimi_bridge.audio.files import save_audio
from mimi_bridge.data import made_speech
from mimi_bridge.data.made_speech import PACES, load_utterance, made_utterances
from mimi_bridge.data.manifest import Utterance


def test_made_utterances_are_the_same_for_the_same_seed():
    one, same, other = (made_utterances(20, seed) for seed in (0, 0, 1))
    assert one == same != other


def test_made_utterances_have_their_own_ids_and_many_voices():
    utterances = made_utterances(100, 0)
    assert len({utterance.id for utterance in utterances}) == 100
    assert len({utterance.speaker for utterance in utterances}) == 36


def test_made_utterances_say_no_sentence_of_the_demonstration():
    said = {tuple(re.findall(r"\w+", utterance.text.lower())) for utterance in made_utterances(500, 0)}
    known = {tuple(re.findall(r"\w+", sentence.lower())) for sentence in SENTENCES}
    assert len(said) == 500 and not said & known


@pytest.mark.parametrize("number", range(3))
def test_made_utterance_is_spoken_in_its_voice_and_the_paces_in_turn(monkeypatch, number):
    spoken = []
    monkeypatch.setattr(made_speech, "synthesize", lambda *arguments: spoken.append(arguments))
    load_utterance(Utterance(f"made/{number:05d}", Path("made"), "espeak/en-us+m1", "fresh snow."), 16_000)
    assert spoken == [("fresh snow.", "en-us+m1", 16_000, PACES[number])]


def test_made_utterance_is_audible():
    (utterance,) = made_utterances(1, 0)
    audio = load_utterance(utterance, 24_000)
    assert 1.0 < audio.shape[1] / 24_000 < 10.0 and audio.abs().max() > 0.1


def test_recording_is_read_where_an_utterance_has_one(voiced_audio, tmp_path):
    save_audio(tmp_path / "one.wav", voiced_audio[0], 24_000)
    read = load_utterance(Utterance("ann/one", tmp_path / "one.wav", "ann", "fresh snow."), 24_000)
    torch.testing.assert_close(read, voiced_audio[0], atol=1e-4, rtol=0)


def test_recording_is_read_whatever_its_id(tmp_path):
    tone = 0.1 * torch.ones(1, 800)
    save_audio(tmp_path / "a.wav", tone, 16_000)
    utterance = Utterance("made/00001", tmp_path / "a.wav", "espeak/en-us+m1", "fresh snow.")
    assert load_utterance(utterance, 16_000).shape == tone.shape
