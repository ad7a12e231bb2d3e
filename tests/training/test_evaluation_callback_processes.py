"""An evaluation by the main process may take longer than other processes would wait for each other."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_trainer import latents_model, latents_rows, trainer_of

from mimi_bridge.training import EvaluationCallback, evaluation_callback

TIMEOUT = 30  # seconds: enough for two processes that begin on a busy machine
SCRIPT = """
import sys

sys.path[:0] = {path}
from test_evaluation_callback_processes import evaluate_slowly

evaluate_slowly(sys.argv[1])
"""


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
    tests = Path(__file__).parents[1]
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT.format(path=[str(tests), str(tests / "training")]))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    process = subprocess.run(
        [sys.executable, *torchrun, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["42.0", "42.0"]
