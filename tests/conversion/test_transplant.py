"""The surgery: with λ = 0 the result computes what its source computes, and every tensor is accounted for."""

import re

import pytest
import torch
from transformers import MimiConfig

from random_mimi import random_mimi
from source import ConversionError, read_source
from transplant import transplant

SEMANTIC = "quantizer.semantic_residual_vector_quantizer"
ACOUSTIC = "quantizer.acoustic_residual_vector_quantizer"


@pytest.fixture(scope="module")
def deep_folder(_tiny_mimi, fitting_speech, tmp_path_factory):
    """A tiny Mimi with as many codebooks as kyutai/mimi, 32, in transformers' layout."""
    folder = tmp_path_factory.mktemp("source") / "deep-mimi"
    fields = _tiny_mimi.config.to_dict() | {"num_quantizers": 32}
    random_mimi(MimiConfig(**fields), fitting_speech).save_pretrained(folder)
    return folder


@pytest.fixture
def deep_source(deep_folder):
    """The Mimi of 32 codebooks as the converter reads it."""
    return read_source(str(deep_folder))


@pytest.fixture
def bridge(tiny_source):
    """The tiny Mimi, transplanted with default options; runs transformers' modules, so that equal means equal."""
    bridge = transplant(tiny_source)
    bridge.model.use_fast_path = False
    return bridge


# Exactness


@pytest.mark.parametrize("num_acoustic_codebooks", [1, 7, 31])
def test_result_computes_what_its_source_computes(num_acoustic_codebooks, deep_source, speech):
    mimi = deep_source.build()
    model = transplant(deep_source, num_acoustic_codebooks=num_acoustic_codebooks).model
    model.use_fast_path = False
    expected_codes = mimi.encode(speech[None], num_quantizers=1 + num_acoustic_codebooks).audio_codes
    codes = model.encode(speech[None]).audio_codes
    assert torch.equal(codes[:, 1:], expected_codes)
    assert torch.equal(model.decode(codes).audio_values, mimi.decode(expected_codes).audio_values)
    assert min(len(codebook.unique()) for codebook in expected_codes.unbind(dim=1)) >= 20  # of 64: equality means much


def test_result_computes_what_its_source_computes_from_every_number_of_codebooks(bridge, tiny_source, speech):
    mimi = tiny_source.build()
    codes = mimi.encode(speech[None], num_quantizers=8).audio_codes
    with_content = torch.cat([torch.zeros_like(codes[:, :1]), codes], dim=1)
    for number in range(1, 9):
        expected = mimi.decode(codes[:, :number]).audio_values
        assert torch.equal(bridge.model.decode(with_content[:, : number + 1]).audio_values, expected)


def test_result_equals_its_source_in_training_forward_too(bridge, tiny_source, speech):
    expected = tiny_source.build().encode(speech[None], num_quantizers=8).audio_codes
    assert torch.equal(bridge.model.train()(speech[None]).audio_codes[:, 1:], expected)


def test_entry_that_the_source_never_used_decodes_as_in_the_source(tiny_source):
    tiny_source.tensors[f"{SEMANTIC}.layers.0.codebook.cluster_usage"][5] = 0.0
    expected = tiny_source.build().quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed
    assert torch.equal(transplant(tiny_source).model.quantizer.head_prosody.codebooks[0], expected)


# What comes from where


def test_prosody_head_holds_codebook_0(bridge, tiny_mimi):
    expected = tiny_mimi.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed
    assert torch.equal(bridge.model.quantizer.head_prosody.codebooks[0], expected)


def test_acoustic_head_holds_codebooks_1_to_7_in_their_order(bridge, tiny_mimi):
    layers = tiny_mimi.quantizer.acoustic_residual_vector_quantizer.layers[:7]
    for codebook, layer in zip(bridge.model.quantizer.acoustic_residual.codebooks, layers, strict=True):
        assert torch.equal(codebook, layer.codebook.embed)


def test_content_head_adds_exactly_nothing(bridge, speech):
    quantizer = bridge.model.quantizer
    output = quantizer(bridge.model.get_latents(speech[None]))
    assert len(output.codes[:, 0].unique()) > 1  # it does look things up
    assert torch.count_nonzero(output.content) == 0
    assert torch.equal(output.quantized, output.prosody + output.acoustic)


