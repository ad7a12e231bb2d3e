"""What the readouts are to tell of each frame of a batch, and where that is known.

Content is read with the config's `content_delay`: the code of frame t is to tell what was said in frame t - delay.
"""

import torch
from torch import Tensor

from ..alignment_targets import delay_targets, features_at_frames
from ..data.frame_targets import PROSODY, UNKNOWN

READOUT_KEYS = (  # of a batch; not the model's
    *("phone_ids", "character_labels", "character_frames", "character_mask"),
    *("prosody_targets", "prosody_mask", "speaker_ids"),
)
Targets = dict[str, tuple[Tensor, Tensor]]


def readout_targets(batch: dict[str, Tensor], frame_mask: Tensor, delay: int) -> Targets:
    """By name, targets and the mask of the frames that have one, `(batch, frames)`; those that the batch holds.

    `phone` `(batch, frames)` and `speech_content` `(batch, frames, wavlm_dim)`, as many frames late as `delay` says;
    `pitch`, `level`, `voicing` and `speaker`, `(batch, frames)`; `character`, labels `(batch, characters)`, and the
    mask of the frames that are to tell them.

    Args:
        batch: As the collator makes it.
        frame_mask: True on real frames, `(batch, frames)`.
        delay: Of content, in frames.

    Raises:
        ValueError: If targets are of another shape than the frames.
    """
    targets: Targets = {}
    if "phone_ids" in batch:
        phones = _of_frames(batch["phone_ids"], "phone_ids", frame_mask)
        targets["phone"] = delay_targets(phones, frame_mask & (phones != UNKNOWN), delay, frame_mask)
    if "character_mask" in batch:
        targets["character"] = _late_characters(batch, frame_mask, delay)
    if "wavlm_features" in batch:
        known = features_at_frames(batch["wavlm_features"], frame_mask, batch.get("wavlm_mask"))
        targets["speech_content"] = delay_targets(*known, delay, frame_mask)
    if "prosody_targets" in batch:
        values = _of_frames(batch["prosody_targets"], "prosody_targets", frame_mask)
        masks = _of_frames(batch["prosody_mask"], "prosody_mask", frame_mask) & frame_mask[:, :, None]
        for number, name in enumerate(PROSODY):
            targets[name] = values[:, :, number], masks[:, :, number]
    if "speaker_ids" in batch:
        speakers = batch["speaker_ids"][:, None].expand_as(frame_mask)
        targets["speaker"] = speakers, frame_mask & (speakers != UNKNOWN)
    return targets


def _late_characters(batch: dict[str, Tensor], frame_mask: Tensor, delay: int) -> tuple[Tensor, Tensor]:
    # The first `delay` codes are for what was said before; none is left for the last `delay` frames.
    frames = torch.arange(frame_mask.shape[1], device=frame_mask.device)
    mask = frame_mask & (frames >= delay) & batch["character_mask"][:, None]
    is_covered = batch["character_frames"] < (frame_mask.sum(dim=1) - delay)[:, None]
    return torch.where(is_covered, batch["character_labels"], UNKNOWN), mask


def _of_frames(values: Tensor, name: str, frame_mask: Tensor) -> Tensor:
    if values.shape[:2] != frame_mask.shape:
        raise ValueError(
            f"{name} must have one entry for each of the {tuple(frame_mask.shape)} (batch, frames), got "
            f"{tuple(values.shape)}; make them by MimiBridgeCollator."
        )
    return values
