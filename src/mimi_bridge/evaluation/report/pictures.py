"""Sounds, pitch and codes as pictures small enough to lie inside a page.

Spectrograms are grey, dark where it is loud, as Praat draws them, so that a style sheet can turn them over for a dark
page. Pitch is a path on a logarithmic axis. A code is a shade of its head's colour: what repeats is seen, and nothing
else is meant by it.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 24_000
WINDOW = 1024  # samples
NUM_BANDS = 128
NUM_GREYS = 24  # more cost bytes, and are not seen
RANGE_DB = 65.0
MAX_COLUMNS = 1000
BAND_EDGES_HZ = (50.0, SAMPLING_RATE / 2)
FREQUENCY_TICKS_HZ = (1_000, 2_000, 4_000, 8_000)
PITCH_TICKS_HZ = (40, 50, 75, 100, 150, 200, 300, 400, 600, 800)
PITCH_HEIGHT = 100
LARGEST_JUMP = 1.3  # from one value to the next
NUM_SHADES = 61  # prime: neighbouring codes get different shades
HEAD_COLOURS = {"content": (0xC2, 0x51, 0x2F), "prosody": (0x1F, 0x8A, 0x70), "acoustic": (0x4A, 0x6F, 0xB5)}


def png(pixels: Tensor, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Indices into a palette, `(rows, columns)` of uint8, as a PNG file.

    Source: the PNG specification, third edition, sections 5 and 11: colour type 3, no interlace, filter 0.
    """
    rows, columns = pixels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    filtered = torch.cat([torch.zeros(rows, 1, dtype=torch.uint8), pixels.to(torch.uint8)], dim=1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(value for colour in palette for value in colour))
        + chunk(b"IDAT", zlib.compress(filtered.numpy().tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def band_levels(audio: Tensor, seconds: float) -> Tensor:
    """Levels of mel bands, rising with frequency as Praat's do (6 dB an octave).

    Args:
        audio: `(samples,)` at `SAMPLING_RATE`.
        seconds: What the picture spans; audio is cut or followed by silence.

    Returns:
        `(NUM_BANDS, columns)` in dB, low bands first.
    """
    num_samples = max(round(seconds * SAMPLING_RATE), WINDOW)
    audio = torch.nn.functional.pad(audio.float(), (0, max(0, num_samples - len(audio))))[:num_samples]
    hop = max(SAMPLING_RATE // 100, -(-num_samples // MAX_COLUMNS))
    window = torch.hann_window(WINDOW)
    power = torch.stft(audio, WINDOW, hop, window=window, return_complex=True, pad_mode="constant").abs().square()
    frequencies = torch.linspace(0, SAMPLING_RATE / 2, power.shape[0])
    filters = mel_filter_bank(power.shape[0], NUM_BANDS, *BAND_EDGES_HZ, SAMPLING_RATE, mel_scale="htk")
    bands = torch.from_numpy(filters).float()  # a band narrower than a bin takes the nearest bin
    centres = torch.tensor([band_centre_hz(number) for number in range(NUM_BANDS)])
    nearest = (frequencies[:, None] - centres).abs().argmin(dim=0)
    bands[nearest, torch.arange(NUM_BANDS)] += (bands.sum(dim=0) < 0.5).float()
    emphasised = power * frequencies[:, None].div(1_000).square()
    return 10 * torch.log10((bands / bands.sum(dim=0)).T @ emphasised + 1e-12)


def spectrogram(levels: Tensor, loudest_db: float) -> bytes:
    """`(bands, columns)` in dB as a PNG, black at `loudest_db` and louder, white `RANGE_DB` below it."""
    share = ((levels - loudest_db) / RANGE_DB + 1).clamp(0, 1)
    greys = [(255 - round(255 * step / (NUM_GREYS - 1)),) * 3 for step in range(NUM_GREYS)]
    return png((share * (NUM_GREYS - 1)).round().flip(0), greys)


def mel(hertz: float) -> float:
    """HTK's mel scale."""
    return 2595 * math.log10(1 + hertz / 700)


def band_centre_hz(band: int) -> float:
    """The middle of a mel band of `band_levels`."""
    low, high = (mel(edge) for edge in BAND_EDGES_HZ)
    return 700 * (10 ** ((low + (high - low) * (band + 1) / (NUM_BANDS + 1)) / 2595) - 1)


def frequency_ticks() -> list[tuple[str, float]]:
    """Labels of the spectrogram's axis, and how far above its foot each stands, from 0 to 1."""
    low, high = (mel(edge) for edge in BAND_EDGES_HZ)
    return [(f"{hertz / 1_000:g}", (mel(hertz) - low) / (high - low)) for hertz in FREQUENCY_TICKS_HZ]


def pitch_range(tracks: Sequence[Sequence[float | None]]) -> tuple[float, float] | None:
    """The lowest and highest pitch, in Hz, that a picture of the tracks should span; None if nothing is voiced."""
    voiced = sorted(hertz for track in tracks for hertz in track if is_voiced(hertz))
    if not voiced:
        return None
    low, high = (voiced[round(share * (len(voiced) - 1))] for share in (0.01, 0.99))  # octave errors may leave it
    return low / 1.12, high * 1.12


def pitch_path(track: Sequence[float | None], span: tuple[float, float]) -> str:
    """The `d` of an SVG path: a unit to the right a value, `PITCH_HEIGHT` units from `span[1]` down to `span[0]`.

    The line breaks where nothing is voiced, and where pitch jumps by more than `LARGEST_JUMP`, as a tracker's octave
    errors do.
    """
    commands: list[str] = []
    before: float | None = None
    for index, hertz in enumerate(track):
        if is_voiced(hertz):
            height = PITCH_HEIGHT * (1 - share_of_octaves(hertz, span))
            point = f"{index} {min(max(height, -9), PITCH_HEIGHT + 9):.1f}"
            follows = before is not None and max(hertz / before, before / hertz) < LARGEST_JUMP
            commands.append(f"L{point}" if follows else f"M{point}h.1")  # h.1: a single voiced value is a dot
        before = hertz if is_voiced(hertz) else None
    return "".join(commands)


def pitch_ticks(span: tuple[float, float]) -> list[tuple[str, float]]:
    """Labels of the pitch axis, and how far above its foot each stands, from 0 to 1."""
    return [(f"{hertz}", share_of_octaves(hertz, span)) for hertz in PITCH_TICKS_HZ if span[0] < hertz < span[1]]


def share_of_octaves(hertz: float, span: tuple[float, float]) -> float:
    """Where a pitch lies between two, on a logarithmic axis: 0 at the lower, 1 at the higher."""
    return math.log(hertz / span[0]) / math.log(span[1] / span[0])


def is_voiced(hertz: float | None) -> TypeGuard[float]:
    """Whether a value of a pitch track is a pitch: neither None, NaN nor 0."""
    return isinstance(hertz, int | float) and 0 < hertz < float("inf")


def code_stripes(codes: Tensor, head: str) -> bytes:
    """Codes of a head, `(codebooks, frames)`, as a PNG of a pixel a code."""
    colour = HEAD_COLOURS.get(head, (0x80, 0x80, 0x80))
    palette = []
    for shade in range(NUM_SHADES):
        weight = 0.55 * shade / (NUM_SHADES - 1) - 0.2  # of white; of black where it is negative
        red, green, blue = (round(value + ((255 if weight > 0 else 0) - value) * abs(weight)) for value in colour)
        palette.append((red, green, blue))
    return png((codes * 23) % NUM_SHADES, palette)
