"""What a batch must hold for teachers to be computed from it, in place of what they say.

A crop's features depend on the recording around it, and a token's state on the text before it. So a batch holds, for
each crop, the audio that the speech model hears and the ids of all tokens, and says which frame and which token each
target is. Audio is made ready here, in a data loader's workers, by the very code that `mimi-bridge prepare` uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .teachers.speech import SpeechInput


@dataclass(frozen=True)
class TeacherInputs:
    """Which teachers are computed while training, and from what.

    Attributes:
        speech: Makes a recording ready for the speech model; None if there is none.
        text: Whether there is a language model.
        context_seconds: Of the recording on each side of a crop, for the speech model; None: all of it, as far as the
            model's `max_seconds` allow.
    """

    speech: SpeechInput | None = None
    text: bool = False
    context_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.context_seconds is not None and not self.context_seconds >= 0:
            raise ValueError(f"context_seconds must be at least 0, got {self.context_seconds}.")

    def window(self, first: int, count: int, num_frames: int, frame_rate: float) -> tuple[int, int]:
        """First and last-plus-one frame that the speech model hears around a crop of `count` frames from `first` on.

        >>> from types import SimpleNamespace
        >>> inputs = TeacherInputs(SimpleNamespace(max_seconds=60.0), context_seconds=0.8)
        >>> inputs.window(first=20, count=25, num_frames=100, frame_rate=12.5)
        (10, 55)
        """
        around = num_frames if self.context_seconds is None else round(self.context_seconds * frame_rate)
        start, end = max(0, first - around), min(num_frames, first + count + around)
        assert self.speech is not None
        most = max(count, int(self.speech.max_seconds * frame_rate))
        if end - start > most:
            start = min(max(start, first - (most - count) // 2), end - most)
            end = start + most
        return start, end

    def audio(
        self, audio: Tensor, first: int, count: int, sampling_rate: int, frame_size: int, name: str
    ) -> tuple[Tensor, int, int]:
        """What the speech model hears around a crop.

        Args:
            audio: The whole recording, `(samples,)`.
            first: The crop's first frame.
            count: Its frames.
            sampling_rate: Hz.
            frame_size: Samples of a frame.
            name: Of the row, for messages.

        Returns:
            Samples at the model's rate, `(samples,)`; how many frames they are, 0 if the crop is longer than the model
            takes; and the first of these frames.
        """
        assert self.speech is not None
        num_frames = -(-len(audio) // frame_size)
        start, end = self.window(first, count, num_frames, sampling_rate / frame_size)
        crop = audio[start * frame_size : end * frame_size]
        if not self.speech.takes(len(crop), sampling_rate):
            return audio.new_zeros(0), 0, start
        ready = self.speech(crop, sampling_rate, name) if len(crop) else np.zeros(0, np.float32)
        return torch.from_numpy(np.ascontiguousarray(ready, dtype=np.float32)), end - start, start


def token_ids_of(row: Mapping[str, Any], name: str) -> Tensor | None:
    """The ids of a row's tokens, `(tokens,)`, int64; None if it has none.

    Raises:
        ValueError: If they are no list of whole numbers.
    """
    given = row.get("token_ids")
    if given is None or len(given) == 0:
        return None
    ids = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids < 0).any():
        raise ValueError(f"token_ids of {name} must be whole numbers from 0 on, (tokens,), got {str(given)[:60]}.")
    return torch.from_numpy(ids.astype(np.int64))
