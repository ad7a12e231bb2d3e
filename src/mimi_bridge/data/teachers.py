"""Models whose features a codec or a head learns to tell: of speech, one vector a frame; of text, one a token.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2: WavLM, averaged over windows of 8 features, 4 apart,
that see the future, too.
"""

from dataclasses import dataclass

import numpy as np
import soxr
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

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


@dataclass(frozen=True)
class TextStates:
    """What a language model makes of one text.

    Attributes:
        hidden: Its hidden states, `(tokens, dim)`, float32, on the CPU.
        offsets: First and last-plus-one character of each token; equal for special tokens.
    """

    hidden: Tensor
    offsets: list[tuple[int, int]]


class TextTeacher:
    """A language model, such as Qwen.

    Args:
        name: A model of transformers on the Hub (`Qwen/Qwen2.5-1.5B`), or its folder, with a fast tokenizer.
        device: Where it runs.
        layer: Whose hidden states are taken; 0 are the embeddings. None: the last, after the final norm.

    Raises:
        OSError: If there is no such model.
        ValueError: If its tokenizer cannot tell which characters a token covers.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", layer: int | None = None):
        self._layer = -1 if layer is None else layer
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        if not self._tokenizer.is_fast:
            raise ValueError(f"{name} has no fast tokenizer, which alone can tell the characters of a token.")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._model = AutoModel.from_pretrained(name).eval().to(device)
        self.dim: int = self._model.config.hidden_size

    @torch.no_grad()
    def states(self, texts: list[str]) -> list[TextStates]:
        """The states of each text, as if it were alone."""
        encoded = self._tokenizer(texts, return_offsets_mapping=True, padding=True, return_tensors="pt")
        offsets = encoded.pop("offset_mapping").tolist()
        encoded = encoded.to(self._model.device)
        hidden = self._model(**encoded, output_hidden_states=True).hidden_states[self._layer].float().cpu()
        lengths = encoded["attention_mask"].sum(dim=-1).tolist()
        return [
            TextStates(states[:length], [(first, last) for first, last in places[:length]])
            for states, places, length in zip(hidden, offsets, lengths, strict=True)
        ]
