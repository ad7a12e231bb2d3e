"""The discriminator beside the model: what each of the two learns from, when, and that it goes on where it stopped."""

import io
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mimi_bridge.losses.adversarial import adversarial_loss, discriminator_loss, feature_matching_loss
from mimi_bridge.training.adversary import QUIETEST, Adversary

NUM_FILTERS, BATCH_SIZE, SAMPLES = 2, 4, 2_100


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def adversary(accelerator) -> Adversary:
    return Adversary(NUM_FILTERS, seed=0, accelerator=accelerator)


def sound(seed: int) -> Tensor:
    """Noise whose rows are of different rms, `(batch, 1, samples)`."""
    rms = torch.tensor([0.02, 0.1, 0.3, 1.0])[:, None, None]
    return rms * torch.randn(BATCH_SIZE, 1, SAMPLES, generator=torch.Generator().manual_seed(seed))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return deepcopy(module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def gradients_of(adversary: Adversary) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in adversary.discriminator.parameters()]


# --- who learns from what ---


def test_step_changes_every_weight_of_the_discriminator_and_nothing_else(adversary):
    decoder = nn.Conv1d(1, 1, 5, padding=2)
    before, discriminator = weights_of(decoder), weights_of(adversary.discriminator)
    losses = adversary.losses(sound(0), decoder(sound(1)), share=1.0)
    assert same(weights_of(adversary.discriminator), discriminator)  # not before the step
    sum(losses.values()).backward()
    gradient = decoder.weight.grad.clone()
    adversary.step()
    after = weights_of(adversary.discriminator)
    assert [name for name, value in discriminator.items() if torch.equal(value, after[name])] == []
    assert same(weights_of(decoder), before) and torch.equal(decoder.weight.grad, gradient)


def test_codecs_losses_reach_the_decoded_audio_and_leave_the_discriminators_gradient_alone(adversary):
    audio, decoded = sound(0), sound(1).requires_grad_()
    losses = adversary.losses(audio, decoded, share=1.0)
    before = gradients_of(adversary)
    sum(losses.values()).backward()
    assert all(torch.equal(*pair) for pair in zip(gradients_of(adversary), before, strict=True))
    assert decoded.grad.flatten(1).any(dim=1).all() and decoded.grad.isfinite().all()
    assert all(parameter.requires_grad for parameter in adversary.discriminator.parameters())


def test_discriminators_own_lesson_does_not_reach_the_codec(adversary):
    decoded = sound(1).requires_grad_()
    adversary.losses(sound(0), decoded, share=1.0)
    assert decoded.grad is None


def test_losses_and_gradient_are_those_of_audio_at_one_loudness(adversary):
    audio, decoded = sound(0), sound(1)
    rms = torch.stack([row.square().mean().sqrt() for row in audio])[:, None, None]
    slow = deepcopy(adversary.discriminator)
    real, fake = slow(audio / rms), slow(decoded / rms)
    discriminator_loss(real, fake).backward()
    losses = adversary.losses(audio, decoded, share=1.0)
    torch.testing.assert_close(losses["adversarial"], adversarial_loss(fake))
    torch.testing.assert_close(losses["features"], feature_matching_loss(real, fake))
    for gradient, expected in zip(gradients_of(adversary), slow.parameters(), strict=True):
        torch.testing.assert_close(gradient, expected.grad)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_loudness_of_both_sounds_does_not_matter_and_that_of_one_does(adversary, factor):
    plain, both, one = (
        adversary.losses(*pair, share=1.0)["features"].item()
        for pair in (
            (sound(0), sound(1)),
            (factor * sound(0), factor * sound(1)),
            (sound(0), factor * sound(1)),
        )
    )
    assert both == pytest.approx(plain, rel=1e-4)
    assert abs(one - plain) > 1e-2


def test_silence_is_scored_without_being_made_loud(adversary):
    silence, hiss = torch.zeros(1, 1, SAMPLES), torch.full((1, 1, SAMPLES), QUIETEST / 10)
    losses = adversary.losses(silence, silence, share=1.0)
    assert losses["adversarial"].isfinite() and losses["features"] == 0
    inputs_seen = []
    handle = adversary.discriminator.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0]))
    adversary.losses(hiss, silence, share=1.0)
    handle.remove()
    assert inputs_seen[0].abs().max().item() == pytest.approx(0.1)


# --- once a step ---


def test_step_learns_the_same_from_a_batch_and_from_its_parts_by_their_shares(accelerator):
    gradients = []
    for sizes in ([BATCH_SIZE], [1, 3]):
        adversary = Adversary(NUM_FILTERS, seed=0, accelerator=accelerator)
        for audio, decoded in zip(sound(0).split(sizes), sound(1).split(sizes), strict=True):
            adversary.losses(audio, decoded, share=len(audio) / BATCH_SIZE)
        gradients.append(gradients_of(adversary))
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)


