"""Before the first step of a run: the teachers' statistics, and where a new content head begins."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..data.teachers.statistics import RunningStatistics
from ..modeling_mimi_bridge import MimiBridgeModel
from ..quantizer import CausalBridgeQuantizer
from .arguments import MimiBridgeTrainingArguments
from .content_init import (
    begin_with_k_means,
    begin_with_least_squares,
    bridges_of,
    set_teacher_statistics,
)
from .init_frames import collect_init_frames

logger = logging.get_logger(__name__)


def initialise(
    model: MimiBridgeModel,
    args: MimiBridgeTrainingArguments,
    *,
    dataset: Any,
    collate: Callable[[list], dict[str, Tensor]],
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    stored: Mapping[str, RunningStatistics],
    weights: Mapping[str, float],
    content_learns: bool,
    rows_per_step: int,
) -> None:
    """Give the bridges their teachers' statistics, and a new content head its beginning.

    Args:
        model: Is changed.
        args: Say how the content head begins, and by how many frames.
        dataset: Is looked at where something is to be read off it.
        collate: Makes a batch of rows.
        complete: Puts into a batch what teachers say, where rows do not hold it.
        stored: Statistics that are known, by teacher; always used.
        weights: Of the losses, by name.
        content_learns: Whether the content head has a learning rate.
        rows_per_step: Recordings of an optimizer step, on all processes.
    """
    quantizer = model.quantizer
    uses = {"qwen": weights["qwen"], "wavlm": weights["wavlm"] + weights["speech_content"]}
    is_new = quantizer.head_content.is_silent
    begin = {"k-means": begin_with_k_means, "least-squares": begin_with_least_squares}.get(args.content_init)
    if args.content_init == "least-squares" and not (is_new and content_learns):
        why = "is frozen" if is_new else "has learned already"
        logger.warning("content_init='least-squares' is for a new content head; this one %s and stays as it is", why)
    begin = begin if is_new and content_learns else None
    unknown = [
        name
        for name, bridge in bridges_of(quantizer).items()
        if uses[name] > 0 and name not in stored and not bridge.has_statistics
    ]
    init_frames = None
    if begin is not None or (is_new and unknown):
        init_frames = collect_init_frames(model, dataset, collate, args.init_frames, args.seed, args.device, complete)
    set_teacher_statistics(quantizer, init_frames, stored)
    if begin is None or init_frames is None:
        return
    if len(init_frames.latents) < quantizer.codebook_size:
        logger.warning(
            "the training data has %d frames for the %d entries of the content head's codebook, so entries repeat "
            "each other; it is enough to try things out, not to learn from",
            len(init_frames.latents),
            quantizer.codebook_size,
        )
    frames_per_step = max(1, round(init_frames.frames_per_row * rows_per_step))
    perplexity = begin(quantizer, init_frames, frames_per_step, torch.Generator().manual_seed(args.seed))
    logger.info("the content head begins with %s, perplexity %.0f", args.content_init, perplexity)


def warn_of_other_statistics(quantizer: CausalBridgeQuantizer, given: Mapping[str, RunningStatistics]) -> None:
    """Say that a checkpoint's statistics are used where those that were given differ."""
    for name, statistics in given.items():
        bridge = bridges_of(quantizer)[name]
        if not torch.allclose(bridge.mean.cpu().double(), statistics.mean, rtol=1e-2, atol=1e-3):
            logger.warning(
                "training goes on from a checkpoint, with the statistics of %s that are in it; the "
                "teacher_statistics given differ and are not used",
                name,
            )
