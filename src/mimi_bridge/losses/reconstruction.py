"""How far decoded audio is from the original: spectrograms at several resolutions.

Long windows see harmonics, short ones see attacks. Log-mel distance hears quiet and loud alike, as ears do. Magnitudes
are scaled so that a full-scale sine reads 1 in its bin whatever the window; all under -80 dB counts as silence.

Source: Kumar et al. 2023 (arXiv:2306.06546), section 3.4: windows and mel bands; their log is to base 10.
"""

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

NUM_MELS = {2048: 160, 1024: 80, 512: 40, 256: 20, 128: 10, 64: 5}  # by window in samples
FLOOR = 1e-4
LOUD_NEPERS = 4.6  # 40 dB below the loudest moment; quieter ones are not voice


def multi_scale_mel_distance(
    audio: Tensor,
    reference: Tensor,
    sampling_rate: int,
    num_mels: dict[int, int] | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Mean absolute difference of natural-log mel magnitudes, averaged over resolutions.

    Args:
        audio: Decoded, `(batch, channels, samples)`.
        reference: The original, of the same shape.
        sampling_rate: Hz.
        num_mels: Mel bands for each window length in samples; `NUM_MELS` by default.
        lengths: Samples of each row that count, `(batch,)`; both sounds must be silent after them. Rows are then
            weighted by length, so that a recording counts the same in any batch. None: all samples of all rows.

    Returns:
        A scalar, 0 for equal audio; 0.1 is a mean error of 0.87 dB.

    Raises:
        ValueError: If the shapes differ, or a length is none of the rows'.
    """
    _check(audio, reference)
    num_samples = audio.shape[-1]
    if lengths is not None and not (
        lengths.shape == audio.shape[:1] and bool(((lengths > 0) & (lengths <= num_samples)).all())
    ):
        raise ValueError(f"lengths must be 1 to {num_samples} samples for each of {len(audio)} rows, got {lengths}.")
    scales = (num_mels or NUM_MELS).items()
    distances = []
    for window, bands in scales:
        decoded, original = (log_mel(sound, sampling_rate, window, bands) for sound in (audio, reference))
        error = (decoded - original).abs()
        if lengths is None:
            distances.append(error.mean())
        else:
            samples = lengths.repeat_interleave(audio.shape[1])
            starts = torch.arange(error.shape[-1], device=error.device) * (window // 4)
            counts = starts < samples[:, None]
            by_row = (error.mean(dim=1) * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
            distances.append((by_row * samples).sum() / samples.sum())
    return torch.stack(distances).mean()


def magnitudes(audio: Tensor, window: int) -> Tensor:
    """A full-scale sine reads 1 in its bin; hop a quarter of the window, `(batch * channels, bins, hops)`."""
    flat = audio.reshape(-1, audio.shape[-1]).float()
    hann = hann_window(window, audio.device)
    spectrum = torch.stft(flat, window, window // 4, window=hann, pad_mode="constant", return_complex=True)
    return spectrum.abs() * (2 / hann.sum())


@lru_cache(maxsize=64)
def hann_window(window: int, device: torch.device) -> Tensor:
    """A Hann window on a device, `(window,)`, made once."""
    with torch.inference_mode(False):
        return torch.hann_window(window, device=device)


def log_mel(audio: Tensor, sampling_rate: int, window: int, num_mels: int) -> Tensor:
    """Natural-log mel magnitudes, hop a quarter of the window, `(batch * channels, num_mels, hops)`.

    In float32, under autocast, too: the logarithm of a product rounded to bfloat16 is off by whole decibels.
    """
    filters = _mel_filters(sampling_rate, window, num_mels, audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        return (filters @ magnitudes(audio, window)).clamp(min=FLOOR).log()


def mean_spectrum(
    audio: Tensor, sampling_rate: int, window: int, num_mels: int, lengths: Tensor | None = None
) -> Tensor:
    """Mean log-mel spectrum of what is loud, less its own mean: a timbre, whatever the level.

    Args:
        audio: `(batch, channels, samples)`.
        sampling_rate: Hz.
        window: Samples.
        num_mels: Bands; few see formants, many in a long window the harmonics, too.
        lengths: Samples of each row that count, `(batch,)`; it must be silent after them. None: all.

    Returns:
        `(batch * channels, num_mels)`, nepers.
    """
    bands = log_mel(audio, sampling_rate, window, num_mels)
    samples = bands.new_full((len(bands),), audio.shape[-1]) if lengths is None else lengths
    starts = torch.arange(bands.shape[-1], device=bands.device) * (window // 4)
    counts = starts < samples.repeat_interleave(len(bands) // len(samples))[:, None]
    level = bands.logsumexp(dim=1).masked_fill(~counts, -torch.inf)
    loud = level >= level.amax(dim=1, keepdim=True) - LOUD_NEPERS
    mean = (bands * loud[:, None]).sum(dim=2) / loud.sum(dim=1, keepdim=True)
    return mean - mean.mean(dim=1, keepdim=True)


def _check(audio: Tensor, reference: Tensor) -> None:
    if audio.shape != reference.shape:
        raise ValueError(
            f"audio and reference must have one shape, got {tuple(audio.shape)} and {tuple(reference.shape)}."
        )


@lru_cache(maxsize=64)
def _mel_filters(sampling_rate: int, window: int, num_mels: int, device: torch.device) -> Tensor:
    # Each filter sums to one, so that a band's value is a mean magnitude.
    triangles = mel_filter_bank(window // 2 + 1, num_mels, 0.0, sampling_rate / 2, sampling_rate, mel_scale="slaney")
    with torch.inference_mode(False):  # what is cached serves training, too
        filters = torch.from_numpy(triangles).T.float()
        return (filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)).to(device)
