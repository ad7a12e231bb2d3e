"""transformers' own Trainer carries all that the model returns."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from mimi_bridge.data.collator import MimiBridgeCollator


@pytest.fixture
def plain_trainer(tiny_model, tmp_path) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    sizes = {"latents": tiny_model.config.hidden_size, "wavlm_features": tiny_model.config.wavlm_dim}
    rows = [{name: torch.randn(6, size, generator=generator) for name, size in sizes.items()} for _ in range(5)]
    arguments = TrainingArguments(
        tmp_path,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        per_device_eval_batch_size=2,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        tiny_model,
        arguments,
        MimiBridgeCollator.for_model(tiny_model.config),
        eval_dataset=rows,
        compute_metrics=lambda predictions: {"answer": 42.0},
    )


def test_plain_trainer_evaluates_with_metrics_where_teachers_are_given(plain_trainer):
    assert "eval_runtime" in plain_trainer.evaluate()


def test_plain_trainer_predicts_the_distances_to_the_teachers(plain_trainer):
    plain_trainer.args.per_device_eval_batch_size = 5
    (distances,) = [
        each["wavlm"]
        for each in plain_trainer.predict(plain_trainer.eval_dataset, ignore_keys=[]).predictions
        if isinstance(each, dict) and isinstance(each.get("wavlm"), dict)
    ]
    assert distances.num_frames.item() == 5 * 6
    assert distances.target_sums.shape == (plain_trainer.model.config.wavlm_dim + 2,)


def test_plain_trainer_computes_metrics_of_recordings_that_differ_in_length_and_teachers(plain_trainer):
    rows, found = plain_trainer.eval_dataset, []
    rows[:] = [{name: values[: 2 + number] for name, values in row.items()} for number, row in enumerate(rows)]
    rows[4]["qwen_hidden"] = torch.zeros(1, plain_trainer.model.config.qwen_dim)
    rows[4]["durations"] = torch.tensor([1])
    plain_trainer.compute_metrics = lambda predictions: found.append(predictions) or {"answer": 42.0}
    metrics = plain_trainer.evaluate()
    assert metrics["eval_answer"] == 42.0 and metrics["eval_loss"] > 0
    latents, quantized, *_ = found[0].predictions
    assert {values.shape[:2] for values in found[0].predictions} == {(5, 6)}
    for row, given, decoded in zip(rows, latents, quantized, strict=True):
        np.testing.assert_array_equal(given[: len(row["latents"])], row["latents"])
        assert [bool(frame.any() and (frame != -100).all()) for frame in decoded] == [
            number < len(row["latents"]) for number in range(6)
        ]


def test_plain_trainer_that_removes_columns_is_asked_to_keep_them(plain_trainer, tmp_path):
    dataset = Dataset.from_list([{"audio_path": "one.wav", "wavlm_features": [[0.0] * 20]}])
    plain_trainer.args.remove_unused_columns = True
    with pytest.raises(ValueError, match=r"holds neither audio.* set remove_unused_columns=False in its arguments"):
        plain_trainer.evaluate(dataset)


def test_plain_trainer_evaluates_rows_without_teachers_where_the_collator_asks_for_losses(plain_trainer):
    bare = [{"latents": row["latents"]} for row in plain_trainer.eval_dataset]
    plain_trainer.data_collator = MimiBridgeCollator.for_model(plain_trainer.model.config, output_losses=True)
    mixed = plain_trainer.evaluate(bare[:2] + plain_trainer.eval_dataset[2:])
    metrics = plain_trainer.evaluate(bare)
    assert mixed["eval_loss"] > metrics["eval_loss"] > 0
