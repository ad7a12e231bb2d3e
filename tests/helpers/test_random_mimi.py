"""The Mimi with random weights that stands in for the real one."""

import torch
from transformers import MimiConfig, MimiModel

from random_mimi import random_mimi
from tiny import TINY


def test_random_mimi_uses_many_codes_of_every_codebook_on_speech_it_was_not_fitted_to(tiny_mimi, speech):
    codes = tiny_mimi.encode(speech[None]).audio_codes[0]
    assert all(len(codebook.unique()) >= 40 for codebook in codes)


def test_a_mimi_as_transformers_builds_it_gives_one_code(speech):
    codes = MimiModel(MimiConfig(**TINY, num_quantizers=12)).eval().encode(speech[None]).audio_codes
    assert len(codes.unique()) == 1  # why random_mimi exists


def test_random_mimi_is_the_same_for_the_same_seed(voiced_audio):
    config = MimiConfig(**TINY, num_quantizers=4)
    one, same, other = (random_mimi(config, voiced_audio[0], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_random_mimi_leaves_the_callers_random_state_alone(voiced_audio):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_mimi(MimiConfig(**TINY, num_quantizers=4), voiced_audio[0])
    assert torch.equal(torch.rand(3), expected)
