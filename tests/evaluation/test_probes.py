"""Probes find what is in codes and nothing else, on groups that they never saw."""

import pytest
import torch

from mimi_bridge.evaluation.probes import Attribute, balanced_groups, cross_validate

FRAMES, GROUPS, CLASSES = 900, 5, 6


@pytest.fixture(scope="module")
def data():
    """Classes and numbers, each in the features with noise, or not there at all."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(CLASSES, (FRAMES,), generator=generator)
    number = torch.randn(FRAMES, generator=generator)
    noise = torch.randn(FRAMES, 8, generator=generator)
    table = torch.randn(CLASSES, 8, generator=generator)
    features = torch.cat([table[classes] + 0.1 * noise, number[:, None] + 0.1 * noise[:, :1]], dim=1)
    attributes = {
        "there": Attribute(classes, CLASSES),
        "number": Attribute(number),
        "absent": Attribute(torch.randint(CLASSES, (FRAMES,), generator=generator), CLASSES),
        "absent_number": Attribute(torch.randn(FRAMES, generator=generator) + 3),
    }
    return features, attributes


@pytest.fixture(scope="module")
def groups():
    return torch.arange(FRAMES) * GROUPS // FRAMES


@pytest.fixture(scope="module", params=[None, 16], ids=["linear", "hidden"])
def answers(request, data, groups):
    features, attributes = data
    return cross_validate(features, torch.arange(FRAMES) // 60, groups, attributes, request.param)


def test_class_that_the_features_hold_is_predicted(answers, data):
    right = answers["there"].predicted.argmax(dim=1) == data[1]["there"].values
    assert right.float().mean() > 0.95


def test_number_that_the_features_hold_is_predicted_in_its_own_unit(answers, data):
    assert (answers["number"].predicted - data[1]["number"].values).square().mean() < 0.1


def test_class_that_is_absent_is_guessed(answers, data):
    right = answers["absent"].predicted.argmax(dim=1) == data[1]["absent"].values
    assert abs(right.float().mean() - 1 / CLASSES) < 0.05


def test_number_that_is_absent_is_no_better_and_hardly_worse_than_its_mean(answers, data):
    values = data[1]["absent_number"].values
    error = (answers["absent_number"].predicted - values).square().mean()
    assert 0.95 < error / (answers["absent_number"].constant - values).square().mean() < 1.1


def test_no_fold_learns_from_the_group_that_it_is_tested_on(data, groups):
    features, _ = data
    lone = Attribute(torch.where(groups == 2, 1, 0), 2)  # a class that only group 2 has
    answers = cross_validate(features, groups, groups, {"lone": lone})["lone"]
    assert not (answers.predicted[groups == 2].argmax(dim=1) == 1).any()
    assert (answers.constant == 0).all()


def test_frames_of_no_group_are_neither_trained_on_nor_predicted(data, groups):
    features, attributes = data
    left_out = torch.where(torch.arange(FRAMES) % 7 == 0, -1, groups)
    spoiled = attributes["there"].values.clone()
    spoiled[left_out == -1] = 0
    answers = cross_validate(features, groups, left_out, {"there": Attribute(spoiled, CLASSES)})["there"]
    assert answers.predicted[left_out == -1].isnan().all()
    assert (answers.predicted.argmax(dim=1) == spoiled)[left_out >= 0].float().mean() > 0.95


def test_frames_before_and_after_help_within_a_recording_only(groups):
    generator = torch.Generator().manual_seed(1)
    before = torch.randint(4, (FRAMES,), generator=generator)
    features = torch.nn.functional.one_hot(before, 4).float()
    shifted = Attribute(torch.cat([before[:1], before[:-1]]), 4)
    together = cross_validate(features, torch.zeros(FRAMES).long(), groups, {"a": shifted})["a"].predicted
    apart = cross_validate(features, torch.arange(FRAMES), groups, {"a": shifted})["a"].predicted
    assert (together.argmax(dim=1) == shifted.values).float().mean() > 0.95
    assert (apart.argmax(dim=1) == shifted.values).float().mean() < 0.4


def test_the_same_seed_gives_the_same_answers(data, groups):
    features, attributes = data
    chosen = {"number": attributes["number"]}
    first, again = (cross_validate(features, groups, groups, chosen, 8, seed=3)["number"].predicted for _ in range(2))
    assert torch.equal(first, again)


def test_attribute_unknown_in_all_training_groups_is_not_predicted(data, groups):
    features, _ = data
    known = torch.where(groups == 0, 1.0, torch.nan)
    answers = cross_validate(features, groups, groups, {"a": Attribute(known)})["a"]
    assert answers.predicted[groups == 0].isnan().all()


def test_fewer_than_three_groups_are_refused(data):
    with pytest.raises(ValueError, match="need 3 groups or more, got 2"):
        cross_validate(data[0], torch.zeros(FRAMES).long(), torch.arange(FRAMES) % 2, data[1])


def test_groups_are_of_like_size_and_keep_a_speaker_together():
    units = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    groups = balanced_groups(units, 2)
    assert groups == {"a": 0, "b": 1, "c": 1, "d": 0}
