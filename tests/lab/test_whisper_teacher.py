"""Whisper's encoder as a teacher, on a tiny one of random weights."""

import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from codec_training.whisper_teacher import WhisperTeacher

RATE = 16_000


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> WhisperTeacher:
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = WhisperConfig(d_model=8, num_mel_bins=8, vocab_size=60, **sizes, **heads)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(config, name, 0)
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    return WhisperTeacher(str(folder))


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1280, 1), (1281, 2), (40_000, 32)])
def test_every_begun_frame_has_a_vector(teacher, samples, frames):
    (features,) = teacher.features([torch.randn(samples)], RATE)
    assert features.shape == (frames, teacher.dim) == (frames, 8)


def test_recordings_share_windows_and_are_separated_again(teacher):
    lengths = [300_000, 100, 200_000, 640_000]
    features = teacher.features([torch.randn(length) for length in lengths], RATE)
    assert [len(one) for one in features] == [-(-length // 1280) for length in lengths]
    assert all(one.isfinite().all() for one in features)


def test_features_follow_the_sound_in_time(teacher):
    torch.manual_seed(0)
    one = torch.randn(64_000)
    other = torch.cat([one[:32_000], torch.sin(torch.arange(32_000) * 2 * torch.pi * 440 / RATE)])
    changed = torch.stack([teacher.features([sound], RATE)[0] for sound in (one, other)]).diff(dim=0)[0].norm(dim=1)
    assert changed[:24].max() < changed[26:].min()


def test_recordings_of_another_rate_are_resampled(teacher):
    (features,) = teacher.features([torch.randn(48_000)], 24_000)
    assert len(features) == 25
