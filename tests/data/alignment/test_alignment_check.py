"""What keeps an alignment from teaching, each in a sentence."""

import pytest
import torch

from mimi_bridge.alignment_targets import spans_to_durations
from mimi_bridge.data.alignment.check import check_alignment, check_durations, check_spans
from mimi_bridge.data.alignment.types import Alignment
from mimi_bridge.data.manifest import Span

TEXT = "Hello, dear 42!"
WORDS = [Span("hello", 0.2, 0.6), Span("dear", 0.6, 0.9), Span("forty two", 1.0, 1.5)]
SPANS = torch.tensor([[0.2, 0.6], [0.2, 0.2], [0.6, 0.9], [1.0, 1.5]])


def check(words=WORDS, spans=SPANS, seconds=1.6, text=TEXT, score=-5.0, **limits):
    return check_alignment(Alignment(words, score=score), spans, seconds, text, **limits)


def test_good_alignment_passes():
    assert check(min_score=-10.0) is None


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"words": []}, "no word of it has a time"),
        ({"words": [WORDS[1], WORDS[0]]}, "its words are not in order of time"),
        ({"words": [Span("hello", 0.2, 0.9), Span("dear", 0.6, 0.9)]}, "its words are not in order of time"),
        ({"words": [Span("hello", 0.6, 0.2)]}, "its words are not in order of time"),
        ({"words": [Span("hello", 0.2, float("nan"))]}, "time that is no number"),
        ({"seconds": 1.2}, "its words reach from 0.20 to 1.50 s, but it is 1.20 s long"),
        ({"words": [Span("hello", -0.2, 0.6)]}, "its words reach from -0.20 to 0.60 s"),
        ({"min_score": -4.0}, "has the score -5.0, below -4; is it what is said"),
        ({"score": float("nan")}, "has the score nan"),
        ({"text": "quite another"}, "the aligned words are not those of the text"),
        ({"text": "Hello, what else is said here?"}, "22% of its text has a time, and 50% must"),
        ({"min_coverage": 0.9, "words": WORDS[:2]}, "82% of its text has a time, and 90% must"),
        ({"words": [Span("hello", 0.2, 0.21), Span("dear", 0.21, 0.3), Span("42", 0.3, 0.31)]}, "which nobody can"),
        ({"spans": SPANS.flip(0)}, "its tokens are not in order of time"),
    ],
)
def test_bad_alignment_is_named(given, problem):
    assert problem in check(**given)


def test_alignment_without_a_score_passes_any_min_score():
    assert check(score=None, min_score=0.0) is None


def test_aligner_may_round_by_less_than_a_frame():
    assert check(words=[Span("hello", -0.03, 0.63), Span("dear", 0.6, 0.9), Span("42", 1.0, 1.65)]) is None


@pytest.mark.parametrize(
    "spans, problem",
    [
        (SPANS, None),
        (torch.zeros(0, 2), "no token of it has a time"),
        (torch.ones(3, 2), "no token of it has a time"),
        (torch.tensor([[0.5, 0.4]]), "not in order"),
        (torch.tensor([[0.5, 0.6], [0.4, 0.7]]), "not in order"),
        (torch.tensor([[0.5, float("inf")]]), "no number"),
        (torch.tensor([[0.5, 1.9]]), "its tokens reach to 1.90 s, but it is 1.60 s long"),
    ],
)
def test_spans_must_run_forward_in_order_inside_the_recording(spans, problem):
    found = check_spans(spans, 1.6)
    assert found is None if problem is None else problem in found


@pytest.mark.parametrize(
    "durations, problem",
    [
        ([2, 0, 3], None),
        ([2, 0, 2], "its durations sum to 4 frames, but it has 5"),
        ([7, -2], "a duration of it is negative"),
        ([2.0, 3.0], "must be whole frames as integers"),
    ],
)
def test_durations_must_be_integers_that_sum_to_the_frames(durations, problem):
    found = check_durations(torch.tensor(durations), 5)
    assert found is None if problem is None else problem in found


def test_durations_of_spans_pass():
    durations, _ = spans_to_durations(SPANS[None], torch.ones(1, 20, dtype=torch.bool), 12.5)
    assert check_durations(durations[0], 20) is None
