"""Measure one recording with every metric in every system, and keep the measurements in a results log.

A metric that raises loses its own number for this recording and nothing else. Exceptions that only a fault of this
package can cause end the evaluation, so that they are noticed. The log is a file with one line for each recording; an
interrupted evaluation resumes after the last complete line, if its settings are still the same.
"""

import hashlib
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
from ..audio.sound import WIDEBAND_RATE, Sound
from ..data.alignment.types import Aligner
from ..data.made_speech import is_made, load_utterance
from ..data.manifest import Utterance
from .labels import energy_labels, phone_labels, pitch_labels, spans_of, word_labels
from .metrics import Metric
from .systems import ORIGINAL, Systems

MAX_PLAIN = 60  # characters of an id in a file name, which may take four bytes each
PITCH_DECIMALS = 1
# What a recording, a model, a library or the machine may cause, as opposed to a fault of this package.
EXPECTED = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError, MemoryError)


@dataclass
class RecordingEvaluator:
    """Measures recordings, one at a time.

    Attributes:
        systems: To be compared.
        metrics: By name.
        max_seconds: Of a recording; the rest is ignored.
        with_pitch: Whether pitch can be measured.
        with_labels: Whether phones and words are wanted.
        aligner: For recordings without alignment, or None.
    """

    systems: Systems
    metrics: dict[str, Metric]
    max_seconds: float = 30.0
    with_pitch: bool = True
    with_labels: bool = True
    aligner: Aligner | None = None

    def measure(self, utterance: Utterance, audio_folder: Path | None = None) -> dict:
        """Measure one recording: one line of the log.

        Args:
            utterance: The recording.
            audio_folder: Where to write its decoded audio, if it is an example; else None.

        Returns:
            Codes, frame labels, figures by system and metric, `weights` in the mean by metric where they differ,
            `remarks` about the recording, and `failures`, the exceptions by name. Ready for json.
        """
        entry: dict[str, Any] = {"id": utterance.id, "speaker": utterance.speaker, "text": utterance.text}
        failures: dict[str, str] = {}
        entry |= {"figures": {}, "weights": {}, "remarks": [], "failures": failures}
        original = run_or_record_failure(failures, "recordings", lambda: self._load(utterance, entry))
        if original is None:
            return entry
        sounds = {ORIGINAL: original}
        codes = run_or_record_failure(failures, "codes", lambda: self.systems.encode(original.audio))
        stock_codes = None
        if self.systems.stock is not None:
            stock_codes = run_or_record_failure(
                failures, "stock Mimi", lambda: self.systems.encode_stock(original.audio)
            )
        entry["codes"] = None if codes is None else codes.tolist()
        entry["stock_codes"] = None if stock_codes is None else stock_codes.tolist()
        for system in self.systems.labels():
            own = stock_codes if system == self.systems.stock_name else codes
            if system != ORIGINAL and own is not None:
                decoded = run_or_record_failure(failures, system, lambda: self._decode(system, own, original))  # noqa: B023
                if decoded is not None:
                    sounds[system] = decoded
        for system, sound in sounds.items():
            figures = {
                name: run_or_record_failure(failures, name, lambda: _finite(metric.measure(sound, original)))  # noqa: B023
                for name, metric in self.metrics.items()
            }
            entry["figures"][system] = {name: value for name, value in figures.items() if value is not None}
        for name in {name for figures in entry["figures"].values() for name in figures}:
            if (weight := self.metrics[name].weight) is not None:
                entry["weights"][name] = weight(original)
        if codes is not None:
            entry["labels"] = self._labels(utterance, original, codes.shape[1], failures)
        if audio_folder is not None:
            entry["example"] = run_or_record_failure(
                failures, "examples", lambda: self._example(utterance, sounds, audio_folder)
            )
        return entry

    def _load(self, utterance: Utterance, entry: dict) -> Sound:
        rate = self.systems.model.config.sampling_rate
        audio = load_utterance(utterance, rate, entry["remarks"].append)
        kept = audio[:, : round(self.max_seconds * rate)]
        made = is_made(utterance)
        # At 16 kHz or less, nothing lies above 8 kHz.
        is_wideband = not made and soundfile.info(utterance.path).samplerate <= WIDEBAND_RATE
        entry |= {"seconds": kept.shape[-1] / rate, "band": "wideband" if is_wideband else "full_band"}
        if kept.shape[-1] < audio.shape[-1]:
            entry["text"] = None  # the transcript is of the whole recording
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
                spans = run_or_record_failure(
                    failures, "phones and words", lambda: spans_of(utterance, sound, self.aligner)
                )
        phones, words = spans or ([], [])
        pitch = None
        if self.with_pitch:
            pitch = run_or_record_failure(failures, "pitch", lambda: pitch_labels(sound.f0_hz, num_frames, rate))
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


def run_or_record_failure(failures: dict[str, str], name: str, action: Callable[[], Any]) -> Any:
    """Run the action; if it raises one of `EXPECTED`, record the reason under its name and return None."""
    try:
        return action()
    except EXPECTED as error:
        failures[name] = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        return None


def as_it_is(utterance: Utterance) -> tuple:
    """What changes if the recording, its alignment or what is known of it does."""
    files = [path for path in (utterance.path, utterance.alignment) if path is not None]
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None for path in files]
    return (*map(str, files), *stamps, utterance.id, utterance.speaker, utterance.text, utterance.start, utterance.end)


@dataclass
class ResultsLog:
    """A file of json lines, one a recording, after a first line with the settings.

    Attributes:
        path: The file.
        settings: Ready for json; a file with other settings is started again.
        entries: By recording, read from the file or added.
    """

    path: Path
    settings: dict
    entries: dict[str, dict] = field(default_factory=dict)

    def open(self) -> int:
        """Read the file, drop incomplete lines, and return how many recordings are done."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.is_file() else []
        whole = [line for line in map(_parsed, lines) if line is not None]
        if not whole or whole[0] != {"settings": self.settings}:
            whole = [{"settings": self.settings}]
        self.entries = {entry["id"]: entry for entry in whole[1:]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in whole).encode())
        return len(self.entries)

    def add(self, entry: dict) -> None:
        """Append a recording's line."""
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
    # Readable, no longer than file systems take, and of this name alone.
    plain = "".join(character if character.isalnum() or character in "-." else "_" for character in name)
    return f"{plain[-MAX_PLAIN:]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
