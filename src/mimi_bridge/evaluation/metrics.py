"""Figures of decoded audio and of codes: pure functions, one recording at a time.

STOI and PESQ come from pystoi and pesq (extra `eval`); both were made for telephones: STOI listens below 4.3 kHz,
PESQ, wide band, below 7 kHz.
"""

import importlib.util

import soxr
import torch
from torch import Tensor

from ..losses.reconstruction import multi_scale_mel_distance

PESQ_RATE = 16_000
PACKAGES = {"stoi": "pystoi", "pesq": "pesq"}


def missing_packages() -> dict[str, str]:
    """Metrics that cannot run here, with the package each lacks."""
    return {name: package for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}


def reconstruction_metrics(decoded: Tensor, original: Tensor, sampling_rate: int) -> dict[str, float]:
    """Distance and likeness of a recording and what was made of it.

    Args:
        decoded: `(1, samples)`.
        original: Of the same shape; one second or more, with speech in it.
        sampling_rate: Hz.

    Returns:
        `mel`: `multi_scale_mel_distance`, 0 is equal; `stoi`: 0 to 1; `pesq`: MOS-LQO, 1.04 to 4.64. A metric whose
        package is missing (`missing_packages`), or that hears no speech, is left out.

    Raises:
        ValueError: If the shapes differ.

    Source: Taal et al. 2011 (STOI); ITU-T P.862.2 (PESQ).
    """
    figures = {"mel": multi_scale_mel_distance(decoded[None], original[None], sampling_rate).item()}
    missing = missing_packages()
    if "stoi" not in missing:
        from pystoi import stoi

        figures["stoi"] = float(stoi(original[0].double().numpy(), decoded[0].double().numpy(), sampling_rate))
    if "pesq" not in missing:
        from pesq import NoUtterancesError, pesq

        reference, degraded = (
            soxr.resample(audio[0].float().numpy(), sampling_rate, PESQ_RATE) for audio in (original, decoded)
        )
        try:
            figures["pesq"] = float(pesq(PESQ_RATE, reference, degraded, "wb"))
        except NoUtterancesError:
            pass
    return figures


def codebook_usage(codes: Tensor, codebook_size: int) -> list[tuple[int, float]]:
    """For each codebook, how many entries are used and the perplexity of the codes.

    Args:
        codes: Of all recordings, `(codebooks, frames)`.
        codebook_size: Entries of a codebook.

    Returns:
        Entries used, and two to the power of the codes' entropy in bits: the size of an evenly used codebook that
        would tell as much.
    """
    figures = []
    for row in codes:
        counts = torch.bincount(row, minlength=codebook_size).double()
        shares = counts[counts > 0] / counts.sum()
        figures.append((int((counts > 0).sum()), float(torch.exp(-(shares * shares.log()).sum()))))
    return figures
