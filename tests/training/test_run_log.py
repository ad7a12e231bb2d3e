"""Data of which only some rows have what is learned from: training takes what there is, also when it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import (
    QWEN_DIM,
    SMALL,
    assert_same,
    latents_model,
    latents_rows,
    silence_content,
    state_of,
    trainer_of,
)

from mimi_bridge import MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.training.readout_columns import NEEDS, check_columns

ONE_BY_ONE: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
EACH_LOGGED: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 1}
EVERY_STEP: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def silent_half(number: int) -> dict[str, Any]:
    """10 s, of which nobody speaks in the last 5."""
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(125, SMALL["hidden_size"], generator=generator)
    spans = torch.tensor([[0.8 * token, 0.8 * token + 0.4] for token in range(6)])
    vectors = torch.randn(6, QWEN_DIM, generator=generator)
    return {"id": number, "latents": latents, "qwen_hidden": vectors, "token_spans": spans}


def crops_of(seed: int) -> MimiBridgeCollator:
    return MimiBridgeCollator.for_model(latents_model().config, crop_seconds=2.0, seed=seed)


def steps_taught(tmp_path: Path, rows: list[dict[str, Any]], crops: MimiBridgeCollator, num_steps: int) -> list[bool]:
    """Whether each step's crop had a word in it."""
    model = silence_content(latents_model())
    options = {**ONE_BY_ONE, **EACH_LOGGED, "max_steps": num_steps, "wavlm_weight": 0.0}
    trainer = trainer_of(tmp_path, model, rows, data_collator=crops, **options)
    trainer.train()
    return ["loss_qwen" in line for line in trainer.state.log_history[:-1]]


def test_steps_without_a_teacher_are_taken_where_others_have_one(tmp_path):
    taught = steps_taught(tmp_path, [silent_half(number) for number in range(8)], crops_of(seed=0), 24)
    assert True in taught and False in taught


def test_epoch_whose_crops_miss_every_word_is_followed_by_others(tmp_path):
    rows = [silent_half(number=0)]
    silent_at_first = next(crops for crops in map(crops_of, range(100)) if not crops(rows)["qwen_hidden"].any())
    taught = steps_taught(tmp_path, rows, silent_at_first, 9)
    assert not taught[0] and True in taught


def labelled_in_part() -> list[dict[str, Any]]:
    rows = latents_rows(8)
    for number, row in enumerate(rows):
        row["phones"] = None if number % 4 else [{"phone": "K", "start": 0.0, "end": 0.5}]
    return rows


def test_run_on_labels_of_a_few_rows_goes_on_from_any_step(tmp_path):
    options = {**EVERY_STEP, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "phone_weight": 1.0}
    whole = trainer_of(tmp_path / "whole", latents_model(), labelled_in_part(), **options, max_steps=6)
    whole.train()
    for step in (1, 3, 4, 5):  # in the middle of an epoch of four steps, and at its end
        part = trainer_of(tmp_path / f"part {step}", latents_model(), labelled_in_part(), **options, max_steps=6)
        part.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same(state_of(part.bridge_model), state_of(whole.bridge_model))
        assert part.run_log.state_dict()["frames_of_data"] == whole.run_log.state_dict()["frames_of_data"]


def test_batch_in_which_nothing_is_written_has_no_characters_to_learn(tmp_path):
    rows = latents_rows(8)
    for row in rows[:2]:
        row["words"] = [{"word": "hi", "start": 0.0, "end": 0.3}]
    options = {**ONE_BY_ONE, "max_steps": 8, "character_weight": 1.0, **EACH_LOGGED}
    trainer = trainer_of(tmp_path, latents_model(), rows, **options)
    trainer.train()
    assert sum(line.get("loss_character", 0.0) > 0 for line in trainer.state.log_history) == 2


def test_best_model_has_the_residual_weight_that_it_was_measured_with(tmp_path):
    model = latents_model()
    model.set_residual_weight(0.0)
    options = {**EVERY_STEP, **ONE_BY_ONE, "max_steps": 4, "residual_weight_warmup_ratio": 1.0}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # the worst, which is the first
    trainer = trainer_of(tmp_path, model, latents_rows(), eval_dataset=latents_rows(4), **options)
    trainer.train()
    best = MimiBridgeModel.from_pretrained(str(trainer.state.best_model_checkpoint))
    assert best.config.residual_weight < 1
    assert model.config.residual_weight == best.config.residual_weight
    assert_same(state_of(model), state_of(best))


def test_teacher_in_the_loop_is_a_column_that_rows_need_not_have():
    weights = dict.fromkeys(NEEDS, 0.0) | {"speech_content_weight": 2.0}
    with pytest.raises(ValueError, match="speech_content_weight needs the column wavlm_features"):
        check_columns(weights, [{"input_values": [0.0]}])
    check_columns(weights, [{"input_values": [0.0]}], computed=["wavlm_features"])
