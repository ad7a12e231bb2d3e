"""What fine-tuning minimises: named losses, each a mean over the frames of a whole optimizer step.

A step may be many small batches on many processes. So each loss comes with the number of frames it is a mean over,
and is weighted by their share of the step's: the sum of the parts is then what one large batch would have given.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from ..frames import right_padded_lengths, silence_padding
from ..losses.reconstruction import multi_scale_mel_distance
from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .acoustic_dropout import choose_changes, decoded_with, restore_quantized
from .adversary import Adversary
from .arguments import MimiBridgeTrainingArguments
from .options import refuse_losses_of_audio, weights_of
from .readout_targets import READOUT_KEYS, readout_targets
from .readouts import Readouts, load_readouts
from .reference import Reference
from .terms import COUNTED, LOSSES, Term, count_frames, in_precision_of
from .timbre import timbre_term

DISCRIMINATOR_FILTERS = 32


class Objective(TrainerCallback):
    """The loss of a run, and what computes it beside the model: the anchor, a discriminator, readouts.

    Args:
        model: That is trained; its quantizer as it is now becomes the anchor.
        args: The losses' weights, and what else they say of them.
        accelerator: Device and processes.
        readouts: Those of the run, if it has any.

    Attributes:
        weights: Of every loss by its name, or the part of it before the first `_`.
        holds_anchor: Whether rows without the original's latents are held near the anchor's; that of a model that was
            trained before counts once training has begun.
    """

    def __init__(
        self,
        model: MimiBridgeModel,
        args: MimiBridgeTrainingArguments,
        accelerator: Accelerator,
        readouts: Readouts | None = None,
    ):
        self._model, self._args, self._accelerator = model, args, accelerator
        self.weights = weights_of(args, model)
        self.reference = Reference(model.quantizer).to(args.device)
        self.holds_anchor = self.reference.is_original
        self.readouts = readouts
        self.adversary: Adversary | None = None
        if args.adversarial_weight:
            self.adversary = Adversary(DISCRIMINATOR_FILTERS, args.seed, accelerator)

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], totals: Tensor | None = None, step: int = 0
    ) -> tuple[Tensor, dict[str, Term], MimiBridgeOutput, dict[str, Tensor]]:
        """Run the model on a batch, and weigh its losses.

        Args:
            model: As it is wrapped for training; in training mode the discriminator takes part.
            batch: As the collator makes it.
            totals: Frames of the whole step for each of `COUNTED`, `(kinds,)`; left out, those of the batch.
            step: Steps taken before this one.

        Returns:
            What the batch adds to the step's loss, a scalar; its losses by name, before they are weighted; the model's
            output; the sums of the readouts' targets, for their baselines.

        Raises:
            ValueError: If a loss of audio has a weight, but the batch holds none.
        """
        inputs = in_precision_of(self._model, dict(batch))
        target_latents = inputs.pop("target_latents", None), inputs.pop("target_mask", None)
        read_from = {name: inputs.pop(name) for name in READOUT_KEYS if name in inputs}
        audio = inputs.get("input_values")
        if audio is None:
            refuse_losses_of_audio(self._args, model.training)
        adversary = self.adversary if model.training else None
        wants_audio = audio is not None and (self.weights["mel"] > 0 or adversary is not None)
        asked = {"output_audio": wants_audio, "output_losses": True, "return_dict": True}
        outputs = self._run(model, inputs | asked, step)
        if totals is None:
            totals = count_frames(inputs | read_from, self._model)
        terms, target_sums = head_terms(outputs), {}
        if self.weights["latents"] > 0:
            terms |= self._latents_terms(outputs, *target_latents)
        if self.readouts is not None:
            assert outputs.audio_codes_mask is not None
            delay = self._model.config.content_delay
            targets = readout_targets(inputs | read_from, outputs.audio_codes_mask, delay)
            read, target_sums = self.readouts(outputs, targets)
            terms |= read
        if audio is not None and self.weights["mel"] > 0:
            terms["mel"] = mel_term(outputs, audio, self._model, inputs.get("padding_mask"))
        if audio is not None and model.training and self.weights["timbre"] > 0:
            timbre = timbre_term(outputs, audio, self._model, inputs.get("padding_mask"))
            terms |= {} if timbre is None else {"timbre": timbre}
        if audio is not None and adversary is not None:
            assert outputs.audio_codes_mask is not None and outputs.audio_values is not None
            num_frames = outputs.audio_codes_mask.sum()
            mask = inputs.get("padding_mask")
            lengths = None if mask is None else right_padded_lengths(mask)
            losses = adversary.losses(audio, outputs.audio_values, float(num_frames / totals[0]), lengths)
            terms |= {name: Term(value, num_frames) for name, value in losses.items()}
        return weighted_sum(terms, self.weights, totals), terms, outputs, target_sums

    def total_of(self, losses: dict[str, float]) -> float:
        """The weighted sum of losses by name."""
        return sum(_weight_of(name, self.weights) * value for name, value in losses.items())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Let every process have the readouts' gradient of all of them, which no wrapper of the model sees to."""
        if self.readouts is not None:
            self.readouts.share_gradients(self._accelerator, args.max_grad_norm or 0.0)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Let the discriminator learn from the step, and forget the readouts' gradients."""
        if self.adversary is not None:
            self.adversary.step()
        if self.readouts is not None:
            self.readouts.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "residual_weight_start": self.reference.residual_weight,
            "reference": self.reference.state_dict(),
            "reference_is_original": self.reference.is_original,
            "adversary": self.adversary.state_dict() if self.adversary else None,
            "readouts": self.readouts.checkpoint() if self.readouts else None,
        }

    def load_state_dict(self, state: dict[str, Any], checkpoint: str) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: If the checkpoint has other readouts.
        """
        load_readouts(self.readouts, state.get("readouts"), checkpoint)
        self.reference.residual_weight = state["residual_weight_start"]
        self.reference.is_original = state["reference_is_original"]
        self.reference.load_state_dict(state["reference"], strict=not self.reference.is_original)
        if self.adversary is not None and state["adversary"] is not None:
            self.adversary.load_state_dict(state["adversary"])

    def _run(self, model: nn.Module, inputs: dict[str, Any], step: int) -> MimiBridgeOutput:
        args = self._args
        if not model.training or not (args.acoustic_dropout or args.acoustic_shift):
            return model(**inputs)
        audio = inputs["input_values"]
        changes = choose_changes(audio, args.acoustic_dropout, args.acoustic_shift, args.seed, step)
        with decoded_with(self._model, changes):
            outputs: MimiBridgeOutput = model(**inputs)
        restore_quantized(outputs)
        return outputs

    def _latents_terms(self, outputs: MimiBridgeOutput, target: Tensor | None, mask: Tensor | None) -> dict[str, Term]:
        if self.holds_anchor and (target is None or mask is not None):
            assert outputs.latents is not None
            anchor = self.reference(outputs.latents.detach(), outputs.audio_codes_mask)
            target = anchor if target is None or mask is None else torch.where(mask[:, :, None], target, anchor)
            mask = None
        return {} if target is None else {"latents": latents_term(outputs, target, mask)}


def head_terms(outputs: MimiBridgeOutput) -> dict[str, Term]:
    """The heads' own losses, by name."""
    assert outputs.audio_codes_mask is not None
    num_frames = outputs.audio_codes_mask.sum()
    terms = {
        name: Term(value, num_frames)
        for name, value in (outputs.losses or {}).items()
        if name not in (outputs.distances or {})
    }
    for name, distance in (outputs.distances or {}).items():
        terms[name] = Term(distance.loss, distance.num_frames)
    return terms


