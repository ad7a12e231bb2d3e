"""Models whose features a codec or a head learns to tell: their hidden states, one vector a frame.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2: WavLM, averaged over windows of 8 features, 4 apart,
that see the future, too.
"""

import numpy as np
import soxr
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from ..frames import pool_to_frames


class SpeechTeacher:
    """A speech model of 50 features a second, such as WavLM or HuBERT.

    Args:
        name: A model of transformers on the Hub (`microsoft/wavlm-large`), or its folder, with a feature extractor.
        device: Where it runs.

    Raises:
        OSError: If there is no such model.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        self._extractor = AutoFeatureExtractor.from_pretrained(name)
        self._model = AutoModel.from_pretrained(name).eval().to(device)
        self.dim: int = self._model.config.hidden_size

    @torch.no_grad()
    def features(self, audio: Tensor, sampling_rate: int, num_frames: int) -> Tensor:
        """The last hidden states of whole-frame audio, averaged to frames.

        Args:
            audio: `(batch, 1, samples)`, all rows of one length.
            sampling_rate: Hz; resampled to the teacher's own.
            num_frames: Frames of 80 ms in the audio.

        Returns:
            `(batch, num_frames, dim)`, float32, on the teacher's device.
        """
        own_rate = self._extractor.sampling_rate
        samples = np.ascontiguousarray(audio[:, 0].detach().cpu().float().numpy().T)  # soxr: (samples, channels)
        rows = list(soxr.resample(samples, sampling_rate, own_rate, quality="HQ").T)
        inputs = self._extractor(rows, sampling_rate=own_rate, return_tensors="pt").to(self._model.device)
        hidden = self._model(inputs.input_values).last_hidden_state
        frame_mask = torch.ones(len(hidden), num_frames, dtype=torch.bool, device=hidden.device)
        return pool_to_frames(hidden, frame_mask)
