"""Codebooks filled from data and kept in use."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from mimi_bridge.heads import QuantizerHead
from mimi_bridge.training.codebooks import (
    fill_from_data,
    k_means,
    project_to_principal_directions,
    revive_unused,
    set_entries,
)

CODEC_DIM, CODEBOOK_DIM, CODEBOOK_SIZE = 6, 4, 16
NUM_FRAMES, FRAMES_PER_STEP = 800, 40

SINGLE_AND_CHAIN = pytest.mark.parametrize("head", [None, 3], ids=["one codebook", "three codebooks"], indirect=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def head(request) -> QuantizerHead:
    """A head as it begins, in inference mode."""
    torch.manual_seed(0)
    return QuantizerHead(CODEC_DIM, CODEBOOK_DIM, CODEBOOK_SIZE, getattr(request, "param", None), decay=0.9).eval()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(NUM_FRAMES, CODEC_DIM, generator=seeded(1)) + 3


def literal_head(*codebooks: list[list[float]]) -> QuantizerHead:
    """A head of two-dimensional codebooks, each entry counted 5 times, whose projections change nothing."""
    head = QuantizerHead(2, 2, len(codebooks[0]), len(codebooks), decay=0.9).eval()
    for projection in (head.project_in, head.project_out):
        projection.weight.data = torch.eye(2)[:, :, None]
    for codebook, entries in zip(head.vq_codebooks, codebooks, strict=True):
        set_entries(codebook, torch.arange(len(entries)), torch.tensor(entries), torch.full((len(entries),), 5.0))
    return head


def state_of(head: QuantizerHead) -> dict[str, Tensor]:
    return deepcopy(head.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def assert_entries_are_sums_over_counts(head: QuantizerHead) -> None:
    for codebook in head.vq_codebooks:
        torch.testing.assert_close(codebook.embed_avg / codebook.cluster_size[..., None], codebook.embed)


@torch.no_grad()
def slow_levels(head: QuantizerHead, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each codebook, what it gets to quantize and the codes it gives, entry by entry."""
    residual, levels = latents @ head.project_in.weight[:, :, 0].T, []
    for codebook in head.codebooks:
        distances = torch.stack([(residual - entry).square().sum(dim=-1) for entry in codebook])
        codes = distances.argmin(dim=0)
        levels.append((residual, codes))
        residual = residual - codebook[codes]
    return levels


def test_k_means_finds_well_separated_clusters_and_counts_them():
    middles, sizes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]]), torch.tensor([1, 40, 24, 35])
    members = middles.repeat_interleave(sizes, dim=0) + torch.randn(100, 2, generator=seeded(1)) / 10
    centres, counts = k_means(members[torch.randperm(100, generator=seeded(2))], 4, seeded(6), steps=20)
    found = torch.cdist(middles, centres).argmin(dim=-1)
    means = torch.stack([cluster.mean(dim=0) for cluster in members.split(sizes.tolist())])
    torch.testing.assert_close(centres[found], means)
    assert counts[found].tolist() == sizes.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_k_means_gives_every_value_a_centre_when_two_centres_begin_at_one_value(seed):
    values, sizes = torch.arange(8.0)[:, None] * 16, torch.arange(10, 18)
    centres, counts = k_means(values.repeat_interleave(sizes, dim=0), 8, seeded(seed), steps=100)
    assert sorted(zip(centres[:, 0].tolist(), counts.tolist(), strict=True)) == [
        (value, float(size)) for value, size in zip(values[:, 0].tolist(), sizes.tolist(), strict=True)
    ]


def test_k_means_centres_are_the_means_of_the_vectors_nearest_to_them():
    vectors = torch.randn(300, 3, generator=seeded(1))
    centres, counts = k_means(vectors, 7, seeded(), steps=100)
    owners = [min(range(7), key=lambda centre: float((vector - centres[centre]).norm())) for vector in vectors]
    for centre in range(7):
        members = torch.stack([vector for vector, owner in zip(vectors, owners, strict=True) if owner == centre])
        torch.testing.assert_close(centres[centre], members.mean(dim=0))
        assert counts[centre] == len(members)


