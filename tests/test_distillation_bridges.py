"""Bridges: a teacher's statistics, there and back, and distances against explicit sums."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mimi_bridge.distillation import TeacherBridge, TeacherDistance

CODEC_DIM, TEACHER_DIM = 4, 3
MEAN, STD = torch.tensor([100.0, -2.0, 0.5]), torch.tensor([50.0, 0.1, 2.0])

BOTH_KINDS = pytest.mark.parametrize("kind", ["mse", "cosine"])


def new_bridge(kind: str = "mse", name: str = "qwen_hidden") -> TeacherBridge:
    torch.manual_seed(0)
    bridge = TeacherBridge(CODEC_DIM, TEACHER_DIM, name, kind)
    bridge.set_statistics(MEAN, STD)
    return bridge


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 5, CODEC_DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def targets() -> Tensor:
    return MEAN + STD * torch.randn(2, 5, TEACHER_DIM, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def target_mask() -> Tensor:
    return torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])


# --- statistics ---


def test_new_bridge_leaves_the_teacher_as_it_is(latents, targets):
    bridge = TeacherBridge(CODEC_DIM, TEACHER_DIM, "qwen_hidden", "mse")
    assert torch.equal(bridge.standardise(targets), targets)
    assert torch.equal(bridge.to_teacher(latents), nn.functional.linear(latents, bridge.weight, bridge.bias))


def test_teacher_has_mean_0_and_deviation_1_once_standardised_by_its_own_statistics(targets):
    bridge, rows = new_bridge(), targets.flatten(0, 1)
    bridge.set_statistics(rows.mean(dim=0), rows.std(dim=0))
    standard = bridge.standardise(targets).flatten(0, 1)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(TEACHER_DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=0), torch.ones(TEACHER_DIM))


def test_teacher_is_standardised_by_hand():
    features = torch.tensor([[[150.0, -2.1, 0.5]]])
    torch.testing.assert_close(
        new_bridge().standardise(features), torch.tensor([[[1.0, -1.0, 0.0]]]), atol=1e-5, rtol=0
    )


def test_to_teacher_undoes_standardise(latents, targets):
    bridge = new_bridge()
    torch.testing.assert_close(bridge.standardise(bridge.to_teacher(latents)), bridge(latents), atol=1e-4, rtol=1e-4)
    bridge = TeacherBridge(TEACHER_DIM, TEACHER_DIM, "qwen_hidden", "mse")
    bridge.set_statistics(MEAN, STD)
    bridge.weight.data, bridge.bias.data = torch.eye(TEACHER_DIM), torch.zeros(TEACHER_DIM)
    torch.testing.assert_close(bridge.to_teacher(bridge.standardise(targets)), targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_standardised_teacher_is_in_float32(targets, dtype):
    given = targets.to(dtype)
    assert new_bridge().standardise(given).dtype == torch.float32
    assert torch.equal(new_bridge().standardise(given), new_bridge().standardise(given.float()))


@pytest.mark.parametrize(
    "mean, std, expected",
    [
        (MEAN, [0.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        (MEAN, [2.0, 1e-7, 3.0], [2.0, 1.0, 3.0]),
        (MEAN, [0.0, 0.0, 3.0], [1.0, 1.0, 3.0]),
        (MEAN, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        (torch.tensor([0.0, 3e4, 0.0]), [1.0, 0.02, 1.0], [1.0, 1.0, 1.0]),
        (MEAN * 1e-5, [0.0, 1e-5, 2e-5], [1.0, 1e-5, 2e-5]),
    ],
    ids=["zero", "far below the others", "most are zero", "all are zero", "rounding of its mean", "a small teacher"],
)
def test_dimension_that_does_not_vary_has_a_scale_of_1(mean, std, expected):
    bridge = new_bridge()
    bridge.set_statistics(mean, torch.tensor(std))
    assert bridge.std.tolist() == pytest.approx(expected)


def test_later_value_in_a_dimension_that_never_varied_stays_small():
    bridge = new_bridge()
    bridge.set_statistics(MEAN, torch.tensor([0.0, 1.0, 1.0]))
    assert bridge.standardise(MEAN[None, None] + 0.1).flatten().tolist() == pytest.approx([0.1, 0.1, 0.1], rel=1e-4)


def test_statistics_are_in_the_checkpoint_and_no_optimizer_moves_them():
    bridge, other = new_bridge(), TeacherBridge(CODEC_DIM, TEACHER_DIM, "qwen_hidden", "mse")
    other.load_state_dict(bridge.state_dict())
    assert torch.equal(other.mean, MEAN) and torch.equal(other.std, STD)
    assert {name for name, _ in bridge.named_parameters()} == {"weight", "bias"}


def test_statistics_are_a_copy():
    bridge, mean = new_bridge(), MEAN.clone()
    bridge.set_statistics(mean, STD)
    mean.zero_()
    assert torch.equal(bridge.mean, MEAN)


# --- compare ---


def slow_distance(bridge: TeacherBridge, latents: Tensor, targets: Tensor, target_mask: Tensor) -> Tensor:
    """Mean distance to the standardised teacher, frame by frame."""
    distances = []
    for sample, frame in target_mask.nonzero().tolist():
        predicted = bridge.weight @ latents[sample, frame] + bridge.bias
        wanted = (targets[sample, frame] - bridge.mean) / bridge.std
        if bridge.distance == "mse":
            distances.append((predicted - wanted).square().sum() / TEACHER_DIM)
        else:
            distances.append(1 - predicted @ wanted / (predicted.norm() * wanted.norm()))
    return torch.stack(distances).mean()


@BOTH_KINDS
def test_loss_is_the_mean_over_frames_with_a_target_of_the_distance_to_the_standardised_teacher(
    kind, latents, targets, target_mask
):
    bridge = new_bridge(kind)
    expected = slow_distance(bridge, latents, targets, target_mask)
    torch.testing.assert_close(bridge.compare(latents, targets, target_mask).loss, expected)


@BOTH_KINDS
def test_gradient_is_that_of_the_explicit_sum(kind, latents, targets, target_mask):
    bridge = new_bridge(kind)
    weights = (latents, bridge.weight, bridge.bias)
    expected = torch.autograd.grad(slow_distance(bridge, latents, targets, target_mask), weights)
    gradients = torch.autograd.grad(bridge.compare(latents, targets, target_mask).loss, weights)
    torch.testing.assert_close(gradients, expected)


def test_mse_is_not_swallowed_by_the_dimension_with_the_largest_deviation(latents, targets, target_mask):
    bridge = new_bridge()
    loss = bridge.compare(latents, targets, target_mask).loss
    shifts = []
    for dimension in range(TEACHER_DIM):
        moved = targets.clone()
        moved[..., dimension] += 3 * STD[dimension]  # by as many deviations in each
        standard = bridge(latents)[target_mask][:, dimension] - bridge.standardise(targets)[target_mask][:, dimension]
        expected = ((standard - 3).square() - standard.square()).mean() / TEACHER_DIM
        shifts.append((bridge.compare(latents, moved, target_mask).loss - loss, expected))
    found, expected = (torch.stack(side) for side in zip(*shifts, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@BOTH_KINDS
def test_frames_with_a_target_are_counted_and_their_standardised_targets_summed(kind, latents, targets, target_mask):
    bridge = new_bridge(kind)
    distance = bridge.compare(latents, targets, target_mask)
    rows = bridge.standardise(targets)[target_mask].double()
    rows = rows / rows.norm(dim=-1, keepdim=True) if kind == "cosine" else rows
    expected = torch.cat([rows.sum(dim=0), (rows * rows).sum()[None], torch.tensor([4.0]).double()])
    assert int(distance.num_frames) == 4
    torch.testing.assert_close(distance.target_sums, expected)


@BOTH_KINDS
def test_nan_where_there_is_no_target_changes_no_bit(kind, latents, targets, target_mask):
    bridge, hole = new_bridge(kind), ~target_mask[:, :, None]
    poisoned = bridge.compare(latents, targets.masked_fill(hole, torch.nan), target_mask)
    clean = bridge.compare(latents, targets, target_mask)
    gradients = [torch.autograd.grad(each.loss, (latents, bridge.weight)) for each in (clean, poisoned)]
    assert torch.equal(poisoned.loss, clean.loss)
    assert torch.equal(poisoned.target_sums, clean.target_sums)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert not gradients[0][0][~target_mask].any()


@BOTH_KINDS
def test_loss_is_0_over_0_frames_when_nothing_has_a_target(kind, latents, targets, target_mask):
    distance = new_bridge(kind).compare(latents, targets, torch.zeros_like(target_mask))
    assert (distance.loss.item(), int(distance.num_frames)) == (0.0, 0)
    assert not distance.target_sums.any()


def test_distance_is_tensors_alone_to_whatever_walks_through_an_output(latents, targets, target_mask):
    distance = new_bridge().compare(latents, targets, target_mask)
    leaves, structure = tree_flatten({"qwen": distance})
    assert all(isinstance(leaf, Tensor) for leaf in leaves) and len(leaves) == 3
    rebuilt = tree_unflatten(leaves, structure)["qwen"]
    assert isinstance(rebuilt, TeacherDistance)
    assert rebuilt.loss is distance.loss and rebuilt.target_sums is distance.target_sums


def test_cosine_ignores_how_far_from_its_mean_the_teacher_is_and_mse_does_not(latents, targets, target_mask):
    farther = MEAN + 10 * (targets - MEAN)
    pairs = {
        kind: [new_bridge(kind).compare(latents, each, target_mask).loss.item() for each in (targets, farther)]
        for kind in ("mse", "cosine")
    }
    assert pairs["cosine"][0] == pytest.approx(pairs["cosine"][1], abs=1e-4)
    assert pairs["mse"][1] > 10 * pairs["mse"][0]


# --- errors ---


@pytest.mark.parametrize("shape", [(2, 5, TEACHER_DIM + 1), (5, TEACHER_DIM), (2, TEACHER_DIM, 5)])
@pytest.mark.parametrize("name, field", [("qwen_hidden", "qwen_dim"), ("wavlm_features", "wavlm_dim")])
def test_teacher_of_another_size_is_refused_with_the_field_to_set(name, field, shape):
    got = rf"\({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=rf"{name} must be \(batch, length, 3\) .* got {got}; set .* {field}"):
        new_bridge(name=name).check(torch.zeros(shape))


def test_teacher_of_the_right_size_is_taken():
    new_bridge().check(torch.zeros(2, 7, TEACHER_DIM))


@pytest.mark.parametrize(
    "mean, std, message",
    [
        (torch.zeros(4), STD, r"the mean of qwen_hidden must be 3 finite numbers, got shape \(4,\)"),
        (MEAN, torch.ones(1), r"the std of qwen_hidden must be 3 finite numbers, got shape \(1,\)"),
        (MEAN[None], STD, r"the mean of qwen_hidden must be 3 finite numbers, got shape \(1, 3\)"),
        (torch.tensor([0.0, torch.nan, 0.0]), STD, "the mean of qwen_hidden must be 3 finite numbers"),
        (MEAN, torch.tensor([1.0, torch.inf, 1.0]), "the std of qwen_hidden must be 3 finite numbers"),
        (
            MEAN,
            torch.tensor([1.0, -0.5, 1.0]),
            r"std of qwen_hidden must be at least 0, got -0\.5;",
        ),
    ],
    ids=["long mean", "short std", "two axes", "NaN", "infinite", "negative"],
)
def test_statistics_that_do_not_fit_are_refused_and_leave_the_old_ones(mean, std, message):
    bridge = new_bridge()
    with pytest.raises(ValueError, match=message):
        bridge.set_statistics(mean, std)
    assert torch.equal(bridge.mean, MEAN) and torch.equal(bridge.std, STD)
