"""Which of many transcripts fits a recording best."""

import pytest
import torch

from mimi_bridge.audio.espeak import SENTENCES, synthesize
from mimi_bridge.data.alignment.pocketsphinx import Alignment, PocketsphinxAligner
from mimi_bridge.evaluation.intelligibility import best_fitting_transcript, like_sized_transcripts


class ScriptedAligner:
    """Gives each text the score that the test says."""

    def __init__(self, scores):
        self.scores = scores

    def align(self, audio, sampling_rate, text):
        score = self.scores[text]
        return None if score is None else Alignment([], [], score)


def test_right_transcript_is_chosen_for_clear_speech_and_not_for_noise():
    aligner = PocketsphinxAligner()
    known = [text for text in SENTENCES if not aligner.unknown_words(text)][:6]
    clear = [best_fitting_transcript(aligner, synthesize(text, "en-us"), 24_000, known) for text in known[:3]]
    assert clear == [0, 1, 2]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4 * 24_000, generator=generator) * 0.1
    chosen = {best_fitting_transcript(aligner, noise, 24_000, order) for order in (known, known[::-1])}
    assert chosen != {0}


def test_highest_score_wins_and_texts_that_do_not_align_lose():
    aligner = ScriptedAligner({"a": -30.0, "b": None, "c": -12.0})
    assert best_fitting_transcript(aligner, torch.zeros(1, 1), 24_000, ["a", "b", "c"]) == 2


def test_nothing_is_chosen_when_nothing_aligns():
    assert best_fitting_transcript(ScriptedAligner({"a": None}), torch.zeros(1, 1), 24_000, ["a"]) is None


def test_transcripts_nearest_in_number_of_words_are_taken_once_each_and_never_the_text_itself():
    others = ["One two, three!", "one", "four five six", "Four five six.", "a b c d", "a b c d e f g"]
    assert like_sized_transcripts("one two three", others, 2) == ["Four five six.", "a b c d"]


def test_too_few_transcripts_are_refused():
    with pytest.raises(ValueError, match="must hold 2 transcripts that differ from the text, got 1"):
        like_sized_transcripts("one", ["One!", "two"], 2)
