"""Connectionist temporal classification of characters, several labels a frame, and the constant-predictor baseline.

Source: Graves et al. 2006; on the entries of a codebook, PAST (arXiv:2505.14470).
"""

import torch
from torch import Tensor, nn

NUM_LABELS = 257  # blank and the 256 bytes, each by its value and 1
BLANK = 0
LABELS_PER_FRAME = 4  # at 12.5 frames a second: fast speech has more characters than frames


def character_loss(log_probs: Tensor, num_frames: Tensor, labels: Tensor, num_labels: Tensor) -> Tensor:
    """The negative log probability of each row's labels, `(batch,)`; 0 where the frames are too few for them.

    Args:
        log_probs: Of labels, `(batch, LABELS_PER_FRAME * frames, NUM_LABELS)`.
        num_frames: Of each row, `(batch,)`.
        labels: `(batch, labels)`; what stands after a row's own is not looked at.
        num_labels: Of each row, `(batch,)`.
    """
    return nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        labels.clamp(min=BLANK + 1),
        LABELS_PER_FRAME * num_frames,
        num_labels,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )


def constant_character_loss(num_frames: Tensor, labels: Tensor, num_labels: Tensor) -> Tensor:
    """What a reader would get that sees nothing, but knows how often each label is in each row, `(batch,)`.

    Args:
        num_frames: Of each row, `(batch,)`.
        labels: `(batch, labels)`.
        num_labels: Of each row, `(batch,)`.
    """
    real = torch.arange(labels.shape[1], device=labels.device) < num_labels[:, None]
    counts = torch.zeros(len(labels), NUM_LABELS, device=labels.device)
    counts.scatter_add_(1, labels.clamp(min=BLANK), real.float())
    counts[:, BLANK] = (LABELS_PER_FRAME * num_frames - num_labels).clamp(min=1)
    log_probs = counts.log() - counts.sum(dim=1, keepdim=True).log()
    num_steps = LABELS_PER_FRAME * int(num_frames.max())
    return character_loss(log_probs.clamp(min=-1e4)[:, None].expand(-1, num_steps, -1), num_frames, labels, num_labels)
