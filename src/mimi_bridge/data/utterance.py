"""One recording of a list, and a word or phone in time."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One recording, or a segment of one.

    Attributes:
        id: Unique in its list.
        path: The recording.
        speaker: Who speaks.
        text: What is said, without tags, or None.
        licence: Of the recording, or None.
        alignment: A file of words in seconds from the recording's beginning, or None.
        problem: Why there is no text where there should be some, or None.
        start: Where the segment begins, seconds; None: the list does not say, so it begins with the recording.
        end: Where it ends, seconds; None: with the recording.
        tags: What was taken out of the text, as it was written.
    """

    id: str
    path: Path
    speaker: str
    text: str | None = None
    licence: str | None = None
    alignment: Path | None = None
    problem: str | None = None
    start: float | None = None
    end: float | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """A word or a phone, from `start` to `end` seconds."""

    label: str
    start: float
    end: float
