"""Codebooks that move once a step: what is noted, what is summed, what moves and what stays to the bit."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mimi_bridge.codebook import CodebookLearner, learn_from
from mimi_bridge.heads import QuantizerHead

DIM, SIZE, DECAY, NUM_FRAMES = 3, 12, 0.9, 5

BOTH_UPDATES = pytest.mark.parametrize("update", ["ema", "gradient"])
SINGLE_AND_CHAIN = pytest.mark.parametrize("head", [None, 3], ids=["one codebook", "three codebooks"], indirect=True)


@pytest.fixture
def head(request) -> QuantizerHead:
    """A training head, by default of two codebooks, with counts and sums as if it had trained before."""
    torch.manual_seed(0)
    head = QuantizerHead(DIM, DIM, SIZE, getattr(request, "param", 2), DECAY)
    for level, store in enumerate(head.vq_codebooks):
        store.embed.normal_(std=0.5**level)
        store.cluster_size.uniform_(0.5, 3.0)
        store.embed_avg.copy_(store.embed * store.cluster_size[..., None])
    return head.train()


@pytest.fixture
def latents() -> Tensor:
    """So few vectors that no codebook's entries are all used."""
    return torch.randn(2, NUM_FRAMES, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def frame_mask() -> Tensor:
    return torch.arange(NUM_FRAMES) < torch.tensor([[NUM_FRAMES], [NUM_FRAMES - 2]])


def whole_numbers(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Vectors whose sums are exact in any order, and an entry for each; the last four entries are never used."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-9, 10, (*shape, DIM), generator=generator).float()
    return vectors, torch.randint(SIZE - 4, shape, generator=generator)


def teach(head: QuantizerHead, update: str) -> CodebookLearner:
    head.learner = CodebookLearner(head.vq_codebooks, update, DECAY)
    return head.learner


def states(head: QuantizerHead) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items() if "_codebook" in name}


def used(head: QuantizerHead, codes: Tensor) -> list[Tensor]:
    """Which entries of each codebook were chosen, `(codebook_size,)`."""
    return [torch.bincount(level.flatten(), minlength=SIZE) > 0 for level in codes.unbind(dim=1)]


# --- what is noted ---


def test_nothing_is_gathered_before_anything_is_noted(head):
    gathered = CodebookLearner(head.vq_codebooks, "ema", DECAY).statistics()
    assert torch.equal(gathered, torch.zeros(2, SIZE, DIM + 1))


def test_gathered_holds_each_entry_s_sum_and_count_frame_by_frame(head):
    learner = CodebookLearner(head.vq_codebooks, "ema", DECAY)
    expected = torch.zeros(2, SIZE, DIM + 1)
    for level in range(2):
        vectors, indices = whole_numbers((2, NUM_FRAMES), seed=level)
        learner.accumulate(level, vectors, indices)
        for sample, frame in product(range(2), range(NUM_FRAMES)):
            expected[level, indices[sample, frame]] += torch.cat([vectors[sample, frame], torch.ones(1)])
    assert torch.equal(learner.statistics(), expected)


def test_several_notes_gather_what_one_of_all_their_frames_does(head):
    pieces = [whole_numbers((1, length), seed=length) for length in (4, 1, 7)]
    divided, whole = (CodebookLearner(head.vq_codebooks, "ema", DECAY) for _ in range(2))
    for vectors, indices in pieces:
        divided.accumulate(1, vectors, indices)
    whole.accumulate(1, *(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)))
    assert whole.statistics()[1, :, -1].sum() == 4 + 1 + 7
    assert torch.equal(divided.statistics(), whole.statistics())


def test_inputs_are_the_vectors_of_the_first_codebook_alone(head, latents):
    learner = CodebookLearner(head.vq_codebooks, "ema", DECAY)
    codes = torch.zeros(2, NUM_FRAMES).long()
    learner.accumulate(0, latents, codes)
    learner.accumulate(1, 2 * latents, codes)
    learner.accumulate(0, latents[:1], codes[:1])
    assert torch.equal(torch.cat(learner.inputs), torch.cat([*latents, latents[0]]))


