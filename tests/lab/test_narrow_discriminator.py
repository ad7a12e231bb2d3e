"""The discriminator that a CPU can afford."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from codec_training.narrow_discriminator import NarrowDiscriminator, _folded
from mimi_bridge.losses.adversarial import MultiScaleSpectrogramDiscriminator, adversarial_loss, discriminator_loss

SAMPLES = 11_520  # 0.48 s


def test_every_period_and_window_gives_scores_and_features():
    scored = NarrowDiscriminator(2, periods=(2, 3), windows=(512,))(torch.randn(4, 1, SAMPLES))
    assert len(scored) == 3
    for scores, features in scored:
        assert scores.shape[:2] == (4, 1)
        assert len(features) == 4


def test_samples_a_period_apart_lie_under_each_other():
    assert _folded(torch.arange(11.0)[None, None], 3)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_frequencies_above_the_voice_are_not_seen():
    discriminator = NarrowDiscriminator(2, periods=(), windows=(512,))
    low, high = (
        torch.sin(2 * torch.pi * hertz * torch.arange(SAMPLES) / 24_000)[None, None] for hertz in (500, 10_000)
    )
    silent, with_low, with_high = (discriminator(sound)[0][0] for sound in (0 * low, low, high))
    inside = slice(4, -4)  # the ends are cut off sharply, which has all frequencies
    assert (with_low - silent)[:, :, inside].abs().max() > 10 * (with_high - silent)[:, :, inside].abs().max()


def test_discriminator_learns_to_tell_a_voice_from_a_whisper():
    torch.manual_seed(0)
    discriminator = NarrowDiscriminator(2)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    seconds = torch.arange(SAMPLES) / 24_000
    voice = sum(torch.sin(2 * torch.pi * k * 120 * seconds) for k in range(1, 20))[None, None] / 3
    for _ in range(15):
        loss = discriminator_loss(discriminator(voice), discriminator(torch.randn(1, 1, SAMPLES)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1
    assert adversarial_loss(discriminator(voice)) < adversarial_loss(discriminator(torch.randn(1, 1, SAMPLES)))


def test_it_has_fewer_multiplications_than_the_one_of_every_frequency():
    def multiplications(discriminator):
        with FlopCounterMode(display=False) as counter:
            discriminator(torch.zeros(1, 1, SAMPLES))
        return counter.get_total_flops()

    assert multiplications(NarrowDiscriminator(8)) < 0.6 * multiplications(MultiScaleSpectrogramDiscriminator(8))


@pytest.mark.parametrize("band", [0.0, -0.5, 1.5])
def test_band_that_is_no_share_of_the_frequencies_is_refused(band):
    with pytest.raises(ValueError, match=f"band must be above 0 and at most 1, got {band}"):
        NarrowDiscriminator(2, band=band)


def test_full_band_hears_what_the_lower_half_does_not():
    tone = torch.sin(2 * torch.pi * 9000 * torch.arange(4800) / 24_000)[None, None]
    silence = torch.zeros_like(tone)
    differences = {}
    for band in (0.5, 1.0):
        torch.manual_seed(0)
        spectral = NarrowDiscriminator(2, periods=(), band=band).eval()
        with torch.no_grad():
            scores = [spectral(audio)[0][0] for audio in (tone, silence)]
        differences[band] = (scores[0] - scores[1]).abs().max().item()
    assert differences[1.0] > 100 * differences[0.5]
