"""Means, and the intervals of resampling."""

import pytest
import torch

from mimi_bridge.evaluation.intervals import mean_with_interval, ratio_with_interval


def test_interval_is_that_of_the_means_own_spread():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    figures = mean_with_interval(values)
    assert figures["mean"] == pytest.approx(sum(values) / 200)
    assert figures["count"] == 200
    assert figures["high"] - figures["low"] == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)


def test_one_value_has_no_spread():
    assert mean_with_interval([2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "count": 1}


def test_ratio_is_that_of_the_sums():
    assert ratio_with_interval(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 7.0]))["mean"] == 0.5


def test_interval_resamples_units_and_not_what_is_in_them():
    # Two speakers of a thousand answers each, one always right, one always wrong.
    figures = ratio_with_interval(torch.tensor([1000.0, 0.0]), torch.tensor([1000.0, 1000.0]))
    assert (figures["low"], figures["high"]) == (0, 1)


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one number"):
        mean_with_interval([])
