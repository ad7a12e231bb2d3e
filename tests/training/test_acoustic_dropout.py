"""Recordings decoded without their acoustic codes, or with shifted ones: which, what is decoded, what stays."""

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

from mimi_bridge.training.acoustic_dropout import (
    AcousticChanges,
    choose_changes,
    decoded_with,
    restore_quantized,
    shifted,
)

QUICK: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 2}
SGD = {"optim": "sgd", "learning_rate": 0.1}


CHANGES = pytest.mark.parametrize("name", ["acoustic_dropout", "acoustic_shift"])


def same_recordings(count: int) -> torch.Tensor:
    """The first recording so many times, each at another level, `(count, 1, samples)`."""
    audio = audio_rows()[0]["input_values"][:3000].expand(count, 1, -1)
    return audio * torch.linspace(1.0, 0.2, count)[:, None, None]


def test_changes_depend_on_seed_step_and_recording_alone():
    audio = torch.randn(400, 1, 500)
    chosen = choose_changes(audio, 0.25, 0.4, seed=1, step=7)
    shifted_rows = chosen.shifts > 0
    assert 0.15 < chosen.left_out.float().mean() < 0.35 and 0.3 < shifted_rows.float().mean() < 0.5
    assert not (chosen.left_out & shifted_rows).any()
    assert ((chosen.shifts[shifted_rows] >= 0.25) & (chosen.shifts[shifted_rows] <= 0.75)).all()
    order = torch.randperm(400)
    again = choose_changes(audio[order], 0.25, 0.4, seed=1, step=7)
    assert torch.equal(again.left_out, chosen.left_out[order]) and torch.equal(again.shifts, chosen.shifts[order])
    for other in ({"seed": 1, "step": 8}, {"seed": 2, "step": 7}):
        others = choose_changes(audio, 0.25, 0.4, **other)
        assert not torch.equal(others.left_out, chosen.left_out) and not torch.equal(others.shifts, chosen.shifts)


def test_shift_turns_each_recording_within_its_own_length():
    frames = torch.arange(12.0).reshape(2, 6, 1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    turned = shifted(frames, torch.tensor([0.5, 0.25]), mask)[:, :, 0]
    assert turned.tolist() == [[3, 4, 5, 0, 1, 2], [7, 8, 9, 6, 10, 11]]
    assert torch.equal(shifted(frames, torch.zeros(2), mask), frames)
    assert torch.equal(shifted(frames, torch.tensor([0.5, 0.5]), None)[1, :, 0], turned[0] + 6)


def test_decoder_gets_what_was_chosen_and_outputs_say_what_they_did():
    model, audio = audio_model().eval(), same_recordings(3)
    plain = model(audio, output_losses=True)
    changes = AcousticChanges(torch.tensor([False, True, False]), torch.tensor([0.0, 0.0, 0.5]))
    with decoded_with(model, changes):
        outputs = model(audio, output_losses=True)
    shares = plain.quantized.clone()
    shares[1] = plain.content[1] + plain.prosody[1]
    moved = plain.acoustic[2].roll(-(plain.acoustic.shape[1] // 2), dims=0)
    shares[2] = plain.content[2] + plain.prosody[2] + moved
    decoded = model.decoder(shares.transpose(1, 2)).audio_values[..., : audio.shape[-1]]
    torch.testing.assert_close(outputs.audio_values, decoded)
    for changed in (1, 2):
        assert not torch.allclose(outputs.audio_values[changed], plain.audio_values[changed])
    restore_quantized(outputs)
    assert torch.equal(outputs.quantized, plain.quantized) and torch.equal(outputs.audio_codes, plain.audio_codes)
    assert torch.equal(model(audio, output_losses=True).audio_values, plain.audio_values)  # it is over


def test_without_them_training_is_what_it_was(tmp_path):
    assert_same(
        state_of(train(tmp_path, audio_model(), audio_rows(), **QUICK)),
        state_of(train(tmp_path, audio_model(), audio_rows(), **QUICK, acoustic_dropout=0.0, acoustic_shift=0.0)),
    )


@CHANGES
def test_they_reach_the_losses_of_audio_and_no_other(tmp_path, name):
    logs = []
    for share in (0.0, 0.9):
        options = {"logging_strategy": "steps", "logging_steps": 1, name: share}
        trainer = trainer_of(tmp_path, audio_model(), audio_rows(), **QUICK, **options)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    changed = {name for name in logs[0] if name.startswith("loss_") and logs[0][name] != logs[1][name]}
    assert changed == {"loss_mel"}


@CHANGES
def test_step_is_the_same_however_it_is_divided(tmp_path, name):
    after = []
    for size, accumulated in ((2, 4), (8, 1)):
        divided = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        rates = {"head_learning_rates": {"codec": 0.03}}
        model = train(tmp_path, audio_model(), audio_rows(), **SGD, **divided, **rates, **{name: 0.5})
        after.append(state_of(model))
    assert_same_change(*after, state_of(audio_model()), tolerance=1e-2)


@CHANGES
def test_evaluation_decodes_all_codes(tmp_path, name):
    losses = [
        trainer_of(tmp_path, audio_model(), audio_rows(), eval_dataset=audio_rows(4), **{name: share}).evaluate()
        for share in (0.0, 0.9)
    ]
    assert losses[0]["eval_loss_mel"] == losses[1]["eval_loss_mel"]


@CHANGES
def test_training_that_goes_on_is_what_it_would_have_been(tmp_path, name):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, name: 0.5}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = train(tmp_path / "whole", audio_model(), audio_rows(), **options)
    parts = trainer_of(tmp_path / "parts", audio_model(), audio_rows(), **options)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(state_of(parts.bridge_model), state_of(whole))


@CHANGES
def test_cached_latents_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}=0\.5 needs audio, but rows hold latents"):
        train(tmp_path, latents_model(), latents_rows(), **{name: 0.5})


@CHANGES
def test_model_without_a_decoder_is_refused(tmp_path, name):
    model = latents_model()
    model.decoder = None
    with pytest.raises(ValueError, match=rf"{name}=0\.5 needs the decoder, but the model was loaded without"):
        trainer_of(tmp_path, model, latents_rows(), **{name: 0.5})


@CHANGES
def test_training_without_a_loss_of_the_decoded_audio_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}=0\.5 needs a loss of the decoded audio, but mel_weight and"):
        trainer_of(tmp_path, audio_model(), audio_rows(), **{name: 0.5}, mel_weight=0.0)
