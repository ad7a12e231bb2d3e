"""The decoder learns alone: codes and codebooks stay what they are, to the bit, and the audio comes nearer."""

from typing import Any

import pytest
import torch
from test_trainer import (
    audio_model,
    audio_rows,
    latents_model,
    latents_rows,
    moved,
    silence_content,
    state_of,
    train,
    trainer_of,
)
from torch import Tensor

from mimi_bridge import MimiBridgeModel

DECODER_ALONE = {"content": 0, "prosody": 0, "bridges": 0, "acoustic": 0, "encoder": 0, "decoder": 3e-3}
QUICK: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}


def codes_of(model: MimiBridgeModel) -> list[Tensor]:
    model.eval()
    return [model.encode(row["input_values"][None, None]).audio_codes for row in audio_rows()]


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("fresh", [False, True], ids=["trained", "fresh"])
def test_decoder_alone_learns_and_no_code_changes(tmp_path, fresh, update):
    model = silence_content(audio_model()) if fresh else audio_model()
    before, codes, residual_weight = state_of(model), codes_of(model), model.config.residual_weight
    options = QUICK | {"codebook_update": update, "weight_decay": 0.1, "revive_every": 1, "content_init": "k-means"}
    train(tmp_path, model, audio_rows(), max_steps=3, head_learning_rates=DECODER_ALONE, **options)
    names = [name for name in moved(before, state_of(model)) if ".proj_" not in name]  # a teacher's mean and deviation
    assert names
    assert [name for name in names if not name.startswith("decoder.")] == []
    assert model.config.residual_weight == residual_weight
    assert all(torch.equal(*pair) for pair in zip(codes_of(model), codes, strict=True))


def test_decoder_alone_brings_the_audio_nearer(tmp_path):
    model = audio_model()
    options = QUICK | {"logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(tmp_path, model, audio_rows(), max_steps=30, head_learning_rates=DECODER_ALONE, **options)
    trainer.train()
    losses = [line["loss_mel"] for line in trainer.state.log_history if "loss_mel" in line]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_residual_weight_moves_where_it_is_asked_for_although_no_code_learns(tmp_path):
    model = audio_model()
    rates = {"head_learning_rates": DECODER_ALONE, "residual_weight_end": 1.0, "residual_weight_warmup_ratio": 1.0}
    train(tmp_path, model, audio_rows(), max_steps=1, **QUICK, **rates)
    assert model.config.residual_weight == 1.0


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_learns_alone(tmp_path, half):
    model = audio_model()
    before = state_of(model)
    rates = {**DECODER_ALONE, "decoder": 0, half: 1e-3}
    train(tmp_path, model, audio_rows(), max_steps=1, head_learning_rates=rates, **QUICK)
    names = [name for name in moved(before, state_of(model)) if ".proj_" not in name]
    assert names and all(name.startswith(f"{half}.") for name in names)


def test_decoder_alone_is_refused_where_rows_hold_latents(tmp_path):
    with pytest.raises(ValueError, match=r"no loss of this batch reaches what learns \(decoder\); the decoder learns"):
        train(tmp_path, latents_model(), latents_rows(), head_learning_rates=DECODER_ALONE, **QUICK)


def test_half_that_is_named_and_not_there_is_refused(tmp_path):
    model = latents_model()
    model.decoder = None
    with pytest.raises(ValueError, match=r"decoder has the learning rate 0\.003, but the model was loaded without it"):
        train(tmp_path, model, latents_rows(), head_learning_rates=DECODER_ALONE, **QUICK)
