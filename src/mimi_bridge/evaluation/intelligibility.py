"""Intelligibility by forced alignment: a recording's own transcript must fit better than other transcripts.

An aligner scores how well a given text fits, which is far more reliable than recognition by a small offline model.
The other transcripts are chosen to be hard: they have nearly the same number of words.
"""

from torch import Tensor

from ..data.alignment.pocketsphinx import PocketsphinxAligner, normalized_words


def like_sized_transcripts(text: str, others: list[str], count: int) -> list[str]:
    """The transcripts, different from `text` and each other, that are nearest to it in number of words.

    Raises:
        ValueError: If there are not so many.
    """
    words = normalized_words(text)
    unlike = {" ".join(normalized_words(other)): other for other in others}
    unlike.pop(" ".join(words), None)
    if len(unlike) < count:
        raise ValueError(f"others must hold {count} transcripts that differ from the text, got {len(unlike)}.")
    nearest = sorted(unlike.values(), key=lambda other: (abs(len(normalized_words(other)) - len(words)), other))
    return nearest[:count]


def best_fitting_transcript(
    aligner: PocketsphinxAligner, audio: Tensor, sampling_rate: int, transcripts: list[str]
) -> int | None:
    """Which transcript fits a recording best.

    Args:
        aligner: Knows every word of the transcripts.
        audio: `(1, samples)`.
        sampling_rate: Hz.
        transcripts: To choose from.

    Returns:
        Its index, or None if none can be aligned at all.
    """
    scores: dict[int, float] = {}
    for index, text in enumerate(transcripts):
        alignment = aligner.align(audio, sampling_rate, text)
        if alignment is not None and alignment.score is not None:
            scores[index] = alignment.score
    return max(scores, key=lambda index: scores[index]) if scores else None