def test_recordings_of_several_lengths_are_scored_each_as_alone(accelerator):
    lengths = [2_100, 1_200, 2_100, 700]
    gradients, losses = [], []
    for rows in ([[0, 1, 2, 3]], [[n] for n in range(BATCH_SIZE)]):
        adversary = Adversary(NUM_FILTERS, seed=0, accelerator=accelerator)
        decoded = sound(1).requires_grad_()
        total: dict[str, Tensor] = {}
        for places in rows:
            own, width = torch.tensor(lengths)[places], max(lengths[n] for n in places)
            share = float(own.sum()) / sum(lengths)
            pair = (each[places, :, :width] for each in (sound(0), decoded))
            for name, loss in adversary.losses(*pair, share=share, lengths=own).items():
                total[name] = total.get(name, 0.0) + share * loss
        sum(total.values()).backward()
        gradients.append([*gradients_of(adversary), decoded.grad])
        losses.append(total)
    torch.testing.assert_close(losses[0], losses[1])
    for together, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-3)


def test_what_stands_in_the_padding_is_not_scored(adversary):
    lengths, loud = torch.tensor([2_100, 1_200, 2_100, 700]), 100 * sound(2)
    real = torch.arange(SAMPLES) < lengths[:, None, None]
    clean = adversary.losses(sound(0), sound(1), share=1.0, lengths=lengths)
    filled = adversary.losses(
        torch.where(real, sound(0), loud), torch.where(real, sound(1), -loud), share=1.0, lengths=lengths
    )
    assert all(torch.equal(clean[name], filled[name]) for name in clean)


def test_step_forgets_what_it_has_learned_from(adversary):
    adversary.losses(sound(0), sound(1), share=1.0)
    adversary.step()
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_step_without_a_lesson_moves_nothing(adversary):
    adversary.losses(sound(0), sound(1), share=1.0)
    adversary.step()
    before = weights_of(adversary.discriminator)
    adversary.step()
    assert same(weights_of(adversary.discriminator), before)


def test_losses_and_lesson_are_computed_in_float32_under_autocast(adversary):
    expected = adversary.losses(sound(0), sound(1), share=1.0)
    gradients = gradients_of(adversary)
    adversary.optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = adversary.losses(sound(0), sound(1), share=1.0)
    assert losses == expected
    assert all(torch.equal(*pair) for pair in zip(gradients_of(adversary), gradients, strict=True))


def test_step_is_no_longer_for_a_lesson_a_thousand_times_as_long(accelerator):
    moved = []
    for share in (1e3, 1e6):
        adversary = Adversary(NUM_FILTERS, seed=0, accelerator=accelerator)
        adversary.losses(sound(0), sound(1), share)
        adversary.step()
        state = adversary.optimizer.state_dict()["state"]
        moved.append(torch.cat([entry["exp_avg"].flatten() for entry in state.values()]).norm() / (1 - 0.8))
    assert moved == pytest.approx([1.0, 1.0], rel=1e-3)  # the gradient that AdamW averages was cut to length 1


def test_discriminator_learns_to_tell_the_two_apart(adversary):
    tone = torch.sin(torch.arange(SAMPLES) / 5).expand(BATCH_SIZE, 1, -1)
    adversary.optimizer.param_groups[0]["lr"] = 0.03  # in a hundredth of the steps
    before = adversary.losses(tone, sound(1), share=1.0)["adversarial"].item()
    for _ in range(15):
        adversary.step()
        after = adversary.losses(tone, sound(1), share=1.0)["adversarial"].item()
    assert after > before + 0.5


# --- seeds and checkpoints ---


def test_discriminator_begins_alike_for_one_seed_and_leaves_the_callers_random_numbers_alone(accelerator):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (Adversary(NUM_FILTERS, seed, accelerator).discriminator.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert same(one, again) and not same(one, other)


def learn(adversary: Adversary, *seeds: int) -> dict[str, Tensor]:
    for seed in seeds:
        adversary.losses(sound(seed), sound(seed + 100), share=1.0)
        adversary.step()
    return weights_of(adversary.discriminator)


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_adversary_goes_on_from_its_state_as_if_it_had_never_stopped(adversary, accelerator):
    learn(adversary, 0, 1)
    state = saved_and_loaded(adversary.state_dict())
    whole = learn(adversary, 2, 3)
    other = Adversary(NUM_FILTERS, seed=1, accelerator=accelerator)
    learn(other, 7)
    other.load_state_dict(state)
    assert same(learn(other, 2, 3), whole)


def test_state_without_the_optimizers_would_go_on_otherwise(adversary, accelerator):
    learn(adversary, 0, 1)
    other = Adversary(NUM_FILTERS, seed=1, accelerator=accelerator)
    other.discriminator.load_state_dict(saved_and_loaded(adversary.state_dict())["discriminator"])
    assert not same(learn(other, 2), learn(adversary, 2))
