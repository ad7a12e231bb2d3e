"""Is an alignment good enough to teach from?

Each check answers with what is wrong, in half a sentence that can follow a recording's name, or with None.
"""

import torch
from torch import Tensor

from .tokens import spoken_share
from .types import Alignment

NO_SCORE = float("-inf")  # a least score that every alignment has
MIN_COVERAGE = 0.5
TOLERANCE = 0.08  # seconds: a frame
MAX_CHARACTERS = 50.0  # a second, over the whole of a text; hurried speech has 25


def check_alignment(
    alignment: Alignment,
    spans: Tensor,
    seconds: float,
    text: str,
    min_score: float = NO_SCORE,
    min_coverage: float = MIN_COVERAGE,
) -> str | None:
    """What is wrong with an alignment; None if nothing is.

    Args:
        alignment: Of the recording.
        spans: Start and end of each token, `(tokens, 2)`, seconds.
        seconds: How long the recording is.
        text: What is said in it.
        min_score: As the aligner has it (`Aligner.min_score`); each has a scale of its own. An alignment without
            a score passes.
        min_coverage: Share of the text's letters and digits that must have a time.
    """
    words = alignment.words
    if not words:
        return "no word of it has a time"
    times = torch.tensor([[word.start, word.end] for word in words], dtype=torch.float64)
    if not bool(torch.isfinite(times).all()):
        return "a word of it has a time that is no number"
    starts, ends = times.unbind(dim=1)
    if bool((ends < starts).any()) or bool((starts[1:] < ends[:-1] - TOLERANCE).any()):
        return "its words are not in order of time"
    if float(starts.min()) < -TOLERANCE or float(ends.max()) > seconds + TOLERANCE:
        return (
            f"its words reach from {float(starts.min()):.2f} to {float(ends.max()):.2f} s, but it is {seconds:.2f} s "
            "long; is it another recording's alignment?"
        )
    if alignment.score is not None and not alignment.score >= min_score:
        return f"its alignment has the score {alignment.score:.1f}, below {min_score:g}; is it what is said?"
    coverage = spoken_share(text, words)
    if coverage == 0:
        return "no token of it has a time: the aligned words are not those of the text"
    if coverage < min_coverage:
        return f"{coverage:.0%} of its text has a time, and {min_coverage:.0%} must; is it what is said?"
    letters, spoken_seconds = sum(map(str.isalnum, text)) * coverage, float((ends - starts).sum())
    if letters > MAX_CHARACTERS * spoken_seconds:
        return f"{letters:.0f} letters of it are said in {spoken_seconds:.2f} s, which nobody can; is it cut short?"
    return check_spans(spans, seconds)


def check_spans(spans: Tensor, seconds: float) -> str | None:
    """What is wrong with tokens in time: they must run forward, in order, inside the recording.

    Args:
        spans: Start and end of each token, `(tokens, 2)`, seconds.
        seconds: How long the recording is.
    """
    starts, ends = spans.double().unbind(dim=1)
    if not bool(torch.isfinite(spans).all()):
        return "a token of it has a time that is no number"
    if bool((ends < starts).any()) or bool((starts.diff() < 0).any()):
        return "its tokens are not in order of time"
    if len(spans) and (float(starts.min()) < -TOLERANCE or float(ends.max()) > seconds + TOLERANCE):
        return f"its tokens reach to {float(ends.max()):.2f} s, but it is {seconds:.2f} s long"
    if not bool((ends > starts).any()):
        return "no token of it has a time"
    return None


def check_durations(durations: Tensor, num_frames: int) -> str | None:
    """What is wrong with whole-frame durations: they must be integers, none negative, that sum to the frames.

    Args:
        durations: Frames of each token and silence, `(entries,)`, as `spans_to_durations` gives them.
        num_frames: Of the recording.
    """
    if durations.is_floating_point() or durations.dtype == torch.bool:
        return f"its durations must be whole frames as integers, and are {durations.dtype}"
    if bool((durations < 0).any()):
        return "a duration of it is negative"
    if int(durations.sum()) != num_frames:
        return f"its durations sum to {int(durations.sum())} frames, but it has {num_frames}"
    return None
