"""The evaluator's numbers choose the best model, are logged, and stand still between evaluations."""

import pytest
import torch
from test_trainer import audio_model, audio_rows, trainer_of
from transformers import TrainerCallback

from mimi_bridge.audio.files import save_audio
from mimi_bridge.data.manifest import read_manifest
from mimi_bridge.training import EvaluationCallback
from mimi_bridge.training import evaluation_callback as module


@pytest.fixture
def utterances(tmp_path, speech):
    save_audio(tmp_path / "speech" / "one.wav", speech[:, :20_000], 24_000)
    return read_manifest(tmp_path / "speech")


class Spoiler(TrainerCallback):
    """Makes the model another from the second step on: its decoder falls silent."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                model.decoder.upsample.conv.weight.zero_()


def test_best_model_is_chosen_by_the_evaluators_number(tmp_path, utterances):
    model = audio_model()
    trainer = trainer_of(
        tmp_path / "run",
        model,
        audio_rows(4),
        eval_dataset=audio_rows(2, seed=1),
        max_steps=3,
        gradient_accumulation_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="bridge_5_mel",
        greater_is_better=True,  # a random model is worse than silence: here the worst is the best
        callbacks=[Spoiler()],
    )
    trainer.add_callback(EvaluationCallback(trainer, utterances, only=["mel", "codes"], folder=tmp_path / "kept"))
    trainer.train()
    logged = {log["step"]: log["eval_bridge_5_mel"] for log in trainer.state.log_history if "eval_bridge_5_mel" in log}
    assert set(logged) == {1, 2, 3}
    assert logged[1] > max(logged[2], logged[3])
    assert trainer.state.best_metric == logged[1]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert model.decoder.upsample.conv.weight.any()  # the best model came back
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-1", "step-2", "step-3"]
    assert any("eval_codes_perplexity_content" in log for log in trainer.state.log_history)


def test_evaluator_runs_at_every_so_manieth_evaluation_and_once_a_step(tmp_path, utterances, monkeypatch):
    model = audio_model()
    trainer = trainer_of(tmp_path, model, audio_rows(2), eval_dataset=audio_rows(2, seed=1))
    calls = []
    monkeypatch.setattr(module, "evaluate", lambda *args, **options: calls.append(options) or {})
    monkeypatch.setattr(module, "flat_metrics", lambda result: {"bridge_5_mel": float(len(calls))})
    trainer.add_callback(EvaluationCallback(trainer, utterances, every=2, only=["mel"]))
    found = []
    for step in (1, 1, 2, 3):
        trainer.state.global_step = step
        found.append(trainer.evaluate().get("eval_bridge_5_mel"))
    assert found == [1.0, 1.0, None, 2.0]
    assert calls[0]["only"] == ["mel"] and calls[0]["num_examples"] == 0


def test_every_below_one_is_refused(utterances):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        EvaluationCallback(None, utterances, every=0)
