"""Speech whose words have exact times."""

from itertools import pairwise

import pytest
import torch

from mimi_bridge.audio.espeak import synthesize
from spoken_words import speak_words

TEXT = "The river — “old” & grey 🙂 — ran out of the mill, in 1999."


@pytest.fixture(scope="module")
def spoken():
    return speak_words(TEXT)


def test_speech_with_times_is_the_speech_without(spoken):
    assert torch.equal(spoken[0], synthesize(TEXT))


def test_words_are_those_of_the_text_and_their_characters_are_theirs(spoken):
    _, words = spoken
    assert [word.label for word in words][:3] == ["The", "river", "old"]
    assert words[-1].label == "1999"
    assert all(TEXT[word.first : word.last] == word.label for word in words)


def test_words_that_are_said_as_one_are_one(spoken):
    (together,) = [word for word in spoken[1] if word.num_words > 1]
    assert (together.label, together.num_words) == ("out of", 2)


def test_words_follow_each_other_inside_the_recording_and_pauses_belong_to_none(spoken):
    audio, words = spoken
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= audio.shape[-1] / 24_000
    mill, after = next((a, b) for a, b in pairwise(words) if a.label == "mill")
    assert after.start - mill.end > 0.1
    pause = audio[0, round((mill.end + 0.02) * 24_000) : round((after.start - 0.02) * 24_000)]
    assert pause.abs().mean() < 0.05 * audio.abs().mean()


def test_voice_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="voice must be one that espeak-ng has, got 'en-moon'"):
        speak_words(TEXT, "en-moon")
