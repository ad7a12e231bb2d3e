"""A picture of sounds, one above the other, on one time axis."""

from pathlib import Path

import torch
from torch import Tensor

WINDOW_SECONDS = 0.025
FLOOR_DB = -80.0


def save_spectrograms(
    path: str | Path, sounds: dict[str, Tensor], sampling_rate: int, up_to_hz: float | None = None
) -> None:
    """Write a PNG of log-magnitude spectrograms.

    Args:
        path: Where to.
        sounds: Title -> audio, `(1, samples)`, top to bottom.
        sampling_rate: Hz.
        up_to_hz: What is above is left out; None shows everything.

    Raises:
        ModuleNotFoundError: If the extra `demo` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "drawing spectrograms needs matplotlib; run pip install 'mimi-bridge[demo]'."
        ) from error
    figure = Figure(figsize=(10, 2.6 * len(sounds)), layout="constrained")
    for axes, (title, audio) in zip(figure.subplots(len(sounds), 1, squeeze=False)[:, 0], sounds.items(), strict=True):
        axes.imshow(
            log_magnitude(audio[0], sampling_rate).numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, audio.shape[-1] / sampling_rate, 0, sampling_rate / 2000),
            vmin=FLOOR_DB,
            vmax=0,
            cmap="magma",
        )
        axes.set(title=title, ylabel="kHz", ylim=(0, (up_to_hz or sampling_rate / 2) / 1000))
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def log_magnitude(audio: Tensor, sampling_rate: int) -> Tensor:
    """`(samples,)` -> `(frequencies, windows)` in dB below the loudest bin, not under `FLOOR_DB`."""
    size = round(WINDOW_SECONDS * sampling_rate)
    window = torch.hann_window(size)
    spectrum = torch.stft(audio.float().cpu(), size, size // 4, window=window, return_complex=True).abs()
    decibels = 20 * torch.log10(spectrum.clamp(min=1e-10))
    return (decibels - decibels.max()).clamp(min=FLOOR_DB)
