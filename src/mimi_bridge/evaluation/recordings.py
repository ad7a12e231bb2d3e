"""One recording measured by every metric in every system, and the journal that keeps what is measured.

A metric that raises loses its own number of this recording and nothing else; what only a fault of this package raises
ends the evaluation, so that it is seen. The journal is a file with a line for
each recording; an evaluation that was killed goes on after the last whole line, if nothing else has changed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from ..atomic_files import write_whole
from ..audio.files import save_audio
from ..data.alignment.types import Aligner
from ..data.made_speech import PREFIX, load_utterance
from ..data.manifest import Utterance
from .labels import energy_labels, phone_labels, pitch_labels, spans_of, word_labels
from .metrics import Metric
from .sound import Sound
from .systems import ORIGINAL, Systems

NARROW_HZ = 16_000  # recordings at or below have nothing above 8 kHz
PITCH_DECIMALS = 1
# What recordings, models, libraries and machines may be to blame for, and not a fault of this package.
EXPECTED = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError, MemoryError)


@dataclass
class Workbench:
    """What recordings are measured with.

    Attributes:
        systems: Compared.
        metrics: By name.
        most_seconds: Of a recording; the rest is not looked at.
        with_pitch: Whether pitch can be measured.
        with_labels: Whether phones and words are wanted.
        aligner: For recordings without alignment, or None.
    """

    systems: Systems
    metrics: dict[str, Metric]
    most_seconds: float = 30.0
    with_pitch: bool = True
    with_labels: bool = True
    aligner: Aligner | None = None

    def measure(self, utterance: Utterance, audio_folder: Path | None = None) -> dict:
        """One line of the journal.

        Args:
            utterance: The recording.
            audio_folder: Where an example's sounds go; None for one that is no example.

        Returns:
            Codes, frame labels, figures by system and metric, `weights` in the mean by metric where they differ,
            `remarks`, what is odd about the recording, and `failures`, what raised, by name. Ready for json.
        """
        entry: dict[str, Any] = {"id": utterance.id, "speaker": utterance.speaker, "text": utterance.text}
        failures: dict[str, str] = {}
        entry |= {"figures": {}, "weights": {}, "remarks": [], "failures": failures}
        original = attempt(failures, "recordings", lambda: self._load(utterance, entry))
        if original is None:
            return entry
        sounds = {ORIGINAL: original}
        codes = attempt(failures, "codes", lambda: self.systems.encode(original.audio))
        stock_codes = None
        if self.systems.stock is not None:
            stock_codes = attempt(failures, "stock Mimi", lambda: self.systems.encode_stock(original.audio))
        entry["codes"] = None if codes is None else codes.tolist()
        entry["stock_codes"] = None if stock_codes is None else stock_codes.tolist()
        for system in self.systems.labels():
            own = stock_codes if system == self.systems.stock_name else codes
            if system != ORIGINAL and own is not None:
                decoded = attempt(failures, system, lambda: self._decode(system, own, original))  # noqa: B023
                if decoded is not None:
                    sounds[system] = decoded
        for system, sound in sounds.items():
            figures = {
                name: attempt(failures, name, lambda: _finite(metric.measure(sound, original)))  # noqa: B023
                for name, metric in self.metrics.items()
            }
            entry["figures"][system] = {name: value for name, value in figures.items() if value is not None}
        for name in {name for figures in entry["figures"].values() for name in figures}:
            if (weight := self.metrics[name].weight) is not None:
                entry["weights"][name] = weight(original)
        if codes is not None:
            entry["labels"] = self._labels(utterance, original, codes.shape[1], failures)
        if audio_folder is not None:
            entry["example"] = attempt(failures, "examples", lambda: self._example(utterance, sounds, audio_folder))
        return entry

    def _load(self, utterance: Utterance, entry: dict) -> Sound:
        rate = self.systems.model.config.sampling_rate
        audio = load_utterance(utterance, rate, entry["remarks"].append)
        kept = audio[:, : round(self.most_seconds * rate)]
        made = utterance.id.startswith(PREFIX)
        narrow = not made and soundfile.info(utterance.path).samplerate <= NARROW_HZ
        entry |= {"seconds": kept.shape[-1] / rate, "band": "narrow_band" if narrow else "full_band"}
        if kept.shape[-1] < audio.shape[-1]:
            entry["text"] = None  # it says more than is heard
        return Sound(kept, rate, entry["text"])

    def _decode(self, system: str, codes: Tensor, original: Sound) -> Sound:
        audio = self.systems.decode(system, codes, original.audio.shape[-1])
        return Sound(audio, original.sampling_rate, original.text)

    def _labels(self, utterance: Utterance, sound: Sound, num_frames: int, failures: dict[str, str]) -> dict:
        config = self.systems.model.config
        rate, unknown = config.frame_rate, [None] * num_frames
        spans = None
        if self.with_labels:
            cut = sound.text is None and utterance.text is not None and utterance.alignment is None
            if cut:
                failures["phones and words"] = "the recording was cut, so its transcript does not fit."
            else:
                spans = attempt(failures, "phones and words", lambda: spans_of(utterance, sound, self.aligner))
        phones, words = spans or ([], [])
        pitch = None
        if self.with_pitch:
            pitch = attempt(failures, "pitch", lambda: pitch_labels(sound.f0_hz, num_frames, rate))
        return {
            "phone": phone_labels(phones, num_frames, rate),
            "word": word_labels(words, num_frames, rate),
            "pitch": pitch or unknown,
            "energy": energy_labels(sound.audio, num_frames, config.frame_size),
        }

    def _example(self, utterance: Utterance, sounds: dict[str, Sound], folder: Path) -> dict:
        audio, f0_hz = {}, {}
        for system, sound in sounds.items():
            name = f"{_file_name(utterance.id)}_{system}.wav"
            save_audio(folder / name, sound.audio, sound.sampling_rate)
            audio[system] = f"{folder.name}/{name}"
            if self.with_pitch:
                f0_hz[system] = [round(hz, PITCH_DECIMALS) if hz > 0 else None for hz in sound.f0_hz.tolist()]
        return {"audio": audio, "f0_hz": f0_hz}


def attempt(failures: dict[str, str], name: str, action: Callable[[], Any]) -> Any:
    """What the action returns; if it raises one of `EXPECTED`, None, and why under its name."""
    try:
        return action()
    except EXPECTED as error:
        failures[name] = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        return None


@dataclass
class Journal:
    """Lines of json on disk, the first of them saying what was measured how.

    Attributes:
        path: The file.
        settings: Anything ready for json; a file with others is begun anew.
        entries: By recording, as they were found or added.
    """

    path: Path
    settings: dict
    entries: dict[str, dict] = field(default_factory=dict)

    def open(self) -> int:
        """Read what is there, drop what is not whole; returns how many recordings are done."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.is_file() else []
        whole = [line for line in map(_parsed, lines) if line is not None]
        if not whole or whole[0] != {"settings": self.settings}:
            whole = [{"settings": self.settings}]
        self.entries = {entry["id"]: entry for entry in whole[1:]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in whole).encode())
        return len(self.entries)

    def add(self, entry: dict) -> None:
        """Keep a recording's line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.entries[entry["id"]] = entry


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"the metric gave {value}.")
    return value


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-." else "_" for character in name)
