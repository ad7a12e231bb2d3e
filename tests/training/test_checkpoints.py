"""Errors of checkpoints: each names the file that it is about, and no other."""

import json
from typing import Any

import pytest
from test_trainer import latents_model, latents_rows, trainer_of
from transformers import TrainerCallback

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


class Failing(TrainerCallback):
    """Fails at an event, as what a user adds may."""

    def __init__(self, event: str, error: Exception):
        self._error = error
        setattr(self, event, self._fail)

    def _fail(self, *arguments: Any, **kwargs: Any) -> None:
        raise self._error


def test_checkpoint_that_was_written_is_kept_and_not_blamed_for_what_fails_afterwards(tmp_path):
    failing = Failing("on_save", OSError("the network is gone"))
    with pytest.raises(OSError, match="^the network is gone$"):
        trainer_of(tmp_path, latents_model(), latents_rows(), **SAVING, callbacks=[failing]).train()
    assert (tmp_path / "checkpoint-1" / "bridge_training.pt").is_file()


def test_checkpoint_that_was_read_is_not_blamed_for_a_file_that_is_cut_off_later(tmp_path):
    trainer_of(tmp_path, latents_model(), latents_rows(), **SAVING).train()
    failing = Failing("on_step_begin", EOFError("half of a recording"))
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), max_steps=2, callbacks=[failing])
    with pytest.raises(EOFError, match="^half of a recording$"):
        trainer.train(resume_from_checkpoint=True)


def test_residual_weight_goes_on_along_its_line_from_a_checkpoint_without_the_callbacks_state(tmp_path):
    options = {**SAVING, "max_steps": 4, "residual_weight_warmup_ratio": 1.0}
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), **options)
    trainer.train()
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert state["stateful_callbacks"].pop("ResidualWeightSchedule")["attributes"] == {"start": 0.5}
    path.write_text(json.dumps(state))
    again = trainer_of(tmp_path, latents_model(), latents_rows(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    weights = [json.loads((tmp_path / f"checkpoint-{step}" / "config.json").read_text()) for step in (3, 4)]
    assert [config["residual_weight"] for config in weights] == pytest.approx([0.875, 1.0])
