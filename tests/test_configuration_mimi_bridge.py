import json
import math
from dataclasses import fields

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, MimiConfig, PreTrainedConfig

from mimi_bridge import MimiBridgeConfig

BOOKKEEPING = {"_frame_rate", "auto_map", "model_type", "transformers_version"}  # what transformers writes of its own

OWN_FIELDS = {  # ours beside MimiConfig's, none at its default where a rule allows another value
    "num_content_codebooks": 1,
    "num_prosody_codebooks": 1,
    "num_acoustic_codebooks": 3,
    "qwen_dim": 24,
    "wavlm_dim": 20,
    "residual_weight": 0.25,
    "content_layers": 1,
    "prosody_layers": 2,
    "content_delay": 2,
    "codebook_decay": 0.9,
    "commitment_weight": 0.5,
    "codebook_weight": 0.75,
    "qwen_weight": 2.0,
    "wavlm_weight": 0.0,
    "qwen_distance": "cosine",
    "wavlm_distance": "cosine",
}


def declared(config_class: type) -> set[str]:
    return {field.name for field in fields(config_class)}


def saved_fields(config: MimiBridgeConfig, folder) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("num_quantizers", 9),
        ("num_content_codebooks", 1),
        ("num_prosody_codebooks", 1),
        ("num_acoustic_codebooks", 7),
        ("qwen_dim", 1536),
        ("wavlm_dim", 1024),
        ("residual_weight", 1.0),
        ("hidden_size", 512),
        ("codebook_size", 2048),
        ("codebook_dim", 256),
        ("frame_size", 1920),
        ("frame_rate", 12.5),
    ],
)
def test_config_has_the_specification_number_when_left_alone(name, expected):
    assert getattr(MimiBridgeConfig(), name) == expected


@pytest.mark.parametrize("num_acoustic_codebooks, total", [(1, 3), (31, 33)])
def test_num_quantizers_follows_the_heads_when_left_out(num_acoustic_codebooks, total):
    assert MimiBridgeConfig(num_acoustic_codebooks=num_acoustic_codebooks).num_quantizers == total


def test_num_quantizers_is_accepted_when_it_is_the_sum_of_the_heads():
    assert MimiBridgeConfig(num_quantizers=5, num_acoustic_codebooks=3).num_acoustic_codebooks == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_content_codebooks": 2}, "num_content_codebooks must be 1 in this architecture, got 2"),
        ({"num_prosody_codebooks": 0}, "num_prosody_codebooks must be 1 in this architecture, got 0"),
        ({"num_semantic_quantizers": 2}, "num_semantic_quantizers must be 1 in this architecture, got 2"),
        ({"num_acoustic_codebooks": 0}, "num_acoustic_codebooks must be 1 to 31, got 0"),
        ({"num_acoustic_codebooks": 32}, "num_acoustic_codebooks must be 1 to 31, got 32"),
        ({"num_quantizers": 8}, "num_quantizers must be 9, the sum of the three heads' codebooks, got 8"),
        ({"num_quantizers": 9, "num_acoustic_codebooks": 3}, "num_quantizers must be 5, .* got 9"),
        ({"codebook_size": 1}, "codebook_size must be at least 2, got 1"),
        ({"codebook_size": 48}, "`codebook_size` must be a power of 2, but is 48"),
        ({"codebook_dim": 128}, r"must equal vector_quantization_hidden_dimension \(256\), got 128"),
        ({"use_causal_conv": False}, "use_causal_conv must be True, got False"),
        ({"qwen_dim": 0}, "qwen_dim must be the teacher's hidden size, at least 1, got 0"),
        ({"wavlm_dim": -1}, "wavlm_dim must be the teacher's hidden size, at least 1, got -1"),
    ],
)
def test_config_refuses_a_field_that_breaks_a_rule(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        MimiBridgeConfig(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"residual_weight": -0.1}, r"residual_weight must lie in \[0, 1\], got -0.1"),
        ({"residual_weight": 1.1}, r"residual_weight must lie in \[0, 1\], got 1.1"),
        ({"residual_weight": math.nan}, r"residual_weight must lie in \[0, 1\], got nan"),
        ({"codebook_decay": 0.0}, "codebook_decay must lie between 0 and 1, both excluded, got 0.0"),
        ({"codebook_decay": 1}, "codebook_decay must lie between 0 and 1, both excluded, got 1"),
        ({"commitment_weight": -1.0}, "commitment_weight must be finite and at least 0, got -1.0"),
        ({"qwen_weight": math.nan}, "qwen_weight must be finite and at least 0, got nan"),
        ({"wavlm_weight": math.inf}, "wavlm_weight must be finite and at least 0, got inf"),
        ({"qwen_distance": "l1"}, r"qwen_distance must be one of \('mse', 'cosine'\), got 'l1'"),
        ({"wavlm_distance": "MSE"}, r"wavlm_distance must be one of \('mse', 'cosine'\), got 'MSE'"),
    ],
)
def test_config_refuses_a_setting_that_breaks_a_rule_when_made_and_when_set(options, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        MimiBridgeConfig(**options)
    (((name, value),), config) = options.items(), MimiBridgeConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        setattr(config, name, value)
    assert getattr(config, name) == getattr(MimiBridgeConfig(), name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"qwen_dim": 1536.5}, "'qwen_dim' expected int, got float"),
        ({"num_acoustic_codebooks": "7"}, "'num_acoustic_codebooks' expected int, got str"),
        ({"num_quantizers": "9"}, "'num_quantizers' with value '9' doesn't match any type"),
        ({"residual_weight": "half"}, "'residual_weight' with value 'half' doesn't match any type"),
        ({"wavlm_distance": None}, "'wavlm_distance' expected str, got NoneType"),
    ],
)
def test_config_refuses_a_field_of_the_wrong_type(options, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        MimiBridgeConfig(**options)


@pytest.mark.parametrize(
    "name, value",
    [("residual_weight", 0), ("residual_weight", 1), ("qwen_weight", 0.0), ("codebook_size", 2), ("qwen_dim", 1)],
)
def test_config_accepts_the_ends_of_a_range(name, value):
    assert getattr(MimiBridgeConfig(**{name: value}), name) == value


def test_every_field_survives_saving_and_loading(tmp_path):
    assert set(OWN_FIELDS) == declared(MimiBridgeConfig) - declared(MimiConfig)
    config = MimiBridgeConfig(**OWN_FIELDS, num_filters=4, sliding_window=25)
    config.save_pretrained(tmp_path)
    assert MimiBridgeConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_loaded_config_holds_the_values_it_was_made_with(tmp_path):
    MimiBridgeConfig(**OWN_FIELDS).save_pretrained(tmp_path)
    loaded = MimiBridgeConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in OWN_FIELDS} == OWN_FIELDS


def test_auto_config_gives_our_class_when_loading_a_saved_config(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MimiBridgeConfig


def test_saved_config_holds_every_field_of_the_architecture(tmp_path):
    architecture = declared(MimiBridgeConfig) - declared(PreTrainedConfig)
    assert architecture <= set(saved_fields(MimiBridgeConfig(), tmp_path))


def test_saved_config_holds_nothing_but_declared_fields_and_bookkeeping(tmp_path):
    assert set(saved_fields(MimiBridgeConfig(), tmp_path)) <= declared(MimiBridgeConfig) | BOOKKEEPING


def test_saved_config_shows_a_misspelt_field_which_transformers_accepts_silently(tmp_path):
    undeclared = set(saved_fields(MimiBridgeConfig(qwen_dims=24), tmp_path)) - declared(MimiBridgeConfig) - BOOKKEEPING
    assert undeclared == {"qwen_dims"}
