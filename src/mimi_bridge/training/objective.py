"""What fine-tuning minimises: named losses, each a mean over the frames of a whole optimizer step.

A step may be many small batches on many processes. So each loss comes with the number of frames it is a mean over,
and is weighted by their share of the step's: the sum of the parts is then what one large batch would have given.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..alignment_targets import align_tokens_to_frames, delay_targets, features_at_frames
from ..frames import frame_mask_from_padding_mask, silence_padding
from ..losses.reconstruction import multi_scale_mel_distance
from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .readout_targets import readout_targets

READ = ("phone", "character", "speech_content", "pitch", "level", "speaker")  # counted by the targets of their names
COUNTED = ("frames", "qwen", "wavlm", *READ)  # what a loss may be a mean over
LOSSES = {  # by name, what it is a mean over
    "qwen": "qwen",
    "wavlm": "wavlm",
    **{
        f"{loss}_{head}": "frames"
        for loss in ("commitment", "codebook")
        for head in ("content", "prosody", "acoustic")
    },
    "mel": "frames",
    "latents": "frames",
    "adversarial": "frames",
    "features": "frames",
    **{name: name for name in READ},
    "voicing": "level",
}
BLAME = {  # whose loss it is, for messages
    "qwen": "content head",
    "wavlm": "content and prosody heads",
    **{
        f"{loss}_{head}": f"{head} head"
        for loss in ("commitment", "codebook")
        for head in ("content", "prosody", "acoustic")
    },
    **dict.fromkeys(("phone", "character", "speech_content", "speaker"), "content head"),
    **dict.fromkeys(("pitch", "level", "voicing"), "prosody head"),
}


@dataclass(frozen=True)
class Term:
    """One loss of a batch: a scalar, and how many frames it is a mean over."""

    value: Tensor
    num_frames: Tensor


def count_frames(batch: dict[str, Tensor], model: MimiBridgeModel) -> Tensor:
    """Frames of a batch that count for each kind of loss, in the order of `COUNTED`, `(kinds,)`, int64."""
    frame_mask = batch_frame_mask(batch, model)
    counts = [frame_mask.sum()]
    if "qwen_hidden" in batch:
        dummies = batch["qwen_hidden"].new_zeros(*batch["qwen_hidden"].shape[:2], 1)
        places = (batch.get(name) for name in ("durations", "token_spans", "token_mask"))
        laid_out = align_tokens_to_frames(dummies, frame_mask, model.config.frame_rate, *places)
        counts.append(delay_targets(*laid_out, model.config.content_delay, frame_mask)[1].sum())
    else:
        counts.append(counts[0].new_zeros(()))
    if "wavlm_features" in batch:
        batch = batch | {"wavlm_features": batch["wavlm_features"][:, :, :1]}  # one number says where there are some
        counts.append(features_at_frames(batch["wavlm_features"], frame_mask, batch.get("wavlm_mask"))[1].sum())
    else:
        counts.append(counts[0].new_zeros(()))
    targets = readout_targets(batch, frame_mask, model.config.content_delay)
    counts += [targets[name][1].sum() if name in targets else counts[0].new_zeros(()) for name in READ]
    return torch.stack(counts)


def batch_frame_mask(batch: dict[str, Tensor], model: MimiBridgeModel) -> Tensor:
    """Which frames of a batch are real, `(batch, frames)`."""
    if "latents" in batch:
        latents = batch["latents"]
        return batch.get("frame_mask", latents.new_ones(latents.shape[:2], dtype=torch.bool))
    audio = batch["input_values"]
    mask = batch.get("padding_mask", audio.new_ones(len(audio), audio.shape[-1]))
    return frame_mask_from_padding_mask(mask, model.config.frame_size)


def in_precision_of(model: MimiBridgeModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch whose audio or latents are in the precision of the model's weights; teachers stay as they are."""
    sound = {name: batch[name].to(model.dtype) for name in ("input_values", "latents") if name in batch}
    return batch | sound


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
        weights.get(name, weights.get(name.partition("_")[0], 0.0))
        * term.value
        * (term.num_frames / shares[LOSSES[name]]).to(term.value.dtype)
        for name, term in terms.items()
    ]
    return torch.stack(parts).sum()
