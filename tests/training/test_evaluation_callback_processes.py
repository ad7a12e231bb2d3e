"""An evaluation by the main process may take longer than other processes would wait for each other."""

import time
from pathlib import Path

import pytest
import torch
from test_trainer import latents_model, latents_rows, trainer_of

from mimi_bridge.training import EvaluationCallback, evaluation_callback
from two_processes import run_in_two_processes

TIMEOUT = 30  # seconds: enough for two processes that begin on a busy machine


def evaluate_slowly(output: str) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    evaluation_callback.evaluate = lambda *args, **options: time.sleep(TIMEOUT + 10)
    evaluation_callback.flat_metrics = lambda result: {"answer": 42.0}
    options = {"eval_dataset": latents_rows(2, seed=4), "ddp_timeout": TIMEOUT}
    trainer = trainer_of(Path(output), latents_model(), latents_rows(), **options)
    trainer.add_callback(EvaluationCallback(trainer, []))
    metrics = trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    (Path(output) / str(trainer.accelerator.process_index)).write_text(str(metrics["eval_answer"]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_other_processes_wait_for_an_evaluation_that_takes_longer_than_their_timeout(tmp_path):
    run_in_two_processes(evaluate_slowly, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["42.0", "42.0"]
