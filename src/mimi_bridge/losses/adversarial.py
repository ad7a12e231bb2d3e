"""A discriminator that hears complex spectrograms at several resolutions, and the losses it is trained and used with.

Spectrogram distances leave decoded speech buzzing: many waveforms share one. The discriminator learns what real
speech looks like at each resolution, and the codec learns to look like it. `balanced_gradient` puts several such
losses on one scale where they meet, at the decoded audio.

Source: Defossez et al. 2022 (arXiv:2210.13438), sections 3.3 and 3.4; hinge losses as in Kyutai's moshi.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WINDOWS = (2048, 1024, 512)


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over real and imaginary parts, `(batch, 2, hops, bins)`, at one window length.

    Args:
        window: Window in samples; the hop is a quarter.
        num_filters: Channels of every layer.
    """

    def __init__(self, window: int, num_filters: int):
        super().__init__()
        self.window = window
        shapes = [(2, (1, 1), 1), *[(num_filters, (1, 2), dilation) for dilation in (1, 2, 4)]]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(channels, num_filters, (3, 9), stride, padding=(dilation, 4), dilation=(dilation, 1))
            )
            for channels, stride, dilation in shapes
        )
        self.layers.append(weight_norm(nn.Conv2d(num_filters, num_filters, (3, 3), padding=1)))
        self.score = weight_norm(nn.Conv2d(num_filters, 1, (3, 3), padding=1))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Audio `(batch, 1, samples)` -> scores `(batch, 1, hops, bins / 8)`, high where it sounds real; features."""
        hann = torch.hann_window(self.window, device=audio.device)
        spectrum = torch.stft(
            audio[:, 0].float(), self.window, self.window // 4, window=hann, pad_mode="constant", return_complex=True
        )
        hidden = torch.view_as_real(spectrum * (4 / hann.sum().sqrt())).permute(0, 3, 2, 1).contiguous()
        features = []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.score(hidden), features


class MultiScaleSpectrogramDiscriminator(nn.Module):
    """One `SpectrogramDiscriminator` a window length.

    Args:
        num_filters: Channels of every layer.
        windows: In samples.
    """

    def __init__(self, num_filters: int = 32, windows: tuple[int, ...] = WINDOWS):
        super().__init__()
        self.scales = nn.ModuleList(SpectrogramDiscriminator(window, num_filters) for window in windows)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Scores and features of each scale, for audio `(batch, 1, samples)`."""
        return [scale(audio) for scale in self.scales]


Scores = list[tuple[Tensor, list[Tensor]]]


def discriminator_loss(real: Scores, decoded: Scores) -> Tensor:
    """Hinge loss of the discriminator, a scalar: 0 when it is sure and right, 2 when it cannot tell."""
    losses = [
        nn.functional.relu(1 - score_real).mean() + nn.functional.relu(1 + score_decoded).mean()
        for (score_real, _), (score_decoded, _) in zip(real, decoded, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(decoded: Scores) -> Tensor:
    """The codec's loss against the discriminator, a scalar: the negated mean score of decoded audio."""
    return torch.stack([-score.mean() for score, _ in decoded]).mean()


def feature_matching_loss(real: Scores, decoded: Scores) -> Tensor:
    """Mean absolute difference of the discriminator's features, a row's layer relative to its mean on real audio."""
    distances = [
        _mean_of_rows(feature_decoded - feature_real.detach()) / _mean_of_rows(feature_real.detach()).clamp(min=1e-6)
        for (_, features_real), (_, features_decoded) in zip(real, decoded, strict=True)
        for feature_real, feature_decoded in zip(features_real, features_decoded, strict=True)
    ]
    return torch.stack(distances).mean()


def _mean_of_rows(feature: Tensor) -> Tensor:
    return feature.abs().flatten(1).mean(dim=1)


def balanced_gradient(
    losses: dict[str, Tensor], weights: dict[str, float], audio: Tensor, scale_of: str | None = None
) -> Tensor:
    """The gradient of several losses at the decoded audio, each with the share that its weight says.

    Every loss's own gradient is scaled to one length, whatever its scale, then weighted; `audio.backward(result)`
    carries the sum to the weights.

    Args:
        losses: Scalars that depend on `audio`, by name.
        weights: A share for each name; they are normalised to sum to one.
        audio: The decoded audio, of any shape.
        scale_of: The loss whose own gradient's length is that one length, so that losses that do not pass through
            the audio keep their weight beside it; None for unit length.

    Returns:
        Of the shape of `audio`.

    Source: Defossez et al. 2022 (arXiv:2210.13438), section 3.4, without the moving average.
    """
    total = sum(weights[name] for name in losses)
    gradients = {name: torch.autograd.grad(loss, audio, retain_graph=True)[0] for name, loss in losses.items()}
    norms = {name: gradient.norm().clamp(min=1e-12) for name, gradient in gradients.items()}
    shares = [(weights[name] / total) * gradient / norms[name] for name, gradient in gradients.items()]
    return torch.stack(shares).sum(dim=0) * (1.0 if scale_of is None else norms[scale_of])
