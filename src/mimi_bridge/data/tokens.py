"""From words in time to text tokens in time: characters are the bridge.

An aligner says when each word was spoken; a tokenizer says which characters each token covers. A token gets the share
of its words' time that it has of their characters. What is not spoken (punctuation, special tokens, words the aligner
left out) gets no time, and shifts nothing that follows.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from .manifest import Span

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*", re.UNICODE)  # letters of any script, with inner apostrophes


def token_spans(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[Span]) -> Tensor:
    """When each token of a text is spoken.

    Args:
        text: As it was tokenized.
        offsets: First and last-plus-one character of each token; equal for special tokens.
        words: What was spoken, in order, with its time; spelled as in the text but for case and apostrophes.

    Returns:
        Start and end of each token in seconds, `(tokens, 2)`, float32; equal for a token without time. Starts never
        fall.
    """
    places = _place_words(text, words)
    spans, now = [], 0.0
    for first, last in offsets:
        times = [_share(first, last, *place) for place in places if first < place[1] and place[0] < last]
        if times:
            start, end = max(now, times[0][0]), times[-1][1]
            spans.append((start, max(start, end)))
            now = start
        else:
            spans.append((now, now))
    return torch.tensor(spans, dtype=torch.float32).reshape(-1, 2)


def _place_words(text: str, words: Sequence[Span]) -> list[tuple[int, int, float, float]]:
    # (first character, last-plus-one, start, end) of each spoken word that is found in the text.
    written = [(match.start(), match.end(), _plain(match.group())) for match in WORD.finditer(text)]
    matcher = SequenceMatcher(None, [word for *_, word in written], [_plain(word.label) for word in words], False)
    return [
        (*written[block.a + i][:2], words[block.b + i].start, words[block.b + i].end)
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]


def _plain(word: str) -> str:
    return word.replace("’", "'").casefold()


def _share(first: int, last: int, word_first: int, word_last: int, start: float, end: float) -> tuple[float, float]:
    seconds_per_character = (end - start) / (word_last - word_first)
    return (
        start + (max(first, word_first) - word_first) * seconds_per_character,
        start + (min(last, word_last) - word_first) * seconds_per_character,
    )
