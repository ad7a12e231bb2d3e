"""Named losses, each a mean over frames of one kind, and how many frames of each kind a batch holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..alignment_targets import align_tokens_to_frames, delay_targets, features_at_frames
from ..frames import frame_mask_from_padding_mask
from ..modeling_mimi_bridge import MimiBridgeModel
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
    "timbre": "frames",
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


def count_frames_of_step(batches: Sequence[dict[str, Tensor]], model: MimiBridgeModel, device: torch.device) -> Tensor:
    """Frames of all of a process's batches of a step, as `count_frames`; zeros where there is no batch."""
    none = torch.zeros(len(COUNTED), dtype=torch.int64, device=device)
    return torch.stack([none, *(count_frames(batch, model).to(device) for batch in batches)]).sum(dim=0)