def test_residual_weight_reaches_config_and_quantizer(tiny_source):
    model = transplant(tiny_source, residual_weight=0.5).model
    assert (model.config.residual_weight, model.quantizer.residual_weight) == (0.5, 0.5)


def test_content_head_is_the_same_for_the_same_seed(tiny_source):
    first, second = (transplant(tiny_source, seed=3).model.quantizer.head_content.codebooks[0] for _ in range(2))
    assert torch.equal(first, second)


def test_content_head_is_another_for_another_seed(tiny_source):
    first, second = (transplant(tiny_source, seed=seed).model.quantizer.head_content for seed in (3, 4))
    assert not torch.equal(first.codebooks[0], second.codebooks[0])
    assert not torch.equal(first.project_in.weight, second.project_in.weight)


def test_transplant_leaves_the_callers_random_numbers_alone(tiny_source):
    before = torch.get_rng_state()
    transplant(tiny_source)
    assert torch.equal(torch.get_rng_state(), before)


# The account


def test_moved_and_left_together_are_the_keys_of_the_source(bridge, tiny_source):
    assert sorted(bridge.moved + bridge.left) == sorted(tiny_source.tensors)


def test_left_are_the_flags_and_the_codebooks_beyond_the_eighth(bridge):
    flags = {f"{SEMANTIC}.layers.0.codebook.initialized"}
    flags |= {f"{ACOUSTIC}.layers.{number}.codebook.initialized" for number in range(11)}
    beyond = {
        f"{ACOUSTIC}.layers.{number}.codebook.{name}"
        for number in range(7, 11)
        for name in ("embed_sum", "cluster_usage")
    }
    assert set(bridge.left) == flags | beyond


def test_derived_are_the_entries_of_the_eight_moved_codebooks(bridge):
    acoustic = {f"quantizer.acoustic_residual.vq.layers.{number}._codebook.embed" for number in range(7)}
    assert set(bridge.derived) == {"quantizer.head_prosody.vq._codebook.embed"} | acoustic


# What cannot be transplanted


@pytest.mark.parametrize(
    "key",
    [
        "quantizer.vq.layers.0.codebook.embed",
        "my_head.weight",
        "decoder_transformer.layers.9.mlp.fc1.weight",
        "encoder.layers.99.conv.weight",
        "decoder.layers.3.shortcut.conv.weight",
    ],
)
def test_foreign_tensor_is_refused_by_its_name(key, tiny_source):
    tiny_source.tensors[key] = torch.zeros(3)
    shown = re.escape(key.split("layers.")[-1])  # transformers calls the front of some keys otherwise in memory
    with pytest.raises(ConversionError, match=rf"^tiny-mimi .*{shown}"):
        transplant(tiny_source)


def test_quantizer_that_lacks_a_tensor_is_refused_by_its_name(tiny_source):
    del tiny_source.tensors[f"{ACOUSTIC}.input_proj.weight"]
    with pytest.raises(ConversionError, match=r"not at all \(quantizer\.acoustic_residual\.project_in\.weight\)"):
        transplant(tiny_source)


def test_more_acoustic_codebooks_than_the_source_has_are_refused(tiny_source):
    with pytest.raises(
        ConversionError, match="has 12 codebooks, expected at least 13 for 12 acoustic ones; lower --num"
    ):
        transplant(tiny_source, num_acoustic_codebooks=12)


def test_no_acoustic_codebook_at_all_is_refused(tiny_source):
    with pytest.raises(ConversionError, match="num_acoustic_codebooks must be 1 to 31, got 0"):
        transplant(tiny_source, num_acoustic_codebooks=0)


@pytest.mark.parametrize("residual_weight", [-0.1, 1.1, float("nan")])
def test_residual_weight_outside_0_to_1_is_refused(residual_weight, tiny_source):
    with pytest.raises(ConversionError, match=r"residual_weight must lie in \[0, 1\]"):
        transplant(tiny_source, residual_weight=residual_weight)
