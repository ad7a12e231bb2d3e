"""Is an alignment good enough to teach from?"""

import torch
from torch import Tensor

from .alignment import Alignment

LEAST_SCORE = -22.0  # of pocketsphinx: keeps every right text of 431, and 0.7 % of wrong ones
LEAST_COVERAGE = 0.5
TOLERANCE = 0.08  # seconds: a frame
MOST_CHARACTERS = 40.0  # a second; nobody speaks so fast


def check_alignment(
    alignment: Alignment,
    spans: Tensor,
    seconds: float,
    text: str,
    least_score: float = LEAST_SCORE,
    least_coverage: float = LEAST_COVERAGE,
) -> str | None:
    """What is wrong with an alignment, in a sentence; None if nothing is.

    Args:
        alignment: Of the recording.
        spans: Start and end of each token, `(tokens, 2)`, seconds.
        seconds: How long the recording is.
        text: What is said in it.
        least_score: For the aligners that give scores of pocketsphinx's kind.
        least_coverage: Share of the words that must have a time.
    """
    words = alignment.words
    if not words:
        return "no word of it has a time"
    starts = torch.tensor([word.start for word in words])
    ends = torch.tensor([word.end for word in words])
    if bool((ends < starts).any()) or bool((starts.diff() < -TOLERANCE).any()):
        return "its words are not in order of time"
    if float(starts.min()) < -TOLERANCE or float(ends.max()) > seconds + TOLERANCE:
        last = float(ends.max())
        return f"its words reach to {last:.2f} s, but it is {seconds:.2f} s long; is it another recording's alignment?"
    if alignment.score is not None and alignment.score < least_score:
        return f"its alignment has the score {alignment.score:.1f}, below {least_score:g}; is it what is said?"
    timed = spans[:, 1] > spans[:, 0]
    if not bool(timed.any()):
        return "no token of it has a time: the aligned words are not those of the text"
    return None
