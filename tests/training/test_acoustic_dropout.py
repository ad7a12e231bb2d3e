"""Recordings decoded without their acoustic codes: which ones, what the decoder gets, and what stays as it was."""

from typing import Any

import pytest
import torch
from test_trainer import (
    assert_same,
    assert_same_change,
    audio_model,
    audio_rows,
    latents_model,
    latents_rows,
    state_of,
    train,
    trainer_of,
)

from mimi_bridge.training.acoustic_dropout import choose_rows, decoded_without_acoustic, restore_quantized

QUICK: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 2}
SGD = {"optim": "sgd", "learning_rate": 0.1}


def test_rows_are_chosen_by_seed_step_and_recording_alone():
    audio = torch.randn(400, 1, 500)
    chosen = choose_rows(audio, 0.25, seed=1, step=7)
    assert 0.15 < chosen.float().mean() < 0.35
    order = torch.randperm(400)
    assert torch.equal(choose_rows(audio[order], 0.25, seed=1, step=7), chosen[order])
    assert not torch.equal(choose_rows(audio, 0.25, seed=1, step=8), chosen)
    assert not torch.equal(choose_rows(audio, 0.25, seed=2, step=7), chosen)


def test_decoder_gets_content_and_prosody_alone_of_the_rows_that_are_chosen():
    model, audio = (
        audio_model().eval(),
        torch.stack([row["input_values"][:3000] for row in audio_rows()[:1] * 3])[:, None],
    )
    audio = audio * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    plain = model(audio, output_losses=True)
    chosen = torch.tensor([False, True, False])
    with decoded_without_acoustic(model, chosen):
        outputs = model(audio, output_losses=True)
    shares = torch.where(chosen[:, None, None], plain.content + plain.prosody, plain.quantized)
    decoded = model.decoder(shares.transpose(1, 2)).audio_values[..., : audio.shape[-1]]
    torch.testing.assert_close(outputs.audio_values, decoded)
    assert not torch.allclose(outputs.audio_values[1], plain.audio_values[1])
    restore_quantized(outputs)
    assert torch.equal(outputs.quantized, plain.quantized) and torch.equal(outputs.audio_codes, plain.audio_codes)
    assert torch.equal(model(audio, output_losses=True).audio_values, plain.audio_values)  # it is over


def test_without_dropout_training_is_what_it_was(tmp_path):
    assert_same(
        state_of(train(tmp_path, audio_model(), audio_rows(), **QUICK)),
        state_of(train(tmp_path, audio_model(), audio_rows(), **QUICK, acoustic_dropout=0.0)),
    )


def test_dropout_reaches_the_losses_of_audio_and_no_other(tmp_path):
    logs = []
    for share in (0.0, 0.9):
        options = {"logging_strategy": "steps", "logging_steps": 1, "acoustic_dropout": share}
        trainer = trainer_of(tmp_path, audio_model(), audio_rows(), **QUICK, **options)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    changed = {name for name in logs[0] if name.startswith("loss_") and logs[0][name] != logs[1][name]}
    assert changed == {"loss_mel"}


def test_step_with_dropout_is_the_same_however_it_is_divided(tmp_path):
    after = []
    for size, accumulated in ((2, 4), (8, 1)):
        divided = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        rates = {"head_learning_rates": {"codec": 0.03}}
        model = train(tmp_path, audio_model(), audio_rows(), **SGD, **divided, **rates, acoustic_dropout=0.5)
        after.append(state_of(model))
    assert_same_change(*after, state_of(audio_model()), tolerance=1e-2)


def test_evaluation_decodes_all_codes(tmp_path):
    losses = [
        trainer_of(
            tmp_path, audio_model(), audio_rows(), eval_dataset=audio_rows(4), acoustic_dropout=share
        ).evaluate()
        for share in (0.0, 0.9)
    ]
    assert losses[0]["eval_loss_mel"] == losses[1]["eval_loss_mel"]


def test_training_with_dropout_that_goes_on_is_what_it_would_have_been(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "acoustic_dropout": 0.5}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = train(tmp_path / "whole", audio_model(), audio_rows(), **options)
    parts = trainer_of(tmp_path / "parts", audio_model(), audio_rows(), **options)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(state_of(parts.bridge_model), state_of(whole))


def test_dropout_of_cached_latents_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"acoustic_dropout=0\.5 needs audio, but rows hold latents"):
        train(tmp_path, latents_model(), latents_rows(), acoustic_dropout=0.5)


def test_dropout_without_a_decoder_is_refused(tmp_path):
    model = latents_model()
    model.decoder = None
    with pytest.raises(ValueError, match=r"acoustic_dropout=0\.5 needs the decoder, but the model was loaded without"):
        trainer_of(tmp_path, model, latents_rows(), acoustic_dropout=0.5)


def test_dropout_without_a_loss_of_the_decoded_audio_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"acoustic_dropout=0\.5 needs a loss of the decoded audio, but mel_weight and"
    ):
        trainer_of(tmp_path, audio_model(), audio_rows(), acoustic_dropout=0.5, mel_weight=0.0)
