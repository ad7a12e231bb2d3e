"""The evaluator during training: its numbers among the metrics of each evaluation, so that one can choose the model.

transformers picks the best model by the very dictionary that it hands to callbacks after an evaluation; what is added
there counts. It has logged that dictionary by then, so the numbers added are logged again, by themselves.
"""

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ..data.manifest import Utterance
from ..evaluation.evaluator import evaluate
from ..evaluation.tables import flat_metrics

PREFIX = "eval_"
PROCESSES_WAIT = timedelta(days=7)  # for the one that evaluates, whatever ddp_timeout is


class EvaluationCallback(TrainerCallback):
    """Runs `evaluate` after the trainer's own evaluations: `trainer.add_callback(EvaluationCallback(trainer, ...))`.

    Its metrics have the names of `evaluation.tables.flat_metrics` with `eval_` before them:
    `metric_for_best_model="probe_content_phone_linear"` keeps the model whose content head tells most of the phone.
    The main process evaluates; the others wait for its numbers, however long that takes.

    Args:
        trainer: Whose model is evaluated, and whose log is written.
        utterances: Recordings of speakers that are not trained on.
        every: Run on every `every`-th evaluation, starting with the first. A metric that chooses the best model must
            be there each time: leave it at 1 for that.
        folder: Keep each evaluation, in a folder by its step; None keeps nothing.
        **options: Of `evaluate`: `only`, `reference`, `listeners`, `num_examples`, ...

    Raises:
        ValueError: If `every` is less than 1.
    """

    def __init__(
        self,
        trainer: Trainer,
        utterances: list[Utterance],
        every: int = 1,
        folder: str | Path | None = None,
        **options: Any,
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        self._trainer, self._utterances, self._every = trainer, utterances, every
        self._folder = None if folder is None else Path(folder)
        self._options = {"num_examples": 0, "num_swaps": 0, **options}
        self._evaluations, self._step = 0, -1
        self._figures: dict[str, float] = {}
        self._waiting_room: Any = None  # a process group of the CPUs, with a timeout of its own

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the figures to the metrics of this evaluation."""
        metrics: dict[str, float] = kwargs["metrics"]
        if state.global_step != self._step:  # with several data sets there are several evaluations a step
            self._step = state.global_step
            self._figures = self._evaluate(state) if self._evaluations % self._every == 0 else {}
            self._evaluations += 1
            if self._figures:
                self._trainer.log(dict(self._figures))
        metrics.update(self._figures)

    def _evaluate(self, state: Any) -> dict[str, float]:
        found: list[dict[str, float]] = [{}]
        if self._trainer.accelerator.num_processes > 1 and self._waiting_room is None:
            self._waiting_room = torch.distributed.new_group(backend="gloo", timeout=PROCESSES_WAIT)
        if state.is_world_process_zero:
            model = self._trainer.accelerator.unwrap_model(self._trainer.model)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) if self._folder is None else self._folder / f"step-{state.global_step}"
                result = evaluate(model, self._utterances, folder, **self._options)
            found = [{PREFIX + name: value for name, value in flat_metrics(result).items()}]
        if self._trainer.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(found, group=self._waiting_room, device=torch.device("cpu"))
        return found[0]
