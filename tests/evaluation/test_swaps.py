"""Whom a swap follows, on sounds where the answer is known."""

import pytest
import torch

from mimi_bridge.audio.sound import Sound
from mimi_bridge.data.alignment.types import Alignment
from mimi_bridge.evaluation.metrics import Metric
from mimi_bridge.evaluation.swaps import (
    Swap,
    another_recording,
    chosen_pairs,
    listener_numbers,
    swap_numbers,
    swap_summary,
)


def voice(f0_hz: float, brightness: float, seconds: float = 1.5, glide: float = 0.0) -> Sound:
    """A buzzing voice whose overtones fall off as its brightness says, loud in turns."""
    time = torch.arange(round(seconds * 24_000)) / 24_000
    phase = 2 * torch.pi * (f0_hz * time + glide * torch.sin(2 * torch.pi * 2 * time) / (4 * torch.pi))
    harmonics = sum(brightness**n * torch.sin(n * phase) for n in range(1, 25))
    return Sound(0.1 * (harmonics / harmonics.abs().max())[None], 24_000)


class ScriptedAligner:
    """Hears one text in every sound."""

    def __init__(self, decoded):
        self.decoded = decoded

    def align(self, audio, sampling_rate, text):
        return Alignment([], [], -10.0 if text.strip(".").lower() == self.decoded else -40.0)


def test_swap_that_is_the_first_follows_the_first():
    content, other = voice(120, 0.5, glide=20), voice(220, 0.9)
    numbers = swap_numbers(Swap(content, other, content))
    assert numbers["f0_follows_voice"] == pytest.approx(0, abs=1e-6)
    assert numbers["timbre_follows_voice"] == pytest.approx(0, abs=1e-6)
    assert numbers["f0_contour_correlation"] == pytest.approx(1, abs=1e-4)
    assert numbers["f0_content_hz"] == pytest.approx(120, rel=0.05)


def test_swap_that_is_the_other_follows_the_other():
    content, other = voice(120, 0.5, glide=20), voice(220, 0.9)
    numbers = swap_numbers(Swap(content, other, other))
    assert numbers["f0_follows_voice"] == pytest.approx(1, abs=1e-6)
    assert numbers["timbre_follows_voice"] == pytest.approx(1, abs=1e-6)


def test_timbre_is_measured_whatever_the_pitch_and_level():
    content, other = voice(120, 0.5), voice(220, 0.9)
    between = voice(120, 0.9)
    quiet = Sound(between.audio / 3, 24_000)
    assert swap_numbers(Swap(content, other, quiet))["timbre_follows_voice"] > 0.6


def test_voices_of_one_pitch_cannot_be_distinguished_by_it():
    same = voice(120, 0.5)
    assert "f0_follows_voice" not in swap_numbers(Swap(same, voice(121, 0.9), same))


def test_spectrum_of_the_words_counts_for_neither_voice():
    content, other = voice(120, 0.5), voice(120, 0.9)
    whistle = 0.05 * torch.sin(2 * torch.pi * 5000 * torch.arange(content.audio.shape[-1]) / 24_000)
    hissing = [Sound(sound.audio + whistle, 24_000) for sound in (content, other)]
    places = [swap_numbers(Swap(content, other, sound))["timbre_follows_voice"] for sound in hissing]
    assert places[1] - places[0] > 0.6  # they stay as far apart, though both are far from either
    assert abs(places[0]) < 0.6


def test_voices_of_one_timbre_cannot_be_distinguished_by_it():
    numbers = swap_numbers(Swap(voice(120, 0.5), voice(130, 0.5), voice(130, 0.9)))
    assert "timbre_follows_voice" not in numbers and "f0_follows_voice" in numbers


def test_another_recording_of_the_voice_is_placed_like_a_swap():
    content, other, another = voice(120, 0.5), voice(220, 0.9), voice(200, 0.8)
    numbers = swap_numbers(Swap(content, other, content, another))
    as_a_swap = swap_numbers(Swap(content, other, another))
    assert numbers["f0_of_same_voice"] == as_a_swap["f0_follows_voice"] > 0.5
    assert numbers["timbre_of_same_voice"] == as_a_swap["timbre_follows_voice"] > 0.5
    assert numbers["timbre_follows_voice"] == pytest.approx(0, abs=1e-6)


def test_another_recording_is_of_the_same_speaker():
    assert another_recording(["a", "b", "a"], 0) == 2
    assert another_recording(["a", "b", "a"], 1) is None


@pytest.mark.parametrize(("decoded", "kept", "follows"), [("ours", 1, 0), ("theirs", 0, 1), ("another", 0, 0)])
def test_words_are_those_of_the_text_that_fits_best(decoded, kept, follows):
    content, other = voice(120, 0.5), voice(220, 0.9)
    swap = Swap(Sound(content.audio, 24_000, "Ours."), Sound(other.audio, 24_000, "Theirs."), content)
    numbers = swap_numbers(swap, ScriptedAligner(decoded), ["Ours.", "Theirs.", "Another."])
    assert (numbers["words_kept"], numbers["words_follow_voice"]) == (kept, follows)


def test_summary_is_over_the_swaps_that_tell():
    summary = swap_summary([{"words_kept": 1.0, "f0_content_hz": 100.0}, {"words_kept": 0.0}, {}])
    assert set(summary) == {"words_kept"}
    assert (summary["words_kept"]["mean"], summary["words_kept"]["count"]) == (0.5, 2)


def test_pairs_are_of_different_speakers_far_apart_in_pitch_and_give_once():
    recordings = [("a", 7.0), ("a", 7.1), ("b", 8.0), ("c", 7.5), ("c", None)]
    pairs = chosen_pairs(recordings, 3)
    assert pairs == [(0, 2), (2, 1), (4, 0)] or pairs[0] == (0, 2)
    assert all(recordings[a][0] != recordings[b][0] for a, b in pairs)
    assert len({b for _, b in pairs}) == len(pairs) == 3


def test_one_speaker_alone_makes_no_pair():
    assert chosen_pairs([("a", 7.0), ("a", 8.0)], 2) == []


def test_listeners_hear_the_words_of_the_first_and_the_voices_of_both():
    content, other, swapped, another = voice(120, 0.5), voice(220, 0.9), voice(180, 0.7), voice(220, 0.9)
    names = {id(content): "content", id(other): "voice", id(swapped): "swapped", id(another): "another"}
    pairs = {"word_error": {}, "speaker_similarity": {}}

    def listener(kind):
        def measure(decoded, original):
            value = len(pairs[kind]) / 10
            pairs[kind][names[id(decoded)], names[id(original)]] = value
            return value

        return Metric(measure, kind, True)

    numbers = listener_numbers({kind: listener(kind) for kind in pairs}, Swap(content, other, swapped, another))
    assert numbers["word_error"] == pairs["word_error"]["swapped", "content"]
    assert numbers["word_error_before"] == pairs["word_error"]["content", "content"]
    assert numbers["voice_like_voice"] == pairs["speaker_similarity"]["swapped", "voice"]
    assert numbers["voice_like_content"] == pairs["speaker_similarity"]["swapped", "content"]
    assert numbers["same_voice_like_voice"] == pairs["speaker_similarity"]["another", "voice"]
    assert set(swap_summary([numbers])) == set(numbers)


def test_listener_that_hears_nothing_leaves_its_number_out():
    sound = voice(120, 0.5)
    silent = Metric(lambda decoded, original: None, "nothing", True)
    assert listener_numbers({"word_error": silent}, Swap(sound, sound, sound)) == {}