def test_k_means_begins_at_vectors_when_it_takes_no_step():
    vectors = torch.randn(50, 3, generator=seeded(1))
    centres, _ = k_means(vectors, 20, seeded(), steps=0)
    chosen = (centres[:, None] == vectors).all(dim=-1).nonzero()[:, 1]
    assert len(chosen.unique()) == 20


def test_k_means_repeats_itself_to_the_bit_when_the_generator_does():
    vectors = torch.randn(300, 3, generator=seeded(1))
    (one, counts), (again, counts_again), (other, _) = (k_means(vectors, 7, seeded(seed), 5) for seed in (0, 0, 1))
    assert torch.equal(one, again) and torch.equal(counts, counts_again)
    assert not torch.equal(one, other)


def project_in_and_out(head: QuantizerHead, latents: Tensor) -> Tensor:
    return (latents @ head.project_in.weight[:, :, 0].T @ head.project_out.weight[:, :, 0].T).detach()


def test_projections_keep_what_principal_directions_keep(head, latents):
    latents = latents - 2  # a mean among other directions
    share = project_to_principal_directions(head, latents)
    left, scales, right = torch.linalg.svd(latents, full_matrices=False)
    best = left[:, :CODEBOOK_DIM] * scales[:CODEBOOK_DIM] @ right[:CODEBOOK_DIM]
    torch.testing.assert_close(project_in_and_out(head, latents), best, atol=1e-3, rtol=1e-3)
    assert share == pytest.approx((best.square().sum() / latents.square().sum()).item(), rel=1e-4)
    assert share < 0.97


def test_projections_keep_latents_that_have_no_more_directions_than_entries_do(head):
    few = torch.randn(NUM_FRAMES, CODEBOOK_DIM - 1, generator=seeded(1)) @ torch.randn(CODEBOOK_DIM - 1, CODEC_DIM)
    latents = few + torch.randn(CODEC_DIM)  # the mean is one more
    assert project_to_principal_directions(head, latents) == pytest.approx(1.0)
    torch.testing.assert_close(project_in_and_out(head, latents), latents, atol=1e-4, rtol=1e-4)


def test_projections_keep_distances_within_their_directions(head, latents):
    project_to_principal_directions(head, latents)
    projection = head.project_in.weight[:, :, 0]
    torch.testing.assert_close(projection @ projection.T, torch.eye(CODEBOOK_DIM))


@SINGLE_AND_CHAIN
def test_projecting_leaves_the_codebooks_alone(head, latents):
    before = state_of(head)
    project_to_principal_directions(head, latents)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items() if "vq" in name)


@SINGLE_AND_CHAIN
def test_fill_makes_every_codebook_give_many_different_codes(head, latents):
    assert all(len(codes.unique()) < CODEBOOK_SIZE for codes in head(latents[None]).codes[0])  # as it begins
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    unseen = torch.randn(NUM_FRAMES, CODEC_DIM, generator=seeded(2)) + 3
    assert all(len(codes.unique()) == CODEBOOK_SIZE for codes in head(unseen[None]).codes[0])


