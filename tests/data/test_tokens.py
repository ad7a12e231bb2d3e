"""Tokens get the time of the characters they cover; what is not spoken gets none and shifts nothing."""

import pytest
import torch

from mimi_bridge.data.manifest import Span
from mimi_bridge.data.tokens import token_spans

HELLO = [Span("hello", 0.5, 1.0), Span("world", 1.2, 1.7)]


def spans(text, offsets, words=HELLO):
    return token_spans(text, offsets, words).tolist()


def close(got, expected):
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-6, rtol=0)


def test_token_that_is_a_word_gets_its_time():
    close(spans("hello world", [(0, 5), (6, 11)]), [[0.5, 1.0], [1.2, 1.7]])


def test_tokens_of_one_word_share_its_time_by_their_characters():
    close(spans("hello world", [(0, 2), (2, 5), (6, 11)]), [[0.5, 0.7], [0.7, 1.0], [1.2, 1.7]])


def test_token_with_its_leading_space_gets_the_words_time():
    close(spans("hello world", [(0, 5), (5, 11)]), [[0.5, 1.0], [1.2, 1.7]])


def test_token_over_two_words_reaches_from_the_first_to_the_last():
    close(spans("hello world", [(0, 11)]), [[0.5, 1.7]])


def test_special_tokens_and_punctuation_get_no_time_and_shift_nothing():
    text = "“Hello,” — world! 🙂"
    offsets = [(0, 0), (0, 1), (1, 6), (6, 8), (9, 10), (11, 16), (16, 17), (18, 19), (0, 0)]
    got = spans(text, offsets)
    close([got[2], got[5]], [[0.5, 1.0], [1.2, 1.7]])
    assert all(start == end for number, (start, end) in enumerate(got) if number not in (2, 5))


def test_starts_never_fall():
    got = token_spans("Hello, 12 world", [(0, 0), (0, 5), (5, 6), (7, 9), (10, 15), (0, 0)], HELLO)
    assert bool((got[:, 0].diff() >= 0).all()) and bool((got[:, 1] >= got[:, 0]).all())


@pytest.mark.parametrize("text", ["HELLO World", "hello\nworld", "hello, world.", "hello   world"])
def test_case_space_and_punctuation_do_not_matter_to_the_match(text):
    first, second = text.lower().index("hello"), text.lower().index("world")
    close(spans(text, [(first, first + 5), (second, second + 5)]), [[0.5, 1.0], [1.2, 1.7]])


def test_word_the_aligner_left_out_gets_no_time():
    got = spans("hello 42 dear world", [(0, 5), (6, 8), (9, 13), (14, 19)])
    close([got[0], got[3]], [[0.5, 1.0], [1.2, 1.7]])
    assert got[1][0] == got[1][1] and got[2][0] == got[2][1]


def test_curly_apostrophe_is_the_aligners_straight_one():
    close(
        spans("don’t go", [(0, 3), (3, 5), (6, 8)], [Span("don't", 0.0, 0.5), Span("go", 0.5, 0.7)]),
        [[0.0, 0.3], [0.3, 0.5], [0.5, 0.7]],
    )


def test_text_in_another_script_is_matched_letter_for_letter():
    close(
        spans("Привет, мир", [(0, 6), (8, 11)], [Span("привет", 0.0, 0.6), Span("мир", 0.7, 1.0)]),
        [[0.0, 0.6], [0.7, 1.0]],
    )


def test_repeated_words_are_taken_in_order():
    words = [Span("the", 0.0, 0.1), Span("cat", 0.1, 0.4), Span("the", 0.5, 0.6), Span("dog", 0.6, 0.9)]
    close(spans("the cat, the dog", [(0, 3), (4, 7), (9, 12), (13, 16)], words), [[w.start, w.end] for w in words])


def test_text_without_tokens_gives_no_spans():
    assert token_spans("", [], HELLO).shape == (0, 2)


def test_text_without_its_words_gives_no_time():
    assert not token_spans("quite another", [(0, 5), (6, 13)], HELLO).any()
