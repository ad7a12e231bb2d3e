import pytest
import torch

from mimi_bridge.distillation import masked_cosine_distance, masked_distance, masked_mse

BOTH = pytest.mark.parametrize("distance", [masked_mse, masked_cosine_distance])
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
