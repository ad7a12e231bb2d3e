"""What is logged are means over frames, whatever batches and processes they came in."""

import math

import pytest
import torch
from torch import Tensor

from mimi_bridge.distillation import TeacherDistance, target_sums
from mimi_bridge.outputs import MimiBridgeOutput
from mimi_bridge.quantizer import CausalBridgeQuantizer
from mimi_bridge.training.metrics import TrainingMetrics
from mimi_bridge.training.terms import LOSSES, Term

CODEBOOK_SIZE, NUM_ACOUSTIC, QWEN_DIM, WAVLM_DIM = 8, 3, 5, 4
NUM_CODEBOOKS = 2 + NUM_ACOUSTIC
ROWS, FRAMES = 3, 12
DISTANCES = {"qwen": "mse", "wavlm": "cosine"}


def new_metrics() -> TrainingMetrics:
    sizes = {"num_acoustic_codebooks": NUM_ACOUSTIC, "codebook_size": CODEBOOK_SIZE}
    return TrainingMetrics(CausalBridgeQuantizer(4, QWEN_DIM, WAVLM_DIM, **sizes, distances=DISTANCES))


def batch(seed: int) -> tuple[dict[str, Term], MimiBridgeOutput, dict[str, Tensor]]:
    """Ragged codes, 0 in padding as the quantizer leaves them, some losses, and the teachers' targets."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (ROWS, 1), generator=generator)
    codes = torch.rand(ROWS, NUM_CODEBOOKS, FRAMES, generator=generator).square() * CODEBOOK_SIZE
    codes = codes.long().masked_fill(~mask[:, None], 0)
    targets, distances, terms = {}, {}, {}
    for name, dim in (("qwen", QWEN_DIM), ("wavlm", WAVLM_DIM)):
        teacher = torch.randn(ROWS, FRAMES, dim, generator=generator) + 1
        has_target = mask & (torch.rand(mask.shape, generator=generator) < 0.7)
        loss, num_frames = torch.rand((), generator=generator), has_target.sum()
        targets[name] = teacher[has_target]
        distances[name] = TeacherDistance(loss, num_frames, target_sums(DISTANCES[name], teacher, has_target))
        terms[name] = Term(loss, num_frames)
    for name in ("commitment_content", "latents"):
        terms[name] = Term(torch.rand((), generator=generator), mask.sum())
    return terms, MimiBridgeOutput(audio_codes=codes, audio_codes_mask=mask, distances=distances), targets


def metrics_of(*seeds: int) -> TrainingMetrics:
    metrics = new_metrics()
    for seed in seeds:
        metrics.add(*batch(seed)[:2])
    return metrics


def codes_of(*seeds: int) -> list[list[int]]:
    """The codes of each codebook on real frames, one by one."""
    codes: list[list[int]] = [[] for _ in range(NUM_CODEBOOKS)]
    for seed in seeds:
        _, outputs, _ = batch(seed)
        for row, frame in outputs.audio_codes_mask.nonzero().tolist():
            for number in range(NUM_CODEBOOKS):
                codes[number].append(int(outputs.audio_codes[row, number, frame]))
    return codes


def metrics_of_codes(codes: list[list[int]], size: int = CODEBOOK_SIZE) -> TrainingMetrics:
    """Metrics of one row of codes, the same for every codebook that is not given."""
    metrics = TrainingMetrics(CausalBridgeQuantizer(4, 3, 2, num_acoustic_codebooks=NUM_ACOUSTIC, codebook_size=size))
    rows = torch.tensor(codes + codes[-1:] * (NUM_CODEBOOKS - len(codes)))[None]
    metrics.add({}, MimiBridgeOutput(audio_codes=rows, audio_codes_mask=torch.ones(1, rows.shape[-1]).bool()))
    return metrics


def test_nothing_counted_is_nothing_to_report():
    assert new_metrics().results() == {}


# --- losses ---


def test_losses_are_means_over_the_frames_of_all_batches():
    metrics, sums = new_metrics(), dict.fromkeys(LOSSES, (0.0, 0))
    for seed in range(4):
        terms, outputs, _ = batch(seed)
        if seed == 2:
            del terms["latents"]
        metrics.add(terms, outputs)
        for name, term in terms.items():
            total, count = sums[name]
            sums[name] = (total + term.value.item() * int(term.num_frames), count + int(term.num_frames))
    expected = {f"loss_{name}": total / count for name, (total, count) in sums.items() if count}
    results = {name: value for name, value in metrics.results().items() if name.startswith("loss_")}
    assert results == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_reported_under_its_own_name(name):
    metrics, (_, outputs, _) = new_metrics(), batch(0)
    for value, num_frames in ((3.0, 1), (1.0, 3), (7.0, 0)):
        metrics.add({name: Term(torch.tensor(value, requires_grad=True), torch.tensor(num_frames))}, outputs)
    assert {n: v for n, v in metrics.results().items() if n.startswith("loss_")} == {f"loss_{name}": 1.5}


# --- codes ---


def test_usage_is_the_share_of_codes_that_were_used_of_those_that_could_be():
    codes = codes_of(0, 1)
    expected = [len(set(level)) / min(len(level), CODEBOOK_SIZE) for level in codes]
    assert metrics_of(0, 1).usage().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "codes, expected", [([3, 3, 5], 2 / 3), ([3], 1.0), ([1] * 20, 1 / 8), ([*range(8)] * 2, 1.0)]
)
def test_usage_by_hand(codes, expected):
    assert metrics_of_codes([codes]).results()["usage_content"] == pytest.approx(expected)


def test_perplexity_is_that_of_the_shares_of_the_codes():
    expected = []
    for level in codes_of(0, 1):
        shares = [level.count(code) / len(level) for code in set(level)]
        expected.append(math.exp(-sum(share * math.log(share) for share in shares)))
    assert metrics_of(0, 1).perplexity().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "codes, expected", [([3] * 9, 1.0), ([3, 5] * 7, 2.0), ([*range(8)], 8.0), ([0, 0, 0, 1], 1.7548)]
)
def test_perplexity_by_hand(codes, expected):
    assert metrics_of_codes([codes]).results()["perplexity_content"] == pytest.approx(expected, rel=1e-4)


def test_heads_are_reported_from_their_own_codebooks_the_acoustic_head_by_its_mean():
    levels = [[0] * 8, [0, 1] * 4, [*range(8)], [0, 1, 2, 3] * 2, [*range(8)]]
    results = metrics_of_codes(levels).results()
    assert results == pytest.approx(
        {
            "usage_content": 1 / 8,
            "usage_prosody": 2 / 8,
            "usage_acoustic": (1 + 1 / 2 + 1) / 3,
            "perplexity_content": 1.0,
            "perplexity_prosody": 2.0,
            "perplexity_acoustic": (8 + 4 + 8) / 3,
        }
    )


def test_perplexity_is_exact_where_an_entry_of_many_is_rare():
    counts = [10**6, 1]
    metrics = new_metrics()
    metrics.code_counts[:, :2] = torch.tensor(counts, dtype=torch.float64)
    shares = [count / sum(counts) for count in counts]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert metrics.perplexity().tolist() == pytest.approx([expected] * NUM_CODEBOOKS, rel=1e-12)


# --- constants ---


def targets_of(name: str, *seeds: int) -> Tensor:
    return torch.cat([batch(seed)[2][name] for seed in seeds]).double()


def distance_of_constant(name: str, constant: Tensor, targets: Tensor) -> float:
    if DISTANCES[name] == "mse":
        return (targets - constant).square().mean().item()
    return (1 - torch.cosine_similarity(targets, constant[None], dim=-1)).mean().item()


def best_constant(name: str, targets: Tensor) -> Tensor:
    if DISTANCES[name] == "mse":
        return targets.mean(dim=0)
    return torch.nn.functional.normalize(targets, dim=-1).mean(dim=0)


@pytest.mark.parametrize("teacher", DISTANCES)
def test_constant_is_the_distance_of_the_best_constant_over_all_batches(teacher):
    targets = targets_of(teacher, 0, 1, 2)
    best = distance_of_constant(teacher, best_constant(teacher, targets), targets)
    assert metrics_of(0, 1, 2).results()[f"baseline_{teacher}"] == pytest.approx(best)
    shifts = torch.randn(20, targets.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    assert min(distance_of_constant(teacher, best_constant(teacher, targets) + s, targets) for s in shifts) > best


@pytest.mark.parametrize("teacher", DISTANCES)
def test_constant_fitted_on_another_metrics_is_measured_on_this_one(teacher):
    constant = best_constant(teacher, targets_of(teacher, 0, 1))
    expected = distance_of_constant(teacher, constant, targets_of(teacher, 2))
    name = f"baseline_{teacher}"
    assert metrics_of(2).results(fitted_on=metrics_of(0, 1))[name] == pytest.approx(expected)
    assert metrics_of(2).results()[name] < expected


def test_constant_is_fitted_here_where_the_other_metrics_has_no_targets():
    assert metrics_of(2).results(fitted_on=new_metrics()) == metrics_of(2).results()


def test_teacher_that_was_never_given_has_no_constant():
    metrics = new_metrics()
    terms, outputs, _ = batch(0)
    del outputs.distances["wavlm"]
    metrics.add(terms, outputs)
    assert {name for name in metrics.results() if name.startswith("baseline_")} == {"baseline_qwen"}


# --- sums of several ---


def test_sums_of_several_processes_give_what_one_would_have_counted():
    gathered = new_metrics()
    gathered.set_sums(metrics_of(0, 1).sums() + metrics_of(2).sums() + new_metrics().sums())
    assert gathered.results() == pytest.approx(metrics_of(0, 1, 2).results(), rel=1e-12)
    assert torch.equal(gathered.code_counts, metrics_of(0, 1, 2).code_counts)
    assert len(gathered.results()) == 12


def test_sums_put_back_are_the_metrics_they_were_taken_from():
    metrics, again = metrics_of(0, 1), metrics_of(3)
    again.set_sums(metrics.sums())
    assert again.results() == metrics.results()
    assert torch.equal(again.sums(), metrics.sums())


def test_sums_are_a_copy():
    metrics = metrics_of(0)
    sums = metrics.sums()
    metrics.add(*batch(1)[:2])
    assert torch.equal(sums, metrics_of(0).sums())


def test_targets_of_another_metrics_are_counted_and_nothing_else_of_it():
    metrics = metrics_of(0)
    metrics.add_targets_of(metrics_of(1, 2))
    results, all_of_them, own = metrics.results(), metrics_of(0, 1, 2).results(), metrics_of(0).results()
    constants = {"baseline_qwen", "baseline_wavlm"}
    assert {name: results[name] for name in constants} == pytest.approx(
        {name: all_of_them[name] for name in constants}
    )
    assert all(results[name] == value for name, value in own.items() if name not in constants)
    assert results.keys() == own.keys()
