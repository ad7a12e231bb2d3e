"""Mean and deviation of a data set's vectors, gathered on the way, however the work is divided.

Each number is rounded once to a whole multiple of 2^-48 and summed as an integer, so that no sum depends on its
order: the same vectors give the same bytes in one process or in many, in any batches, merged in any order. Numbers
may reach a million (half precision ends at 65,504); deviations below 1e-6 count as none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ...atomic_files import write_whole

STATISTICS_SUFFIX = "_statistics.safetensors"  # after a teacher's name, beside a data set
FRACTION_BITS = 48
ROWS_AT_ONCE = 4096  # their fractions, summed, stay far below 2^63
LARGEST = 2.0**50  # of a weighted square


class RunningStatistics:
    """Weighted mean and standard deviation per dimension.

    Args:
        dim: Size of the vectors.

    Attributes:
        dim: Size of the vectors.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self._sums = np.zeros((2, 2 * dim + 1), np.int64)  # wholes and fractions of: weight, w x, w x^2

    @property
    def weight(self) -> float:
        """Sum of the weights that were added."""
        whole, fraction = self._sums[:, 0].tolist()
        return whole + fraction / (1 << FRACTION_BITS)

    @property
    def mean(self) -> Tensor:
        """`(dim,)`, float64.

        Raises:
            ValueError: If nothing was added.
        """
        weight, *totals = self._totals()
        return torch.tensor([total / weight for total in totals[: self.dim]], dtype=torch.float64)

    @property
    def std(self) -> Tensor:
        """`(dim,)`, float64: the deviation of the vectors that were added, with no correction for a sample.

        Raises:
            ValueError: If nothing was added.
        """
        weight, *totals = self._totals()
        pairs = zip(totals[: self.dim], totals[self.dim :], strict=True)
        variances = [max(0, weight * square - total * total) / weight**2 for total, square in pairs]
        return torch.tensor(variances, dtype=torch.float64).sqrt()

    def add(self, rows: Tensor | np.ndarray, weights: Tensor | np.ndarray | None = None) -> None:
        """Count vectors in.

        Args:
            rows: `(rows, dim)`; may be empty.
            weights: How much each counts, `(rows,)`, such as its time in frames; 0 leaves it out. None: 1 each.

        Raises:
            ValueError: If shapes do not fit, a number is not finite or too large, or a weight is negative.
        """
        values = _as_doubles(rows)
        shares = np.ones(len(values)) if weights is None else _as_doubles(weights)
        if values.ndim != 2 or values.shape[1] != self.dim or shares.shape != values.shape[:1]:
            raise ValueError(
                f"rows must be (rows, {self.dim}) with weights (rows,), got {values.shape} and {shares.shape}."
            )
        if not (np.isfinite(shares).all() and (shares >= 0).all()):
            raise ValueError("weights must be finite and not negative.")
        values, shares = values[shares > 0], shares[shares > 0, None]
        if not np.isfinite(values).all():
            raise ValueError("rows hold NaN or infinity; compute them again, or leave them out by a weight of 0.")
        sums = self._sums
        for first in range(0, len(values), ROWS_AT_ONCE):
            some, share = values[first : first + ROWS_AT_ONCE], shares[first : first + ROWS_AT_ONCE]
            terms = np.concatenate([share, share * some, share * some**2], axis=1)
            if np.abs(terms).max() > LARGEST:
                raise ValueError(f"rows must be below a million in size, got {np.abs(some).max():g}.")
            wholes = np.floor(terms)
            fractions = np.rint((terms - wholes) * 2.0**FRACTION_BITS)
            sums = _carried(sums + np.stack([wholes, fractions]).astype(np.int64).sum(axis=1))
        self._sums = sums

    def merge(self, other: "RunningStatistics") -> None:
        """Count in all that another has counted.

        Raises:
            ValueError: If its vectors are of another size.
        """
        if other.dim != self.dim:
            raise ValueError(f"both statistics must be of vectors of one size, got {self.dim} and {other.dim}.")
        self._sums = _carried(self._sums + other._sums)

    def save(self, path: str | Path) -> None:
        """Write the sums, and for readers `mean` and `std`, as safetensors, atomically."""
        tensors = {"sums": torch.from_numpy(self._sums)}
        if self.weight > 0:
            tensors |= {"mean": self.mean, "std": self.std}
        write_whole(Path(path), save(tensors))

    @classmethod
    def load(cls, path: str | Path) -> "RunningStatistics":
        """What `save` wrote, to be read or added to.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        sums = load_file(path).get("sums")
        if sums is None or sums.dtype != torch.int64 or sums.ndim != 2 or len(sums) != 2 or sums.shape[1] % 2 == 0:
            raise ValueError(f"{path} must be written by RunningStatistics.save; it holds no such sums.")
        statistics = cls(sums.shape[1] // 2)
        statistics._sums = sums.numpy().copy()
        return statistics

    def _totals(self) -> list[int]:
        # Weight, w x and w x^2 as whole multiples of 2^-48, without rounding.
        if not self._sums[:, 0].any():
            raise ValueError("nothing was added, so there is no mean and no deviation.")
        return [(whole << FRACTION_BITS) + fraction for whole, fraction in self._sums.T.tolist()]


def stored_statistics(folder: str | Path) -> dict[str, RunningStatistics]:
    """Those of the targets of a data set, by teacher (`qwen`, `wavlm`), where `mimi-bridge prepare` left them."""
    paths = {name: Path(folder) / f"{name}{STATISTICS_SUFFIX}" for name in ("qwen", "wavlm")}
    return {name: RunningStatistics.load(path) for name, path in paths.items() if path.is_file()}


def _carried(sums: np.ndarray) -> np.ndarray:
    carried = np.stack([sums[0] + (sums[1] >> FRACTION_BITS), sums[1] & ((1 << FRACTION_BITS) - 1)])
    dim = sums.shape[1] // 2
    if (carried[0, 0] < 0) or (carried[0, 1 + dim :] < 0).any():
        raise OverflowError("the sums have grown beyond 2^63; are the vectors on a sensible scale?")
    return carried


def _as_doubles(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
