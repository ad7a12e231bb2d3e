import pytest
import torch

from mimi_bridge.alignment_targets import delay_targets
from mimi_bridge.frames import mask_from_lengths


def slow_delay(targets, target_mask, delay, lengths):
    """One frame at a time."""
    moved, mask = torch.zeros_like(targets), torch.zeros_like(target_mask)
    for row, length in enumerate(lengths):
        for frame in range(delay, length):
            if target_mask[row, frame - delay]:
                moved[row, frame], mask[row, frame] = targets[row, frame - delay], True
    return moved, mask


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=["numbers", "vectors", "matrices"])
@pytest.mark.parametrize("delay", [1, 3, 7, 8, 20])
def test_delay_moves_every_target_within_the_real_frames_of_its_recording(delay, shape):
    torch.manual_seed(delay)
    lengths = torch.tensor([8, 5, 1])
    targets, frame_mask = torch.randn(3, 8, *shape), mask_from_lengths(lengths, 8)
    target_mask = frame_mask & (torch.rand(3, 8) < 0.7)
    moved, mask = delay_targets(targets, target_mask, delay, frame_mask)
    expected, expected_mask = slow_delay(targets, target_mask, delay, lengths)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(moved, expected)


def test_whole_numbers_stay_whole_numbers_when_they_are_delayed():
    moved, mask = delay_targets(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool), 1)
    assert moved.tolist() == [[0, 5, 6]] and mask.tolist() == [[False, True, True]]


def test_no_delay_gives_back_what_was_given():
    targets, mask = torch.randn(1, 3, 2), torch.ones(1, 3, dtype=torch.bool)
    given = delay_targets(targets, mask, 0)
    assert given[0] is targets and given[1] is mask


def test_targets_that_are_nan_where_there_is_none_are_zero_after_a_delay():
    targets = torch.tensor([[1.0, torch.nan, 3.0]])[..., None]
    moved, _ = delay_targets(targets, torch.tensor([[True, False, True]]), 1)
    assert moved[..., 0].tolist() == [[0.0, 1.0, 0.0]]


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match="delay must be a number of frames, at least 0, got -1"):
        delay_targets(torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), -1)


def test_targets_of_another_length_than_their_mask_are_refused():
    with pytest.raises(ValueError, match=r"targets must be one for each of the \(1, 3\) .* got shape \(1, 4, 2\)"):
        delay_targets(torch.zeros(1, 4, 2), torch.ones(1, 3, dtype=torch.bool), 1)