def test_forget_leaves_nothing_of_the_step(head, latents):
    learner = CodebookLearner(head.vq_codebooks, "ema", DECAY)
    learner.accumulate(0, latents, torch.zeros(2, NUM_FRAMES).long())
    learner.reset()
    assert not learner.statistics().any()
    assert learner.inputs == []


# --- moving averages ---


def test_ema_moves_an_entry_to_the_running_mean_by_hand(head):
    store = head.vq_codebooks[1]
    store.embed[0, 4], store.embed_avg[0, 4], store.cluster_size[0, 4] = 1.0, 2.0, 2.0
    learner = CodebookLearner(head.vq_codebooks, "ema", DECAY)
    learner.accumulate(1, torch.tensor([[[4.0, 0.0, 1.0], [2.0, 0.0, 1.0], [3.0, 0.0, 1.0]]]), torch.full((1, 3), 4))
    learner.apply_update(learner.statistics())
    count = 0.9 * 2 + 0.1 * 3
    sums = torch.tensor([0.9 * 2 + 0.1 * 9, 0.9 * 2, 0.9 * 2 + 0.1 * 3])
    assert store.cluster_size[0, 4].item() == pytest.approx(count)
    torch.testing.assert_close(store.embed_avg[0, 4], sums)
    torch.testing.assert_close(store.embed[0, 4], sums / count, rtol=1e-4, atol=0)


@SINGLE_AND_CHAIN
def test_ema_is_the_library_s_own_update_for_one_step(head, latents, frame_mask):
    library = deepcopy(head)
    inputs = library.project_in(latents.transpose(1, 2)).transpose(1, 2)
    library.vq(inputs.detach(), mask=frame_mask)

    learner = teach(head, "ema")
    codes = head(latents[frame_mask][None]).codes
    learner.apply_update(learner.statistics())
    hit = used(head, codes)
    assert all(0 < entries.sum() < SIZE for entries in hit)
    for ours, theirs, entries in zip(head.vq_codebooks, library.vq_codebooks, hit, strict=True):
        torch.testing.assert_close(ours.cluster_size, theirs.cluster_size)
        torch.testing.assert_close(ours.embed_avg, theirs.embed_avg)
        torch.testing.assert_close(ours.embed[0, entries], theirs.embed[0, entries])


@SINGLE_AND_CHAIN
def test_ema_gives_the_state_of_a_head_that_learns_in_its_forward(head, latents):
    by_itself = deepcopy(head)
    by_itself(latents)
    learner = teach(head, "ema")
    head(latents)
    learner.apply_update(learner.statistics())
    torch.testing.assert_close(states(head), states(by_itself))


def test_sums_of_two_processes_move_codebooks_as_one_process_would(head, latents):
    alone, first, second = head, deepcopy(head), deepcopy(head)
    learners = [teach(each, "ema") for each in (alone, first, second)]
    for each, part in ((alone, latents), (first, latents[:1]), (second, latents[1:])):
        each(part)
    learners[0].apply_update(learners[0].statistics())
    total = learners[1].statistics() + learners[2].statistics()
    for learner in learners[1:]:
        learner.apply_update(total)
    torch.testing.assert_close(states(first), states(alone))
    assert all(torch.equal(value, states(second)[name]) for name, value in states(first).items())


@BOTH_UPDATES
def test_entries_that_nobody_hit_stay_to_the_bit_over_many_steps(head, update):
    learner = CodebookLearner(head.vq_codebooks, update, DECAY)
    before = [store.embed.detach().clone() for store in head.vq_codebooks]
    for step in range(150):  # the counts of unused entries fall to 0.9 ** 150, below the library's smoothing
        learner.reset()
        for level in range(2):
            learner.accumulate(level, *whole_numbers((2, 20), seed=step))
        learner.apply_update(learner.statistics())
    for store, entries in zip(head.vq_codebooks, before, strict=True):
        assert store.cluster_size[0, -4:].max() < 1e-5
        assert torch.equal(store.embed[0, -4:], entries[0, -4:])
        moved = (store.embed[0, :-4] != entries[0, :-4]).any(dim=-1)
        assert moved.all() if update == "ema" else not moved.any()