@pytest.mark.parametrize("head", [3], indirect=True)
def test_fill_sets_each_codebook_to_the_means_of_what_the_ones_before_it_left(head, latents):
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded(), steps=200)
    for (residual, codes), codebook in zip(slow_levels(head, latents), head.codebooks, strict=True):
        means = torch.stack([residual[codes == entry].mean(dim=0) for entry in range(CODEBOOK_SIZE)])
        torch.testing.assert_close(codebook, means, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_fill_splits_a_sum_of_coarse_and_fine_exactly(seed):
    coarse, fine = torch.tensor([[-64.0, 0.0], [64.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    latents = (coarse[:, None] + fine).reshape(-1, 2).repeat(25, 1)
    head = literal_head([[9.0, 9.0]] * 2, [[9.0, 9.0]] * 2)
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded(seed), steps=30)
    assert sorted(head.codebooks[0].tolist()) == coarse.tolist()
    assert sorted(head.codebooks[1].tolist()) == fine.tolist()
    assert torch.equal(head(latents[None]).quantized[0], latents)


@SINGLE_AND_CHAIN
def test_fill_counts_on_the_scale_of_a_training_batch(head, latents):
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    for (_, codes), codebook in zip(slow_levels(head, latents), head.vq_codebooks, strict=True):
        counts = torch.bincount(codes, minlength=CODEBOOK_SIZE) * (FRAMES_PER_STEP / NUM_FRAMES)
        torch.testing.assert_close(codebook.cluster_size[0], counts)


@SINGLE_AND_CHAIN
def test_fill_leaves_entries_that_are_sums_over_counts(head, latents):
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    assert_entries_are_sums_over_counts(head)


@SINGLE_AND_CHAIN
def test_fill_leaves_entries_where_training_on_the_same_frames_keeps_them(head, latents):
    fill_from_data(head, latents, NUM_FRAMES, seeded(), steps=200)
    filled = [codebook.clone() for codebook in head.codebooks]
    head.train()(latents[None])
    torch.testing.assert_close(head.codebooks, filled, atol=1e-4, rtol=1e-3)


@SINGLE_AND_CHAIN
def test_fill_gives_the_perplexity_of_each_codebook(head, latents):
    perplexities = fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    expected = []
    for _, codes in slow_levels(head, latents):
        shares = torch.bincount(codes).double() / NUM_FRAMES
        expected.append(torch.distributions.Categorical(shares).entropy().exp().item())
    assert perplexities == pytest.approx(expected, rel=1e-4)


@SINGLE_AND_CHAIN
def test_fill_leaves_the_projections_alone(head, latents):
    before = [head.project_in.weight.clone(), head.project_out.weight.clone()]
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    assert torch.equal(head.project_in.weight, before[0]) and torch.equal(head.project_out.weight, before[1])


@SINGLE_AND_CHAIN
def test_fill_repeats_itself_to_the_bit_when_the_generator_does(head, latents):
    states = []
    for seed in (0, 0, 1):
        fill_from_data(head, latents, FRAMES_PER_STEP, seeded(seed))
        states.append(state_of(head))
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_fill_repeats_frames_where_there_are_fewer_than_entries(head, latents):
    few = latents[: CODEBOOK_SIZE - 1]
    fill_from_data(head, few, FRAMES_PER_STEP, seeded())
    inputs = head.project_in(few.T[None])[0].T
    distances = torch.cdist(head.codebooks[0], inputs)
    torch.testing.assert_close(distances.min(dim=1).values, torch.zeros(CODEBOOK_SIZE), atol=1e-4, rtol=0)
    assert len(head(few[None]).codes[0, 0].unique()) > len(few) / 2


def test_fill_refuses_no_frames_at_all(head, latents):
    with pytest.raises(ValueError, match="latents must hold at least one frame, got none"):
        fill_from_data(head, latents[:0], FRAMES_PER_STEP, seeded())


def test_revive_replaces_entries_under_a_share_of_the_mean_count_by_hand():
    head = literal_head([[0.0, 0.0], [8.0, 0.0], [99.0, 0.0], [0.0, 8.0]])
    (codebook,) = head.vq_codebooks
    set_entries(codebook, torch.arange(4), codebook.embed[0].clone(), torch.tensor([11.0, 1.25, 0.75, 7.0]))  # mean 5
    assert revive_unused(head, torch.tensor([[1.0, 2.0]]), seeded(), below=0.25) == [1]
    assert codebook.embed[0].tolist() == [[0.0, 0.0], [8.0, 0.0], [1.0, 2.0], [0.0, 8.0]]
    assert codebook.cluster_size[0].tolist() == [11.0, 1.25, 5.0, 7.0]
    assert codebook.embed_avg[0, 2].tolist() == [5.0, 10.0]


def test_revive_gives_each_codebook_what_the_ones_before_it_left_by_hand():
    head = literal_head([[0.0, 0.0], [64.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [9.0, 9.0], [0.5, 0.5]])
    head.vq_codebooks[0].cluster_size[0, 2] = 0.0
    head.vq_codebooks[1].cluster_size[0, 1] = 0.0
    assert revive_unused(head, torch.tensor([[66.0, 1.0]]), seeded()) == [1, 1]
    assert head.codebooks[0][2].tolist() == [66.0, 1.0]
    assert head.codebooks[1][1].tolist() == [2.0, 1.0]


@pytest.fixture
def neglected(request, head, latents) -> tuple[QuantizerHead, Tensor]:
    """A filled head with entries of every codebook, the same of all, that nothing has used for long."""
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    unused = torch.tensor([1, 4, 15])
    for codebook in head.vq_codebooks:
        set_entries(codebook, unused, torch.full((3, CODEBOOK_DIM), 1e3), torch.full((3,), 1e-3))
    return head, unused


@SINGLE_AND_CHAIN
def test_revive_replaces_unused_entries_and_leaves_the_others_to_the_bit(neglected, latents):
    head, unused = neglected
    before = deepcopy(head)
    assert revive_unused(head, latents, seeded()) == [3] * len(head.layers)
    for codebook, old in zip(head.vq_codebooks, before.vq_codebooks, strict=True):
        for name in ("embed", "cluster_size", "embed_avg"):
            now, then = getattr(codebook, name)[0], getattr(old, name)[0]
            changed = (now != then).reshape(CODEBOOK_SIZE, -1).any(dim=-1)
            assert changed.nonzero()[:, 0].tolist() == unused.tolist(), name
    assert torch.equal(head.project_in.weight, before.project_in.weight)
    assert torch.equal(head.project_out.weight, before.project_out.weight)


@SINGLE_AND_CHAIN
def test_revive_leaves_entries_that_are_sums_over_counts(neglected, latents):
    head, _ = neglected
    revive_unused(head, latents, seeded())
    assert_entries_are_sums_over_counts(head)


@SINGLE_AND_CHAIN
def test_revive_takes_different_vectors_that_the_codebook_had_to_quantize(neglected, latents):
    head, unused = neglected
    levels = slow_levels(head, latents)
    revive_unused(head, latents, seeded())
    for (residual, _), codebook in zip(levels, head.codebooks, strict=True):
        distances = torch.cdist(codebook[unused], residual, compute_mode="donot_use_mm_for_euclid_dist")
        assert (distances.amin(dim=-1) < 1e-5).all()
        assert len(distances.argmin(dim=-1).unique()) == len(unused)


@SINGLE_AND_CHAIN
def test_revived_entries_are_used_and_stay_when_training_goes_on(neglected, latents):
    head, unused = neglected
    revive_unused(head, latents, seeded())
    revived = [codebook[unused].clone() for codebook in head.codebooks]
    codes = head.train()(latents[None]).codes[0]
    assert set(unused.tolist()) <= set(codes[0].tolist())
    assert revive_unused(head, latents, seeded()) == [0] * len(head.layers)
    moved = [(codebook[unused] - entry).norm(dim=-1) for codebook, entry in zip(head.codebooks, revived, strict=True)]
    assert all((distance < entry.norm(dim=-1)).all() for distance, entry in zip(moved, revived, strict=True))


@SINGLE_AND_CHAIN
def test_revive_changes_nothing_when_every_entry_is_in_use(head, latents):
    fill_from_data(head, latents, FRAMES_PER_STEP, seeded())
    before = state_of(head)
    assert revive_unused(head, latents, seeded(), below=0.01) == [0] * len(head.layers)
    assert same(head.state_dict(), before)


@SINGLE_AND_CHAIN
def test_revive_repeats_itself_to_the_bit_when_the_generator_does(neglected, latents):
    copies = [deepcopy(neglected[0]) for _ in range(3)]
    for copy, seed in zip(copies, (0, 0, 1), strict=True):
        revive_unused(copy, latents, seeded(seed))
    one, again, other = (copy.state_dict() for copy in copies)
    assert same(one, again) and not same(one, other)
