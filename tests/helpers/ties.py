"""Whether two roundings of one search differ only where a vector lies as near to one entry as to another."""

import torch
from torch import Tensor

TIE = 1e-6  # of |x|² + |e|², which float32 sums up to |x - e|²: entries that rounding cannot tell apart


def share_equal_but_for_ties(model, latents: Tensor, codes: Tensor, others: Tensor) -> float:
    """The share of equal codes; wherever a frame's codes begin to differ, both entries must be equally near.

    Args:
        model: Whose quantizer made both.
        latents: That they were made of, `(1, frames, hidden_size)`.
        codes: `(1, codebooks, frames)`.
        others: Of the same shape.
    """
    differ = codes[0] != others[0]
    for frame in differ.any(dim=0).nonzero()[:, 0].tolist():
        first = int(differ[:, frame].nonzero()[0])
        vector, codebook = _asked_for(model.quantizer, latents[0, frame].double(), codes[0, :, frame], first)
        entries = codebook[torch.stack([each[0, first, frame] for each in (codes, others)])]
        near, far = sorted((vector - entries).square().sum(dim=-1).tolist())
        scale = vector.square().sum().item() + entries.square().sum(dim=-1).max().item()
        assert far - near <= TIE * scale, f"frame {frame}, codebook {first}: {near} and {far} of {scale} are no tie"
    return 1.0 - differ.double().mean().item()


@torch.no_grad()
def _asked_for(quantizer, latents: Tensor, codes: Tensor, number: int) -> tuple[Tensor, Tensor]:
    # What a codebook was asked for in float64, and its entries, given the codes of those before it.
    def projected(head, which: str, vector: Tensor) -> Tensor:
        return getattr(head, which).weight[:, :, 0].double() @ vector

    taken, weight, offset = torch.zeros_like(latents), 1.0, 0
    for name, head in quantizer.heads.items():
        weight = quantizer.residual_weight if name == "acoustic" else 1.0
        residual = projected(head, "project_in", latents - weight * taken)
        entries = torch.zeros_like(residual)
        for level, codebook in enumerate(head.codebooks):
            if offset + level == number:
                return residual, codebook.double()
            entry = codebook[codes[offset + level]].double()
            residual, entries = residual - entry, entries + entry
        taken = taken + projected(head, "project_out", entries)
        offset += len(head.codebooks)
    raise AssertionError(f"there is no codebook {number}.")
