"""Fine-tuning by transformers' Trainer: what the three heads force us to override, and nothing else.

A step is the same however it is divided: losses are means over the frames of all its batches on all processes, and
codebooks move once, by what all of them were asked for. What a checkpoint must hold beyond transformers' own files
(the original's heads, a discriminator) is in `bridge_training.pt`.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..configuration_mimi_bridge import MimiBridgeConfig
from ..data.collator import MimiBridgeCollator
from ..data.streaming import StreamedRows
from ..data.teachers.statistics import RunningStatistics
from ..modeling_mimi_bridge import MimiBridgeModel
from .arguments import MimiBridgeTrainingArguments
from .callbacks import CodebookUpdates, CropsOfEpoch, ResidualWeightSchedule
from .checkpoints import (
    STATE_NAME,
    CheckpointWatch,
    load_state,
    newest_checkpoint,
    raise_if_of_another_run,
    state_at_its_end,
)
from .evaluating import EvaluatingTrainer
from .guards import raise_if_gradient_not_finite, raise_if_not_finite, raise_if_nothing_learns, raise_if_worker_died
from .initialisation import initialise, warn_of_other_statistics
from .learners import install_learners, remove_learners
from .objective import Objective
from .optimizer import freeze, optimizer_of, parameter_groups, rates_in, set_frozen_modules_to_eval
from .options import check_data_set, check_model, check_options, check_statistics, named_data_sets
from .readouts import Readouts, new_readouts
from .run_log import RunLog
from .stream_loader import stream_loader, streamed
from .teacher_record import check_record
from .teachers import TrainingTeachers

logger = logging.get_logger(__name__)


class MimiBridgeTrainer(EvaluatingTrainer):
    """Trains a `MimiBridgeModel` with `MimiBridgeTrainingArguments`; everything else is as in `transformers.Trainer`.

    Evaluation is the same for every batch size and number of processes. `predict` and `compute_metrics` get the codes
    of every recording, `(rows, frames, codebooks)`, -100 after its end; there are no labels.

    Args:
        model: The model; freshly converted, or to be trained further. Or `model_init`, as in transformers.
        args: How.
        data_collator: By default a `MimiBridgeCollator` for the model.
        train_dataset: Rows as `MimiBridgeCollator` takes them.
        eval_dataset: Held-out rows, or several data sets by name.
        processing_class: What is saved beside the model.
        teacher_statistics: Of the whole data set's targets, by teacher (`qwen`, `wavlm`), as `stored_statistics` reads
            them; always used. In a new model, a teacher that is not there has those of the first `init_frames` frames.
            A bridge that has learned goes on saying the same in the teacher's own space.
        teachers: Compute features while training, from audio and token ids; None: rows hold what teachers say.
        eval_data_collator: Makes the batches of evaluations; by default `data_collator`, without its crops.
        **kwargs: As in `transformers.Trainer`.

    Raises:
        ValueError: If the data set is empty, the arguments are not ours, several devices share a process, or something
            is asked for that cannot be done.
    """

    objective: Objective
    run_log: RunLog
    readouts: Readouts | None = None

    def __init__(
        self,
        model: MimiBridgeModel | None = None,
        args: MimiBridgeTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        teacher_statistics: Mapping[str, RunningStatistics] | None = None,
        teachers: TrainingTeachers | None = None,
        eval_data_collator: Any = None,
        **kwargs: Any,
    ):
        args = MimiBridgeTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, MimiBridgeTrainingArguments):
            raise ValueError(f"args must be MimiBridgeTrainingArguments, got {type(args).__name__}.")
        check_options(args, kwargs)
        train_dataset = streamed(train_dataset, args)
        data_sets = named_data_sets(train_dataset, eval_dataset)
        for name, dataset in data_sets.items():
            check_data_set(dataset, name, args, processing_class)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(f"one process drives {args.n_gpu} devices; start one each, with torchrun.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed are not supported here: codebooks move as a whole. Launch with torchrun."
            )
        self.loss_is_scaled_for_ga = True
        self.bridge_args = args
        if data_collator is None:
            self.data_collator = MimiBridgeCollator.for_model(self.bridge_model.config, seed=args.seed)
        self.eval_data_collator = eval_data_collator or self.data_collator
        if isinstance(self.eval_data_collator, MimiBridgeCollator) and eval_data_collator is None:
            self.eval_data_collator = self.eval_data_collator.without_crops()
        self.teachers = teachers
        if teachers is not None:
            teachers.begin(self.bridge_model.config, data_sets, args.device)
            self._add_to_batches(teachers)
        self._teacher_statistics = teacher_statistics or {}
        check_statistics(self._teacher_statistics, self.bridge_model.quantizer)
        self._given_optimizer = self.optimizer
        self._resumed_from: str | None = None
        self._frozen: list[nn.Parameter] = []
        self._watch, self._schedule = CheckpointWatch(), ResidualWeightSchedule()
        self._codebooks = CodebookUpdates(installs=False)
        for callback in (self._watch, _Beginning(self), self._schedule, self._codebooks, CropsOfEpoch()):
            self.add_callback(callback)
        self._set_up()

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As in transformers. While it runs, the heads leave their codebooks to the trainer.

        From a checkpoint that has all `max_steps`, nothing is trained: the model is as it ended.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(str(self.args.output_dir)) or True
        self._resumed_from = None
        if resume_from_checkpoint and resume_from_checkpoint is not True:
            self._resumed_from = os.fspath(resume_from_checkpoint)
            raise_if_of_another_run(self._resumed_from, self.bridge_model.config)
            state = state_at_its_end(self._resumed_from, self.args.max_steps)
            if state is not None:
                return self._as_it_ended(self._resumed_from, state)
        try:
            with self._watch.explained(self._resumed_from, self.args.should_save):
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
            if best is not None:  # whose weights transformers has loaded, but not its λ
                config = MimiBridgeConfig.from_pretrained(best)
                self.bridge_model.set_residual_weight(config.residual_weight)
            return output
        finally:
            remove_learners(self.bridge_model.quantizer)
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = []

    def _as_it_ended(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        self._load_state(checkpoint)
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        model = MimiBridgeModel.from_pretrained(best if best and os.path.isdir(best) else checkpoint)
        self.bridge_model.load_state_dict(model.state_dict())
        self.bridge_model.set_residual_weight(model.config.residual_weight)
        self.state = state
        logger.warning(
            "%s has all %d steps already, so nothing is trained; raise max_steps to go on",
            checkpoint,
            state.global_step,
        )
        return TrainOutput(state.global_step, 0.0, {})

    def begin(self) -> None:
        """Before the first step: teachers' statistics and the content head's beginning, unless training goes on."""
        args, model, stored = self.bridge_args, self.bridge_model, self._teacher_statistics
        if self._resumed_from is not None:
            if args.ignore_data_skip and isinstance(self.train_dataset, StreamedRows):
                self.train_dataset.begin_with(self.state.global_step)
            warn_of_other_statistics(model.quantizer, stored)
            return
        num_batches = args.gradient_accumulation_steps * self.accelerator.num_processes
        initialise(
            model,
            args,
            dataset=self.train_dataset,
            collate=self.data_collator,
            complete=self.teachers.add if self.teachers else None,
            stored=stored,
            weights=self.objective.weights,
            content_learns=self.rates["content"] > 0,
            rows_per_step=(self.state.train_batch_size or args.train_batch_size) * num_batches,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a group for each part of the model.

        Raises:
            ValueError: If that optimizer makes groups of its own.
        """
        args = self.bridge_args
        self._set_up()
        self.objective.holds_anchor = True
        self._frozen += freeze(self.bridge_model, self.rates)
        usual = args.learning_rate if self._given_optimizer is None else 0.0
        updates = args.codebook_update, args.codebook_decay
        install_learners(self.bridge_model.quantizer, self.rates, usual, *updates)
        if self.optimizer is None:
            groups = parameter_groups(self.bridge_model, self.rates, args.weight_decay)
            if self.readouts is not None:
                groups.append(self.readouts.optimizer_group(args.readout_learning_rate))
            kind = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, self.bridge_model)
            self.optimizer = optimizer_of(groups, str(args.optim), *kind)
        if self._resumed_from is not None:
            self._load_state(self._resumed_from)
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """As in transformers; of a stream, each process reads its own share."""
        if isinstance(self.train_dataset, StreamedRows):
            batch_size = self.state.train_batch_size or self.args.train_batch_size
            return stream_loader(
                self.train_dataset, self.data_collator, batch_size, self.bridge_args, self.accelerator
            )
        return super().get_train_dataloader()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The batches of a step, with the teachers' features, and its frames for each kind of loss."""
        if self.teachers is not None:
            epoch_iterator = self.teachers.added_to(epoch_iterator)
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except RuntimeError as error:
            raise_if_worker_died(error)
            raise
        return batches, self.run_log.count_step(batches, device, self.state.global_step + 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's loss; see `Objective`.

        Raises:
            FloatingPointError: If a loss is not finite while training; nothing has been changed by it.
            ValueError: If a loss of audio has a weight, but the batch holds none.
        """
        if model.training:
            set_frozen_modules_to_eval(self.bridge_model, self.rates)
        totals = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else None
        loss, terms, outputs, target_sums = self.objective(model, inputs, totals, self.state.global_step)
        if model.training:
            raise_if_nothing_learns(loss, self.rates)
            raise_if_not_finite(terms, self.state.global_step + 1)
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        metrics = self.run_log.training if model.training else self.run_log.evaluation
        metrics.add(terms, outputs, target_sums)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if norm is not None and not scaled:
            raise_if_gradient_not_finite(norm, self.state.global_step + 1)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers; a line of training also has the `TrainingMetrics`, λ, the drift and each part's rate.

        Raises:
            HeadCollapsedError: If a codebook that learns is hardly used any more.
        """
        super().log(logs | (self.run_log.line() if "loss" in logs else {}), start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; where a checkpoint is saved, with what training goes on from."""
        if output_dir is None or not _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        self._watch.begin_writing(output_dir, self.args.should_save)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not self.args.save_only_model:
            teachers = {"teachers": self.teachers.record() if self.teachers else None}
            state = self.objective.state_dict() | self.run_log.state_dict() | teachers
            torch.save(state, os.path.join(output_dir, STATE_NAME))

    def _load_state(self, checkpoint: str) -> None:
        state = load_state(checkpoint)
        check_record(self.teachers.record() if self.teachers else {}, state.get("teachers"), checkpoint)
        self.objective.load_state_dict(state, checkpoint)
        self.run_log.load_state_dict(state)
        self._schedule.start = state["residual_weight_start"]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if wrong := (load_result.missing_keys + load_result.unexpected_keys)[:3]:
            raise ValueError(f"the checkpoint does not fit the model: {', '.join(wrong)}; was it another model's?")

    def _set_up(self) -> None:
        # What follows from the model and the arguments, which a search or `model_init` may have changed.
        args, model = self.bridge_args, self.bridge_model
        check_model(args, model)
        self.rates = args.rates if self._given_optimizer is None else rates_in(self._given_optimizer, model)
        if self.readouts is None or self.optimizer is None:  # those that an optimizer holds go on
            readouts = args.readout_weights, self.train_dataset, self.data_collator, model.quantizer, args.seed
            hears = self.teachers is not None and self.teachers.speech is not None
            self.readouts = new_readouts(*readouts, computed=["wavlm_features"] if hears else [])
            if self.readouts is not None:
                self.readouts.to(args.device)
                self._add_to_batches(self.readouts)
        self.objective = Objective(model, args, self.accelerator, self.readouts)
        self.run_log = RunLog(model, self.objective, args, self.accelerator)
        for callback in (self.objective, self.run_log):  # in place of those of an earlier model
            self.remove_callback(type(callback))
            self.add_callback(callback)
        self._schedule.end, self._schedule.warmup_ratio = args.residual_weight_end, args.residual_weight_warmup_ratio
        self._codebooks.revive_every, self._codebooks.revive_below = args.revive_every, args.revive_below

    def _add_to_batches(self, source: TrainingTeachers | Readouts) -> None:
        self.data_collator = source.collator(self.data_collator)
        self.eval_data_collator = source.collator(self.eval_data_collator)


class _Beginning(TrainerCallback):
    """Calls the trainer where transformers has no method to override: everything is loaded, and no step was taken."""

    def __init__(self, trainer: MimiBridgeTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self._trainer.begin()
