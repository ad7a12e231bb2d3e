"""From words in time to text tokens in time: characters are the bridge.

An aligner says when each word was spoken; a tokenizer says which characters each token covers. A token gets the share
of its words' time that it has of their characters. What is not spoken (punctuation, emoji, special tokens, words the
aligner left out) gets no time, and shifts nothing that follows.

Text and aligner need not spell alike. Both are cut into pieces of letters, of digits, and single signs; pieces that
are equal but for case, accents and apostrophes belong together, in order. What lies between two such matches is the
same speech in another spelling ("42" and "forty two", "Mary-Ann" and "maryann"): it shares its time if it is short.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ..manifest import Span

APOSTROPHES = "'’‘`ʼ"
JOINERS = "\u00ad\u200c\u200d"  # written inside a word, not read: soft hyphen, zero-width non-joiner and joiner
SIGNS = "&%@§°$€£¥+="  # which are read aloud
UNKNOWN = "unk"  # how aligners spell what they cannot
MAX_RESPELLED = 2  # written words that an aligner may spell quite otherwise, between two that match


@dataclass(frozen=True)
class _Written:
    # A piece of the text: its characters from `first` to `last`, `key` for comparison.
    first: int
    last: int
    key: str


@dataclass(frozen=True)
class _Spoken:
    # A piece of an aligned word, with its time.
    start: float
    end: float
    key: str


@dataclass(frozen=True)
class _Place:
    # Characters of the text, also fractions of them, and when they are spoken.
    first: float
    last: float
    start: float
    end: float

    def at(self, character: float) -> float:
        share = (character - self.first) / (self.last - self.first)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def token_spans(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[Span]) -> Tensor:
    """When each token of a text is spoken.

    Args:
        text: As it was tokenized.
        offsets: First and last-plus-one character of each token, rising; equal for special tokens. Tokens that are
            parts of one character, as bytes are, share its time.
        words: What was spoken, in order, with its time.

    Returns:
        Start and end of each token in seconds, `(tokens, 2)`, float32; equal for a token without time. Starts never
        fall.
    """
    places = _place_words(text, words)
    lasts = [place.last for place in places]
    spans, now = [], 0.0
    for first, last in _disjoint(text, offsets):
        here = bisect_right(lasts, first)
        beyond = here
        while beyond < len(places) and places[beyond].first < last:
            beyond += 1
        if here == beyond:
            spans.append((now, now))
            continue
        start, end = max(now, places[here].at(first)), places[beyond - 1].at(last)
        spans.append((start, max(start, end)))
        now = start
    return torch.tensor(spans, dtype=torch.float32).reshape(-1, 2)


def spoken_share(text: str, words: Sequence[Span]) -> float:
    """Share of a text's letters, digits and signs read aloud that have a time; 0 if it has none.

    >>> spoken_share("hello, world", [Span("hello", 0.1, 0.5)])
    0.5
    """
    written = sum(piece.last - piece.first for piece in _pieces(text))
    placed = sum(place.last - place.first for place in _place_words(text, words))
    return placed / written if written else 0.0


def _disjoint(text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    # Tokens that cover the same character get equal parts of it.
    covering: dict[int, list[int]] = {}
    for token, (first, last) in enumerate(offsets):
        for character in range(first, last):
            covering.setdefault(character, []).append(token)
    for character in range(1, len(text)):  # an accent that the tokenizer drew into its letter is left uncovered
        if character not in covering and character - 1 in covering and _kind(text[character]) == "inner":
            covering[character] = covering[character - 1][-1:]
    reach: dict[int, tuple[float, float]] = {}
    for character in sorted(covering):
        number = len(covering[character])
        for part, token in enumerate(covering[character]):
            start = reach[token][0] if token in reach else character + part / number
            reach[token] = (start, character + (part + 1) / number)
    for token, (first, _) in enumerate(offsets):
        yield reach.get(token, (first, first))


def _pieces(text: str) -> list[_Written]:
    pieces: list[_Written] = []
    kind_before = ""
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == "inner":
            kind = kind_before
        elif kind == "apostrophe":
            kind = "letter" if kind_before == "letter" == _kind(text[place + 1 : place + 2]) else ""
        if kind and kind == kind_before and kind != "sign":
            piece = pieces[-1]
            pieces[-1] = _Written(piece.first, place + 1, piece.key + _key(character))
        elif kind:
            pieces.append(_Written(place, place + 1, _key(character)))
        kind_before = kind
    return [piece for piece in pieces if piece.key]


def _kind(character: str) -> str:
    if not character:
        return ""
    if character in APOSTROPHES:
        return "apostrophe"
    if character in SIGNS:
        return "sign"
    if character in JOINERS:
        return "inner"
    return {"L": "letter", "N": "digit", "M": "inner"}.get(unicodedata.category(character)[0], "")


def _key(character: str) -> str:
    if character in APOSTROPHES or character in JOINERS:
        return ""
    folded = unicodedata.normalize("NFKD", character.casefold())
    return "".join(part for part in folded if unicodedata.category(part)[0] != "M")


def _spoken_pieces(words: Sequence[Span]) -> list[_Spoken]:
    spoken = []
    for word in words:
        pieces = _pieces(word.label)
        total = sum(len(piece.key) for piece in pieces)
        done = 0
        for piece in pieces:
            start = word.start + (word.end - word.start) * done / total
            done += len(piece.key)
            spoken.append(_Spoken(start, word.start + (word.end - word.start) * done / total, piece.key))
    return spoken


def _place_words(text: str, words: Sequence[Span]) -> list[_Place]:
    # Every piece of the text that is spoken, in order, with its time.
    written, spoken = _pieces(text), _spoken_pieces(words)
    matcher = SequenceMatcher(None, [piece.key for piece in written], [piece.key for piece in spoken], autojunk=False)
    blocks = matcher.get_matching_blocks()  # the last one is empty, at the end of both
    places: list[_Place] = []
    written_done = spoken_done = 0
    for block in blocks:
        between = written[written_done : block.a], spoken[spoken_done : block.b]
        if _is_respelling(*between, anchored=len(blocks) > 1):
            places += _respelled(*between)
        for i in range(block.size):
            a, b = written[block.a + i], spoken[block.b + i]
            places.append(_Place(a.first, a.last, b.start, b.end))
        written_done, spoken_done = block.a + block.size, block.b + block.size
    return places


def _is_respelling(written: list[_Written], spoken: list[_Spoken], anchored: bool) -> bool:
    # `anchored`: something in the text matches.
    if not written or not spoken:
        return False
    if _letters(written) == _letters(spoken):
        return True
    in_letters = sum(piece.key.isalpha() for piece in written)
    if in_letters > MAX_RESPELLED:
        return False
    if in_letters < len(written) or any(piece.key == UNKNOWN for piece in spoken):
        return True
    return anchored and len(spoken) <= MAX_RESPELLED + 1


def _letters(pieces: Sequence[_Written | _Spoken]) -> str:
    return "".join(piece.key for piece in pieces)


def _respelled(written: list[_Written], spoken: list[_Spoken]) -> Iterator[_Place]:
    # Both are laid on one axis, from 0 to 1: by letters if they are the same letters, else the spoken by its time.
    same = _letters(written) == _letters(spoken)
    written_sizes = [float(len(piece.key)) for piece in written]
    spoken_sizes = [float(len(piece.key)) if same else piece.end - piece.start for piece in spoken]
    if sum(spoken_sizes) <= 0:
        return
    for i, written_from, written_to in _shares(written_sizes):
        for j, spoken_from, spoken_to in _shares(spoken_sizes):
            first, last = max(written_from, spoken_from), min(written_to, spoken_to)
            if last - first <= 1e-9:
                continue
            characters = _Place(written_from, written_to, written[i].first, written[i].last)
            seconds = _Place(spoken_from, spoken_to, spoken[j].start, spoken[j].end)
            yield _Place(characters.at(first), characters.at(last), seconds.at(first), seconds.at(last))


def _shares(sizes: list[float]) -> Iterator[tuple[int, float, float]]:
    total, done = sum(sizes), 0.0
    for number, size in enumerate(sizes):
        yield number, done / total, (done + size) / total
        done += size
