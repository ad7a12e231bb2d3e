"""Tokens get the time of the characters they cover; what is not spoken gets none and shifts nothing."""

import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mimi_bridge.alignment_targets import spans_to_durations, spans_to_frame_weights
from mimi_bridge.audio.espeak import SENTENCES
from mimi_bridge.data.alignment.tokens import spoken_share, token_spans
from mimi_bridge.data.manifest import Span
from mimi_bridge.frames import num_frames_for
from spoken_words import speak_words
from tiny_teachers import write_tiny_qwen

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


@pytest.mark.parametrize(
    "text, labels",
    [
        ("I have 42 dogs", ["i", "have", "forty two", "dogs"]),
        ("I have 42 dogs", ["i", "have", "42", "dogs"]),
        ("I have 42, dogs", ["I", "have", "<unk>", "DOGS"]),
        ("see Dr. Jones now", ["see", "doctor", "jones", "now"]),
        ("you & I went", ["you", "and", "I", "went"]),
        ("a naïve Ångström unit", ["a", "naive", "angstrom", "unit"]),
        ("wrote cafe\u0301 menus once", ["wrote", "café", "menus", "once"]),
        ("they don’t know this", ["they", "dont", "know", "this"]),
        ("die STRASSE ist lang", ["die", "straße", "ist", "lang"]),
        ("है हिन्दी भाषा अच्छी", ["है", "हिन्दी", "भाषा", "अच्छी"]),
    ],
)
def test_word_is_found_however_the_aligner_spells_it(text, labels):
    words = [Span(label, number + 0.1, number + 0.9) for number, label in enumerate(labels)]
    places = [(text.index(written), text.index(written) + len(written)) for written in text.split()]
    close(spans(text, places, words), [[word.start, word.end] for word in words])


def test_number_read_as_several_words_reaches_over_all_of_them():
    words = [Span("on", 0.0, 0.3), Span("forty", 0.4, 0.7), Span("two", 0.9, 1.2), Span("feet", 1.2, 1.5)]
    got = spans("on 42 feet", [(0, 2), (2, 3), (3, 4), (4, 5), (5, 10)], words)
    close([got[0], *got[2:]], [[0.0, 0.3], [0.4, 0.7], [0.9, 1.2], [1.2, 1.5]])


def test_compound_that_the_aligner_divides_keeps_its_inner_boundary():
    words = [Span("mary", 0.0, 0.4), Span("ann", 0.6, 0.9), Span("some", 1.0, 1.1), Span("thing", 1.1, 1.5)]
    got = spans("Mary-Ann, something", [(0, 4), (4, 5), (5, 8), (8, 9), (9, 14), (14, 19)], words)
    close([got[i] for i in (0, 2, 4, 5)], [[w.start, w.end] for w in words])


def test_words_that_the_aligner_joins_share_its_time_by_their_letters():
    close(spans("wood chuck", [(0, 4), (4, 10)], [Span("woodchuck", 0.0, 0.9)]), [[0.0, 0.4], [0.4, 0.9]])


def test_tokens_that_are_bytes_of_one_character_share_its_time():
    close(
        spans("héé", [(0, 1), (1, 2), (1, 3), (2, 3)], [Span("héé", 0.0, 0.6)]),
        [[0.0, 0.2], [0.2, 0.3], [0.3, 0.5], [0.5, 0.6]],
    )


