"""A sound's pitch and wideband samples."""

import pytest
import torch

from mimi_bridge.audio.sound import Sound, f0_or_none


def test_pitch_of_a_gliding_voice_is_followed_in_time(voiced_audio):
    pitch = Sound(voiced_audio[0], 24_000).f0_hz
    assert pitch.shape == (200,)
    seconds = (torch.arange(200) + 0.5) / 100
    expected = 110 + 70 * seconds
    voiced = pitch > 0
    assert voiced.float().mean() > 0.9
    assert (pitch / expected - 1)[voiced].abs().max() < 0.02
    assert voiced[4:-4].all()


def test_noise_has_hardly_any_pitch():
    noise = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    assert (Sound(noise, 24_000).f0_hz > 0).float().mean() < 0.1


def test_wideband_samples_are_at_16_khz(voiced_audio):
    assert Sound(voiced_audio[0], 24_000).wideband.shape == (32_000,)


def test_sound_too_short_for_a_pitch_says_so():
    with pytest.raises(ValueError, match="no pitch to be found"):
        assert Sound(torch.zeros(1, 100), 24_000).f0_hz is None


@pytest.mark.parametrize(
    ("audio", "share"),
    [(torch.sin(torch.arange(24_000) * 2 * torch.pi * 150 / 24_000)[None], 0.9), (torch.zeros(1, 100), 0.0)],
    ids=["a tone", "too short to tell"],
)
def test_pitch_of_any_recording_is_praats_or_none(audio, share):
    pytest.importorskip("parselmouth")
    f0 = f0_or_none(audio, 24_000)
    assert (f0 > 0).mean() >= share
    assert f0[f0 > 0].tolist() == pytest.approx([150.0] * int((f0 > 0).sum()), rel=0.01)
