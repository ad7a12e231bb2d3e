"""What a page lets hear and see: examples and swaps, with their sounds and pictures inside it.

A page that opens on a phone cannot hold everything: recordings are taken in order until they weigh `max_bytes`, and
the others are named. Sounds become mp3, which every browser plays; pictures are drawn from the files themselves.
"""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from ...audio.files import load_audio
from .pictures import (
    SAMPLING_RATE,
    band_levels,
    code_stripes,
    frequency_ticks,
    pitch_path,
    pitch_range,
    pitch_ticks,
    spectrogram,
)
from .values import Values

PITCH_RATE = 100.0  # Hz
FRAME_RATE = 12.5  # Hz
MARKUP_BYTES = 1_500  # around a sound, roughly
SILENCE_DB = -20.0  # of `band_levels`: what is white even if there is nothing louder
MP3_QUALITY = 0.5  # libsndfile's compression level, at a constant bit rate: 80 kbit/s


@dataclass
class Sound:
    """One player: a sound and its spectrogram, or why there is none."""

    system: int | None
    label: str
    audio: str = ""
    spectrogram: str = ""
    missing: str = ""


@dataclass
class Pitch:
    """Pitch tracks of several systems: `lines` holds a system's number, its label and an SVG path."""

    lines: list[tuple[int, str, str]]
    ticks: list[tuple[str, float]]


@dataclass
class Stripe:
    """A head's codes: a picture of a row a codebook, and the numbers, a text a codebook."""

    head: str
    seconds: float
    image: str
    numbers: list[str]


@dataclass
class Figure:
    """One example or swap on one time axis of `seconds`."""

    number: int
    seconds: float
    sounds: list[Sound]
    pitch: Pitch | None = None
    codes: list[Stripe] = field(default_factory=list)
    time_ticks: list[tuple[str, float]] = field(default_factory=list)
    frequency_ticks: list[tuple[str, float]] = field(default_factory=frequency_ticks)

    @property
    def num_bytes(self) -> int:
        """What its sounds, pictures and codes weigh in the page."""
        texts = [path for _, _, path in self.pitch.lines] if self.pitch else []
        texts += [sound.audio + sound.spectrogram for sound in self.sounds]
        texts += [text for stripe in self.codes for text in (stripe.image, *stripe.numbers)]
        return sum(map(len, texts)) + MARKUP_BYTES * len(self.sounds)


@dataclass
class Listening:
    """The figures a page holds, and how many of the evaluation's it leaves out."""

    examples: list[Figure]
    swaps: list[Figure]
    num_left_out: dict[str, int]