def test_long_stretch_in_other_words_gets_no_time():
    text = "we saw four large ships"
    got = token_spans(text, [(0, 2), (3, 6), (7, 11), (12, 17), (18, 23)], [Span("we", 0, 1), Span("never", 1, 2)])
    assert got.diff(dim=1)[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_spoken_share_counts_letters_and_digits_that_have_a_time():
    assert spoken_share("“hello” — world! 🙂", HELLO) == 1.0
    assert spoken_share("hello 12345", HELLO[:1]) == 0.5
    assert spoken_share("quite another", HELLO) == spoken_share("...", HELLO) == 0.0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return PreTrainedTokenizerFast.from_pretrained(write_tiny_qwen(tmp_path_factory.mktemp("qwen")))


def tokens(tokenizer, text):
    return [tuple(offset) for offset in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


SPOKEN = [  # as written, and as an aligner may call it
    ("river", "RIVER"), ("don’t", "don't"), ("Mary-Ann", "mary-ann"), ("naïve", "naïve"), ("你好", "你好"),
    ("Привет", "привет"), ("e\u0301tude", "étude"), ("shells", "shells"), ("STRASSE", "strasse"), ("हिन्दी", "हिन्दी"),
    ("ﬁne", "fine"), ("mp3", "mp3"), ("x", "X"), ("안녕", "안녕"),
]  # fmt: skip
UNSPOKEN = [
    "🙂",
    "👩\u200d👩\u200d👧",
    "❤\ufe0f",
    "—",
    "...",
    "“",
    "”!",
    "(",
    "\n",
    "?!",
    "\u200b",
    "ⓧ",
    "�",
    "’",
    "***",
    "🏴",
]


def random_speech(rng):
    """A text, what is spoken in it, and for each character its time or None."""
    text, words, times, now = "", [], [], 0.0
    for written, label in rng.sample(SPOKEN, rng.randint(1, len(SPOKEN))):
        for filler in (*rng.sample(UNSPOKEN, rng.randint(0, 2)), rng.choice([" ", "  ", "\n", " "])):
            text, times = text + filler, times + [None] * len(filler)
        now += rng.choice([0.0, 0.1])
        word = Span(label, now, now + rng.uniform(0.05, 0.9))
        words.append(word)
        parts = [part for part in written.split("-")]
        letters, done = len("".join(parts)), 0
        for number, part in enumerate(parts):
            times += [None] if number else []
            for _ in part:
                times.append(tuple(now + (word.end - now) * (done + i) / letters for i in (0, 1)))
                done += 1
        text, now = text + written, word.end
    return text, words, times


@pytest.mark.parametrize("seed", range(40))
def test_tokens_have_the_time_of_their_characters_in_any_text(tokenizer, seed):
    text, words, times = random_speech(random.Random(seed))
    offsets = tokens(tokenizer, text)
    got = token_spans(text, offsets, words)
    assert bool((got.diff(dim=1) >= 0).all()) and bool((got[:, 0].diff() >= -1e-6).all())
    reach = [
        (first, last + (text[last : last + 1] == "\u0301")) for first, last in offsets
    ]  # composed by the tokenizer
    for character, time in enumerate(times):
        covering = [span for span, (first, last) in zip(got, reach, strict=True) if first <= character < last]
        if time is not None:
            assert min(s[0] for s in covering) <= time[0] + 1e-5 and max(s[1] for s in covering) >= time[1] - 1e-5
    for span, (first, last) in zip(got.tolist(), reach, strict=True):
        spoken = [time for time in times[first:last] if time is not None]
        if not spoken:
            assert span[0] == span[1]
        elif sum(a < last and first < b for a, b in reach) == 1:
            close(span, [spoken[0][0], spoken[-1][1]])
    # No time is counted twice: tokens that share a character divide it.
    assert got.diff(dim=1).sum() == pytest.approx(sum(word.end - word.start for word in words), abs=1e-3)


@pytest.mark.parametrize(
    "text", ["The river — “old” & grey 🙂 — ran past 3 mills, didn’t it?", "Naïve José sold 42 shells!"]
)
def test_tokens_of_synthetic_speech_are_where_its_words_are_said(tokenizer, text):
    _, spoken = speak_words(text)
    offsets = tokens(tokenizer, text)
    got = token_spans(text, offsets, [Span(word.label, word.start, word.end) for word in spoken]).tolist()
    for word in spoken:
        seconds = (word.end - word.start) / (word.last - word.first)
        for span, (first, last) in zip(got, offsets, strict=True):
            inside = range(max(first, word.first), min(last, word.last))
            if len(inside):
                assert word.start - 1e-4 <= span[0] and span[1] <= word.end + 1e-4
                if offsets.count((first, last)) == 1:
                    close(
                        span,
                        [
                            word.start + (inside[0] - word.first) * seconds,
                            word.start + (inside[-1] + 1 - word.first) * seconds,
                        ],
                    )


def test_rounding_to_whole_frames_loses_tokens_of_fast_speech_and_overlap_loses_none(tokenizer):
    tokens_with_time = lost_by_rounding = lost_by_overlap = 0
    for text in SENTENCES[:3]:
        audio, spoken = speak_words(text, words_per_minute=230)
        frame_mask = torch.ones(1, num_frames_for(audio.shape[-1], 1920), dtype=torch.bool)
        words = [Span(word.label, word.start, word.end) for word in spoken]
        got = token_spans(text, tokens(tokenizer, text), words)[None]
        has_time = got[0, :, 1] > got[0, :, 0]
        durations, token_mask = spans_to_durations(got, frame_mask, 12.5)
        assert durations.sum() == frame_mask.sum()
        weights = spans_to_frame_weights(got, frame_mask, 12.5).sum(dim=1)[0]
        tokens_with_time += int(has_time.sum())
        lost_by_rounding += int((durations[token_mask] == 0)[has_time].sum())
        lost_by_overlap += int((weights == 0)[has_time].sum())
    print(f"of {tokens_with_time} tokens rounding loses {lost_by_rounding}, overlap {lost_by_overlap}")
    assert lost_by_overlap == 0 and lost_by_rounding > tokens_with_time / 20
