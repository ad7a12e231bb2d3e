"""Log-mel distances: against explicit sums, in decibels, and what they pass over."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codec_training.harmonics import harmonic_distance
from mimi_bridge.losses import reconstruction
from mimi_bridge.losses.reconstruction import (
    NUM_MELS,
    log_mel,
    multi_scale_mel_distance,
)

RATE = 8000  # Hz
SMALL = {64: 5, 128: 10}


@pytest.fixture
def noise() -> Tensor:
    """Two samples of two channels, 50 ms."""
    torch.manual_seed(0)
    return 0.3 * torch.randn(2, 2, 400)


def sine(frequency_hz: float, num_samples: int) -> Tensor:
    return torch.sin(2 * torch.pi * frequency_hz * torch.arange(num_samples) / RATE)[None, None]


def literal_log_mel(samples: np.ndarray, window: int, num_mels: int, hop_number: int) -> np.ndarray:
    """One column of the picture: a Hann window around its middle, a sum a bin, Slaney's triangles."""
    middle = hop_number * window // 4
    offsets = np.arange(-window // 2, window // 2)
    samples_there = np.array([samples[middle + n] if 0 <= middle + n < len(samples) else 0.0 for n in offsets])
    hann = 0.5 + 0.5 * np.cos(2 * np.pi * offsets / window)
    bins = np.arange(window // 2 + 1)
    waves = np.exp(-2j * np.pi * np.outer(bins, offsets) / window)
    magnitudes = np.abs(waves @ (samples_there * hann)) * 2 / hann.sum()

    def hz(mel: float) -> float:  # linear up to 1 kHz, which is 15 mel, then 27 mel for a factor of 6.4
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    highest = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = [hz(mel) for mel in np.linspace(0, highest, num_mels + 2)]
    column = []
    for low, peak, high in zip(edges, edges[1:], edges[2:], strict=False):
        frequencies = bins * RATE / window
        triangle = np.clip(
            np.minimum((frequencies - low) / (peak - low), (high - frequencies) / (high - peak)), 0, None
        )
        column.append((triangle * magnitudes).sum() / triangle.sum())
    return np.log(np.maximum(column, 1e-4))


@pytest.mark.parametrize("window, num_mels", [(64, 5), (256, 20)])
@pytest.mark.parametrize("hop_number", [0, 3, 6])
def test_log_mel_equals_explicit_sums(noise, window, num_mels, hop_number):
    picture = log_mel(noise, RATE, window, num_mels)
    expected = literal_log_mel(noise[1, 0].double().numpy(), window, num_mels, hop_number)
    np.testing.assert_allclose(picture[2, :, hop_number].numpy(), expected, atol=1e-4)


def test_log_mel_has_a_row_for_each_channel_and_a_column_for_each_quarter_window(noise):
    assert log_mel(noise, RATE, 64, 5).shape == (4, 5, 400 // 16 + 1)


def test_channels_that_would_cancel_are_compared_one_by_one():
    tone = sine(1000, 400)
    picture = log_mel(torch.cat([tone, -tone], dim=1), RATE, 64, 5)
    torch.testing.assert_close(picture[0], picture[1])
    assert picture.max() > math.log(0.1)


@pytest.mark.parametrize("window", NUM_MELS)
def test_full_scale_sine_reads_the_same_at_every_window_before_bands_are_averaged(window, monkeypatch):
    monkeypatch.setattr(reconstruction, "_mel_filters", lambda *_: torch.eye(window // 2 + 1))
    picture = log_mel(sine(1000, 4096), RATE, window, window // 2 + 1).exp()  # 1000 Hz is a bin of every window
    middle = picture[0, :, picture.shape[-1] // 2]
    assert int(middle.argmax()) == 1000 * window // RATE
    assert middle.max().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("sampling_rate", [16_000, 24_000, 48_000])
def test_default_bands_all_hear_white_noise(sampling_rate):
    torch.manual_seed(0)
    white = torch.randn(1, 1, 4096)
    quietest = [log_mel(white, sampling_rate, *scale).amax(dim=-1).min() for scale in NUM_MELS.items()]
    assert min(quietest) > math.log(reconstruction.FLOOR) + 1


def test_distance_is_0_when_the_audio_is_the_reference(noise):
    assert multi_scale_mel_distance(noise, noise.clone(), RATE, SMALL).item() == 0.0


def test_distance_is_the_level_in_nepers_when_only_the_level_differs(noise):
    distance = multi_scale_mel_distance(noise * 10 ** (0.87 / 20), noise, RATE, SMALL)  # 0.87 dB
    assert distance.item() == pytest.approx(0.1, abs=1e-3)


def test_distance_is_the_same_both_ways(noise):
    other = noise.flip(0)
    there, back = (multi_scale_mel_distance(*pair, RATE, SMALL) for pair in ((noise, other), (other, noise)))
    assert there.item() == back.item() > 0.1


def test_distance_cancels_nothing_when_bands_err_in_opposite_directions():
    loud_low, loud_high = (sine(low, 400) + 0.1 * sine(high, 400) for low, high in ((500, 3000), (3000, 500)))
    assert multi_scale_mel_distance(loud_low, loud_high, RATE, {64: 5}).item() > 0.8


def test_distance_is_the_mean_over_windows(noise):
    each = [multi_scale_mel_distance(noise, noise.flip(0), RATE, {window: mels}) for window, mels in SMALL.items()]
    assert each[0].item() != pytest.approx(each[1].item(), rel=1e-2)
    both = multi_scale_mel_distance(noise, noise.flip(0), RATE, SMALL)
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_distance_uses_the_six_published_windows_by_default(noise):
    published = {2048: 160, 1024: 80, 512: 40, 256: 20, 128: 10, 64: 5}
    expected = multi_scale_mel_distance(noise, noise.flip(0), 24_000, published)
    torch.testing.assert_close(multi_scale_mel_distance(noise, noise.flip(0), 24_000), expected)


def test_distance_hears_nothing_under_minus_80_decibels(noise):
    whisper = 2e-4 * noise
    assert multi_scale_mel_distance(whisper, torch.zeros_like(whisper), RATE, SMALL).item() == 0.0


def test_distance_hears_what_is_a_little_over_minus_80_decibels(noise):
    quiet = 3e-3 * noise
    assert multi_scale_mel_distance(quiet, torch.zeros_like(quiet), RATE, SMALL).item() > 0.3


def test_gradient_reaches_every_sample_of_the_audio(noise):
    audio = noise.flip(0).requires_grad_()
    multi_scale_mel_distance(audio, noise, RATE, SMALL).backward()
    assert (audio.grad != 0).all()


def test_gradient_points_toward_the_reference_level(noise):
    audio = (2 * noise).requires_grad_()
    multi_scale_mel_distance(audio, noise, RATE, SMALL).backward()
    assert (audio.grad * noise).sum() > 0


def test_gradient_is_finite_when_the_decoded_audio_is_silent(noise):
    audio = torch.zeros_like(noise, requires_grad=True)
    multi_scale_mel_distance(audio, noise, RATE, SMALL).backward()
    assert audio.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_distance_is_computed_in_float32_when_audio_is_in_another_precision(noise, dtype):
    other = noise.to(dtype)
    distance = multi_scale_mel_distance(other, other.flip(0), RATE, SMALL)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, multi_scale_mel_distance(other.float(), other.float().flip(0), RATE, SMALL))


@pytest.mark.parametrize("shape", [(1, 2, 400), (2, 1, 400), (2, 2, 399)], ids=["batch", "channels", "samples"])
def test_distance_refuses_shapes_that_differ(noise, shape):
    message = rf"must have one shape, got \(2, 2, 400\) and \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        multi_scale_mel_distance(noise, torch.zeros(shape), RATE, SMALL)


def test_distance_can_be_trained_with_after_it_was_measured_in_inference_mode():
    audio = torch.zeros(1, 1, 4096).uniform_(-0.5, 0.5).requires_grad_()
    rate = 23_400  # of no other test: its filters are made here
    with torch.inference_mode():
        multi_scale_mel_distance(audio.detach(), torch.zeros(1, 1, 4096), rate)
    multi_scale_mel_distance(audio, torch.zeros(1, 1, 4096), rate).backward()
    assert audio.grad.abs().max() > 0


LENGTHS = [400, 130, 256, 16]  # samples; hops of 16 and 32 begin at their multiples, some exactly at an end


@pytest.fixture
def ragged() -> tuple[Tensor, Tensor]:
    """Four recordings of two channels, decoded and original, silent after their ends."""
    pair = 0.3 * torch.randn(2, 4, 2, 400, generator=torch.Generator().manual_seed(0))
    pair[0, 1] *= 3  # so that rows differ in their distance
    real = torch.arange(400) < torch.tensor(LENGTHS)[:, None, None]
    return tuple(pair * real)


def slow_ragged_distance(audio: Tensor, reference: Tensor, lengths: list[int]) -> float:
    """Each recording alone, cut to its length: mean over hops that begin in it, weighted by its samples."""
    total = 0.0
    for decoded, original, length in zip(audio, reference, lengths, strict=True):
        for window, num_mels in SMALL.items():
            for channel in range(audio.shape[1]):
                cut = (sound[None, channel : channel + 1, :length] for sound in (decoded, original))
                one, other = (log_mel(sound, RATE, window, num_mels)[0] for sound in cut)
                hops = [n for n in range(one.shape[1]) if n * window // 4 < length]
                error = sum((one[:, n] - other[:, n]).abs().mean().item() for n in hops) / len(hops)
                total += length * error / audio.shape[1] / len(SMALL)
    return total / sum(lengths)


def test_distance_of_a_ragged_batch_is_the_mean_of_each_alone_weighted_by_its_length(ragged):
    distance = multi_scale_mel_distance(*ragged, RATE, SMALL, torch.tensor(LENGTHS))
    assert distance.item() == pytest.approx(slow_ragged_distance(*ragged, LENGTHS), rel=1e-5)


@pytest.mark.parametrize("padding", [1, 7, 500])
def test_distance_with_lengths_does_not_depend_on_how_far_a_batch_is_padded(ragged, padding):
    lengths = torch.tensor(LENGTHS)
    longer = [torch.nn.functional.pad(sound, (0, padding)) for sound in ragged]
    found, expected = (multi_scale_mel_distance(*pair, RATE, SMALL, lengths) for pair in (longer, ragged))
    torch.testing.assert_close(found, expected)


def test_distance_with_lengths_is_the_same_in_any_batches_once_weighted_by_length(ragged):
    lengths = torch.tensor(LENGTHS)
    shares = [
        multi_scale_mel_distance(*(sound[part] for sound in ragged), RATE, SMALL, lengths[part]) * lengths[part].sum()
        for part in (slice(0, 1), slice(1, 4))
    ]
    whole = multi_scale_mel_distance(*ragged, RATE, SMALL, lengths)
    torch.testing.assert_close(sum(shares) / lengths.sum(), whole)
    assert not torch.isclose(multi_scale_mel_distance(*ragged, RATE, SMALL), whole, rtol=0.1)


def test_gradient_with_lengths_reaches_the_samples_that_count(ragged):
    audio, lengths = ragged[0].clone().requires_grad_(), torch.tensor(LENGTHS)
    multi_scale_mel_distance(audio, ragged[1], RATE, SMALL, lengths).backward()
    for gradient, length in zip(audio.grad, LENGTHS, strict=True):
        assert (gradient[:, :length] != 0).all()
        assert not gradient[:, length + 128 :].any()  # no window of a hop that counts reaches so far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "distance",
    [
        lambda audio, reference: multi_scale_mel_distance(audio, reference, RATE, SMALL),
        lambda audio, reference: harmonic_distance(audio, reference, RATE, (64, 128)),
    ],
    ids=["mel", "harmonics"],
)
def test_distance_is_computed_in_float32_under_autocast(noise, distance, dtype):
    pair = noise.to(dtype), (0.7 * noise.flip(-1)).to(dtype)
    expected = distance(*(sound.float() for sound in pair))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(*pair)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