def mel_term(
    outputs: MimiBridgeOutput, audio: Tensor, model: MimiBridgeModel, padding_mask: Tensor | None = None
) -> Term:
    """Mel distance of the decoded audio, each recording by its frames; the last of them is filled with silence."""
    assert outputs.audio_codes_mask is not None and outputs.audio_values is not None
    num_frames = outputs.audio_codes_mask.sum(dim=-1)
    lengths = num_frames * model.config.frame_size
    missing = max(0, outputs.audio_codes_mask.shape[-1] * model.config.frame_size - audio.shape[-1])
    pair = (outputs.audio_values, silence_padding(audio, padding_mask))
    decoded, original = (torch.nn.functional.pad(sound, (0, missing)) for sound in pair)
    distance = multi_scale_mel_distance(decoded, original, model.config.sampling_rate, lengths=lengths)
    return Term(distance, num_frames.sum())


def latents_term(outputs: MimiBridgeOutput, target: Tensor, target_mask: Tensor | None = None) -> Term:
    """Squared distance of the quantized latents from target ones, relative to these, a mean over frames.

    Args:
        outputs: Of the model.
        target: `(batch, frames, hidden_size)`.
        target_mask: True on frames that have a target, `(batch, frames)`; all real ones do, if left out.
    """
    assert outputs.audio_codes_mask is not None and outputs.quantized is not None
    real = outputs.audio_codes_mask if target_mask is None else outputs.audio_codes_mask & target_mask
    quantized, target = outputs.quantized[real].float(), target[real].float()
    error = (quantized - target).square().sum(dim=-1) / target.square().sum(dim=-1).clamp(min=1e-6)
    return Term(error.sum() / real.sum().clamp(min=1), real.sum())


def weighted_sum(terms: dict[str, Term], weights: dict[str, float], totals: Tensor) -> Tensor:
    """What a batch adds to the step's loss.

    Args:
        terms: The batch's losses.
        weights: Of each loss, by its name or the part before the first `_`.
        totals: Frames of the whole step for each of `COUNTED`, `(kinds,)`.
    """
    shares = dict(zip(COUNTED, totals.clamp(min=1), strict=True))
    parts = [
        _weight_of(name, weights) * term.value * (term.num_frames / shares[LOSSES[name]]).to(term.value.dtype)
        for name, term in terms.items()
    ]
    return torch.stack(parts).sum()


def _weight_of(name: str, weights: dict[str, float]) -> float:
    return weights.get(name, weights.get(name.partition("_")[0], 0.0))
