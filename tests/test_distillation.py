import math

import pytest
import torch
from torch import Tensor

from mimi_bridge.distillation import (
    constant_distance,
    masked_cosine_distance,
    masked_distance,
    masked_mse,
    target_sums,
)

BOTH = pytest.mark.parametrize("distance", [masked_mse, masked_cosine_distance])
BOTH_KINDS = pytest.mark.parametrize("kind", ["mse", "cosine"])
ONE_FRAME = torch.tensor([[True]])


@pytest.fixture
def features():
    """Student and teacher of two samples with three frames, and a mask that leaves out half of them."""
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, requires_grad=True)
    return student, torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])


def frame(*values: float) -> torch.Tensor:
    return torch.tensor([[values]])


@pytest.mark.parametrize("target_mask, expected", [([True, True], 7.25), ([True, False], 2.0), ([False, True], 12.5)])
def test_mse_is_the_mean_over_frames_with_a_target(target_mask, expected):
    student = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # squared errors: 0 and 4, then 9 and 16
    assert masked_mse(student, teacher, torch.tensor([target_mask])).item() == expected


def test_mse_counts_every_frame_alike_when_samples_have_different_numbers_of_targets():
    student = torch.tensor([[[3.0], [3.0], [3.0]], [[1.0], [0.0], [0.0]]])
    target_mask = torch.tensor([[True, True, True], [True, False, False]])
    assert masked_mse(student, torch.zeros_like(student), target_mask).item() == (9 + 9 + 9 + 1) / 4


@pytest.mark.parametrize(
    "student, expected",
    [((2.0, 0.0), 0.0), ((0.0, 3.0), 1.0), ((-1.0, 0.0), 2.0), ((3.0, 4.0), 0.4)],  # 1 - cosine; 3, 4, 5 triangle
)
def test_cosine_distance_is_one_minus_the_cosine(student, expected):
    distance = masked_cosine_distance(frame(*student), frame(5.0, 0.0), ONE_FRAME)
    assert distance.item() == pytest.approx(expected, abs=1e-6)


def test_cosine_distance_is_the_mean_over_frames_with_a_target():
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0]]]).expand(1, 3, 2)  # distances 0, 1, 2
    assert masked_cosine_distance(student, teacher, torch.tensor([[False, True, True]])).item() == 1.5


def test_cosine_distance_ignores_the_length_of_the_vectors(features):
    student, teacher, target_mask = features
    torch.testing.assert_close(
        masked_cosine_distance(10 * student, teacher / 3, target_mask),
        masked_cosine_distance(student, teacher, target_mask),
    )


def test_cosine_distance_stays_between_0_and_2_for_random_features():
    torch.manual_seed(0)
    pairs = torch.randn(2, 200, 1, 1, 3)
    distances = torch.stack([masked_cosine_distance(s, t, ONE_FRAME) for s, t in zip(*pairs, strict=True)])
    assert 0.0 <= distances.min() < 0.1 and 1.9 < distances.max() <= 2.0


@BOTH
@pytest.mark.parametrize("poisoned", ["student", "teacher", "both"])
def test_masked_nan_changes_neither_value_nor_gradient(distance, poisoned, features):
    student, teacher, target_mask = features
    clean = distance(student, teacher, target_mask)
    (clean_gradient,) = torch.autograd.grad(clean, student)

    hole = ~target_mask[:, :, None]
    bad_student = student.detach().masked_fill(hole, torch.nan) if poisoned != "teacher" else student.detach()
    bad_teacher = teacher.masked_fill(hole, torch.nan) if poisoned != "student" else teacher
    bad_student.requires_grad_()
    value = distance(bad_student, bad_teacher, target_mask)
    (gradient,) = torch.autograd.grad(value, bad_student)

    assert torch.equal(value, clean)
    assert torch.equal(gradient, clean_gradient)


@BOTH
def test_gradient_reaches_exactly_the_frames_with_a_target(distance, features):
    student, teacher, target_mask = features
    distance(student, teacher, target_mask).backward()
    assert torch.equal(student.grad.abs().sum(dim=-1) > 0, target_mask)


@BOTH
def test_distance_and_gradient_are_0_when_no_frame_has_a_target(distance, features):
    student, teacher, target_mask = features
    value = distance(student, teacher, torch.zeros_like(target_mask))
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


