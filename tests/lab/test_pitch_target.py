"""Pitch predicted from latents."""

import pytest
import torch

from codec_training.pitch_target import MIDDLE_OCTAVE, PitchReader


@pytest.fixture
def readout() -> PitchReader:
    torch.manual_seed(0)
    return PitchReader(8, hidden_size=4)


def test_nothing_is_predicted_from_the_future(readout):
    latents = torch.randn(1, 6, 8)
    changed = latents.clone()
    changed[:, 4:] = 0.0
    for one, other in zip(readout(latents), readout(changed), strict=True):
        assert one.shape == (1, 6)
        assert torch.equal(one[:, :4], other[:, :4])
        assert not torch.equal(one[:, 4:], other[:, 4:])


def test_first_answer_is_near_the_pitch_of_voices(readout):
    octaves, _ = readout(torch.randn(3, 20, 8))
    assert (octaves - MIDDLE_OCTAVE).abs().max() < 2


def test_pitch_of_frames_without_a_voice_does_not_count(readout):
    latents, voiced = torch.randn(1, 4, 8), torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    pitch = torch.tensor([[7.0, 0.0, 8.0, 0.0]])
    other = torch.tensor([[7.0, 99.0, 8.0, -5.0]])
    assert readout.loss(latents, pitch, voiced) == readout.loss(latents, other, voiced)


def test_frames_of_which_nothing_is_known_do_not_count(readout):
    latents, pitch = torch.randn(1, 4, 8), torch.full((1, 4), 7.0)
    voiced = torch.tensor([[1.0, 0.0, torch.nan, torch.nan]])
    known = readout.loss(latents, pitch, voiced)
    latents[:, 2:] = 5.0
    assert readout.loss(latents, pitch, voiced) == known


def test_loss_of_nothing_known_is_nothing(readout):
    assert readout.loss(torch.randn(1, 3, 8), torch.zeros(1, 3), torch.full((1, 3), torch.nan)) == 0


def test_right_answers_cost_little(readout):
    pitch, voiced = torch.tensor([[7.0, 7.5, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    answers = (torch.tensor([[7.0, 7.5, 3.0]]), torch.tensor([[9.0, 9.0, -9.0]]))
    readout.forward = lambda latents: answers
    assert readout.loss(torch.zeros(1, 3, 8), pitch, voiced) < 1e-3
