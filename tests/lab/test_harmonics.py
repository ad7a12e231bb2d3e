"""The distance that hears harmonics."""

import pytest
import torch
from torch import Tensor

from codec_training.harmonics import harmonic_distance
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance

RATE = 24_000


def tones(*hertz: float, phase: float = 0.0) -> Tensor:
    """A second of tones, `(1, 1, samples)`."""
    seconds = torch.arange(RATE) / RATE
    return 0.02 * sum(torch.sin(2 * torch.pi * f * seconds + phase * n**2) for n, f in enumerate(hertz))[None, None]


HARMONICS = [120.0 * number for number in range(25, 45)]  # 3 to 5.3 kHz, where a mel band holds several
BETWEEN = [hertz + 60 for hertz in HARMONICS]


def test_equal_sounds_have_no_distance():
    assert harmonic_distance(tones(*HARMONICS), tones(*HARMONICS), RATE) == 0


def test_distance_is_the_mean_error_of_the_log():
    noise = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0))
    assert harmonic_distance(noise, 1.1 * noise, RATE).item() == pytest.approx(0.0953, rel=1e-3)


def test_harmonics_elsewhere_are_distinguished_more_clearly_than_by_mel_bands():
    harmonics, mel = (
        distance(tones(*BETWEEN), tones(*HARMONICS), RATE)
        for distance in (harmonic_distance, multi_scale_mel_distance)
    )
    assert harmonics > 3 * mel


def test_phase_counts_for_little():
    moved, shifted = (
        harmonic_distance(other, tones(*HARMONICS), RATE) for other in (tones(*HARMONICS, phase=1.0), tones(*BETWEEN))
    )
    assert moved < 0.2 * shifted


def test_what_is_above_six_kilohertz_does_not_count():
    hiss = 0.1 * torch.sin(2 * torch.pi * 9000 * torch.arange(RATE) / RATE) * torch.hann_window(RATE)
    assert harmonic_distance(tones(*HARMONICS) + hiss, tones(*HARMONICS), RATE) < 1e-2


def test_sounds_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 24000\) and \(1, 1, 100\)"):
        harmonic_distance(tones(120), tones(120)[..., :100], RATE)
