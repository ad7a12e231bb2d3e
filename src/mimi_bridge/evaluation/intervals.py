"""A mean and its 95 % confidence interval, by resampling recordings or speakers.

The interval covers other recordings of the same kind. It does not cover other seeds of a probe or other training runs.

Source: Efron 1979, the percentile bootstrap.
"""

import torch
from torch import Tensor

RESAMPLES = 1000
OUTSIDE = 0.05  # share of resamples that the interval leaves out


def mean_with_interval(values: list[float], weights: list[float] | None = None) -> dict[str, float | int]:
    """Mean of the values, an interval by resampling them, and their count.

    Args:
        values: One a recording.
        weights: How much each counts; all alike, if left out.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("values must hold at least one number, got none.")
    wholes = torch.ones(len(values)) if weights is None else torch.tensor(weights, dtype=torch.float64)
    figures = ratio_with_interval(torch.tensor(values, dtype=torch.float64) * wholes, wholes)
    return {**figures, "count": len(values)}


def ratio_with_interval(parts: Tensor, wholes: Tensor) -> dict[str, float]:
    """Sum of the parts over sum of the wholes, an interval by resampling pairs.

    Args:
        parts: One a unit, `(units,)`: right answers of a speaker, say.
        wholes: Of the same shape: the speaker's answers.
    """
    parts, wholes = parts.double(), wholes.double()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(parts), (RESAMPLES, len(parts)), generator=generator)
    ratios = parts[chosen].sum(dim=1) / wholes[chosen].sum(dim=1).clamp(min=1e-12)
    low, high = torch.quantile(ratios, torch.tensor([OUTSIDE / 2, 1 - OUTSIDE / 2], dtype=torch.float64)).tolist()
    return {"mean": (parts.sum() / wholes.sum().clamp(min=1e-12)).item(), "low": low, "high": high}
