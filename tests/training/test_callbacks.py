"""λ's schedule, codebook updates and the crops of an epoch work with transformers' plain Trainer, too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import assert_same_change, latents_model, latents_rows, state_of, trainer_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from mimi_bridge import MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.training.callbacks import CodebookUpdates, CropsOfEpoch, ResidualWeightSchedule


def plain_trainer(output: Path, model: MimiBridgeModel, callbacks: list[Any], **options: Any) -> Trainer:
    """transformers' own Trainer, of small steps; one of the options is the collator."""
    collate = options.pop("data_collator", MimiBridgeCollator.for_model(model.config))
    defaults = {"per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "no", "learning_rate": 1e-3}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    args = TrainingArguments(output, remove_unused_columns=False, **{**quiet, **defaults, **options})
    rows = [{name: value for name, value in row.items() if name != "target_latents"} for row in latents_rows()]
    return Trainer(model, args, collate, train_dataset=rows, callbacks=callbacks)


class Recorder(TrainerCallback):
    """λ, and the collator's epoch, while each step's batches are computed."""

    def __init__(self) -> None:
        self.weights: list[float] = []
        self.epochs: list[int] = []

    def on_step_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self.weights.append(model.config.residual_weight)
        self.epochs.append(train_dataloader.collate_fn.epoch)


def test_residual_weight_moves_in_a_line_in_a_plain_trainer_and_goes_on_along_it(tmp_path):
    found = []
    for stop in (None, 2):
        recorder, output = Recorder(), tmp_path / str(stop)
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
        schedule = ResidualWeightSchedule(end=0.9, warmup_ratio=1.0)
        plain_trainer(output, latents_model(), [schedule, recorder], **options).train()
        if stop is not None:
            model = MimiBridgeModel.from_pretrained(output / "checkpoint-2")
            again = [ResidualWeightSchedule(end=0.9, warmup_ratio=1.0), recorder]
            del recorder.weights[2:]
            trainer = plain_trainer(output, model, again, **options)
            trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
        found.append(recorder.weights)
    assert found[0] == pytest.approx([0.5, 0.58, 0.66, 0.74, 0.82])
    assert found[1] == found[0]


def test_residual_weight_begins_where_it_is_in_a_checkpoint_of_a_run_that_did_not_move_it(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    plain_trainer(tmp_path, latents_model(), [], **options, max_steps=2).train()
    recorder = Recorder()
    again = [ResidualWeightSchedule(end=0.9, warmup_ratio=1.0), recorder]
    trainer = plain_trainer(tmp_path, latents_model(), again, **options, max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert recorder.weights == pytest.approx([0.7, 0.8])


def test_residual_weight_stays_where_nothing_learns_that_codes_depend_on(tmp_path):
    model, recorder = latents_model(), Recorder()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("quantizer.proj_"))
    plain_trainer(tmp_path, model, [ResidualWeightSchedule(warmup_ratio=0.0), recorder]).train()
    assert recorder.weights == [0.5] * 4


def test_codebooks_move_once_a_step_however_a_plain_trainer_divides_it(tmp_path):
    before, after = state_of(latents_model()), []
    for size in (8, 1):
        model = latents_model()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 1}
        updates = CodebookUpdates(decay=0.5, revive_every=1, revive_below=0.5)
        plain_trainer(tmp_path / str(size), model, [updates], **options).train()
        after.append({name: value for name, value in state_of(model).items() if "_codebook.embed" in name})
        assert all(head.learner is None for head in model.quantizer.heads.values())
    entries = {name: before[name] for name in after[0]}
    assert all(not torch.equal(value, after[0][name]) for name, value in entries.items())
    assert_same_change(*after, entries, 1e-4)


def test_collator_takes_the_crops_of_the_epoch_in_a_plain_trainer(tmp_path):
    recorder = Recorder()
    plain_trainer(tmp_path, latents_model(), [CropsOfEpoch(), recorder]).train()
    assert recorder.epochs == [0, 0, 1, 1]


@pytest.mark.parametrize("callback", [ResidualWeightSchedule(), CodebookUpdates, CropsOfEpoch()])
def test_callbacks_that_the_trainer_has_already_are_refused(tmp_path, callback):
    with pytest.raises(ValueError, match=r"callbacks holds \w+, which MimiBridgeTrainer has already; leave it out"):
        trainer_of(tmp_path, latents_model(), latents_rows(), callbacks=[callback])
