"""λ, the loss weights, the distances and the decay have one owner: what is in force is what is saved."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from mimi_bridge import CausalBridgeQuantizer, MimiBridgeConfig

VALUES = {
    "residual_weight": 0.25,
    "content_delay": 2,
    "codebook_decay": 0.5,
    "commitment_weight": 0.5,
    "codebook_weight": 0.75,
    "qwen_weight": 0.0,
    "wavlm_weight": 3.0,
    "qwen_distance": "cosine",
    "wavlm_distance": "cosine",
}
WRONG = {
    "residual_weight": (1.5, r"residual_weight must lie in \[0, 1\], got 1.5"),
    "content_delay": (-1, "content_delay must be a whole number of frames, at least 0, got -1"),
    "codebook_decay": (1.0, "codebook_decay must lie between 0 and 1, both excluded, got 1.0"),
    "commitment_weight": (-1.0, "commitment_weight must be finite and at least 0, got -1.0"),
    "codebook_weight": (float("inf"), "codebook_weight must be finite and at least 0, got inf"),
    "qwen_weight": (float("nan"), "qwen_weight must be finite and at least 0, got nan"),
    "wavlm_weight": (-0.5, "wavlm_weight must be finite and at least 0, got -0.5"),
    "qwen_distance": ("l1", r"qwen_distance must be one of \('mse', 'cosine'\), got 'l1'"),
    "wavlm_distance": ("MSE", r"wavlm_distance must be one of \('mse', 'cosine'\), got 'MSE'"),
}
EACH_SETTING = pytest.mark.parametrize("name", VALUES)


def read(quantizer: CausalBridgeQuantizer, name: str):
    """The setting where the quantizer shows it."""
    part, _, kind = name.partition("_")
    if kind == "distance":
        return getattr(quantizer, f"proj_{part}").distance
    if kind == "weight" and part != "residual":
        return quantizer.loss_weights[part]
    return getattr(quantizer, name)


def write(quantizer: CausalBridgeQuantizer, name: str, value) -> None:
    """Change the setting where the quantizer shows it."""
    part, _, kind = name.partition("_")
    if kind == "distance":
        getattr(quantizer, f"proj_{part}").distance = value
    elif kind == "weight" and part != "residual":
        quantizer.loss_weights[part] = value
    else:
        setattr(quantizer, name, value)


def small_quantizer(**options) -> CausalBridgeQuantizer:
    torch.manual_seed(0)
    sizes = {"num_acoustic_codebooks": 1, "codebook_size": 8, "codebook_dim": 4}
    return CausalBridgeQuantizer(6, 5, 3, **sizes, **options).eval()


def given(quantizer: CausalBridgeQuantizer) -> dict[str, torch.Tensor]:
    """Latents with both teachers."""
    generator = torch.Generator().manual_seed(1)
    sizes = {
        "x": quantizer.codec_dim,
        "qwen_hidden": quantizer.proj_qwen.out_features,
        "wavlm_features": quantizer.proj_wavlm.out_features,
    }
    batch = {name: torch.randn(2, 7, size, generator=generator) for name, size in sizes.items()}
    return batch | {"durations": torch.ones(2, 7, dtype=torch.long)}


@EACH_SETTING
def test_setting_changed_in_the_quantizer_is_saved_and_loaded(tiny_model, tmp_path, name):
    write(tiny_model.quantizer, name, VALUES[name])
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[name] == VALUES[name]
    assert read(AutoModel.from_pretrained(tmp_path).quantizer, name) == VALUES[name]


@EACH_SETTING
def test_setting_changed_in_the_config_is_the_quantizer_s(tiny_model, name):
    setattr(tiny_model.config, name, VALUES[name])
    assert read(tiny_model.quantizer, name) == VALUES[name]


@EACH_SETTING
def test_copy_of_a_model_has_settings_of_its_own(tiny_model, name):
    copy, before = deepcopy(tiny_model), read(tiny_model.quantizer, name)
    write(copy.quantizer, name, VALUES[name])
    assert getattr(copy.config, name) == VALUES[name] != before
    assert read(tiny_model.quantizer, name) == getattr(tiny_model.config, name) == before


@EACH_SETTING
def test_wrong_value_is_refused_by_the_quantizer_and_changes_nothing(tiny_model, name):
    value, message = WRONG[name]
    for quantizer in (tiny_model.quantizer, small_quantizer()):
        before = read(quantizer, name)
        with pytest.raises(ValueError, match=message):
            write(quantizer, name, value)
        assert read(quantizer, name) == before


@EACH_SETTING
def test_wrong_value_is_refused_at_the_next_forward_whoever_put_it_there(tiny_model, name):
    value, message = WRONG[name]
    quantizer = tiny_model.quantizer.train()
    for head in quantizer.heads.values():  # as where codebooks learn by gradients
        for store in head.vq_codebooks:
            entries = store._buffers.pop("embed")
            store.register_parameter("embed", torch.nn.Parameter(entries))
    vars(tiny_model.config)[name] = value
    with pytest.raises(ValueError, match=message):
        quantizer(**given(quantizer))


@EACH_SETTING
def test_wrong_value_is_refused_by_the_config_and_changes_nothing(tiny_model, name):
    value, message = WRONG[name]
    before = getattr(tiny_model.config, name)
    with pytest.raises(StrictDataclassError, match=message):
        setattr(tiny_model.config, name, value)
    assert read(tiny_model.quantizer, name) == before


@EACH_SETTING
def test_model_that_is_given_another_config_follows_its_settings(tiny_model, name):
    other = deepcopy(tiny_model.config)
    setattr(other, name, VALUES[name])
    tiny_model.config = other
    assert read(tiny_model.quantizer, name) == VALUES[name]
    write(tiny_model.quantizer, name, getattr(MimiBridgeConfig(), name))
    assert getattr(other, name) == getattr(MimiBridgeConfig(), name)


def test_residual_weight_of_the_config_takes_effect_at_the_next_call(tiny_model, voiced_audio):
    tiny_model.config.residual_weight = 0.25
    codes, outputs = tiny_model.encode(voiced_audio).audio_codes, tiny_model(voiced_audio)
    other = deepcopy(tiny_model)
    other.quantizer.residual_weight = 1.0
    assert torch.equal(codes, outputs.audio_codes)
    assert not torch.equal(codes, other.encode(voiced_audio).audio_codes)
    other.quantizer.residual_weight = 0.25
    assert torch.equal(codes, other.encode(voiced_audio).audio_codes)


def test_loss_weights_of_the_config_take_effect_at_the_next_forward(tiny_model):
    latents = given(tiny_model.quantizer)
    latents["latents"] = latents.pop("x")
    for name in ("commitment_weight", "qwen_weight", "wavlm_weight"):
        setattr(tiny_model.config, name, 0)
    assert tiny_model(**latents).loss.item() == 0.0
    tiny_model.config.qwen_weight = 2
    output = tiny_model(**latents)
    assert output.loss.item() == pytest.approx(2 * output.losses["qwen"].item())


def test_distance_of_the_config_takes_effect_at_the_next_forward(tiny_model):
    quantizer = tiny_model.quantizer
    batch = given(quantizer)
    before = quantizer(**batch).losses["qwen"]
    tiny_model.config.qwen_distance = "cosine"
    scaled = batch | {"qwen_hidden": 100 * batch["qwen_hidden"]}
    after = [quantizer(**each).losses["qwen"].item() for each in (batch, scaled)]
    assert after[0] == pytest.approx(after[1]) != before.item()


def test_decay_of_the_config_takes_effect_at_the_next_training_forward(tiny_model):
    latents, slow = given(tiny_model.quantizer)["x"], deepcopy(tiny_model)
    tiny_model.config.codebook_decay, slow.config.codebook_decay = 0.1, 0.9
    before = tiny_model.quantizer.head_content.vq_codebooks[0].cluster_size.clone()
    moved = []
    for model in (tiny_model, slow):
        model.quantizer.train()(latents)
        moved.append(model.quantizer.head_content.vq_codebooks[0].cluster_size - before)
    torch.testing.assert_close(moved[0], 9 * moved[1])


def test_quantizer_alone_owns_its_settings():
    quantizer = small_quantizer(residual_weight=0.5, loss_weights={"qwen": 2.0}, distances={"wavlm": "cosine"})
    copy = deepcopy(quantizer)
    copy.residual_weight, copy.loss_weights["qwen"] = 0.0, 0.0
    assert (quantizer.residual_weight, copy.residual_weight) == (0.5, 0.0)
    assert quantizer.loss_weights == {"commitment": 1.0, "codebook": 1.0, "qwen": 2.0, "wavlm": 1.0}
    assert copy.loss_weights["qwen"] == 0.0
    assert (quantizer.proj_qwen.distance, quantizer.proj_wavlm.distance) == ("mse", "cosine")


def test_config_that_a_quantizer_is_made_of_owns_its_settings():
    config = MimiBridgeConfig(codebook_size=8)
    quantizer = CausalBridgeQuantizer.from_config(config)
    quantizer.residual_weight = 0.5
    assert config.residual_weight == 0.5


def test_weights_that_are_assigned_together_leave_the_others(tiny_model):
    tiny_model.quantizer.loss_weights = {"qwen": 0, "wavlm": 2}
    config = tiny_model.config
    assert (config.commitment_weight, config.qwen_weight, config.wavlm_weight) == (0.25, 0.0, 2.0)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), True])
def test_any_real_number_is_taken_and_saved_as_a_plain_one(tiny_model, value):
    tiny_model.quantizer.residual_weight = value
    assert type(tiny_model.config.residual_weight) is float


@pytest.mark.parametrize("value", ["half", None, torch.tensor(0.5), [0.5]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="residual_weight must be a number, got"):
        small_quantizer().residual_weight = value


def test_misspelt_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss_weights must name losses of \('commitment', .*\), got 'qwenn'"):
        small_quantizer(loss_weights={"qwenn": 0.0})


def test_misspelt_teacher_is_refused():
    with pytest.raises(ValueError, match="distances must give 'mse' or 'cosine' for qwen and wavlm, got"):
        small_quantizer(distances={"qwenn": "mse"})


def test_loss_weight_is_not_left_out_but_set_to_0():
    with pytest.raises(ValueError, match="the weight of 'qwen' cannot be left out; set it to 0"):
        del small_quantizer().loss_weights["qwen"]