def test_a_step_in_which_nothing_was_noted_moves_no_entry(head):
    learner = CodebookLearner(head.vq_codebooks, "ema", DECAY)
    before = [store.embed.clone() for store in head.vq_codebooks]
    learner.apply_update(learner.statistics())
    assert all(torch.equal(store.embed, entries) for store, entries in zip(head.vq_codebooks, before, strict=True))


# --- gradients ---


def test_gradient_makes_parameters_of_the_entries_under_the_keys_they_had(head):
    before = states(head)
    CodebookLearner(head.vq_codebooks, "gradient", DECAY)
    parameters = {name for name, _ in head.named_parameters() if "_codebook" in name}
    assert parameters == {f"vq.layers.{level}._codebook.embed" for level in range(2)}
    assert states(head).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in states(head).items())


def test_ema_after_gradient_makes_the_entries_buffers_again(head):
    before = states(head)
    CodebookLearner(head.vq_codebooks, "gradient", DECAY)
    CodebookLearner(head.vq_codebooks, "ema", DECAY)
    assert not any("_codebook" in name for name, _ in head.named_parameters())
    assert not any(isinstance(store.embed, nn.Parameter) or store.embed.requires_grad for store in head.vq_codebooks)
    assert states(head).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in states(head).items())


def test_gradient_averages_the_counts_and_holds_the_sums_to_them(head, latents):
    learner = teach(head, "gradient")
    before, codes = states(head), head(latents).codes
    with torch.no_grad():
        for store in head.vq_codebooks:
            store.embed.add_(1.0)  # as an optimizer would
    learner.apply_update(learner.statistics())
    for level, store in enumerate(head.vq_codebooks):
        name = f"vq.layers.{level}._codebook"
        counts = torch.bincount(codes[:, level].flatten(), minlength=SIZE)
        expected = DECAY * before[f"{name}.cluster_size"][0] + (1 - DECAY) * counts
        torch.testing.assert_close(store.cluster_size[0], expected)
        assert torch.equal(store.embed, before[f"{name}.embed"] + 1.0)
        torch.testing.assert_close(store.embed_avg[0], store.embed[0].detach() * expected[:, None])


@SINGLE_AND_CHAIN
def test_codebook_loss_pulls_hit_entries_toward_the_mean_of_their_frames_and_nothing_else(head, latents):
    learner = teach(head, "gradient")
    latents.requires_grad_()
    output = head(latents)
    output.codebook_loss.backward()
    sums, counts = learner.statistics().split([DIM, 1], dim=-1)
    num_values = latents.numel() * len(head.vq_codebooks)  # a mean over frames, sizes and codebooks
    for store, level_sums, level_counts in zip(head.vq_codebooks, sums, counts, strict=True):
        expected = 2 * (level_counts * store.embed[0].detach() - level_sums) / num_values
        torch.testing.assert_close(store.embed.grad[0], expected)
        assert not store.embed.grad[0, level_counts[:, 0] == 0].any()
    assert latents.grad is None
    assert all(parameter.grad is None for parameter in (head.project_in.weight, head.project_out.weight))


def test_codebook_loss_has_the_value_of_the_commitment(head, latents):
    teach(head, "gradient")
    output = head(latents)
    assert torch.equal(output.codebook_loss, output.commitment)


# --- a head and its learner ---


@BOTH_UPDATES
def test_forward_with_a_learner_gives_the_very_bits_of_one_without_and_moves_nothing(head, latents, update):
    expected = deepcopy(head)(latents)
    teach(head, update)
    before = states(head)
    output = head(latents)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)
    torch.testing.assert_close(output.commitment, expected.commitment)
    assert all(torch.equal(value, before[name]) for name, value in states(head).items())


