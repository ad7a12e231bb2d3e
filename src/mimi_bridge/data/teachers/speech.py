"""A speech model as a teacher: 50 vectors a second, averaged to exactly one a frame of Mimi.

A recording is resampled, normalised over its own samples if the model wants that, and padded with silence to whole
frames of 80 ms, as Mimi itself pads it; a recording of `n` frames then has `4 n - 1` features, however short it is.
Recordings share a forward pass where a mask makes them independent of each other; models whose first convolution is
normalised over time (`feat_extract_norm="group"`, WavLM-base) see through no mask, so there only recordings of the
same number of frames do. Models that take spectra (w2v-BERT 2, Whisper's encoder) get them of each recording alone;
Whisper hears 30 s, the rest of them silence.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2: WavLM, averaged over windows of 8 features, 4 apart,
that see the future, too.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from ...alignment_targets import POOLING_STRIDE, pool_to_frames
from ...audio.files import resample
from ...frames import mask_from_lengths, num_frames_for
from .batching import batches_by_length
from .revision import of_revision

MIMI_SAMPLING_RATE = 24_000  # Hz
MIMI_FRAME_SIZE = 1_920  # samples at that rate
FEATURE_RATE = 50  # Hz
SPECTRA = "input_features"  # what transformers calls them
FRAME_RATE = FEATURE_RATE / POOLING_STRIDE  # Hz


class SpeechInput:
    """A recording as a speech model takes it: at its rate, and normalised over its own samples if it wants that.

    Of a model that takes spectra, only the rate: `spectra` makes them of a batch.

    It holds no model, so that a data loader's workers can have it.

    Args:
        extractor: The model's, of transformers.
        max_seconds: The longest recording that is taken.
    """

    def __init__(self, extractor: Any, max_seconds: float):
        self._extractor = extractor
        self.takes_spectra: bool = extractor.model_input_names[0] == SPECTRA
        self.max_seconds = min(max_seconds, getattr(extractor, "chunk_length", math.inf))  # Whisper's 30 s
        self.sampling_rate: int = extractor.sampling_rate
        self.padding_value = float(extractor.padding_value)

    def takes(self, num_samples: int, sampling_rate: int) -> bool:
        """Whether a recording is no longer than `max_seconds`."""
        return num_samples <= self.max_seconds * sampling_rate

    def __call__(self, recording: Tensor | np.ndarray, sampling_rate: int, name: str) -> np.ndarray:
        """Samples, `(samples,)`, float32; none of a recording of a sample or two at a higher rate.

        Args:
            recording: Mono samples, `(samples,)` or `(1, samples)`.
            sampling_rate: Hz.
            name: For messages.

        Raises:
            ValueError: If the recording is empty, not mono, not finite, or longer than `max_seconds`.
        """
        samples = recording.detach().cpu().float().numpy() if isinstance(recording, Tensor) else np.asarray(recording)
        if samples.ndim == 2 and len(samples) == 1:
            samples = samples[0]
        if samples.ndim != 1:
            raise ValueError(f"{name} must be mono, (samples,) or (1, samples), got shape {samples.shape}.")
        if not self.takes(len(samples), sampling_rate):
            raise ValueError(
                f"{name} lasts {len(samples) / sampling_rate:.1f} s, but max_seconds is {self.max_seconds:g}; divide "
                "it, or raise max_seconds if there is memory for it."
            )
        resampled = resample(samples, sampling_rate, self.sampling_rate, name=name)[0].numpy()
        if len(resampled) == 0 or self.takes_spectra:
            return resampled
        return self._extractor(resampled, sampling_rate=self.sampling_rate)["input_values"][0]

    def spectra(self, rows: Sequence[Tensor | np.ndarray], num_frames: Sequence[int]) -> dict[str, Tensor]:
        """The model's inputs of recordings at its rate, each padded with silence to whole frames of 80 ms."""
        size = self.sampling_rate * MIMI_FRAME_SIZE // MIMI_SAMPLING_RATE
        padded = [
            np.pad(own[: count * size], (0, max(0, count * size - len(own))))
            for own, count in zip((np.asarray(torch.as_tensor(row).cpu()) for row in rows), num_frames, strict=True)
        ]
        return dict(self._extractor(padded, sampling_rate=self.sampling_rate, return_tensors="pt"))

    @property
    def samples_per_feature(self) -> int:
        """Of a model that takes spectra."""
        hop = getattr(self._extractor, "hop_length", self.sampling_rate // 100)
        return hop * getattr(self._extractor, "stride", 2)  # w2v-BERT's are stacked, Whisper's encoder halves them


class WavLMTeacher:
    """A speech model of 50 features a second: WavLM, HuBERT or another of wav2vec 2.0's kind, w2v-BERT 2, Whisper.

    Args:
        name: Of a model of transformers on the Hub with a feature extractor, or its folder.
        layer: Whose features are taken: 0 is what enters the first transformer layer, `num_layers` what leaves the
            last. Several are averaged; `"mean"` averages 1 to `num_layers`. None: the model's `last_hidden_state`,
            which in WavLM-large is the last layer's after a final norm.
        device: Where the model runs.
        dtype: Its number format, as in `from_pretrained`; `"auto"` is the checkpoint's own (float32 for WavLM).
        batch_seconds: What a forward pass may hold, padding included; a longer recording goes alone.
        max_seconds: The longest recording that is taken. Attention's memory grows with the square of the length:
            beside its weights WavLM-large takes 0.7 GiB for 30 s, 2.3 GiB for 60 s, 8.9 GiB for 120 s (float32, CPU).
        revision: Of the model on the Hub; None: the newest.

    Attributes:
        dim: Size of the features.
        num_layers: Transformer layers of the model.
        input: Makes what the model takes of a recording.
        model: Of transformers; frozen, in eval mode.

    Raises:
        OSError: If there is no such model.
        ValueError: If it does not give 50 features a second, or has no such layer.
    """

    def __init__(
        self,
        name: str = "microsoft/wavlm-large",
        layer: int | Sequence[int] | Literal["mean"] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "auto",
        batch_seconds: float = 120.0,
        max_seconds: float = 60.0,
        revision: str | None = None,
    ):
        extractor = AutoFeatureExtractor.from_pretrained(name, **of_revision(revision))
        model = AutoModel.from_pretrained(name, dtype=dtype, **of_revision(revision))
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval().to(device)
        self.model.requires_grad_(False)
        self.input = SpeechInput(extractor, max_seconds)
        config = self.model.config
        self.dim: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        spectra = self.input.takes_spectra
        samples_per_feature = (
            self.input.samples_per_feature if spectra else math.prod(getattr(config, "conv_stride", [0]))
        )
        if samples_per_feature * FEATURE_RATE != self.input.sampling_rate or getattr(config, "add_adapter", False):
            raise ValueError(f"{name} must give {FEATURE_RATE} features a second, as WavLM, HuBERT and Whisper do.")
        self._frame_size = samples_per_feature * POOLING_STRIDE  # samples at the model's rate
        self._layers = self._checked(layer, name)
        self._takes_mask = getattr(config, "feat_extract_norm", "group") == "layer" and not getattr(
            config, "conv_pos_batch_norm", False
        )
        self._takes_mask |= spectra
        self._batch_frames = int(batch_seconds * FRAME_RATE)
        self._window_frames = math.ceil(
            getattr(extractor, "chunk_length", 0) * FRAME_RATE
        )  # that each recording costs

    def features(self, recordings: Sequence[Tensor | np.ndarray], sampling_rate: int) -> list[Tensor]:
        """The features of each recording, as if it were alone; in the order given.

        Args:
            recordings: Mono samples, `(samples,)` or `(1, samples)` each, of any lengths, at least one sample.
            sampling_rate: Of all of them, Hz.

        Returns:
            For each `(frames, dim)`, float32, on the CPU; as many frames as Mimi gives.

        Raises:
            ValueError: If a recording is empty, not mono, not finite, or longer than `max_seconds`; the message
                names its place in `recordings`.
        """
        rows = [
            self.input(recording, sampling_rate, f"recording {place}") for place, recording in enumerate(recordings)
        ]
        num_frames = [self.num_frames(np.shape(recording)[-1], sampling_rate) for recording in recordings]
        return [features.cpu() for features in self.features_of_inputs(rows, num_frames)]

    def features_of_inputs(self, rows: Sequence[Tensor | np.ndarray], num_frames: Sequence[int]) -> list[Tensor]:
        """The features of recordings that `input` has made ready; in the order given, on the model's device.

        Args:
            rows: `(samples,)` each, of any lengths.
            num_frames: Of each recording, at least 1.

        Returns:
            For each `(frames, dim)`, float32.
        """
        found: list[Tensor] = [torch.zeros(0, self.dim)] * len(rows)
        costs = [max(count, self._window_frames) for count in num_frames]
        for batch in batches_by_length(costs, self._batch_frames, equal=not self._takes_mask):
            together = self._forward([rows[place] for place in batch], [num_frames[place] for place in batch])
            for place, pooled in zip(batch, together, strict=True):
                found[place] = pooled[: num_frames[place]].clone()
        return found

    def batch_features(self, audio: Tensor, sampling_rate: int) -> Tensor:
        """The features of a batch in which all recordings have one length, in one forward pass, on the device.

        Args:
            audio: `(batch, 1, samples)`, on any device.
            sampling_rate: Hz.

        Returns:
            `(batch, frames, dim)`, float32, on the teacher's device; as many frames as Mimi gives.

        Raises:
            ValueError: As `features`.
        """
        recordings = audio.detach().cpu()
        rows = [self.input(samples, sampling_rate, f"recording {place}") for place, samples in enumerate(recordings)]
        return self._forward(rows, [self.num_frames(audio.shape[-1], sampling_rate)] * len(rows))

    @staticmethod
    def num_frames(num_samples: int, sampling_rate: int) -> int:
        """Frames of 80 ms that Mimi gives for a recording, after resampling to 24 kHz."""
        at_mimis_rate = (2 * num_samples * MIMI_SAMPLING_RATE + sampling_rate) // (2 * sampling_rate)  # soxr rounds
        return num_frames_for(max(1, at_mimis_rate), MIMI_FRAME_SIZE)

    def _checked(self, layer: int | Sequence[int] | str | None, name: str) -> list[int] | None:
        if layer is None:
            return None
        if layer == "mean":
            return list(range(1, self.num_layers + 1))
        layers = [layer] if isinstance(layer, int) else list(layer)
        if not layers or not all(isinstance(one, int) and 0 <= one <= self.num_layers for one in layers):
            raise ValueError(f'layer must be "mean", or some of 0 to {self.num_layers} for {name}, got {layer!r}.')
        return layers  # type: ignore[return-value]

    @torch.no_grad()
    def _forward(self, rows: Sequence[Tensor | np.ndarray], num_frames: Sequence[int]) -> Tensor:
        # Rows that `input` made to (rows, longest, dim) on the device, zero after a row's frames.
        lengths = torch.tensor(num_frames, device=self.model.device)
        frame_mask = mask_from_lengths(lengths, max(num_frames))
        if self.input.takes_spectra:
            inputs = {
                name: value.to(self.model.device) for name, value in self.input.spectra(rows, num_frames).items()
            }
            inputs[SPECTRA] = inputs[SPECTRA].to(self.model.dtype)
        else:
            inputs = self._waveforms(rows, lengths, bool(frame_mask.all()))
        with warnings.catch_warnings():  # transformers' WavLM hands torch two kinds of mask
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
            output = self.model(**inputs, output_hidden_states=self._layers is not None)
        num_features = max(num_frames) * POOLING_STRIDE  # Whisper's go on for 30 s
        if self._layers is None:
            return pool_to_frames(output.last_hidden_state[:, :num_features], frame_mask)
        total = torch.zeros_like(output.last_hidden_state, dtype=torch.float32)
        for layer in self._layers:
            total += output.hidden_states[layer].float()
        return pool_to_frames(total[:, :num_features] / len(self._layers), frame_mask)

    def _waveforms(self, rows: Sequence[Tensor | np.ndarray], lengths: Tensor, is_full: bool) -> dict[str, Tensor]:
        # Normalised rows, padded, with a mask where they are not of one length.
        device, longest = self.model.device, int(lengths.max()) * self._frame_size
        there = device if isinstance(rows[0], Tensor) else "cpu"
        input_values = torch.full((len(rows), longest), self.input.padding_value, device=there)
        for values, row in zip(input_values, rows, strict=True):
            cut = row[:longest]
            values[: len(cut)] = torch.as_tensor(cut)
        inputs = {"input_values": input_values.to(device, self.model.dtype)}
        if not is_full:
            inputs["attention_mask"] = mask_from_lengths(lengths * self._frame_size, longest).long()
        return inputs
