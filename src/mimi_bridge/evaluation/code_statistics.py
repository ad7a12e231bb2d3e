"""Statistics of the codes: entries used, perplexity, bitrate, phones, and overlap with the stock Mimi's codes.

Source: Hsu et al. 2021 (arXiv:2106.07447), phone-normalised mutual information.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..modeling_mimi_bridge import MimiBridgeModel
from .metrics import codebook_usage, entropy
from .probe_matrix import ahead


def code_statistics(
    model: MimiBridgeModel,
    codes: list[Tensor],
    stock_codes: list[Tensor | None],
    phones: list[list[str | None]] | None = None,
) -> dict:
    """Figures of each codebook, over the frames of all recordings.

    Args:
        model: Whose codes they are.
        codes: Of each recording, `(codebooks, frames)`.
        stock_codes: The stock Mimi's, `(codebooks - 1, frames)`; None where there are none.
        phones: Of each recording, one a frame, None where none is known.

    Returns:
        `bridge` and `mimi`, lists of figures by codebook; `bits_per_second`, by head; and `overlap_with_mimi`, for
        each of the model's codebooks the share of frames with the code of Mimi's codebook before it, None for content.
        Where phones are known, figures have `pnmi` and `pnmi_shuffled`, see `phone_information`.
    """
    config = model.config
    names = [name for name, head in model.quantizer.heads.items() for _ in head.codebooks]
    bridge = _table(torch.cat(codes, dim=1), names, config.codebook_size, config.frame_rate)
    if phones is not None:
        delays = [config.content_delay] + [0] * (len(names) - 1)
        _add_information(bridge, list(zip(codes, phones, strict=True)), delays)
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
        if phones is not None:
            known = [(t, p) for t, p in zip(stock_codes, phones, strict=True) if t is not None]
            _add_information(figures["mimi"], known, [0] * len(theirs))
    return figures


def phone_information(codes: Tensor, phones: Sequence[str | None], seed: int = 0) -> tuple[float, float] | None:
    """How much of the phones' entropy a codebook's codes take away, 0 to 1, and how much of shuffled phones'.

    The mutual information of few frames is too high: shuffled phones, of which codes know nothing, show by how much.

    Args:
        codes: `(frames,)`.
        phones: One a frame; those without a phone are not counted.
        seed: Of the shuffling.

    Returns:
        None where fewer than two phones are known.
    """
    order = {phone: number for number, phone in enumerate(sorted({phone for phone in phones if phone is not None}))}
    if len(order) < 2:
        return None
    labels = torch.tensor([-1 if phone is None else order[phone] for phone in phones])
    codes, labels = codes[labels >= 0], labels[labels >= 0]
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    of_phones, of_codes = entropy(torch.bincount(labels)), entropy(torch.bincount(codes))
    together = [entropy(torch.bincount(codes * len(order) + each)) for each in (labels, shuffled)]
    found = [(of_codes + of_phones - of_both) / of_phones for of_both in together]
    return found[0], found[1]


def _add_information(rows: list[dict], recordings: list[tuple[Tensor, list[str | None]]], delays: list[int]) -> None:
    phones = [phone for _, known in recordings for phone in known]
    for number, (row, delay) in enumerate(zip(rows, delays, strict=True)):
        codes = torch.cat([ahead(own[number], delay) for own, _ in recordings])
        if (found := phone_information(codes, phones)) is not None:
            row["pnmi"], row["pnmi_shuffled"] = found


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