@BOTH
def test_teacher_gets_no_gradient(distance, features):
    student, teacher, target_mask = features
    teacher.requires_grad_()
    distance(student, teacher, target_mask).backward()
    assert teacher.grad is None


@BOTH
def test_distance_is_computed_in_float32_when_features_are_in_half_precision(distance, features):
    student, teacher, target_mask = features
    student, teacher = student.detach().bfloat16(), teacher.bfloat16()
    value = distance(student, teacher, target_mask)
    assert value.dtype == torch.float32
    assert torch.equal(value, distance(student.float(), teacher.float(), target_mask))


@BOTH
@pytest.mark.parametrize(
    "teacher_shape, mask_shape, got",
    [
        ((2, 3, 5), (2, 3), r"\(2, 3, 4\), \(2, 3, 5\) and \(2, 3\)"),
        ((2, 2, 4), (2, 3), r"\(2, 3, 4\), \(2, 2, 4\) and \(2, 3\)"),
        ((1, 3, 4), (2, 3), r"\(2, 3, 4\), \(1, 3, 4\) and \(2, 3\)"),
        ((2, 3, 4), (2, 4), r"\(2, 3, 4\), \(2, 3, 4\) and \(2, 4\)"),
    ],
    ids=["teacher size", "teacher frames", "teacher batch", "mask"],
)
def test_distance_refuses_shapes_that_do_not_fit_together(distance, teacher_shape, mask_shape, got):
    with pytest.raises(ValueError, match=f"student, teacher and target_mask must be .* got {got}"):
        distance(torch.zeros(2, 3, 4), torch.zeros(teacher_shape), torch.ones(mask_shape, dtype=torch.bool))


@pytest.mark.parametrize("kind, expected", [("mse", 8.5), ("cosine", 1.0)])
def test_distance_is_chosen_by_its_name(kind, expected):
    assert masked_distance(kind, frame(1.0, 0.0), frame(0.0, 4.0), ONE_FRAME).item() == expected


# Constants


def some_targets(seed: int, num_frames: int = 7) -> tuple[Tensor, Tensor]:
    """Targets that lean one way, as a teacher's states do, and a mask that leaves out some of them."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(2, num_frames, 4, generator=generator) + torch.tensor([1.0, -2.0, 0.0, 3.0])
    return teacher, torch.rand(2, num_frames, generator=generator) < 0.6


def sums_of(kind: str, *seeds: int) -> Tensor:
    return torch.stack([target_sums(kind, *some_targets(seed)) for seed in seeds]).sum(dim=0)


def slow_constant_distance(kind: str, constant: Tensor, seeds: tuple[int, ...]) -> float:
    """Mean distance of one vector to the targets of several batches, one by one."""
    distances = []
    for seed in seeds:
        teacher, target_mask = some_targets(seed)
        for target in teacher[target_mask].double():
            if kind == "mse":
                distances.append(((target - constant) ** 2).sum() / 4)
            else:
                distances.append(1 - target @ constant / (target.norm() * constant.norm()))
    return (sum(distances) / len(distances)).item()


def mean_target(kind: str, seeds: tuple[int, ...]) -> Tensor:
    """Mean of the targets of several batches; for cosine, of their directions."""
    targets = torch.cat([teacher[target_mask] for teacher, target_mask in map(some_targets, seeds)]).double()
    return (targets / targets.norm(dim=-1, keepdim=True) if kind == "cosine" else targets).mean(dim=0)


@pytest.mark.parametrize(
    "kind, expected", [("mse", [3.0, 5.0, 9 + 16 + 1, 2.0]), ("cosine", [0.6, 0.8 + 1.0, 1.0 + 1.0, 2.0])]
)
def test_target_sums_are_of_targets_squares_and_number_by_hand(kind, expected):
    teacher = torch.tensor([[[3.0, 4.0], [9.0, 9.0], [0.0, 1.0]]])
    sums = target_sums(kind, teacher, torch.tensor([[True, False, True]]))
    assert sums.dtype == torch.float64
    assert sums.tolist() == pytest.approx(expected)


@BOTH_KINDS
def test_target_sums_of_batches_add_up_to_those_of_all_frames_together(kind):
    batches = [some_targets(0, num_frames=3), some_targets(1, num_frames=8)]
    together = [torch.cat(parts, dim=1) for parts in zip(*batches, strict=True)]
    total = sum(target_sums(kind, *batch) for batch in batches)
    torch.testing.assert_close(total, target_sums(kind, *together), rtol=1e-12, atol=1e-12)


@BOTH_KINDS
def test_target_sums_of_a_large_number_beside_a_small_one_are_not_rounded(kind):
    teacher = torch.full((1, 1000, 1), 4097.0)  # whose square float32 cannot hold
    mask = torch.ones(1, 1000).bool()
    expected = [1000.0, 1000.0, 1000.0] if kind == "cosine" else [4097e3, 4097**2 * 1e3, 1e3]
    assert target_sums(kind, teacher, mask).tolist() == expected


@BOTH_KINDS
def test_nan_without_a_target_does_not_reach_target_sums(kind):
    teacher, target_mask = some_targets(0)
    poisoned = teacher.masked_fill(~target_mask[:, :, None], torch.nan)
    assert torch.equal(target_sums(kind, poisoned, target_mask), target_sums(kind, teacher, target_mask))


class WithoutFloat64(Tensor):
    """A tensor as on a Mac's GPU: its device knows no float64."""

    device = torch.device("mps")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@BOTH_KINDS
