"""Fine-tuning by transformers' Trainer: what the three heads force us to override, and nothing else.

A step is the same however it is divided: losses are means over the frames of all its batches on all processes, and
codebooks move once, by what all of them were asked for. What a checkpoint must hold beyond transformers' own files (λ
at the start, the original's heads, a discriminator) is in `bridge_training.pt`.
"""

import logging
import os
from collections.abc import Mapping, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..codebook_learning import CodebookLearner
from ..data.collator import MimiBridgeCollator
from ..data.running_statistics import RunningStatistics
from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .adversary import Adversary
from .arguments import MimiBridgeTrainingArguments
from .beginning import begin_with_k_means, begin_with_least_squares, set_teacher_statistics, take_survey
from .codebooks import revive_unused_from
from .guards import raise_if_collapsed, raise_if_gradient_not_finite, raise_if_not_finite
from .objective import Term, count_frames, head_terms, latents_term, mel_term, weighted_sum
from .optimizer import freeze, hold_frozen_parts_still, parameter_groups
from .reference import Reference, is_fresh
from .tally import Tally

logger = logging.getLogger(__name__)

STATE_NAME = "bridge_training.pt"
DISCRIMINATOR_FILTERS = 32


class MimiBridgeTrainer(Trainer):
    """Trains a `MimiBridgeModel` with `MimiBridgeTrainingArguments`; everything else is as in `transformers.Trainer`.

    Args:
        model: The model; freshly converted, or to be trained further.
        args: How.
        data_collator: By default a `MimiBridgeCollator` for the model.
        train_dataset: Rows as `MimiBridgeCollator` takes them.
        teacher_statistics: Of the whole data set's targets, by teacher (`qwen`, `wavlm`), as `stored_statistics` reads
            them. A teacher that is not there has those of the first `init_frames` frames.
        **kwargs: As in `transformers.Trainer`.

    Raises:
        ValueError: If the data set is empty, the arguments are not ours, or several devices share a process.
    """

    def __init__(
        self,
        model: MimiBridgeModel,
        args: MimiBridgeTrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        teacher_statistics: Mapping[str, RunningStatistics] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, MimiBridgeTrainingArguments):
            raise ValueError(f"args must be MimiBridgeTrainingArguments, got {type(args).__name__}.")
        if isinstance(train_dataset, Sized) and len(train_dataset) == 0:
            raise ValueError("train_dataset is empty; give at least one recording.")
        collator = data_collator or MimiBridgeCollator.for_model(model.config, seed=args.seed)
        super().__init__(model, args, collator, train_dataset, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(f"one process drives {args.n_gpu} devices; start one each, with torchrun.")
        self.loss_is_scaled_for_ga = True
        self.bridge_args = args
        self.bridge_model = model
        self._teacher_statistics = teacher_statistics or {}
        self.reference = Reference(model.quantizer).to(args.device)
        self.weights = self._weights()
        self.adversary: Adversary | None = None
        if args.adversarial_weight:
            self.adversary = Adversary(DISCRIMINATOR_FILTERS, args.seed, self.accelerator)
        self.residual_weight_start = float(model.config.residual_weight)
        self._resumed = False
        self._train_tally, self._eval_tally, self._trained_on = (self._new_tally() for _ in range(3))
        self.add_callback(_StepCallback(self))

    # --- what transformers' Trainer calls ---

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As in transformers. While it runs, the heads leave their codebooks to the trainer."""
        self._resumed = False
        self._install_learners()
        freeze(self.bridge_model, self.bridge_args.rates)
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            for head in self.bridge_model.quantizer.heads.values():
                head.learner = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a group for each part of the model."""
        if self.optimizer is None:
            args = self.bridge_args
            groups = parameter_groups(self.bridge_model, args.rates, args.weight_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.bridge_model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

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
        """
        inputs = dict(inputs)
        target = inputs.pop("target_latents", None)
        if model.training:
            hold_frozen_parts_still(self.bridge_model, self.bridge_args.rates)
        audio = inputs.get("input_values")
        wants_audio = audio is not None and (self.weights["mel"] > 0 or self.adversary is not None)
        outputs: MimiBridgeOutput = model(**inputs, output_audio=wants_audio, return_dict=True)
        totals = num_items_in_batch
        if not isinstance(totals, Tensor):
            totals = count_frames(inputs, self.bridge_model)
        terms = self._terms(outputs, audio if wants_audio else None, target, totals, judge=model.training)
        loss = weighted_sum(terms, self.weights, totals)
        if model.training:
            raise_if_not_finite(terms, self.state.global_step + 1)
            self._train_tally.add(terms, outputs)
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        else:
            self._eval_tally.add(terms, outputs)
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        counts = [count_frames(batch, self.bridge_model) for batch in batch_samples]
        totals = torch.stack(counts).sum(dim=0).to(device) if counts else torch.zeros(3, device=device).double()
        totals = cast(Tensor, self.accelerator.reduce(totals, "sum"))
        if counts and not totals[1:].any() and (self.weights["qwen"] or self.weights["wavlm"]):
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
        """The loss of an evaluation batch; codes and losses are counted on the way."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach().float(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers, with every loss by name, over the frames of the whole set.

        Beside the distance to a teacher stands the one that the mean of the training's targets would get.
        """
        self._eval_tally = self._new_tally()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        results = self._gathered(self._eval_tally).results(fitted_on=self._trained_on)
        losses = {name.removeprefix("loss_"): value for name, value in results.items() if name.startswith("loss_")}
        total = sum(self._weight(name) * value for name, value in losses.items())
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = total
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in results.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers; a line of training also says what the tally counted, λ and the drift.

        Raises:
            HeadCollapsedError: If a codebook that learns is hardly used any more.
        """
        if "loss" in logs:
            tally = self._gathered(self._train_tally)
            self._train_tally = self._new_tally()
            self._trained_on.add_targets_of(tally)
            drift = self.reference.drift(self.bridge_model.quantizer)
            logs |= tally.results() | {f"drift_{name}": value for name, value in drift.items()}
            logs["residual_weight"] = self.bridge_model.config.residual_weight
            super().log(logs, start_time)
            raise_if_collapsed(tally, self._levels(), self.bridge_args.collapse_below, self.state.global_step)
        else:
            super().log(logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {
                "residual_weight_start": self.residual_weight_start,
                "reference": self.reference.state_dict(),
                "reference_is_original": self.reference.is_original,
                "adversary": self.adversary.state_dict() if self.adversary else None,
                "trained_on": self._trained_on.sums(),
            }
            torch.save(state, os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, STATE_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"{checkpoint} has no {STATE_NAME}, so training cannot go on from it; it was saved by another trainer "
                "or with save_only_model. Load its model and start anew instead."
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.residual_weight_start = state["residual_weight_start"]
        self.reference.load_state_dict(state["reference"])
        self.reference.is_original = state["reference_is_original"]
        self._trained_on.set_sums(state["trained_on"])
        if self.adversary is not None and state["adversary"] is not None:
            self.adversary.load_state_dict(state["adversary"])
        self._resumed = True

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            wrong = (load_result.missing_keys + load_result.unexpected_keys)[:3]
            raise ValueError(f"the checkpoint does not fit the model: {', '.join(wrong)}; was it another model's?")

    # --- what the callback calls ---

    def begin(self) -> None:
        """Before the first step: teachers' statistics and the content head's beginning, unless training goes on."""
        args, model = self.bridge_args, self.bridge_model
        if not self._resumed and is_fresh(model.quantizer) and args.rates["content"] > 0:
            self._begin_content_head()
        self.move_residual_weight()
        self._train_tally = self._new_tally()

    def move_residual_weight(self) -> None:
        """Put λ where it belongs after so many steps."""
        args = self.bridge_args
        steps = args.residual_weight_ratio * self.state.max_steps
        share = min(1.0, self.state.global_step / steps) if steps else 1.0
        start = self.residual_weight_start
        self.bridge_model.set_residual_weight(start + share * (args.residual_weight_end - start))

    def move_codebooks(self) -> None:
        """Move every codebook that learns by what the step asked of it, on all processes."""
        args, step = self.bridge_args, self.state.global_step
        for name, head in self.bridge_model.quantizer.heads.items():
            learner = head.learner
            if learner is None:
                continue
            learner.move(cast(Tensor, self.accelerator.reduce(learner.gathered(), "sum")))
            if name == "content" and args.revive_every and (step + 1) % args.revive_every == 0:
                inputs = self._gathered_rows(torch.cat(learner.inputs))
                generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
                revive_unused_from(head, inputs, generator, args.revive_below)
            learner.forget()
        if self.adversary is not None:
            self.adversary.step()

    # --- the rest ---

    def _weights(self) -> dict[str, float]:
        args, config = self.bridge_args, self.bridge_model.config
        weights = {
            name: getattr(config, f"{name}_weight")
            if getattr(args, f"{name}_weight") is None
            else getattr(args, f"{name}_weight")
            for name in ("qwen", "wavlm", "commitment")
        }
        return weights | {
            "codebook": config.codebook_weight,
            "mel": args.mel_weight if self.bridge_model.decoder is not None else 0.0,
            "latents": args.latents_weight,
            "adversarial": args.adversarial_weight,
            "features": 2 * args.adversarial_weight,
        }

    def _weight(self, name: str) -> float:
        return self.weights.get(name, self.weights.get(name.partition("_")[0], 0.0))

    def _terms(
        self, outputs: MimiBridgeOutput, audio: Tensor | None, target: Tensor | None, totals: Tensor, judge: bool
    ) -> dict[str, Term]:
        terms = head_terms(outputs)
        if self.weights["latents"] > 0 and (target is not None or self.reference.is_original):
            if target is None:
                assert outputs.latents is not None
                target = self.reference(outputs.latents.detach(), outputs.audio_codes_mask)
            terms["latents"] = latents_term(outputs, target)
        if audio is not None and self.weights["mel"] > 0:
            terms["mel"] = mel_term(outputs, audio, self.bridge_model)
        if audio is not None and self.adversary is not None and judge:
            assert outputs.audio_codes_mask is not None and outputs.audio_values is not None
            num_frames = outputs.audio_codes_mask.sum()
            share = float(num_frames / totals[0])
            judged = self.adversary.judge(audio, outputs.audio_values, share)
            terms |= {name: Term(value, num_frames) for name, value in judged.items()}
        return terms

    def _install_learners(self) -> None:
        args, config = self.bridge_args, self.bridge_model.config
        decay = config.codebook_decay if args.codebook_decay is None else args.codebook_decay
        fastest = max(args.rates["content"], args.rates["prosody"], args.rates["acoustic"])
        for name, head in self.bridge_model.quantizer.heads.items():
            rate = args.rates[name]
            if rate > 0:
                head.learner = CodebookLearner(head.stores, args.codebook_update, 1 - (1 - decay) * rate / fastest)

    def _levels(self) -> dict[str, range]:
        # Of the heads that learn, the numbers of their codebooks.
        levels, first = {}, 0
        for name, head in self.bridge_model.quantizer.heads.items():
            last = first + len(head.codebooks)
            if head.learner is not None:
                levels[name] = range(first, last)
            first = last
        return levels

    def _begin_content_head(self) -> None:
        args, quantizer = self.bridge_args, self.bridge_model.quantizer
        survey = take_survey(
            self.bridge_model, self.train_dataset, self.data_collator, args.init_frames, args.seed, args.device
        )
        set_teacher_statistics(quantizer, survey, self._teacher_statistics)
        begin = {"k-means": begin_with_k_means, "least-squares": begin_with_least_squares}.get(args.content_init)
        if begin is not None:
            batch = self._train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
            frames_per_step = max(1, round(survey.frames_per_row * batch))
            generator = torch.Generator().manual_seed(args.seed)
            perplexity = begin(quantizer, survey, frames_per_step, generator)
            logger.info("the content head begins with %s, perplexity %.0f", args.content_init, perplexity)

    def _gathered_rows(self, rows: Tensor) -> Tensor:
        # Rows of all processes, in their order.
        if self.accelerator.num_processes == 1:
            return rows
        counts = cast(Tensor, self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)))
        padded = cast(Tensor, self.accelerator.gather(self.accelerator.pad_across_processes(rows)))
        blocks = padded.view(len(counts), -1, rows.shape[-1])
        return torch.cat([block[: int(count)] for block, count in zip(blocks, counts, strict=True)])

    def _new_tally(self) -> Tally:
        return Tally(self.bridge_model.quantizer, self.args.device)

    def _gathered(self, tally: Tally) -> Tally:
        tally.set_sums(cast(Tensor, self.accelerator.reduce(tally.sums(), "sum")))
        return tally


class _StepCallback(TrainerCallback):
    """Calls the trainer where transformers has no method to override."""

    def __init__(self, trainer: MimiBridgeTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self._trainer.begin()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self._trainer.data_collator, "set_epoch"):
            self._trainer.data_collator.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._trainer.move_codebooks()

    def on_step_end(self, args, state, control, **kwargs):
        self._trainer.move_residual_weight()
