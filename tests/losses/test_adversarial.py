"""The discriminator's shapes and reach, its losses by hand, and the balance of several losses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mimi_bridge.losses.adversarial import (
    WINDOWS,
    MultiScaleSpectrogramDiscriminator,
    SpectrogramDiscriminator,
    adversarial_loss,
    balanced_gradient,
    discriminator_loss,
    feature_matching_loss,
)


@pytest.fixture
def discriminator() -> SpectrogramDiscriminator:
    """Three filters over windows of 64 samples."""
    torch.manual_seed(0)
    return SpectrogramDiscriminator(64, 3)


@pytest.fixture
def noise() -> Tensor:
    torch.manual_seed(1)
    return 0.3 * torch.randn(2, 1, 400)


def scores(*values: list[float]) -> list[tuple[Tensor, list[Tensor]]]:
    """Scores without features, of one scale for each list of scores."""
    return [(torch.tensor(scale), []) for scale in values]


def features(*values: list[list[float]]) -> list[tuple[Tensor, list[Tensor]]]:
    """Features of one row without scores, of one scale for each list of layers."""
    return [(torch.zeros(1), [torch.tensor([layer]) for layer in scale]) for scale in values]


def spectra_of(discriminator: SpectrogramDiscriminator, audio: Tensor) -> tuple[Tensor, Tensor]:
    """What the first convolution gets, and the scores, with a gradient between them."""
    spectra = []

    def keep(_module, inputs):
        inputs[0].requires_grad_().retain_grad()
        spectra.append(inputs[0])

    with discriminator.layers[0].register_forward_pre_hook(keep):
        score, _ = discriminator(audio)
    return spectra[0], score


@pytest.mark.parametrize("window, num_bins", [(64, 33), (128, 65)])
def test_discriminator_scores_every_quarter_window_and_eighth_bin(window, num_bins, noise):
    score, layers = SpectrogramDiscriminator(window, 3)(noise)
    num_hops = 400 // (window // 4) + 1
    assert score.shape == (2, 1, num_hops, num_bins // 8 + 1)
    widths = [num_bins, num_bins // 2 + 1, num_bins // 4 + 1, num_bins // 8 + 1, num_bins // 8 + 1]
    assert [tuple(layer.shape) for layer in layers] == [(2, 3, num_hops, width) for width in widths]


def test_discriminator_hears_scaled_real_and_imaginary_parts(discriminator, noise):
    spectra, _ = spectra_of(discriminator, noise)
    samples, hop_number, bin_number = noise[1, 0].double().numpy(), 5, 7
    offsets = np.arange(-32, 32)
    hann = 0.5 + 0.5 * np.cos(2 * np.pi * offsets / 64)
    turns = np.exp(-2j * np.pi * bin_number * (offsets + 32) / 64)  # phase counts from the start of the window
    expected = (samples[hop_number * 16 + offsets] * hann * turns).sum() * 4 / np.sqrt(32)
    torch.testing.assert_close(
        spectra[1, :, hop_number, bin_number].double(), torch.tensor([expected.real, expected.imag]), atol=1e-4, rtol=0
    )


def test_discriminator_hears_zeros_beyond_the_ends(discriminator):
    spectra, _ = spectra_of(discriminator, torch.ones(1, 1, 400))
    at_the_edge, inside = spectra[0, 0, 0, 0].item(), spectra[0, 0, 5, 0].item()
    assert at_the_edge == pytest.approx(inside / 2, rel=0.1)


def test_white_noise_is_as_loud_at_every_window():
    torch.manual_seed(0)
    white = torch.randn(1, 1, 16_384)
    levels = [spectra_of(SpectrogramDiscriminator(window, 1), white)[0].std().item() for window in (64, 256, 1024)]
    assert levels == pytest.approx([levels[0]] * 3, rel=0.05)


def test_score_depends_on_10_hops_and_48_bins_to_either_side(noise):
    torch.manual_seed(0)
    spectra, score = spectra_of(SpectrogramDiscriminator(256, 2), torch.randn(1, 1, 64 * 30))
    score[0, 0, 15, 8].backward()
    hops, bins = spectra.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert (hops.min().item(), hops.max().item()) == (15 - 10, 15 + 10)
    assert (bins.min().item(), bins.max().item()) == (8 * 8 - 48, 8 * 8 + 48)


def test_layers_are_leaky(discriminator, noise):
    inputs, outputs = [], []
    discriminator.layers[1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    discriminator.layers[2].register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    discriminator(noise)
    assert (outputs[0] < 0).any()
    torch.testing.assert_close(inputs[0], torch.where(outputs[0] < 0, 0.2 * outputs[0], outputs[0]))


def test_features_are_what_each_layer_hands_on(discriminator, noise):
    handed_on = []
    for layer in [*discriminator.layers[1:], discriminator.score]:
        layer.register_forward_pre_hook(lambda _module, given: handed_on.append(given[0]))
    _, layers = discriminator(noise)
    assert len(layers) == 5
    assert all(torch.equal(given, layer) for given, layer in zip(handed_on, layers, strict=True))


def test_discriminator_ignores_the_length_of_its_weight_directions(discriminator, noise):
    before, _ = discriminator(noise)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if name.endswith("original1"):  # torch's name for the direction in a weight norm
                parameter.mul_(3)
    torch.testing.assert_close(discriminator(noise)[0], before)
    assert sum(name.endswith("original1") for name, _ in discriminator.named_parameters()) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_discriminator_hears_audio_of_any_precision_in_float32(discriminator, noise, dtype):
    other = noise.to(dtype)
    assert torch.equal(discriminator(other)[0], discriminator(other.float())[0])


def test_discriminators_look_at_three_windows_by_default():
    assert [scale.window for scale in MultiScaleSpectrogramDiscriminator(2).scales] == list(WINDOWS)
    assert WINDOWS == (2048, 1024, 512)


def test_discriminators_look_at_the_windows_given():
    assert [scale.window for scale in MultiScaleSpectrogramDiscriminator(2, windows=(64, 128)).scales] == [64, 128]


def test_every_scale_gives_its_own_scores(noise):
    discriminators = MultiScaleSpectrogramDiscriminator(2, windows=(64, 128))
    scored = discriminators(noise)
    for scale, (score, layers) in zip(discriminators.scales, scored, strict=True):
        alone_score, alone_layers = scale(noise)
        assert torch.equal(score, alone_score)
        assert all(map(torch.equal, layers, alone_layers))


def test_every_weight_of_every_scale_bears_on_the_scores(noise):
    torch.manual_seed(0)
    discriminators = MultiScaleSpectrogramDiscriminator(2, windows=(64, 128))
    sum(score.sum() for score, _ in discriminators(noise)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in discriminators.parameters())


def test_discriminator_loss_is_the_hinge_by_hand():
    real, decoded = scores([2.0, 0.5, -1.0]), scores([-3.0, -0.5, 1.0, 0.0])
    expected = (0 + 0.5 + 2) / 3 + (0 + 0.5 + 2 + 1) / 4
    assert discriminator_loss(real, decoded).item() == pytest.approx(expected)


def test_discriminator_loss_counts_scales_alike_when_one_has_more_scores():
    real, decoded = scores([1.0] * 9, [0.0]), scores([-1.0] * 9, [0.5])
    assert discriminator_loss(real, decoded).item() == pytest.approx((0 + 0 + 1 + 1.5) / 2)


@pytest.mark.parametrize("real, decoded, expected", [(1.0, -1.0, 0.0), (7.0, -7.0, 0.0), (0.0, 0.0, 2.0)])
def test_discriminator_loss_is_0_when_sure_and_right_and_2_when_it_cannot_tell(real, decoded, expected):
    assert discriminator_loss(scores([real]), scores([decoded])).item() == expected


def test_discriminator_loss_refuses_scores_of_different_scales():
    with pytest.raises(ValueError, match="shorter"):
        discriminator_loss(scores([0.0], [0.0]), scores([0.0]))


def test_discriminator_learns_to_tell_a_tone_from_noise(discriminator, noise):
    tone = torch.sin(torch.arange(400.0))[None, None]
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator_loss([discriminator(tone)], [discriminator(noise)])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert discriminator(tone)[0].mean() > discriminator(noise)[0].mean() + 1


def test_adversarial_loss_is_the_mean_score_of_each_scale_negated():
    assert adversarial_loss(scores([1.0, 2.0, 6.0], [-1.0])).item() == pytest.approx(-(3.0 - 1.0) / 2)


def test_adversarial_loss_reaches_the_decoded_audio(discriminator, noise):
    noise.requires_grad_()
    adversarial_loss([discriminator(noise)]).backward()
    assert noise.grad.any()


def test_feature_matching_is_relative_to_the_mean_of_real_features_by_hand():
    real = features([[2.0, -2.0], [10.0, -30.0]], [[1.0]])
    decoded = features([[3.0, -4.0], [10.0, -20.0]], [[0.25]])
    expected = ((1 + 2) / 2 / 2 + (0 + 10) / 2 / 20 + 0.75) / 3
    assert feature_matching_loss(real, decoded).item() == pytest.approx(expected)


def test_feature_matching_counts_layers_alike_when_scales_have_different_numbers_of_them():
    real, decoded = features([[1.0], [1.0], [1.0]], [[1.0]]), features([[1.0], [1.0], [1.0]], [[5.0]])
    assert feature_matching_loss(real, decoded).item() == pytest.approx(1.0)


def test_feature_matching_of_a_batch_is_the_mean_of_its_rows(discriminator, noise):
    loud = torch.cat([noise[:1], 30 * noise[1:]])
    alone = [feature_matching_loss([discriminator(row)], [discriminator(0.5 * row)]) for row in loud.split(1)]
    together = feature_matching_loss([discriminator(loud)], [discriminator(0.5 * loud)])
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_feature_matching_is_0_when_features_are_equal(discriminator, noise):
    assert feature_matching_loss([discriminator(noise)], [discriminator(noise)]).item() == 0.0


def test_feature_matching_sends_no_gradient_into_the_real_audio(discriminator, noise):
    real, decoded = noise[:1].clone().requires_grad_(), noise[1:].clone().requires_grad_()
    feature_matching_loss([discriminator(real)], [discriminator(decoded)]).backward()
    assert real.grad is None
    assert decoded.grad.any()


def test_feature_matching_stays_finite_when_real_features_are_0():
    assert feature_matching_loss(features([[0.0, 0.0]]), features([[1e-6, 0.0]])).item() == pytest.approx(0.5)


def test_feature_matching_refuses_scores_of_different_layers():
    with pytest.raises(ValueError, match="longer"):
        feature_matching_loss(features([[1.0]]), features([[1.0], [1.0]]))


@pytest.fixture
def audio() -> Tensor:
    return torch.zeros(1, 1, 3, requires_grad=True)


def along(audio: Tensor, *direction: float) -> Tensor:
    """A loss whose gradient at the audio is the direction."""
    return (audio * torch.tensor(direction)).sum()


def test_balanced_gradient_gives_each_loss_a_share_as_long_as_its_weight_says(audio):
    losses = {"mel": along(audio, 0.001, 0.0, 0.0), "sharp": along(audio, 0.0, 300.0, -400.0)}
    gradient = balanced_gradient(losses, {"mel": 3.0, "sharp": 1.0}, audio)
    assert gradient.shape == audio.shape
    assert gradient.flatten().tolist() == pytest.approx([0.75, 0.25 * 0.6, -0.25 * 0.8])


def test_balanced_gradient_ignores_the_scale_of_the_losses(audio):
    weights = {"a": 1.0, "b": 2.0}
    plain, scaled = (
        balanced_gradient({"a": along(audio, 1.0, 2.0, 3.0) * scale, "b": along(audio, 3.0, 0.0, 1.0)}, weights, audio)
        for scale in (1.0, 1e4)
    )
    torch.testing.assert_close(plain, scaled)


def test_balanced_gradient_ignores_the_sum_of_the_weights(audio):
    losses = {"a": along(audio, 1.0, 2.0, 3.0), "b": along(audio, 3.0, 0.0, 1.0)}
    torch.testing.assert_close(
        balanced_gradient(losses, {"a": 1.0, "b": 3.0}, audio), balanced_gradient(losses, {"a": 5.0, "b": 15.0}, audio)
    )


def test_balanced_gradient_has_unit_length_when_all_losses_agree(audio):
    losses = {"a": along(audio, 0.0, 2.0, 0.0), "b": along(audio, 0.0, 9.0, 0.0), "c": along(audio, 0.0, 1.0, 0.0)}
    gradient = balanced_gradient(losses, {"a": 1.0, "b": 2.0, "c": 3.0}, audio)
    assert gradient.flatten().tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_balanced_gradient_shares_only_among_the_losses_given(audio):
    weights = {"a": 1.0, "not yet": 99.0}
    assert balanced_gradient({"a": along(audio, 5.0, 0.0, 0.0)}, weights, audio).norm().item() == pytest.approx(1.0)


def test_balanced_gradient_is_measured_over_the_whole_batch():
    audio = torch.zeros(2, 1, 2, requires_grad=True)
    gradient = balanced_gradient({"a": (audio[0] * 3 + audio[1] * 4).sum()}, {"a": 1.0}, audio)
    torch.testing.assert_close(gradient, torch.tensor([[[0.6, 0.6]], [[0.8, 0.8]]]) / 2**0.5)


def test_balanced_gradient_stays_finite_when_a_loss_is_content(audio):
    losses = {"content": along(audio, 0.0, 0.0, 0.0), "other": along(audio, 1.0, 0.0, 0.0)}
    gradient = balanced_gradient(losses, {"content": 1.0, "other": 1.0}, audio)
    assert gradient.flatten().tolist() == [0.5, 0.0, 0.0]


def test_balanced_gradient_leaves_losses_that_can_still_be_differentiated(audio):
    loss = audio.exp().sum()
    balanced_gradient({"a": loss}, {"a": 1.0}, audio)
    loss.backward()
    assert audio.grad.flatten().tolist() == [1.0, 1.0, 1.0]


def test_balanced_gradient_adds_to_no_weight_s_gradient(discriminator, noise):
    noise.requires_grad_()
    balanced_gradient({"adversarial": adversarial_loss([discriminator(noise)])}, {"adversarial": 1.0}, noise)
    assert noise.grad is None
    assert all(parameter.grad is None for parameter in discriminator.parameters())