@BOTH_UPDATES
def test_forward_notes_the_counts_of_its_codes(head, latents, update):
    learner = teach(head, update)
    codes = head(latents).codes
    for level, counts in enumerate(learner.statistics()[:, :, -1]):
        expected = torch.bincount(codes[:, level].flatten(), minlength=SIZE)
        assert torch.equal(counts, expected.float())


@BOTH_UPDATES
@pytest.mark.parametrize("training, may_learn", [(False, True), (True, False)], ids=["inference", "may not learn"])
def test_forward_notes_nothing_when_it_does_not_learn(head, latents, update, training, may_learn):
    learner = teach(head, update)
    head.train(training)(latents, may_learn=may_learn)
    assert not learner.statistics().any()


def test_codebook_loss_is_none_where_codebooks_are_moving_averages(head, latents):
    teach(head, "ema")
    assert head(latents).codebook_loss is None


def test_unknown_update_is_refused(head):
    with pytest.raises(ValueError, match=r"codebook_update must be one of \('ema', 'gradient'\), got 'sgd'"):
        CodebookLearner(head.vq_codebooks, "sgd", DECAY)


# --- what one forward asked ---


def learn_by_the_library(head: QuantizerHead, latents: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and commitment of the library's training forward, which moves the entries that were asked for."""
    before = [store.embed.clone() for store in head.vq_codebooks]
    inputs = head.project_in(latents.transpose(1, 2)).transpose(1, 2).detach()
    _, codes, commitment = head.vq(inputs, mask=frame_mask)
    codes = codes[:, None] if codes.ndim == 2 else codes.transpose(1, 2)
    for store, entries, level in zip(head.vq_codebooks, before, codes.unbind(dim=1), strict=True):
        real = level if frame_mask is None else level[frame_mask]
        asked_for = torch.bincount(real.flatten(), minlength=SIZE) > 0
        store.embed[0, ~asked_for] = entries[0, ~asked_for]  # the library shrinks them: see the test after the next
    return codes, commitment.mean()


@SINGLE_AND_CHAIN
@pytest.mark.parametrize("masked", [False, True])
def test_ten_training_forwards_give_the_codes_losses_and_codebooks_of_the_library(head, frame_mask, masked):
    library, frame_mask = deepcopy(head), frame_mask if masked else None
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        latents = torch.randn(2, NUM_FRAMES, DIM, generator=generator)
        codes, commitment = learn_by_the_library(library, latents, frame_mask)
        real = torch.ones(2, NUM_FRAMES).bool() if frame_mask is None else frame_mask
        output = head(latents[real][None])
        assert torch.equal(output.codes[0].T, codes.transpose(1, 2)[real])
        torch.testing.assert_close(output.commitment, commitment)
        torch.testing.assert_close(states(head), states(library))


@SINGLE_AND_CHAIN
def test_processes_that_share_a_codebook_are_summed_where_the_library_sums_them(head, latents):
    library = deepcopy(head)
    for store in (*head.vq_codebooks, *library.vq_codebooks):
        store.use_ddp = True
        store.all_reduce_fn = lambda tensor: tensor.mul_(3)  # as if two more processes had seen the very same
    learn_by_the_library(library, latents, None)
    head(latents)
    torch.testing.assert_close(states(head), states(library))


def test_the_library_alone_would_shrink_entries_that_nobody_asked_for(head, latents):
    store = head.vq_codebooks[0]
    store.cluster_size.mul_(1e-4)  # so small that the library's smoothing halves an entry that is not used
    store.embed_avg.mul_(1e-4)
    by_the_library = deepcopy(store)
    _, codes, _ = by_the_library(latents)
    hit = torch.bincount(codes.flatten(), minlength=SIZE) > 0
    entries = store.embed.clone()
    assert 0 < hit.sum() < SIZE
    assert (by_the_library.embed[0, ~hit].norm(dim=-1) < 0.99 * entries[0, ~hit].norm(dim=-1)).all()

    learn_from(store, latents, codes, DECAY)
    assert torch.equal(store.embed[0, ~hit], entries[0, ~hit])
    torch.testing.assert_close(store.embed[0, hit], by_the_library.embed[0, hit])
