"""Distance of the harmonics of decoded speech from the original's.

A mel band in the middle of speech is several harmonics wide, so it hardly distinguishes voiced from unvoiced speech.
Long windows on a linear frequency axis resolve every harmonic of every voice.
"""

import torch
from torch import Tensor

from mimi_bridge.losses.reconstruction import FLOOR, magnitudes

WINDOWS = (4096, 2048, 1024)  # samples at 24 kHz: 171, 85 and 43 ms
HIGHEST_HZ = 6000.0  # above, voiced speech is noisy


def harmonic_distance(
    audio: Tensor, reference: Tensor, sampling_rate: int, windows: tuple[int, ...] = WINDOWS
) -> Tensor:
    """Mean absolute difference of natural-log magnitudes on linear frequency up to 6 kHz, averaged over windows.

    Args:
        audio: Decoded, `(batch, channels, samples)`.
        reference: The original, of the same shape.
        sampling_rate: Hz.
        windows: Lengths in samples.

    Returns:
        A scalar, 0 for equal audio; 0.1 is a mean error of 0.87 dB.

    Raises:
        ValueError: If the shapes differ.
    """
    if audio.shape != reference.shape:
        raise ValueError(
            f"audio and reference must have one shape, got {tuple(audio.shape)} and {tuple(reference.shape)}."
        )
    distances = []
    for window in windows:
        bins = 1 + int(HIGHEST_HZ * window / sampling_rate)
        decoded, original = (
            magnitudes(sound, window)[:, :bins].clamp(min=FLOOR).log() for sound in (audio, reference)
        )
        distances.append((decoded - original).abs().mean())
    return torch.stack(distances).mean()
