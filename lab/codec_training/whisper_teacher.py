"""Whisper's encoder as a teacher: its features of each 80 ms.

The encoder takes windows of 30 s and costs the same for a short recording, so recordings are concatenated to fill
windows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, WhisperModel

from mimi_bridge.audio.files import resample

STEPS_PER_FRAME = 4  # of 20 ms


class WhisperTeacher:
    """Whisper's last encoder layer, averaged to 12.5 vectors a second.

    Args:
        name: Of a Whisper on the Hub, or its folder.

    Attributes:
        dim: Size of the features.

    Raises:
        OSError: If there is no such model.
    """

    def __init__(self, name: str = "openai/whisper-base"):
        self._extractor = AutoFeatureExtractor.from_pretrained(name)
        self._encoder = WhisperModel.from_pretrained(name, dtype=torch.float32).encoder.eval()
        self.dim: int = self._encoder.config.d_model
        self._rate: int = self._extractor.sampling_rate
        self._window: int = self._extractor.n_samples
        self._frame = STEPS_PER_FRAME * 2 * self._extractor.hop_length  # samples; the encoder halves the rate

    def features(self, recordings: Sequence[Tensor], sampling_rate: int) -> list[Tensor]:
        """The features of each recording, in the order given.

        Args:
            recordings: `(samples,)` each, of any lengths.
            sampling_rate: Of all of them, Hz.

        Returns:
            For each `(frames, dim)`, with a frame for each started 80 ms.
        """
        line, counts = [], []
        for number, recording in enumerate(recordings):
            samples = resample(recording.numpy(), sampling_rate, self._rate, name=f"recording {number}")[0].numpy()
            counts.append(max(1, -(-len(samples) // self._frame)))
            line.append(np.pad(samples, (0, counts[-1] * self._frame - len(samples))))
        return list(self._encode(np.concatenate(line)).split(counts))

    @torch.inference_mode()
    def _encode(self, samples: np.ndarray) -> Tensor:
        # `(frames, dim)` of one long recording.
        windows = [samples[first : first + self._window] for first in range(0, len(samples), self._window)]
        features = []
        for window in windows:
            inputs = self._extractor(window, sampling_rate=self._rate, return_tensors="pt").input_features
            steps = self._encoder(inputs).last_hidden_state[0]
            frames = steps.unflatten(0, (-1, STEPS_PER_FRAME)).mean(dim=1)
            features.append(frames[: len(window) // self._frame])
        return torch.cat(features).clone()
