"""What is known of each frame."""

import json

import pytest
import torch

from mimi_bridge.audio.sound import Sound
from mimi_bridge.data.alignment.types import Alignment
from mimi_bridge.data.manifest import Span, Utterance
from mimi_bridge.evaluation.labels import (
    energy_labels,
    label_frames,
    phone_labels,
    pitch_labels,
    spans_of,
    word_labels,
)

RATE = 12.5
SECOND = Sound(torch.zeros(1, 24_000), 24_000)


class ScriptedAligner:
    min_score = -22.0

    def __init__(self, score):
        self.score = score

    def align(self, audio, sampling_rate, text):
        return None if self.score is None else Alignment([Span(text, 0, 1)], [Span("AA", 0, 1)], self.score)


def test_frame_has_the_label_that_covers_most_of_it():
    spans = [Span("A", 0.0, 0.09), Span("B", 0.09, 0.15), Span("C", 0.15, 0.24)]
    assert label_frames(spans, 4, RATE) == ["A", "B", "C", None]


def test_frame_covered_by_less_than_half_has_none_and_times_beyond_the_recording_are_cut():
    assert label_frames([Span("A", 0.0, 0.03), Span("B", 0.2, 9.0)], 4, RATE) == [None, None, "B", "B"]
    assert label_frames([], 2, RATE) == [None, None]


def test_silence_is_no_phone_and_stress_makes_no_other_one():
    spans = [Span("SIL", 0, 0.08), Span("AH0", 0.08, 0.16), Span("AH1", 0.16, 0.24), Span("+SPN+", 0.24, 0.32)]
    assert phone_labels(spans, 4, RATE) == [None, "AH", "AH", None]
    assert word_labels([Span("The", 0, 0.08), Span("<sil>", 0.08, 0.16)], 2, RATE) == ["the", None]


def test_pitch_of_a_frame_is_the_mean_of_its_voiced_steps_in_octaves():
    f0_hz = torch.tensor([128.0] * 4 + [256.0] * 4 + [0.0] * 4 + [64.0] * 4 + [0.0] * 5 + [64.0] * 3)
    assert pitch_labels(f0_hz, 4, RATE) == [7.5, 6.0, None, None]


def test_energy_is_in_decibels_with_a_floor():
    audio = torch.cat([torch.ones(1, 1920), torch.full((1, 1920), 0.1), torch.zeros(1, 100)], dim=1)
    assert energy_labels(audio, 3, 1920) == pytest.approx([0.0, -20.0, -80.0], abs=1e-4)


def test_given_alignment_is_read_whatever_its_form(tmp_path):
    words = [{"word": "a", "start": 0.0, "end": 0.5, "phones": [{"phone": "AH", "start": 0.0, "end": 0.5}]}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"words": words}))
    phones, said = spans_of(Utterance("a", path, "x", alignment=path), SECOND)
    assert (phones, said) == ([Span("AH", 0, 0.5)], [Span("a", 0, 0.5)])


def test_without_an_alignment_the_transcript_is_aligned(tmp_path):
    utterance = Utterance("a", tmp_path, "x", text="hello")
    assert spans_of(utterance, SECOND, ScriptedAligner(-13.0)) == ([Span("AA", 0, 1)], [Span("hello", 0, 1)])


@pytest.mark.parametrize(
    ("text", "aligner", "message"),
    [
        (None, ScriptedAligner(-13.0), "neither an alignment nor a transcript"),
        ("hello", None, "needs the package pocketsphinx"),
        ("hello", ScriptedAligner(None), "does not fit the recording"),
        ("hello", ScriptedAligner(-45.0), "does not fit the recording"),
    ],
)
def test_why_there_are_no_phones_is_said(tmp_path, text, aligner, message):
    with pytest.raises(ValueError, match=message):
        spans_of(Utterance("a", tmp_path, "x", text=text), SECOND, aligner)
