"""Keys of a checkpoint, and caches under the name that the installed transformers has."""

import torch
from transformers import DynamicCache

from mimi_bridge import MimiBridgeModel
from mimi_bridge.checkpoint import call_with_cache


def test_half_gets_its_cache_and_gives_it_back(tiny_model, voiced_audio):
    cache = DynamicCache(config=tiny_model.encoder.config)
    _, returned = call_with_cache(tiny_model.encoder, voiced_audio, cache=cache, use_streaming=True)
    assert returned is cache and cache.get_seq_length() == 50


def test_decoder_gives_back_the_cache_that_it_was_given(tiny_model):
    cache = DynamicCache(config=tiny_model.decoder.config)
    output, returned = call_with_cache(tiny_model.decoder, torch.zeros(1, 64, 3), cache=cache, use_cache=True)
    assert returned is cache and cache.get_seq_length() == 6
    assert output.audio_values.shape == (1, 1, 3 * 1920)


def test_teacher_of_another_size_is_taken_when_sizes_may_differ(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model = MimiBridgeModel.from_pretrained(tmp_path, qwen_dim=48, ignore_mismatched_sizes=True)
    assert model.quantizer.proj_qwen.weight.shape[0] == model.config.qwen_dim == 48
    assert model.quantizer.proj_qwen.mean.eq(0).all() and model.quantizer.proj_qwen.std.eq(1).all()
    assert torch.equal(model.quantizer.proj_wavlm.weight, tiny_model.quantizer.proj_wavlm.weight)
