"""Alignments that somebody else made: Praat's TextGrid (as the Montreal Forced Aligner writes it), CTM, and json.

Silence (an empty interval, `<eps>`, `sil`, `sp`) and sounds (`[laughter]`) belong to no word and are passed over. None
of these files holds a score on a scale of its own, so that an alignment from a file has none; a CTM's confidence is
read past.

Source: the Praat manual, "TextGrid file formats": of a text file count only numbers, texts in quotes and flags in
angle brackets that stand free, which is all that the long and the short form share; NIST sctk `doc/infmts.htm`: CTM.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..manifest import Span, Utterance, read_phones, read_words
from ..segments import spans_in_segment
from ..tags import is_tag
from .tokens import UNKNOWN
from .types import Alignment

SILENCES = frozenset({"", "<eps>", "<sil>", "sil", "sp", "<b>", "<blank>", "<space>"})
WORD_TIERS = ("words", "word")
PHONE_TIERS = ("phones", "phone", "phonemes", "segments")
PRAAT_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|(<\w+>)|(!.*)|([^\s"]+)')
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_alignment(path: str | Path, utterance_id: str | None = None) -> Alignment:
    """Words, and phones where there are some, of an alignment file.

    Args:
        path: A `.TextGrid` (long or short, UTF-8 or UTF-16), a `.ctm`, or a `.json` of words with their phones. Of a
            TextGrid the tiers "words" and "phones" are read, also behind a speaker's name ("ann - words"); a single
            tier of intervals may have any name.
        utterance_id: Which recording of a CTM that holds several: its name there, a path that ends in it, or else the
            CTM's own.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is none of these, or holds no words of the recording.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".textgrid":
        words, phones = _read_text_grid(path)
    elif suffix == ".ctm":
        words, phones = _read_ctm(path, utterance_id), []
    elif suffix == ".json":
        words = read_words(path)
        phones = read_phones(path) if all("phones" in word for word in json.loads(path.read_text())["words"]) else []
    else:
        raise ValueError(
            f"{path} must be an alignment in .TextGrid, .ctm or .json, not {suffix or 'without a suffix'}."
        )
    return Alignment(words=_without_silence(path, words), phones=_without_silence(path, phones))


def given_alignment(utterance: Utterance) -> Alignment:
    """The words of a recording that come with it; of a segment, those that lie in it, from its own beginning.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the utterance has none, or as `read_alignment`.
    """
    if utterance.alignment is None:
        raise ValueError("it comes without an alignment")
    is_whole = utterance.start is None and utterance.end is None
    found = read_alignment(utterance.alignment, utterance.id if is_whole else utterance.path.name)
    words, phones = (spans_in_segment(spans, utterance) for spans in (found.words, found.phones))
    return replace(found, words=words, phones=phones)


def _without_silence(path: Path, spans: list[Span]) -> list[Span]:
    for span in spans:
        if not isinstance(span.label, str):
            raise ValueError(f"{path}: a label must be a text, got {span.label!r}.")
        if not (math.isfinite(span.start) and math.isfinite(span.end) and span.start <= span.end):
            raise ValueError(
                f"{path}: {span.label!r} must run forward in seconds, got {span.start:g} to {span.end:g}; is the file "
                "damaged?"
            )
    return [span for span in spans if not _is_silence(span.label.strip())]


def _is_silence(label: str) -> bool:
    # An aligner's own mark for a word that it does not know is one; any other tag is the sound of no word.
    return label.casefold() in SILENCES or (is_tag(label) and UNKNOWN not in label.casefold())


def _text(path: Path) -> str:
    raw = path.read_bytes()
    encoding = "utf-16" if raw.startswith(UTF_16_MARKS) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8, or in UTF-16 with its mark ({error}).") from error


class _Elements:
    """The free-standing numbers, texts and flags of a Praat file, taken one after the other."""

    def __init__(self, path: Path):
        self._path, self._elements = path, _praat_elements(_text(path))

    def text(self, what: str) -> str:
        return self._next("text", what)

    def flag(self, what: str) -> str:
        return self._next("flag", what)

    def number(self, what: str) -> float:
        return float(self._next("number", what))

    def count(self, what: str) -> int:
        number = self._next("number", what)
        if not number.isdecimal():
            raise ValueError(f"{self._path} must be a TextGrid, but {what} is {number}.")
        return int(number)

    def _next(self, kind: str, what: str) -> str:
        found, element = next(self._elements, ("end", "the file's end"))
        if found != kind:
            raise ValueError(
                f"{self._path} must be a TextGrid, but where {what} should be, a {kind}, it has {element[:60]!r}; is "
                "it cut short?"
            )
        return element


