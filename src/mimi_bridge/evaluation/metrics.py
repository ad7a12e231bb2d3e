"""Metrics of decoded audio and of codes: pure functions, one recording at a time.

Each metric compares decoded audio with the original. STOI and PESQ were made for telephony: STOI looks below 4.3 kHz,
wideband PESQ below 7 kHz. SI-SDR compares samples, which a codec that was trained on spectra does not try to match.
The packages (extra `eval`): torchmetrics, pystoi, pesq, praat-parselmouth.

Source: Le Roux et al. 2019 (SI-SDR); Taal et al. 2011 (STOI); ITU-T P.862.2 (PESQ).
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.sound import WIDEBAND_RATE, Sound
from ..losses.reconstruction import multi_scale_mel_distance

MAX_DB = 100.0


@dataclass(frozen=True)
class Metric:
    """A metric of decoded audio.

    Attributes:
        measure: Takes the decoded sound and the original, of one shape; None where there is nothing to measure.
        what: The metric in a few words, with its unit.
        higher_is_better: Whether a higher value is better.
        package: The package it needs, as it is imported; None if it needs none.
        distribution: The name of that package for pip.
        weight: The weight of a recording in the mean, from the original; None weights all recordings alike.
    """

    measure: Callable[[Sound, Sound], float | None]
    what: str
    higher_is_better: bool
    package: str | None = None
    distribution: str | None = None
    weight: Callable[[Sound], float] | None = None


@contextmanager
def raised_by(name: str) -> Iterator[None]:
    """Raise any exception of third-party code as a `RuntimeError` that names the code."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{name} raised {type(error).__name__}: {error}") from error


def mel_distance(decoded: Sound, original: Sound) -> float:
    """`multi_scale_mel_distance`: 0 is equal, 0.1 a mean error of 0.87 dB."""
    return multi_scale_mel_distance(decoded.audio[None], original.audio[None], original.sampling_rate).item()


def si_sdr(decoded: Sound, original: Sound) -> float | None:
    """Scale-invariant ratio of the original's power in the decoded sound to the power of everything else there, in dB.

    None above 100 dB: for equal sounds it is infinite.
    """
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    with raised_by("torchmetrics"):
        value = scale_invariant_signal_distortion_ratio(decoded.audio[0].double(), original.audio[0].double()).item()
    return value if value <= MAX_DB and math.isfinite(value) else None


def stoi(decoded: Sound, original: Sound) -> float | None:
    """Intelligibility, 0 to 1; None with less than 0.4 s of speech in it."""
    from pystoi import stoi as measure

    samples = original.samples, decoded.samples
    with warnings.catch_warnings(), raised_by("pystoi"):
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(*samples, original.sampling_rate))
        except RuntimeWarning:
            return None


def pesq(decoded: Sound, original: Sound) -> float | None:
    """MOS-LQO, 1.04 to 4.64; None where PESQ finds no speech."""
    from pesq import NoUtterancesError
    from pesq import pesq as measure

    samples = original.wideband, decoded.wideband
    with raised_by("pesq"):
        try:
            return float(measure(WIDEBAND_RATE, *samples, "wb"))
        except NoUtterancesError:
            return None


def f0_error(decoded: Sound, original: Sound) -> float | None:
    """Root mean square of the pitch's error in cents, where both are voiced; None if they are nowhere."""
    both = (decoded.f0_hz > 0) & (original.f0_hz > 0)
    if not both.any():
        return None
    octaves = torch.log2(decoded.f0_hz[both] / original.f0_hz[both])
    return 1200 * octaves.square().mean().sqrt().item()


def voicing_error(decoded: Sound, original: Sound) -> float:
    """Share of time that is voiced in one and not in the other, 0 to 1."""
    return ((decoded.f0_hz > 0) != (original.f0_hz > 0)).float().mean().item()


METRICS: dict[str, Metric] = {
    "mel": Metric(mel_distance, "mel distance, nepers", False),
    "si_sdr": Metric(si_sdr, "SI-SDR, dB", True, "torchmetrics", "torchmetrics"),
    "stoi": Metric(stoi, "STOI, 0 to 1", True, "pystoi", "pystoi"),
    "pesq": Metric(pesq, "PESQ, MOS-LQO", True, "pesq", "pesq"),
    "f0_cents": Metric(f0_error, "F0 error, cents", False, "parselmouth", "praat-parselmouth"),
    "voicing_error": Metric(voicing_error, "voicing error, share", False, "parselmouth", "praat-parselmouth"),
}


def missing_packages() -> dict[str, str]:
    """Metrics that cannot run here, with the package that each needs."""
    return {
        name: metric.distribution or metric.package
        for name, metric in METRICS.items()
        if metric.package is not None and importlib.util.find_spec(metric.package) is None
    }


def reconstruction_metrics(decoded: Tensor, original: Tensor, sampling_rate: int) -> dict[str, float]:
    """Every metric of `METRICS` for one decoded recording.

    Args:
        decoded: `(1, samples)`.
        original: Of the same shape; one second or more, with speech in it.
        sampling_rate: Hz.

    Returns:
        Values by name, without metrics whose package is missing (`missing_packages`) or that find nothing to measure.

    Raises:
        ValueError: If the shapes differ.
    """
    if decoded.shape != original.shape:
        raise ValueError(
            f"decoded and original must have one shape, got {tuple(decoded.shape)} and {tuple(original.shape)}."
        )
    sounds = Sound(decoded, sampling_rate), Sound(original, sampling_rate)
    missing = missing_packages()
    figures = {name: metric.measure(*sounds) for name, metric in METRICS.items() if name not in missing}
    return {name: value for name, value in figures.items() if value is not None}


def codebook_usage(codes: Tensor, codebook_size: int) -> list[tuple[int, float]]:
    """For each codebook, how many entries are used and the perplexity of the codes.

    Args:
        codes: Of all recordings, `(codebooks, frames)`.
        codebook_size: Entries of a codebook.

    Returns:
        Entries used, and two to the power of the codes' entropy in bits: the size of an evenly used codebook of the
        same entropy.
    """
    figures = []
    for row in codes:
        counts = torch.bincount(row, minlength=codebook_size)
        figures.append((int((counts > 0).sum()), math.exp(entropy(counts))))
    return figures


def entropy(counts: Tensor) -> float:
    """Of what was counted so often, in nats."""
    shares = counts[counts > 0].double() / counts.sum()
    return -(shares * shares.log()).sum().item()
