"""Statistics of the codes: entries used, perplexity, bitrate, and overlap with the stock Mimi's codes."""

import math

import torch
from torch import Tensor

from ..modeling_mimi_bridge import MimiBridgeModel
from .metrics import codebook_usage


def code_statistics(model: MimiBridgeModel, codes: list[Tensor], stock_codes: list[Tensor | None]) -> dict:
    """Figures of each codebook, over the frames of all recordings.

    Args:
        model: Whose codes they are.
        codes: Of each recording, `(codebooks, frames)`.
        stock_codes: The stock Mimi's, `(codebooks - 1, frames)`; None where there are none.

    Returns:
        `bridge` and `mimi`, lists of figures by codebook; `bits_per_second`, by head; and `overlap_with_mimi`, for
        each of the model's codebooks the share of frames with the code of Mimi's codebook before it, None for content.
    """
    config = model.config
    names = [name for name, head in model.quantizer.heads.items() for _ in head.codebooks]
    bridge = _table(torch.cat(codes, dim=1), names, config.codebook_size, config.frame_rate)
    by_head: dict[str, float] = {}
    for row in bridge:
        by_head[row["head"]] = by_head.get(row["head"], 0.0) + row["bits_per_second"]
    figures: dict = {"bridge": bridge, "bits_per_second": by_head, "mimi": []}
    figures["overlap_with_mimi"] = [None] * len(names)
    pairs = [(ours, theirs) for ours, theirs in zip(codes, stock_codes, strict=True) if theirs is not None]
    if pairs:
        theirs = torch.cat([stock for _, stock in pairs], dim=1)
        equal = (torch.cat([ours for ours, _ in pairs], dim=1)[1:] == theirs).double().mean(dim=1)
        figures["mimi"] = _table(theirs, ["mimi"] * len(theirs), config.codebook_size, config.frame_rate)
        figures["overlap_with_mimi"][1:] = equal.tolist()
    return figures


def _table(codes: Tensor, names: list[str], size: int, frame_rate: float) -> list[dict]:
    usage = zip(names, codebook_usage(codes, size), strict=True)
    return [
        {
            "head": name,
            "codebook": number,
            "used": used,
            "size": size,
            "perplexity": perplexity,
            "bits_per_second": math.log2(perplexity) * frame_rate,
        }
        for number, (name, (used, perplexity)) in enumerate(usage)
    ]