def _praat_elements(text: str) -> Iterator[tuple[str, str]]:
    for match in PRAAT_ELEMENT.finditer(text):
        quoted, flag, _, other = match.groups()
        if quoted is not None:
            yield "text", quoted.replace('""', '"')
        elif flag is not None:
            yield "flag", flag
        elif other is not None and NUMBER.fullmatch(other):
            yield "number", other


def _read_text_grid(path: Path) -> tuple[list[Span], list[Span]]:
    elements = _Elements(path)
    for expected in ("ooTextFile", "TextGrid"):
        if elements.text(f"the text {expected!r}") != expected:
            raise ValueError(f"{path} must be a TextGrid in Praat's text form; it does not begin as one.")
    elements.number("the grid's start"), elements.number("the grid's end")
    exists = elements.flag("<exists>") == "<exists>"
    tiers = [_read_tier(elements) for _ in range(elements.count("the number of tiers") if exists else 0)]
    intervals = [(name, spans) for name, spans in tiers if spans is not None]
    words = _tier(path, intervals, WORD_TIERS)
    if words is None and len(intervals) == 1:
        words = intervals[0][1]
    if words is None:
        names = ", ".join(repr(name) for name, _ in tiers) or "none"
        raise ValueError(
            f"{path} must have a tier of intervals named 'words', but its tiers are: {names}; rename one."
        )
    return words, _tier(path, intervals, PHONE_TIERS) or []


def _read_tier(elements: _Elements) -> tuple[str, list[Span] | None]:
    # Name and intervals; None in their place for a tier of points.
    kind, name = elements.text("the kind of a tier"), elements.text("the name of a tier")
    elements.number("a tier's start"), elements.number("a tier's end")
    count, spans = elements.count("the number of a tier's intervals"), []
    for _ in range(count):
        start = elements.number("an interval's start")
        end = start if kind == "TextTier" else elements.number("an interval's end")
        spans.append(Span(elements.text("an interval's text").strip(), start, end))
    return name, None if kind == "TextTier" else spans


def _tier(path: Path, tiers: list[tuple[str, list[Span]]], names: tuple[str, ...]) -> list[Span] | None:
    found = [(name, spans) for name, spans in tiers if name.casefold().rpartition(" - ")[2].strip() in names]
    if len(found) > 1:
        listed = ", ".join(repr(name) for name, _ in found)
        raise ValueError(f"{path} must have one tier of {names[0]}, but it has {listed}; keep one speaker's.")
    return found[0][1] if found else None


class _CtmLine(NamedTuple):
    channel: str
    span: Span


def _read_ctm(path: Path, utterance_id: str | None) -> list[Span]:
    stamp = path.stat()
    recordings = _ctm_recordings(path, stamp.st_mtime_ns, stamp.st_size)
    if not recordings:
        raise ValueError(f"{path} must hold lines of recording, channel, start, duration and word, but it has none.")
    wanted = (
        [] if utterance_id is None else [utterance_id, str(Path(utterance_id).with_suffix("")), _stem(utterance_id)]
    )
    if len(recordings) == 1:  # whatever it is called
        wanted += recordings
    name = next((name for name in [*wanted, path.stem] if name in recordings), None)
    if name is None:
        raise ValueError(
            f"{path} must hold the recording {utterance_id or path.stem!r}, but its {len(recordings)} recordings are "
            f"{', '.join(list(recordings)[:3])}...; the id of the recording must be its name there."
        )
    channels = sorted({line.channel for line in recordings[name]})
    if len(channels) > 1:
        raise ValueError(f"{path} must give {name} one channel, but it has {' and '.join(channels)}; keep one.")
    return [line.span for line in recordings[name]]


def _stem(utterance_id: str) -> str:
    return Path(utterance_id).stem


@lru_cache(maxsize=4)  # one file often holds a whole corpus, and is asked for one recording after the other
def _ctm_recordings(path: Path, _modified: int, _size: int) -> dict[str, list[_CtmLine]]:
    recordings: dict[str, list[_CtmLine]] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields or line.lstrip().startswith(";;"):
            continue
        try:
            recording, channel, start, duration, word = fields[:5]
            span = Span(word, float(start), float(start) + float(duration))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected recording, channel, start, duration, word and at most a confidence, "
                f"got {line.strip()[:60]!r}."
            ) from error
        recordings.setdefault(recording, []).append(_CtmLine(channel, span))
    return recordings
