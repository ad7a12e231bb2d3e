"""Words in time, whoever found them: what an aligner gives, and what it must be able to do."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..manifest import Span


@dataclass(frozen=True)
class Alignment:
    """A transcript laid over a recording.

    Attributes:
        words: In order; silence between them belongs to no word. A label is spelled as in the text, but for case,
            or as it is said ("forty two" for "42").
        phones: In order; empty if the aligner has none.
        score: Mean log score of a frame, higher fits better, on a scale of the aligner's own; None if it has none.
    """

    words: list[Span]
    phones: list[Span] = field(default_factory=list)
    score: float | None = None


class Aligner(Protocol):
    """Lays texts over recordings.

    Attributes:
        min_score: Below it, text and recording hardly belong together.
    """

    min_score: float

    def align(self, audio: Tensor, sampling_rate: int, text: str) -> Alignment | None:
        """Lay a text over a recording.

        Args:
            audio: `(1, samples)`.
            sampling_rate: Hz.
            text: What is said.

        Returns:
            None if there is no way to lay it: it is too long for the recording, or quite another text.

        Raises:
            ValueError: If the text holds nothing that can be aligned, or the recording is too long.
        """
