"""Figures of decoded audio and of codes."""

import importlib.util

import pytest
import torch

from mimi_bridge.evaluation import metrics
from mimi_bridge.evaluation.metrics import codebook_usage, missing_packages, reconstruction_metrics

RATE = 24_000


@pytest.fixture(scope="module")
def noisy(speech):
    recording = speech[:, : 3 * RATE]
    noise = torch.randn(recording.shape, generator=torch.Generator().manual_seed(0)) * recording.std()
    return {level: recording + level * noise for level in (0.0, 0.1, 1.0)}


@pytest.fixture(scope="module")
def figures(noisy):
    return {level: reconstruction_metrics(audio, noisy[0.0], RATE) for level, audio in noisy.items()}


def test_equal_audio_has_the_best_figures(figures):
    assert figures[0.0]["mel"] == 0
    assert figures[0.0]["stoi"] == pytest.approx(1, abs=1e-5)


def test_figures_fall_with_noise(figures):
    assert figures[0.0]["mel"] < figures[0.1]["mel"] < figures[1.0]["mel"]
    assert figures[0.0]["stoi"] > figures[0.1]["stoi"] > figures[1.0]["stoi"]


@pytest.mark.skipif(importlib.util.find_spec("pesq") is None, reason="pesq needs a C compiler; extra `eval`")
def test_pesq_falls_with_noise_from_its_highest_value(figures):
    assert figures[0.0]["pesq"] == pytest.approx(4.64, abs=0.01)
    assert figures[0.0]["pesq"] > figures[0.1]["pesq"] > figures[1.0]["pesq"] > 1


@pytest.mark.skipif(importlib.util.find_spec("pesq") is None, reason="pesq needs a C compiler; extra `eval`")
def test_pesq_is_left_out_when_there_is_no_speech():
    silence = torch.zeros(1, 2 * RATE)
    assert "pesq" not in reconstruction_metrics(silence, silence, RATE)


def test_metric_without_its_package_is_named_and_left_out(noisy, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None if name == "pystoi" else find(name))
    assert missing_packages()["stoi"] == "pystoi"
    assert "stoi" not in reconstruction_metrics(noisy[0.1], noisy[0.0], RATE)


def test_audio_of_another_length_is_refused(noisy):
    with pytest.raises(ValueError, match="one shape"):
        reconstruction_metrics(noisy[0.0][:, :-1], noisy[0.0], RATE)


def test_usage_counts_entries_and_how_evenly_they_are_used():
    codes = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [5, 5, 5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0, 1]])
    even, one, uneven = codebook_usage(codes, 8)
    assert even == (4, pytest.approx(4.0))
    assert one == (1, pytest.approx(1.0))
    assert uneven == (2, pytest.approx(8 / 7 ** (7 / 8)))  # 2 to the power of the entropy