def prepare_listening(folder: Path, values: Values, max_bytes: int) -> Listening:
    """Read sounds, draw pictures, until the page is full.

    Args:
        folder: Where the evaluation lies.
        values: The evaluation.
        max_bytes: What examples may weigh, and a third of it what swaps may.

    Raises:
        ValueError: If a sound lies outside the folder.
    """
    labels = {system["name"]: system.get("label") or system["name"] for system in values.get("systems") or []}
    listening = Listening([], [], {})
    for kind, figures, limit, draw in (
        ("examples", listening.examples, max_bytes, _example),
        ("swaps", listening.swaps, max_bytes // 3, _swap),
    ):
        entries = values.get(kind) or []
        for number, entry in enumerate(entries):
            figure = draw(folder, number, entry, labels)
            limit -= figure.num_bytes
            if limit < 0:
                break
            figures.append(figure)
        listening.num_left_out[kind] = len(entries) - len(figures)
    return listening


def _example(folder: Path, number: int, entry: dict[str, Any], labels: dict[str, str]) -> Figure:
    paths = entry.get("audio") or {}
    tracks = {name: track for name, track in (entry.get("f0_hz") or {}).items() if track}
    names = list(dict.fromkeys([*labels, *paths, *tracks]))
    named = [(index, labels.get(name, name), paths.get(name)) for index, name in enumerate(names)]
    figure = _figure(folder, number, named, max((len(track) / PITCH_RATE for track in tracks.values()), default=0.0))
    span = pitch_range(list(tracks.values()))
    if span is not None:
        lines = [
            (index, labels.get(name, name), pitch_path(tracks[name], span))
            for index, name in enumerate(names)
            if name in tracks
        ]
        figure.pitch = Pitch(lines, pitch_ticks(span))
    figure.codes = _stripes(entry.get("codes") or [])
    return figure


def _swap(folder: Path, number: int, entry: dict[str, Any], labels: dict[str, str]) -> Figure:
    return _figure(folder, number, [(None, "Swapped", entry.get("audio"))])


def _figure(
    folder: Path, number: int, named: Sequence[tuple[int | None, str, str | None]], seconds: float = 0.0
) -> Figure:
    """Sounds on one time axis, as long as the longest, or `seconds` if there are none; black is the first's peak."""
    sounds: list[Sound] = []
    loaded: list[tuple[Sound, Tensor]] = []
    for system, label, path in named:
        sound = Sound(system, label)
        sounds.append(sound)
        file = sound_file(folder, path) if path else None
        if file is None:
            sound.missing = f"no file {path}" if path else "not decoded"
            continue
        try:
            loaded.append((sound, load_audio(file, SAMPLING_RATE)[0]))
        except ValueError as error:  # one broken sound costs no page
            sound.missing = str(error).removeprefix(f"{folder}/").rstrip(".")
    seconds = max((len(audio) / SAMPLING_RATE for _, audio in loaded), default=seconds)
    loudest = None
    for sound, audio in loaded:
        levels = band_levels(audio, seconds)
        loudest = max(float(levels.max()), SILENCE_DB) if loudest is None else loudest
        sound.spectrogram = data_uri("image/png", spectrogram(levels, loudest))
        sound.audio = data_uri("audio/mpeg", mp3(audio))
    return Figure(number, seconds, sounds, time_ticks=time_ticks(seconds))


def _stripes(codes: list[list[int]]) -> list[Stripe]:
    """A picture for each head, of its codebooks' rows."""
    heads = {"content": codes[:1], "prosody": codes[1:2], "acoustic": codes[2:]}
    return [
        Stripe(
            head,
            seconds=len(rows[0]) / FRAME_RATE,
            image=data_uri("image/png", code_stripes(torch.tensor(rows), head)),
            numbers=[" ".join(map(str, row)) for row in rows],
        )
        for head, rows in heads.items()
        if rows and rows[0]
    ]


def sound_file(folder: Path, path: str) -> Path | None:
    """A sound of the evaluation; None if there is no such file.

    Raises:
        ValueError: If it lies outside the folder.
    """
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(
            f"a sound of the evaluation must lie inside {folder}, got {path!r}; a report embeds no other."
        )
    return file if file.is_file() else None


def time_ticks(seconds: float) -> list[tuple[str, float]]:
    """Labels of a time axis, at most ten or so, and where each stands, from 0 to 1."""
    if seconds <= 0:
        return []
    step = next((step for step in (0.5, 1, 2, 5, 10, 30, 60) if seconds / step <= 8), 300)
    return [(f"{count * step:g}", count * step / seconds) for count in range(int(seconds / step) + 1)]


def mp3(audio: Tensor) -> bytes:
    """Mono samples, `(samples,)` at `SAMPLING_RATE`, as an mp3 file."""
    file = io.BytesIO()
    soundfile.write(
        file,
        audio.clamp(-1, 1).numpy(),
        SAMPLING_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=MP3_QUALITY,
    )
    return file.getvalue()


def data_uri(media_type: str, content: bytes) -> str:
    """A file as an address that holds it.

    >>> data_uri("text/plain", b"a")
    'data:text/plain;base64,YQ=='
    """
    return f"data:{media_type};base64,{b64encode(content).decode()}"
