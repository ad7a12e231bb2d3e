"""transformers' own Trainer carries all that the model returns."""

import pytest
import torch
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
        for each in plain_trainer.predict(plain_trainer.eval_dataset).predictions
        if isinstance(each, dict) and isinstance(each.get("wavlm"), dict)
    ]
    assert distances.num_frames.item() == 5 * 6
    assert distances.target_sums.shape == (plain_trainer.model.config.wavlm_dim + 2,)
