"""Heads with layers of their own in training: they learn with their head, however a step is divided."""

from copy import deepcopy

import pytest
import torch
from test_trainer import (
    OPTIMIZERS,
    assert_same,
    assert_same_change,
    latents_model,
    latents_rows,
    moved,
    state_of,
    train,
    trainer_of,
)

from mimi_bridge import MimiBridgeModel
from mimi_bridge.frames import mask_from_lengths
from mimi_bridge.training.optimizer import part_of
from mimi_bridge.training.reference import Reference


def model_with_layers() -> MimiBridgeModel:
    """The small model of the trainer's tests, with layers of both heads' own, which count."""
    plain = latents_model()
    config = deepcopy(plain.config)
    config.content_layers = config.prosody_layers = 1
    torch.manual_seed(3)
    model = MimiBridgeModel(config).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for name in ("content", "prosody"):
            model.quantizer.heads[name].context.out.weight.normal_(std=0.1)
    return model


def layers_of(head: str, names) -> set[str]:
    return {name for name in names if name.startswith(f"quantizer.{head}.context.")}


@pytest.mark.parametrize("head, part", [("head_content", "content"), ("head_prosody", "prosody")])
def test_a_head_s_layers_have_the_rate_of_their_head(head, part):
    layers = layers_of(head, dict(model_with_layers().named_parameters()))
    assert layers and {part_of(name) for name in layers} == {part}


def test_a_step_of_layers_is_the_same_however_it_is_divided(tmp_path):
    before, after = state_of(model_with_layers()), []
    for size, accumulated in ((2, 4), (8, 1)):
        division = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        model = train(tmp_path, model_with_layers(), latents_rows(), revive_every=0, **division, **OPTIMIZERS["adamw"])
        after.append(state_of(model))
    assert_same_change(*after, before, tolerance=5e-3)
    assert {name for name in before if ".context." in name} <= set(moved(before, after[0]))


def test_layers_of_a_head_without_a_rate_stand_still(tmp_path):
    before = state_of(model_with_layers())
    model = train(tmp_path, model_with_layers(), latents_rows(), head_learning_rates={"content": 0.0}, max_steps=2)
    changed = moved(before, state_of(model))
    assert not layers_of("head_content", changed) and layers_of("head_prosody", changed)


def test_training_of_layers_that_is_resumed_ends_as_if_it_had_never_stopped(tmp_path):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    whole = state_of(train(tmp_path, model_with_layers(), latents_rows(), **options))
    trainer = trainer_of(tmp_path / "again", model_with_layers(), latents_rows(), **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same(state_of(trainer.bridge_model), whole)


@torch.no_grad()
def test_the_anchor_of_a_model_whose_heads_have_layers_is_what_that_model_gave():
    quantizer = model_with_layers().quantizer
    latents, mask = torch.randn(2, 12, quantizer.codec_dim), mask_from_lengths(torch.tensor([12, 7]), 12)
    anchor, expected = Reference(quantizer), quantizer(latents, frame_mask=mask).quantized
    quantizer.head_content.context.out.weight.zero_()
    torch.testing.assert_close(anchor(latents, mask), expected)
