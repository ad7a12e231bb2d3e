"""Every tensor of a Mimi has exactly one place in the key tables, in either of its layouts."""

import re

import pytest

from key_map import (
    DERIVED_KEYS,
    FRESH_KEYS,
    KEY_MAP,
    KYUTAI_KEY_MAP,
    LEFT,
    QUERY_KEY_VALUE,
    matches_any,
    renamed,
)

RELEASED = ("in_proj_weight", "out_proj.weight")  # in Kyutai's released file
PACKAGE = ("in_projs.0.weight", "out_projs.0.weight")  # as the moshi package saves it
ENCODER_CONVOLUTIONS, ENCODER_BLOCKS = (0, 3, 6, 9, 12, 14), (1, 4, 7, 10)
DECODER_CONVOLUTIONS, DECODER_UPSAMPLING, DECODER_BLOCKS = (0, 14), (2, 5, 8, 11), (3, 6, 9, 12)


def native_keys(in_proj, out_proj, num_layers=2, num_acoustic_codebooks=11):
    """What moshi's own `MimiModel.state_dict()` is called in a tiny Mimi, written out."""
    keys = ["downsample.conv.conv.conv.weight", "upsample.convtr.convtr.convtr.weight"]
    for kind in ("weight", "bias"):
        keys += [f"encoder.model.{number}.conv.conv.{kind}" for number in ENCODER_CONVOLUTIONS]
        keys += [
            f"encoder.model.{number}.block.{inner}.conv.conv.{kind}" for number in ENCODER_BLOCKS for inner in (1, 3)
        ]
        keys += [f"decoder.model.{number}.conv.conv.{kind}" for number in DECODER_CONVOLUTIONS]
        keys += [f"decoder.model.{number}.convtr.convtr.{kind}" for number in DECODER_UPSAMPLING]
        keys += [
            f"decoder.model.{number}.block.{inner}.conv.conv.{kind}" for number in DECODER_BLOCKS for inner in (1, 3)
        ]
    parts = (
        f"self_attn.{in_proj}",
        f"self_attn.{out_proj}",
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
    )
    parts += ("linear1.weight", "linear2.weight", "layer_scale_1.scale", "layer_scale_2.scale")
    for half in ("encoder", "decoder"):
        keys += [
            f"{half}_transformer.transformer.layers.{layer}.{part}" for layer in range(num_layers) for part in parts
        ]
    for chain, num_codebooks in (("rvq_first", 1), ("rvq_rest", num_acoustic_codebooks)):
        keys += [f"quantizer.{chain}.{way}_proj.weight" for way in ("input", "output")]
        for number in range(num_codebooks):
            codebook = f"quantizer.{chain}.vq.layers.{number}._codebook"
            keys += [f"{codebook}.{name}" for name in ("_initialized", "cluster_usage", "embedding_sum")]
    return keys


def lines_matching(key, key_map):
    return sum(re.fullmatch(pattern, key) is not None for pattern, _ in key_map)


def test_every_key_of_a_transformers_mimi_matches_exactly_one_line(mimi_tensors):
    assert {lines_matching(key, KEY_MAP) for key in mimi_tensors} == {1}


@pytest.mark.parametrize("projections", [RELEASED, PACKAGE], ids=["released file", "moshi package"])
def test_every_native_key_matches_exactly_one_line(projections):
    assert {lines_matching(key, KYUTAI_KEY_MAP) for key in native_keys(*projections)} == {1}


@pytest.mark.parametrize("projections", [RELEASED, PACKAGE], ids=["released file", "moshi package"])
def test_native_keys_lead_to_exactly_the_keys_of_a_transformers_mimi(projections, mimi_tensors):
    targets = []
    for key in native_keys(*projections):
        prefix, marked, _ = renamed(key, KYUTAI_KEY_MAP).partition(QUERY_KEY_VALUE)
        targets += [f"{prefix}{name}_proj.weight" for name in "qkv"] if marked else [prefix]
    assert sorted(targets) == sorted(mimi_tensors)


@pytest.mark.parametrize(
    "key, key_map",
    [
        ("quantizer.vq.layers.0._codebook.embed", KEY_MAP),  # EnCodec's
        ("encoder.model.0.conv.conv.weight", KEY_MAP),  # the other layout's
        ("quantizer.semantic_residual_vector_quantizer.layers.1.codebook.embed_sum", KEY_MAP),  # a second semantic one
        ("encoder.layers.0.conv.weight", KYUTAI_KEY_MAP),
        ("encoder.model.0.conv.conv.weight_g", KYUTAI_KEY_MAP),
        ("text_emb.weight", KYUTAI_KEY_MAP),  # Moshi's
    ],
)
def test_renaming_a_foreign_key_raises(key, key_map):
    with pytest.raises(KeyError, match=f"'{re.escape(key)}' matches 0 lines of the key table, expected exactly 1"):
        renamed(key, key_map)


def test_renaming_a_key_that_two_lines_match_raises():
    with pytest.raises(KeyError, match=r"'encoder\.bias' matches 2 lines of the key table, expected exactly 1"):
        renamed("encoder.bias", [(r"encoder\.(.+)", r"\1"), (r"(\w+)\.bias", r"\1")])


def test_line_matches_whole_keys_only():
    with pytest.raises(KeyError, match="matches 0 lines"):
        renamed("my.downsample.conv.weight", KEY_MAP)


def test_targets_derived_and_fresh_together_are_exactly_the_keys_of_a_saved_model(mimi_tensors, converted):
    saved = set(converted.tensors)
    beyond = {  # codebooks 8 to 11 of the source, which a model of 7 acoustic codebooks has no place for
        f"quantizer.acoustic_residual.vq.layers.{number}._codebook.{name}"
        for number in range(7, 11)
        for name in ("embed_avg", "cluster_size")
    }
    targets = {renamed(key, KEY_MAP) for key in mimi_tensors} - {LEFT} - beyond
    derived = {key for key in saved if matches_any(key, DERIVED_KEYS)}
    fresh = {key for key in saved if matches_any(key, FRESH_KEYS)}
    assert targets | derived | fresh == saved
    assert len(targets) + len(derived) + len(fresh) == len(saved)


def test_prosody_gets_codebook_0():
    key = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"
    assert renamed(key, KEY_MAP) == "quantizer.head_prosody.vq._codebook.embed_avg"


@pytest.mark.parametrize("codebook", range(1, 32))
def test_acoustic_head_gets_the_codebooks_in_their_order(codebook):
    layer = codebook - 1  # both sides count their acoustic layers from 0
    key = f"quantizer.acoustic_residual_vector_quantizer.layers.{layer}.codebook.embed_sum"
    assert renamed(key, KEY_MAP) == f"quantizer.acoustic_residual.vq.layers.{layer}._codebook.embed_avg"
