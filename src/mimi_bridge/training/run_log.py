"""What a run says of itself: the metrics of each line of its log and of its evaluations, its rates, its frames."""

import math
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from ..modeling_mimi_bridge import MimiBridgeModel
from .arguments import MimiBridgeTrainingArguments
from .guards import raise_if_collapsed
from .learners import learning_codebooks
from .metrics import TrainingMetrics
from .objective import Objective
from .readout_columns import raise_if_nothing_to_read
from .terms import COUNTED, count_frames_of_step

logger = logging.get_logger(__name__)

STEPS_WITHOUT_TEACHER = 10  # at the beginning, before that is refused: recordings may lack a teacher, but not all


class RunLog(TrainerCallback):
    """Counts batch by batch what is logged of a model and its objective.

    Attributes:
        trained_on: The targets of all training so far, on which the constant predictors of evaluations are fitted.
    """

    def __init__(
        self,
        model: MimiBridgeModel,
        objective: Objective,
        args: MimiBridgeTrainingArguments,
        accelerator: Accelerator,
    ):
        self._model, self._objective, self._args, self._accelerator = model, objective, args, accelerator
        self.training, self.evaluation, self.trained_on, self._of_line = (self._new_metrics() for _ in range(4))
        self._rates: dict[str, float] = {}
        self._frames_of_epoch, self._frames_of_run = (torch.zeros(len(COUNTED), dtype=torch.int64) for _ in range(2))
        self._frames_of_data: float = math.inf
        self._epoch_is_whole = self._goes_on = False

    def count_step(self, batches: list[dict[str, Tensor]], device: torch.device, step: int) -> Tensor:
        """Frames of a step for each of `COUNTED`, `(kinds,)`, on all processes.

        Raises:
            ValueError: If teachers have a weight, but none of them has said anything in the first steps.
        """
        totals = count_frames_of_step(batches, self._model, device)
        totals = cast(Tensor, self._accelerator.reduce(totals, "sum"))
        on_cpu = totals.cpu()
        self._frames_of_epoch += on_cpu
        self._frames_of_run += on_cpu
        if batches and step >= STEPS_WITHOUT_TEACHER:
            self._raise_if_taught_by_none(step)
        return totals

    def _raise_if_taught_by_none(self, step: int) -> None:
        weights = self._objective.weights
        if (weights["qwen"] or weights["wavlm"]) and not self._frames_of_run[1:3].any():
            raise ValueError(
                f"no frame of the first {step} steps has a teacher: their recordings hold neither qwen_hidden with a "
                "place in time nor wavlm_features. Add them to the data, or set qwen_weight=0 and wavlm_weight=0 to "
                "train without."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "trained_on": self.trained_on.sums(),
            "frames_of_run": self._frames_of_run,
            "frames_of_epoch": self._frames_of_epoch,
            "frames_of_data": self._frames_of_data,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state_dict` was taken."""
        self.trained_on.set_sums(state["trained_on"])
        self._frames_of_run = state.get("frames_of_run", self._frames_of_run)
        self._frames_of_epoch = state.get("frames_of_epoch", self._frames_of_epoch)
        self._frames_of_data = state.get("frames_of_data", math.inf)
        self._goes_on = "frames_of_epoch" in state

    def line(self) -> dict[str, float]:
        """What a line of the log says beside transformers' own, since the line before."""
        metrics = self._of_line = self._gathered(self.training)
        self.training = self._new_metrics()
        self.trained_on.add_targets_of(metrics)
        drift = self._objective.reference.drift(self._model.quantizer)
        return {
            **metrics.results(),
            **{f"drift_{name}": value for name, value in drift.items()},
            "residual_weight": self._model.config.residual_weight,
            **{f"learning_rate_{name}": rate for name, rate in self._rates.items()},
        }

    def begin_evaluation(self) -> None:
        """Count an evaluation from nothing."""
        self.evaluation = self._new_metrics()

    def evaluated(self, prefix: str) -> dict[str, float]:
        """The metrics of the evaluation that was counted: its loss, every loss by name, baselines and usage."""
        results = self._gathered(self.evaluation).results(fitted_on=self.trained_on)
        losses = {name.removeprefix("loss_"): value for name, value in results.items() if name.startswith("loss_")}
        results = {"loss": self._objective.total_of(losses)} | results
        return {f"{prefix}_{name}": value for name, value in results.items()}

    def on_train_begin(self, args, state, control, **kwargs):
        """Count from nothing."""
        self.training = self._new_metrics()

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Count the frames of the epoch; a run that goes on in its middle counts on."""
        is_beginning = float(state.epoch or 0).is_integer()
        if self._goes_on and is_beginning:  # the checkpoint was written as an epoch ended
            self._count_epoch()
        self._epoch_is_whole = is_beginning or (self._goes_on and not args.ignore_data_skip)
        if is_beginning or not self._epoch_is_whole:
            self._frames_of_epoch = torch.zeros(len(COUNTED), dtype=torch.int64)
        self._goes_on = False

    def on_epoch_end(self, args, state, control, **kwargs):
        """Note how much data there is, and name the losses that have a weight but nothing to be computed from."""
        if not self._epoch_is_whole or not float(state.epoch or 0).is_integer() or not self._frames_of_epoch[0]:
            return  # the rest of the data may have what this part of it lacks
        self._count_epoch()
        if state.global_step < min(STEPS_WITHOUT_TEACHER, state.max_steps):
            return  # the next epoch's crops are others
        self._raise_if_taught_by_none(state.global_step)
        found = dict(zip(COUNTED, self._frames_of_run.tolist(), strict=True))
        if self._objective.readouts is not None:
            raise_if_nothing_to_read(self._args.readout_weights, found)
        for name, column in (("qwen", "qwen_hidden"), ("wavlm", "wavlm_features")):
            weight = self._objective.weights[name]
            if weight > 0 and not found[name]:
                logger.warning_once(
                    f"{name}_weight is {weight}, but no frame of the training data has a target in {column}, so that "
                    f"loss is not part of training; add {column}, or set {name}_weight to 0."
                )

    def _count_epoch(self) -> None:
        self._frames_of_data = min(self._frames_of_data, max(1, int(self._frames_of_epoch[0])))

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Note the learning rates of the step that was just taken, by part."""
        self._rates = {group["name"]: group["lr"] for group in optimizer.param_groups if "name" in group}

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Refuse to go on if, by the last line, a codebook that learns is hardly used any more.

        Raises:
            HeadCollapsedError: Naming the step and the head.
        """
        if logs is not None and "loss" in logs:
            learning = learning_codebooks(self._model.quantizer)
            share, step = self._args.collapse_below, state.global_step
            raise_if_collapsed(self._of_line, learning, share, step, self._frames_of_data)

    def _new_metrics(self) -> TrainingMetrics:
        readouts = self._objective.readouts
        return TrainingMetrics(self._model.quantizer, readouts.baselines() if readouts else None)

    def _gathered(self, metrics: TrainingMetrics) -> TrainingMetrics:
        if self._accelerator.num_processes > 1:
            sums = metrics.sums().to(self._args.device)
            metrics.set_sums(cast(Tensor, self._accelerator.reduce(sums, "sum")))
        return metrics
