"""A discriminator that is cheap enough for a CPU: of samples folded by several periods, and of spectra.

Samples one period apart show whether speech is periodic; spectra show its harmonics, by default up to 6 kHz. Every
layer is strided, so that the whole costs less than one decoding. Scores and features have the form of
`MultiScaleSpectrogramDiscriminator`'s, so its losses apply.

Source: Kong et al. 2020 (arXiv:2010.05646), section 2.3: periods; Defossez et al. 2022 (arXiv:2210.13438), section
3.4: complex spectra.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mimi_bridge.losses.reconstruction import hann_window

PERIODS = (2, 3, 5, 7, 11)  # samples
WINDOWS = (2048, 512)  # samples
BAND = 0.5  # share of the frequencies: up to 6 kHz at 24 kHz


class NarrowDiscriminator(nn.Module):
    """One stack of strided convolutions a period, and one a window.

    Args:
        num_filters: Channels of the first layer; they double twice.
        periods: In samples.
        windows: In samples.
        band: Share of the frequencies, from the lowest, that the spectra show.

    Raises:
        ValueError: If `band` is no share above 0.
    """

    def __init__(
        self,
        num_filters: int,
        periods: tuple[int, ...] = PERIODS,
        windows: tuple[int, ...] = WINDOWS,
        band: float = BAND,
    ):
        super().__init__()
        if not 0 < band <= 1:
            raise ValueError(f"band must be above 0 and at most 1, got {band}.")
        self.periods, self.windows, self.band = periods, windows, band
        self.by_period = nn.ModuleList(_Stack(1, num_filters, (5, 1), (3, 1)) for _ in periods)
        self.by_window = nn.ModuleList(_Stack(2, num_filters, (3, 5), (1, 2)) for _ in windows)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Scores, high for real audio, and features of each stack, for audio `(batch, 1, samples)`."""
        pairs = [(stack, _folded(audio, period)) for stack, period in zip(self.by_period, self.periods, strict=True)]
        pairs += [
            (stack, _spectrum(audio, window, self.band))
            for stack, window in zip(self.by_window, self.windows, strict=True)
        ]
        return [stack(seen) for stack, seen in pairs]


class _Stack(nn.Module):
    def __init__(self, channels: int, num_filters: int, kernel: tuple[int, int], stride: tuple[int, int]):
        super().__init__()
        widths = [channels, num_filters, 2 * num_filters, 4 * num_filters, 4 * num_filters]
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(ins, outs, kernel, stride, padding)) for ins, outs in pairwise(widths)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.1)
            features.append(hidden)
        return self.score(hidden), features


def _folded(audio: Tensor, period: int) -> Tensor:
    # `(batch, 1, samples / period, period)`; samples that fill no period are left out.
    return audio[..., : audio.shape[-1] // period * period].unflatten(-1, (-1, period))


def _spectrum(audio: Tensor, window: int, share: float) -> Tensor:
    # Real and imaginary parts of the lower share of the frequencies, `(batch, 2, hops, bins)`.
    hann = hann_window(window, audio.device)
    spectrum = torch.stft(
        audio[:, 0].float(), window, window // 4, window=hann, pad_mode="constant", return_complex=True
    )
    band = spectrum[:, : round(share * (window // 2))] * (4 / hann.sum().sqrt())
    return torch.view_as_real(band).permute(0, 3, 2, 1).contiguous()
