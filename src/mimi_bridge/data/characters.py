"""What is written of what is said, in time: the bytes of lower-case words, spread evenly over each word's time.

Bytes of UTF-8 need no list of letters: labels are the same in every language, data set and run.
"""

from typing import Any

import torch
from torch import Tensor

from ..losses.characters import BLANK
from .frame_targets import as_mappings

FIRST_BYTE = BLANK + 1  # label of the byte 0
SPACE = ord(" ")


def characters_by_frame(words: Any, num_frames: int, frame_rate: float, name: str) -> Tensor:
    """The label of each character and the frame of its middle, `(characters, 2)`, int64, in order.

    Words have a space between them, where the later begins.

    Args:
        words: In time, each with `word`, `start` and `end` in seconds.
        num_frames: Of the recording.
        frame_rate: Hz.
        name: Of the row, for messages.

    Raises:
        ValueError: If a word is not such a mapping, or its times make no sense.
    """
    labels: list[int] = []
    times: list[float] = []
    for word in as_mappings(words):
        try:
            text, start, end = str(word["word"]).strip().lower(), float(word["start"]), float(word["end"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"words of {name} must be mappings of word, start and end (seconds), got {str(word)[:60]}."
            ) from error
        if not 0 <= start <= end < float("inf"):
            raise ValueError(f"words of {name} must begin before they end, in seconds; check their alignment.")
        if not text:
            continue
        if labels:
            labels.append(FIRST_BYTE + SPACE)
            times.append(start)
        written = text.encode()
        labels += [FIRST_BYTE + byte for byte in written]
        times += [start + (place + 0.5) / len(written) * (end - start) for place in range(len(written))]
    frames = (torch.tensor(times) * frame_rate).long().clamp(max=num_frames - 1)
    return torch.stack([torch.tensor(labels, dtype=torch.long), frames], dim=1)
