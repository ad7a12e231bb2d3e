"""Fine-tuning by transformers' Trainer: what the three heads force us to override, and nothing else.

A step is the same however it is divided: losses are means over the frames of all its batches on all processes, and
codebooks move once, by what all of them were asked for. What a checkpoint must hold beyond transformers' own files (λ
at the start, the original's heads, a discriminator) is in `bridge_training.pt`.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ..data.collator import MimiBridgeCollator
from ..data.streaming import StreamedRows
from ..data.teachers.statistics import RunningStatistics
from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .acoustic_dropout import choose_rows, decoded_without_acoustic, restore_quantized
from .adversary import Adversary
from .arguments import MimiBridgeTrainingArguments
from .checkpoints import newest_checkpoint, raise_if_incomplete, raise_if_of_another_config, reading, writing
from .evaluation_batches import codes_to_gather, no_codes, num_rows_that_count, weights_kept
from .guards import (
    raise_if_collapsed,
    raise_if_gradient_not_finite,
    raise_if_not_finite,
    raise_if_nothing_learns,
    raise_if_worker_died,
)
from .initialisation import initialise, warn_of_other_statistics
from .learners import install_learners, learning_codebooks, move_codebooks
from .metrics import TrainingMetrics
from .objective import COUNTED, Term, count_frames, head_terms, in_precision_of, latents_term, mel_term, weighted_sum
from .optimizer import freeze, frozen_by_hand, parameter_groups, rates_in, set_frozen_modules_to_eval
from .options import (
    STATE_NAME,
    check_data_set,
    check_model,
    check_options,
    check_statistics,
    named_data_sets,
    refuse_losses_of_audio,
    weights_of,
)
from .readout_targets import READOUT_KEYS, readout_targets
from .readouts import (
    COLLATED,
    Readouts,
    check_columns,
    load_readouts,
    raise_if_nothing_to_read,
    speakers_of,
)
from .reference import Reference
from .stream_loader import stream_loader, streamed
from .teachers import TrainingTeachers, check_record

logger = logging.get_logger(__name__)

DISCRIMINATOR_FILTERS = 32
MAX_NAMED = 5
MAKE_CODES = ("encoder", "content", "prosody", "acoustic")  # the parts of the model that codes depend on


class MimiBridgeTrainer(Trainer):
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
            for name, dataset in data_sets.items():
                teachers.check(self.bridge_model.config, dataset, name)
            teachers.to(args.device)
            self.data_collator = teachers.collator(self.data_collator)
            self.eval_data_collator = teachers.collator(self.eval_data_collator)
        self._teacher_statistics = teacher_statistics or {}
        check_statistics(self._teacher_statistics, self.bridge_model.quantizer)
        self._given_optimizer = self.optimizer
        self._resumed = False
        self.adversary: Adversary | None = None
        self.readouts: Readouts | None = None
        self._frames_of_data: float = math.inf
        self._frozen: list[nn.Parameter] = []
        self._rates_of_step: dict[str, float] = {}
        self._train_metrics = self._eval_metrics = self._trained_on = self._new_metrics()
        self._set_up()
        self._holds_anchor = self.reference.is_original
        self.add_callback(_StepCallback(self))

    @property
    def bridge_model(self) -> MimiBridgeModel:
        """The model that is trained, by whatever it is wrapped for that."""
        return cast(MimiBridgeModel, self.model)

    # --- what transformers' Trainer calls ---

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As in transformers. While it runs, the heads leave their codebooks to the trainer."""
        self._resumed = False
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(str(self.args.output_dir)) or True
        elif resume_from_checkpoint:
            raise_if_incomplete(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            for head in self.bridge_model.quantizer.heads.values():
                head.learner = None
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a group for each part of the model.

        Raises:
            ValueError: If that optimizer makes groups of its own.
        """
        self._set_up()
        self._holds_anchor = True
        self._frozen += freeze(self.bridge_model, self.rates)
        usual = self.bridge_args.learning_rate if self._given_optimizer is None else 0.0
        install_learners(self.bridge_model.quantizer, self.bridge_args, self.rates, usual)
        if named := frozen_by_hand(self.bridge_model, self.rates):
            more = "" if len(named) <= MAX_NAMED else f" and {len(named) - MAX_NAMED} more"
            logger.warning(
                "frozen before training, so they stay as they are: %s%s", ", ".join(named[:MAX_NAMED]), more
            )
        if self.optimizer is None:
            args = self.bridge_args
            groups = parameter_groups(self.bridge_model, self.rates, args.weight_decay)
            if self.readouts is not None:
                groups.append(self.readouts.optimizer_group(args.readout_learning_rate))
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                args, self.bridge_model
            )
            is_plain = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
            if not is_plain or {"params", "model", "optimizer_dict"} & set(options):
                raise ValueError(
                    f"optim={str(args.optim)!r} divides the parameters in its own way, but here every part has its "
                    "own learning rate; choose an optimizer that takes groups, such as adamw_torch."
                )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """As in transformers; of a stream, each process reads its own share."""
        if isinstance(self.train_dataset, StreamedRows):
            return stream_loader(self.train_dataset, self.data_collator, self.bridge_args, self.accelerator)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in transformers, with whole recordings, and all of them."""
        with self._whole_recordings():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in transformers, with whole recordings, and all of them."""
        with self._whole_recordings():
            return super().get_test_dataloader(test_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's loss; see `objective`.

        Raises:
            FloatingPointError: If a loss is not finite while training; nothing has been changed by it.
            ValueError: If a loss of audio has a weight, but the batch holds none.
        """
        inputs = in_precision_of(self.bridge_model, dict(inputs))
        target_latents = inputs.pop("target_latents", None), inputs.pop("target_mask", None)
        read_from = {name: inputs.pop(name) for name in READOUT_KEYS if name in inputs}
        if model.training:
            set_frozen_modules_to_eval(self.bridge_model, self.rates)
        audio = inputs.get("input_values")
        if audio is None:
            refuse_losses_of_audio(self.bridge_args, model.training)
        uses_adversary = self.adversary is not None and model.training
        wants_audio = audio is not None and (self.weights["mel"] > 0 or uses_adversary)
        asked = {"output_audio": wants_audio, "output_losses": True, "return_dict": True}
        with self._acoustic_dropout(audio if model.training else None):
            outputs: MimiBridgeOutput = model(**inputs | asked)
        if model.training and self.bridge_args.acoustic_dropout:
            restore_quantized(outputs)
        totals = num_items_in_batch
        if not isinstance(totals, Tensor):
            totals = count_frames(inputs | read_from, self.bridge_model)
        terms, target_sums = head_terms(outputs), {}
        if self.weights["latents"] > 0:
            terms |= self._latents_terms(outputs, *target_latents)
        if self.readouts is not None:
            assert outputs.audio_codes_mask is not None
            delay = self.bridge_model.config.content_delay
            targets = readout_targets(inputs | read_from, outputs.audio_codes_mask, delay)
            read, target_sums = self.readouts(outputs, targets)
            terms |= read
        if wants_audio:
            terms |= self._audio_terms(outputs, inputs, totals, uses_adversary)
        loss = weighted_sum(terms, self.weights, totals)
        if model.training:
            raise_if_nothing_learns(loss, self.rates)
            raise_if_not_finite(terms, self.state.global_step + 1)
            self._train_metrics.add(terms, outputs, target_sums)
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        else:
            self._eval_metrics.add(terms, outputs, target_sums)
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """As in transformers, with the teachers' features."""
        if self.teachers is not None:
            epoch_iterator = self.teachers.added_to(epoch_iterator)
        try:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        except RuntimeError as error:
            raise_if_worker_died(error)
            raise

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        counts = [count_frames(batch, self.bridge_model) for batch in batch_samples]
        totals = (
            torch.stack(counts).sum(dim=0).to(device) if counts else torch.zeros(len(COUNTED), device=device).long()
        )
        totals = cast(Tensor, self.accelerator.reduce(totals, "sum"))
        self._frames_of_epoch += totals.cpu()
        if counts and not totals[1:3].any() and (self.weights["qwen"] or self.weights["wavlm"]):
            raise ValueError(
                f"no frame of step {self.state.global_step + 1} has a teacher: its recordings hold neither "
                "qwen_hidden with a place in time nor wavlm_features. Add them to the data, or set qwen_weight=0 and "
                "wavlm_weight=0 to train without."
            )
        return totals

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if norm is not None and not scaled:
            raise_if_gradient_not_finite(norm, self.state.global_step + 1)
        return norm

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss of an evaluation batch, and its codes; losses and codes are counted on the way.

        Rows that were repeated so that all processes have as many do not count.
        """
        inputs = self._prepare_inputs(self.teachers.add(inputs) if self.teachers is not None else inputs)
        num_rows = len(next(iter(inputs.values())))
        num_counted = num_rows_that_count(num_rows, self.accelerator)
        loss = torch.zeros((), device=self.args.device)
        codes = no_codes(num_rows, self.bridge_model, loss.device)
        if num_counted:
            inputs = {
                name: value[:num_counted] if isinstance(value, Tensor) else value for name, value in inputs.items()
            }
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            codes = codes_to_gather(outputs, num_rows)
        if prediction_loss_only:
            return loss.detach().float(), None, None
        return loss.detach().float(), codes, ()

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers, with every loss by name, over the frames of the whole set.

        Beside the distance to a teacher stands the one that the mean of the training's targets would get. The
        discriminator's losses are no part of it. The model is left as it was, after `bf16_full_eval`, too.
        """
        self._eval_metrics = self._new_metrics()
        halves = not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval)
        with weights_kept(self.bridge_model) if halves else nullcontext():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        results = self._gathered(self._eval_metrics).results(fitted_on=self._trained_on)
        losses = {name.removeprefix("loss_"): value for name, value in results.items() if name.startswith("loss_")}
        total = sum(self._weight(name) * value for name, value in losses.items())
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = total
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in results.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers; a line of training also has the `TrainingMetrics`, λ, the drift and each part's rate.

        Raises:
            HeadCollapsedError: If a codebook that learns is hardly used any more.
        """
        if "loss" in logs:
            metrics = self._gathered(self._train_metrics)
            self._train_metrics = self._new_metrics()
            self._trained_on.add_targets_of(metrics)
            drift = self.reference.drift(self.bridge_model.quantizer)
            logs |= metrics.results() | {f"drift_{name}": value for name, value in drift.items()}
            logs["residual_weight"] = self.bridge_model.config.residual_weight
            logs |= {f"learning_rate_{name}": rate for name, rate in self._rates_of_step.items()}
            super().log(logs, start_time)
            share, step = self.bridge_args.collapse_below, self.state.global_step
            learning = learning_codebooks(self.bridge_model.quantizer)
            raise_if_collapsed(metrics, learning, share, step, self._frames_of_data)
        else:
            super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with writing(folder, self.args.should_save):
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {
                "residual_weight_start": self.residual_weight_start,
                "reference": self.reference.state_dict(),
                "reference_is_original": self.reference.is_original,
                "adversary": self.adversary.state_dict() if self.adversary else None,
                "readouts": self.readouts.checkpoint() if self.readouts else None,
                "trained_on": self._trained_on.sums(),
                "teachers": self.teachers.record() if self.teachers else None,
            }
            torch.save(state, os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        path = os.path.join(checkpoint, STATE_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"{checkpoint} has no {STATE_NAME}, so training cannot go on from it; it was saved by another trainer "
                "or with save_only_model. Load its model and train that from the beginning instead."
            )
        with reading(checkpoint):
            state = torch.load(path, map_location="cpu", weights_only=True)
        check_record(self.teachers.record() if self.teachers else {}, state.get("teachers"), checkpoint)
        load_readouts(self.readouts, state.get("readouts"), checkpoint)  # before the optimizer, whose groups must fit
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        self.residual_weight_start = self.reference.residual_weight = state["residual_weight_start"]
        self.reference.is_original = state["reference_is_original"]
        self.reference.load_state_dict(state["reference"], strict=not self.reference.is_original)
        self._trained_on.set_sums(state["trained_on"])
        if self.adversary is not None and state["adversary"] is not None:
            self.adversary.load_state_dict(state["adversary"])
        self._resumed = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        raise_if_of_another_config(resume_from_checkpoint, self.bridge_model.config)
        with reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            wrong = (load_result.missing_keys + load_result.unexpected_keys)[:3]
            raise ValueError(f"the checkpoint does not fit the model: {', '.join(wrong)}; was it another model's?")

    # --- what the callback calls ---

    def begin(self) -> None:
        """Before the first step: teachers' statistics and the content head's beginning, unless training goes on."""
        args, model, stored = self.bridge_args, self.bridge_model, self._teacher_statistics
        if self._resumed:
            if args.ignore_data_skip and isinstance(self.train_dataset, StreamedRows):
                self.train_dataset.begin_with(self.state.global_step)
            warn_of_other_statistics(model.quantizer, stored)
        else:
            num_batches = args.gradient_accumulation_steps * self.accelerator.num_processes
            uses = {"qwen": self.weights["qwen"], "wavlm": self.weights["wavlm"] + self.weights["speech_content"]}
            initialise(
                model,
                args,
                dataset=self.train_dataset,
                collate=self.data_collator,
                complete=self.teachers.add if self.teachers else None,
                stored=stored,
                teachers=[name for name, weight in uses.items() if weight > 0],
                content_learns=self.rates["content"] > 0,
                rows_per_step=self._train_batch_size * num_batches,
            )
        self.move_residual_weight()
        self._train_metrics = self._new_metrics()

    def begin_epoch(self) -> None:
        """Take the crops of the epoch, and count its frames."""
        if hasattr(self.data_collator, "set_epoch"):
            self.data_collator.set_epoch(int(self.state.epoch or 0))
        self._frames_of_epoch = torch.zeros(len(COUNTED), dtype=torch.int64)

    def end_epoch(self) -> None:
        """Note how much data there is, and name the losses that have a weight but nothing to be computed from."""
        found = dict(zip(COUNTED, self._frames_of_epoch.tolist(), strict=True))
        self._frames_of_data = min(self._frames_of_data, max(1, found["frames"]))
        if found["frames"] and self.readouts is not None:
            raise_if_nothing_to_read(self.bridge_args.readout_weights, found)
        for name, column in (("qwen", "qwen_hidden"), ("wavlm", "wavlm_features")):
            if found["frames"] and not found[name] and self.weights[name] > 0:
                logger.warning_once(
                    f"{name}_weight is {self.weights[name]}, but no frame of the training data has a target in "
                    f"{column}, so that loss is not part of training; add {column}, or set {name}_weight to 0."
                )

    def note_rates(self, optimizer: Any) -> None:
        """Remember the learning rates of the step that was just taken, by part."""
        self._rates_of_step = {group["name"]: group["lr"] for group in optimizer.param_groups if "name" in group}

    def move_residual_weight(self) -> None:
        """Put λ where it belongs after so many steps."""
        args = self.bridge_args
        steps = args.residual_weight_warmup_ratio * self.state.max_steps
        share = min(1.0, self.state.global_step / steps) if steps else 1.0
        start, end = self.residual_weight_start, args.residual_weight_end
        if end is None:
            end = 1.0 if any(self.rates[part] > 0 for part in MAKE_CODES) else start
        self.bridge_model.set_residual_weight(start + share * (end - start))

    def move_codebooks(self) -> None:
        """Move every codebook that learns by what the step asked of it, on all processes."""
        args, step = self.bridge_args, self.state.global_step
        move_codebooks(self.bridge_model.quantizer, args, step, self.accelerator)
        if self.adversary is not None:
            self.adversary.step()
        if self.readouts is not None:
            self.readouts.zero_grad(set_to_none=True)

    def share_readout_gradients(self) -> None:
        """Let every process have the readouts' gradient of all of them, which no wrapper of the model sees to."""
        if self.readouts is not None:
            self.readouts.share_gradients(self.accelerator, self.args.max_grad_norm or 0.0)

    # --- the rest ---

    def _set_up(self) -> None:
        # What follows from the model and the arguments, which a search or `model_init` may have changed.
        args, model = self.bridge_args, self.bridge_model
        check_model(args, model)
        self.rates = args.rates if self._given_optimizer is None else rates_in(self._given_optimizer, model)
        self.weights = weights_of(args, model)
        self.reference = Reference(model.quantizer).to(args.device)
        self.residual_weight_start = float(model.config.residual_weight)
        weight = args.adversarial_weight
        self.adversary = Adversary(DISCRIMINATOR_FILTERS, args.seed, self.accelerator) if weight else None
        if self.readouts is None or self.optimizer is None:  # those that an optimizer holds go on
            self.readouts = self._new_readouts()
        self._train_metrics, self._eval_metrics = self._new_metrics(), self._new_metrics()
        self._trained_on = self._new_metrics()
        self._frames_of_epoch = torch.zeros(len(COUNTED), dtype=torch.int64)
        self._frames_of_data = math.inf

    def _new_readouts(self) -> Readouts | None:
        weights = self.bridge_args.readout_weights
        if not any(weights.values()):
            return None
        speakers = speakers_of(self.train_dataset) if weights["speaker_reversal_weight"] else {}
        if isinstance(self.data_collator, MimiBridgeCollator):
            check_columns(weights, self.train_dataset)
        wanted = [name for argument, name in COLLATED.items() if weights[argument] > 0]
        self.data_collator, self.eval_data_collator = (
            collate.with_frame_targets(wanted, speakers) if isinstance(collate, MimiBridgeCollator) else collate
            for collate in (self.data_collator, self.eval_data_collator)
        )
        quantizer = self.bridge_model.quantizer
        readouts = Readouts(weights, quantizer.codec_dim, quantizer.proj_wavlm, speakers, self.args.seed)
        return readouts.to(self.args.device)

    @contextmanager
    def _acoustic_dropout(self, audio: Tensor | None) -> Iterator[None]:
        share = self.bridge_args.acoustic_dropout
        if audio is None or not share:
            yield
            return
        rows = choose_rows(audio, share, self.args.seed, self.state.global_step)
        with decoded_without_acoustic(self.bridge_model, rows):
            yield

    def _weight(self, name: str) -> float:
        return self.weights.get(name, self.weights.get(name.partition("_")[0], 0.0))

    def _latents_terms(self, outputs: MimiBridgeOutput, target: Tensor | None, mask: Tensor | None) -> dict[str, Term]:
        if self._holds_anchor and (target is None or mask is not None):
            assert outputs.latents is not None
            anchor = self.reference(outputs.latents.detach(), outputs.audio_codes_mask)
            target = anchor if target is None or mask is None else torch.where(mask[:, :, None], target, anchor)
            mask = None
        return {} if target is None else {"latents": latents_term(outputs, target, mask)}

    def _audio_terms(
        self, outputs: MimiBridgeOutput, inputs: dict[str, Any], totals: Tensor, uses_adversary: bool
    ) -> dict[str, Term]:
        terms, audio, padding_mask = {}, inputs["input_values"], inputs.get("padding_mask")
        assert outputs.audio_codes_mask is not None and outputs.audio_values is not None
        if self.weights["mel"] > 0:
            terms["mel"] = mel_term(outputs, audio, self.bridge_model, padding_mask)
        if uses_adversary:
            assert self.adversary is not None
            num_frames = outputs.audio_codes_mask.sum()
            judged = self.adversary.judge(audio, outputs.audio_values, float(num_frames / totals[0]))
            terms |= {name: Term(value, num_frames) for name, value in judged.items()}
        return terms

    @contextmanager
    def _whole_recordings(self) -> Iterator[None]:
        kept = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_data_collator, False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = kept

    def _new_metrics(self) -> TrainingMetrics:
        return TrainingMetrics(self.bridge_model.quantizer, self.readouts.baselines() if self.readouts else None)

    def _gathered(self, metrics: TrainingMetrics) -> TrainingMetrics:
        if self.accelerator.num_processes > 1:
            sums = metrics.sums().to(self.args.device)
            metrics.set_sums(cast(Tensor, self.accelerator.reduce(sums, "sum")))
        return metrics


class _StepCallback(TrainerCallback):
    """Calls the trainer where transformers has no method to override."""

    def __init__(self, trainer: MimiBridgeTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self._trainer.begin()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._trainer.begin_epoch()

    def on_epoch_end(self, args, state, control, **kwargs):
        self._trainer.end_epoch()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._trainer.share_readout_gradients()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._trainer.note_rates(optimizer)
        self._trainer.move_codebooks()

    def on_step_end(self, args, state, control, **kwargs):
        self._trainer.move_residual_weight()
