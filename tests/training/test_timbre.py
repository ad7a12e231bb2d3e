"""The timbre of swaps within a batch: against a slow reference, what it reaches, when a step is the same."""

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
    moved,
    state_of,
    train,
    trainer_of,
)

from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.losses.reconstruction import mean_spectrum
from mimi_bridge.training.timbre import NUM_MELS, timbre_term

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "timbre_weight": 2.0}
LOGGED: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 1}


def batch_of(model, rows):
    batch = MimiBridgeCollator.for_model(model.config)(rows)
    return {name: batch[name] for name in ("input_values", "padding_mask")}


def slow_reference(model, rows) -> float:
    """Recording by recording, by the codes."""
    total, frames, rate = 0.0, 0, model.config.sampling_rate
    for first, second in zip(rows[::2], rows[1::2], strict=False):
        ours, theirs = (model.encode(**batch_of(model, [row])).audio_codes for row in (first, second))
        swapped = model.decode(model.swap_heads(ours, theirs)).audio_values
        voice = second["input_values"][None, None]
        differences = [
            (mean_spectrum(swapped, rate, *scale) - mean_spectrum(voice, rate, *scale)).abs().mean()
            for scale in NUM_MELS.items()
        ]
        weight = ours.shape[-1] + theirs.shape[-1]
        total, frames = total + weight * torch.stack(differences).mean().item(), frames + weight
    return total / frames


@pytest.mark.parametrize("count", [2, 5, 8])
@torch.no_grad()
def test_swaps_are_those_of_the_codes(count):
    model, rows = audio_model().eval(), audio_rows()[:count]
    batch = batch_of(model, rows)
    outputs = model(**batch, output_audio=True, output_losses=True)
    term = timbre_term(outputs, batch["input_values"], model, batch["padding_mask"])
    assert len({len(row["input_values"]) for row in rows}) > 1  # the shorter one's acoustic codes are repeated
    assert term.value.item() == pytest.approx(slow_reference(model, rows), rel=1e-3)


@torch.no_grad()
def test_recording_alone_has_nobody_to_swap_with():
    model = audio_model().eval()
    batch = batch_of(model, audio_rows()[:1])
    assert timbre_term(model(**batch), batch["input_values"], model, batch["padding_mask"]) is None


def test_decoder_and_every_head_are_reached():
    model = audio_model()
    for head in model.quantizer.heads.values():
        torch.nn.init.normal_(head.project_out.weight, std=0.1)
    batch = batch_of(model, audio_rows())
    outputs = model(**batch, output_audio=True, output_losses=True)
    timbre_term(outputs, batch["input_values"], model, batch["padding_mask"]).value.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.partition(".")[0] for name in reached} >= {"decoder", "quantizer", "encoder"}
    for head in model.quantizer.heads.values():
        assert head.project_out.weight.grad.abs().sum() > 0


def test_even_batches_leave_a_step_the_same_however_it_is_divided(tmp_path):
    after = []
    for size, accumulated in ((2, 4), (8, 1)):
        divided = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        rates = {"head_learning_rates": {"codec": 0.03}}
        after.append(state_of(train(tmp_path, audio_model(), audio_rows(), **SGD, **divided, **rates)))
    assert_same_change(*after, state_of(audio_model()), tolerance=1e-2)


def test_training_brings_swaps_nearer_and_logs_it(tmp_path):
    options = {"head_learning_rates": {"content": 0, "prosody": 0, "acoustic": 0, "bridges": 0, "decoder": 1e-3}}
    options |= {
        "qwen_weight": 0.0,
        "wavlm_weight": 0.0,
        "mel_weight": 0.0,
        "latents_weight": 0.0,
        "timbre_weight": 1.0,
    }
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 12}
    model = audio_model()
    before = state_of(model)
    trainer = trainer_of(tmp_path, model, audio_rows(), **options, **whole, **LOGGED, eval_dataset=audio_rows(4))
    trainer.train()
    logged = [line["loss_timbre"] for line in trainer.state.log_history if "loss_timbre" in line]
    assert logged[-1] < 0.9 * logged[0]
    assert all(name.startswith(("decoder", "upsample")) for name in moved(before, state_of(model)))
    assert "eval_loss_timbre" not in trainer.evaluate()  # pairs would depend on the order of the data


def test_training_that_goes_on_is_what_it_would_have_been(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "timbre_weight": 1.0}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = train(tmp_path / "whole", audio_model(), audio_rows(), **options)
    parts = trainer_of(tmp_path / "parts", audio_model(), audio_rows(), **options)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(state_of(parts.bridge_model), state_of(whole))


def test_what_cannot_be_swapped_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"timbre_weight=1\.0 needs audio, but rows hold latents"):
        train(tmp_path, latents_model(), latents_rows(), timbre_weight=1.0)
    with pytest.raises(ValueError, match=r"timbre_weight=1\.0 needs two recordings in a batch.*got .*batch_size=1"):
        trainer_of(tmp_path, audio_model(), audio_rows(), timbre_weight=1.0, per_device_train_batch_size=1)
    model = latents_model()
    model.decoder = None
    with pytest.raises(ValueError, match=r"timbre_weight=1\.0 needs the decoder, but the model was loaded without"):
        trainer_of(tmp_path, model, latents_rows(), timbre_weight=1.0)
