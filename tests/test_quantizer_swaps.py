"""Codes with the heads of another recording."""

import numpy as np
import pytest
import torch

from mimi_bridge.quantizer import swap_heads

HEADS = {"content": 1, "prosody": 1, "acoustic": 2}


@pytest.fixture
def ours():
    return torch.arange(12).view(1, 4, 3)


@pytest.fixture
def theirs():
    return 100 + torch.arange(20).view(1, 4, 5)


def test_named_heads_are_the_others_and_the_rest_stays(ours, theirs):
    swapped = swap_heads(ours, theirs, HEADS)
    assert swapped[0].tolist() == [[0, 1, 2], [3, 4, 5], [110, 111, 112], [115, 116, 117]]
    assert swap_heads(ours, theirs, HEADS, ("content", "prosody"))[0, 2:].tolist() == ours[0, 2:].tolist()


def test_shorter_codes_start_again_where_they_end(ours, theirs):
    assert swap_heads(theirs, ours, HEADS, ("content",))[0, 0].tolist() == [0, 1, 2, 0, 1]


def test_swapping_with_itself_or_no_head_changes_nothing(ours):
    assert torch.equal(swap_heads(ours, ours, HEADS), ours)
    assert torch.equal(swap_heads(ours, ours + 1, HEADS, ()), ours)


def test_swapping_all_heads_gives_the_other(ours):
    assert torch.equal(swap_heads(ours, ours + 1, HEADS, tuple(HEADS)), ours + 1)


def test_unknown_head_is_refused_by_name(ours):
    with pytest.raises(ValueError, match="must be among content, prosody, acoustic, got timbre"):
        swap_heads(ours, ours, HEADS, ("timbre",))


@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 3), (2, 4, 3), (1, 4, 0)])
def test_codes_of_another_shape_are_refused(ours, shape):
    with pytest.raises(ValueError, match=r"other_codes must be \(1, 4, frames\)"):
        swap_heads(ours, torch.zeros(shape, dtype=torch.long), HEADS)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4, 3), torch.ones(1, 4, 3).bool()], ids=["float", "bool"])
def test_codes_that_are_no_integers_are_refused(ours, wrong):
    with pytest.raises(ValueError, match=f"other_codes must be integers, got {wrong.dtype}; pass what encode"):
        swap_heads(ours, wrong, HEADS)


@pytest.mark.parametrize("wrong", [[[[0]]], np.zeros((1, 4, 3), int), None], ids=["list", "numpy", "None"])
def test_codes_that_are_no_tensor_are_refused(ours, wrong):
    with pytest.raises(TypeError, match="audio_codes must be a tensor, got .*; pass encode"):
        swap_heads(wrong, ours, HEADS)


@pytest.mark.parametrize("heads", [None, 3, [3], ["content", None]])
def test_heads_that_are_no_names_are_refused(ours, heads):
    with pytest.raises(ValueError, match="heads must be among content, prosody, acoustic, got"):
        swap_heads(ours, ours, HEADS, heads)


@pytest.mark.parametrize("code", [-1, 64])
def test_model_refuses_codes_out_of_its_range(tiny_model, code):
    ours = torch.zeros(1, 9, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"other_codes must lie in \[0, 64\), got"):
        tiny_model.swap_heads(ours, ours.index_fill(1, torch.tensor(3), code))


def test_model_knows_its_heads(tiny_model):
    ours, theirs = torch.zeros(1, 9, 4, dtype=torch.long), torch.ones(1, 9, 4, dtype=torch.long)
    swapped = tiny_model.swap_heads(ours, theirs)
    assert swapped[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert tiny_model.decode(swapped).audio_values.shape == (1, 1, 4 * 1920)


def test_one_head_may_be_named_alone(ours, theirs):
    assert torch.equal(swap_heads(ours, theirs, HEADS, "prosody"), swap_heads(ours, theirs, HEADS, ("prosody",)))
