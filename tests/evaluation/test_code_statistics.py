"""Usage, bits, and what is Mimi's own."""

import pytest
import torch

from mimi_bridge.evaluation.code_statistics import code_statistics


def test_figures_are_over_all_recordings_and_by_head(tiny_model):
    even = torch.arange(64)
    codes = torch.stack([torch.zeros(64).long(), even, *[even] * 7])
    figures = code_statistics(tiny_model, [codes[:, :10], codes[:, 10:]], [None, None])
    assert [row["head"] for row in figures["bridge"]] == ["content", "prosody", *["acoustic"] * 7]
    assert figures["bridge"][0] == {
        "head": "content",
        "codebook": 0,
        "used": 1,
        "size": 64,
        "perplexity": pytest.approx(1),
        "bits_per_second": pytest.approx(0),
    }
    assert figures["bridge"][1]["bits_per_second"] == pytest.approx(6 * 12.5)  # 64 codes, evenly
    assert figures["bits_per_second"]["acoustic"] == pytest.approx(7 * 6 * 12.5)
    assert figures["mimi"] == [] and figures["overlap_with_mimi"] == [None] * 9


def test_overlap_is_the_share_of_frames_with_mimis_code_where_mimi_has_one(tiny_model):
    codes = torch.arange(9)[:, None].repeat(1, 4)
    stock = codes[1:].clone()
    stock[0, 0] = 60
    stock[7] = 60
    figures = code_statistics(tiny_model, [codes, codes], [stock, None])
    assert figures["overlap_with_mimi"] == [None, 0.75, 1, 1, 1, 1, 1, 1, 0]
    assert len(figures["mimi"]) == 8