def test_target_sums_are_the_same_to_the_bit_where_the_device_knows_no_float64(kind):
    teacher, target_mask = some_targets(0)
    limited = teacher.as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="float64"):
        limited.double()
    sums = target_sums(kind, limited, target_mask.as_subclass(WithoutFloat64))
    assert torch.equal(sums, target_sums(kind, teacher, target_mask))


@BOTH_KINDS
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one batch", "three batches"])
def test_constant_distance_is_the_mean_over_all_targets_of_the_distance_to_their_mean(kind, seeds):
    expected = slow_constant_distance(kind, mean_target(kind, seeds), seeds)
    assert constant_distance(kind, sums_of(kind, *seeds)) == pytest.approx(expected, rel=1e-9)


@BOTH_KINDS
def test_constant_distance_is_what_a_student_that_says_the_constant_gets(kind):
    teacher, target_mask = some_targets(0)
    student = mean_target(kind, (0,)).float().expand_as(teacher)
    expected = masked_distance(kind, student, teacher, target_mask).item()
    assert constant_distance(kind, sums_of(kind, 0)) == pytest.approx(expected, rel=1e-5)


@BOTH_KINDS
def test_constant_is_the_mean_of_the_targets_that_it_is_fitted_on(kind):
    fitted_on, measured_on = (3, 4), (0, 1, 2)
    expected = slow_constant_distance(kind, mean_target(kind, fitted_on), measured_on)
    found = constant_distance(kind, sums_of(kind, *measured_on), sums_of(kind, *fitted_on))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > constant_distance(kind, sums_of(kind, *measured_on))


@BOTH_KINDS
def test_constant_fitted_on_the_same_targets_is_the_default(kind):
    sums = sums_of(kind, 0, 1)
    assert constant_distance(kind, sums, sums) == constant_distance(kind, sums)


@BOTH_KINDS
def test_no_other_constant_beats_the_one_fitted_on_the_same_targets(kind):
    best, seeds = mean_target(kind, (0, 1)), (0, 1)
    shifts = 0.1 * torch.randn(50, 4, generator=torch.Generator().manual_seed(5)).double()
    others = [slow_constant_distance(kind, best + shift, seeds) for shift in shifts]
    assert constant_distance(kind, sums_of(kind, *seeds)) < min(others)


def test_cosine_constant_ignores_how_long_targets_are():
    teacher, target_mask = some_targets(0)
    scaled = teacher * torch.rand(2, 7, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    found, expected = (constant_distance("cosine", target_sums("cosine", t, target_mask)) for t in (scaled, teacher))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind, expected", [("mse", (0.5**2 + 2**2) / 2), ("cosine", 1 - 0.5**0.5)])
def test_constant_distance_by_hand(kind, expected):
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])  # mean (1/2, 2); mean direction at 45 degrees to both
    sums = target_sums(kind, teacher, torch.ones(1, 2).bool())
    assert constant_distance(kind, sums) == pytest.approx(expected)


@BOTH_KINDS
@pytest.mark.parametrize("which", ["measured", "fitted", "both"])
def test_constant_distance_is_nan_where_there_are_no_targets(kind, which):
    some, none = sums_of(kind, 0), torch.zeros(6, dtype=torch.float64)
    pair = {"measured": (none, some), "fitted": (some, none), "both": (none, None)}[which]
    assert math.isnan(constant_distance(kind, *pair))
