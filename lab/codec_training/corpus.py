"""The training speech of a codec in one file of samples, and random crops of it.

`write_corpus` resamples recordings once; `SpeechCorpus` maps the file into memory, so that several processes share
it. The crops of a step depend on its number alone, so that an interrupted run resumes with the same batches.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from mimi_bridge.data.manifest import Span, Utterance, read_phones
from mimi_bridge.data.segments import load_recording, spans_in_segment

SILENCE = "SIL"
LABELS_PER_SECOND = 100
UNKNOWN = -1
SPEAKER_BALANCE = 0.5  # speakers are drawn by this power of their minutes: 1 by minutes, 0 all alike
SPEEDS = (0.85, 1.18)  # half of the crops are played slower or faster, which changes the voice
GAINS_DB = (-15.0, 3.0)
TAUGHT_TOGETHER = 64  # recordings of one call of a teacher


@dataclass(frozen=True)
class CropBatch:
    """Random crops.

    Attributes:
        audio: `(batch, 1, samples)`, zeros where a recording ended.
        label_shares: Share of each frame's time that each label has, `(batch, frames, labels)`.
        labelled: True on frames whose labels are known, `(batch, frames)`.
        pitch: Mean F0 of the voiced part of each frame in octaves over 1 Hz, `(batch, frames)`; 0 where none is.
        voiced: Share of each frame's time that is voiced, `(batch, frames)`; NaN where it is unknown.
        features: Of the teacher, at each frame's middle, `(batch, frames, dim)`; None without one.
    """

    audio: Tensor
    label_shares: Tensor
    labelled: Tensor
    pitch: Tensor
    voiced: Tensor
    features: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The attributes that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def pin_memory(self) -> "CropBatch":
        """The same in memory that a GPU copies from without a wait; `torch.utils.data.DataLoader` calls it."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "CropBatch":
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "CropBatch":
        return replace(self, **{name: change(value) for name, value in self.tensors().items()})


def given_phones(utterance: Utterance, audio: Tensor, sampling_rate: int) -> list[Span] | None:
    """The phones of an utterance's alignment; None if it has none."""
    return None if utterance.alignment is None else spans_in_segment(read_phones(utterance.alignment), utterance)


class Teacher(Protocol):
    """A speech model whose features are stored with the speech."""

    def features(self, recordings: Sequence[Tensor], sampling_rate: int) -> list[Tensor]:
        """Of each recording `(samples,)`, evenly spread over its time, `(frames, dim)`."""


def unknown_pitch(_audio: Tensor, _sampling_rate: int) -> np.ndarray:
    """F0 in Hz, 100 a second, 0 where unvoiced: here NaN, for unknown."""
    return np.array([np.nan])


def write_corpus(
    folder: Path,
    utterances: Iterable[Utterance],
    sampling_rate: int,
    load: Callable[[Utterance, int], Tensor] = load_recording,
    find_phones: Callable[[Utterance, Tensor, int], list[Span] | None] = given_phones,
    find_pitch: Callable[[Tensor, int], np.ndarray] = unknown_pitch,
    teacher: Teacher | None = None,
) -> None:
    """Resample recordings into one file, atomically.

    Args:
        folder: Gets `samples.i16`, `labels.i8`, `pitch.f16`, with a teacher `features.f16`, and, last, `corpus.json`.
        utterances: In any order.
        sampling_rate: Hz.
        load: Gives an utterance's samples `(1, samples)` at a rate; by default, reads its file.
        find_phones: Gives its phones, from utterance, samples and rate, or None; they become labels.
        find_pitch: Gives F0 from samples and rate, as `unknown_pitch` does.
        teacher: Gives features, which are kept with zero mean and unit variance.

    Raises:
        ValueError: If there are no utterances, two of one id, or the rate has no whole number of samples in 10 ms.
    """
    utterances = list(utterances)
    _check(utterances, sampling_rate)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)
    phones: list[list[Span] | None] = []
    entries: list[dict] = []
    start = label_start = 0
    with open(folder / "samples.i16", "wb") as samples_file, open(folder / "pitch.f16", "wb") as pitch_file:
        for utterance in utterances:
            audio = load(utterance, sampling_rate)
            samples = (audio[0].clamp(-1, 1).numpy() * 32767).astype(np.int16)
            samples_file.write(samples.tobytes())
            phones.append(find_phones(utterance, audio, sampling_rate))
            num_labels = -(-len(samples) * LABELS_PER_SECOND // sampling_rate)
            f0 = find_pitch(audio, sampling_rate)
            pitch_file.write(np.resize(f0, num_labels).astype(np.float16).tobytes())
            entries.append(
                {
                    "id": utterance.id,
                    "speaker": utterance.speaker,
                    "start": start,
                    "num_samples": len(samples),
                    "label_start": label_start,
                    "num_labels": num_labels,
                }
            )
            start, label_start = start + len(samples), label_start + num_labels
    names = [SILENCE, *sorted({phone.label for spans in phones for phone in spans or []} - {SILENCE})]
    with open(folder / "labels.i8", "wb") as labels_file:
        for spans, entry in zip(phones, entries, strict=True):
            labels_file.write(_labels_in_time(spans, names, entry["num_labels"]).tobytes())
    index = {
        "sampling_rate": sampling_rate,
        "labels": names,
        "feature_dim": _write_features(folder, entries, sampling_rate, teacher) if teacher else 0,
        "utterances": entries,
    }
    partial = folder / "corpus.json.partial"
    partial.write_text(json.dumps(index))
    os.replace(partial, folder / "corpus.json")


class SpeechCorpus:
    """A corpus on disk.

    Args:
        folder: What `write_corpus` wrote.

    Raises:
        FileNotFoundError: If it holds no whole corpus.
    """

    def __init__(self, folder: Path):
        if not (folder / "corpus.json").is_file():
            raise FileNotFoundError(f"no corpus in {folder}; write_corpus makes one.")
        self._folder = folder
        index = json.loads((folder / "corpus.json").read_text())
        self.sampling_rate: int = index["sampling_rate"]
        self.labels: list[str] = index["labels"]
        self.utterances: list[dict] = index["utterances"]
        self._samples = np.memmap(folder / "samples.i16", np.int16, "r")
        self._labels = np.memmap(folder / "labels.i8", np.int8, "r")
        self._pitch = np.memmap(folder / "pitch.f16", np.float16, "r")
        self.has_pitch = not np.isnan(self._pitch).all()
        self.feature_dim: int = index["feature_dim"]
        if self.feature_dim:
            self._features = np.memmap(folder / "features.f16", np.float16, "r").reshape(-1, self.feature_dim)
        minutes: dict[str, float] = defaultdict(float)
        for entry in self.utterances:
            minutes[entry["speaker"]] += entry["num_samples"] / self.sampling_rate / 60
        self.minutes_by_speaker = dict(minutes)
        shares = np.array(
            [entry["num_samples"] * minutes[entry["speaker"]] ** (SPEAKER_BALANCE - 1) for entry in self.utterances]
        )
        self._cumulative = np.cumsum(shares / shares.sum())

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return SpeechCorpus, (self._folder,)  # another process maps the files again

    def audio(self, number: int) -> Tensor:
        """The whole of one utterance, `(1, samples)`."""
        entry = self.utterances[number]
        samples = self._samples[entry["start"] : entry["start"] + entry["num_samples"]]
        return torch.from_numpy(samples.astype(np.float32) / 32767)[None]

    def labels_and_pitch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the whole of one utterance, `(steps,)` each at 100 Hz: numbers of labels, and F0 in Hz."""
        entry = self.utterances[number]
        steps = slice(entry["label_start"], entry["label_start"] + entry["num_labels"])
        return np.asarray(self._labels[steps]), np.asarray(self._pitch[steps])

    def crops(
        self, batch_size: int, num_frames: int, frame_size: int, seed: tuple[int, ...], augment: bool = True
    ) -> CropBatch:
        """Random crops of whole frames.

        Args:
            batch_size: How many.
            num_frames: Length of each.
            frame_size: Samples of a frame.
            seed: Decides everything: the run's seed, the step, the process.
            augment: Also change speed (and pitch with it) and level.
        """
        random = np.random.default_rng(seed)
        pieces = [self._crop(random, num_frames, frame_size, augment) for _ in range(batch_size)]
        samples, labels, octaves, features = (np.stack(parts) for parts in zip(*pieces, strict=True))
        labels, octaves = (x.reshape(batch_size, num_frames, -1) for x in (labels, octaves))
        shares = np.stack([(labels == label).mean(axis=-1) for label in range(len(self.labels))], axis=-1)
        voiced = octaves > 0
        pitch = np.where(voiced, octaves, 0).sum(axis=-1) / voiced.sum(axis=-1).clip(min=1)
        known = ~np.isnan(octaves).any(axis=-1)
        return CropBatch(
            torch.from_numpy(samples)[:, None],
            torch.from_numpy(shares.astype(np.float32)),
            torch.from_numpy((labels != UNKNOWN).all(axis=-1)),
            torch.from_numpy(pitch.astype(np.float32)),
            torch.from_numpy(np.where(known, voiced.mean(axis=-1), np.nan).astype(np.float32)),
            torch.from_numpy(features) if self.feature_dim else None,
        )

    def _crop(
        self, random: np.random.Generator, num_frames: int, frame_size: int, augment: bool
    ) -> tuple[np.ndarray, ...]:
        num_samples = num_frames * frame_size
        entry = self.utterances[int(np.searchsorted(self._cumulative, random.random() * self._cumulative[-1]))]
        speed = random.uniform(*SPEEDS) if augment and random.random() < 0.5 else 1.0
        gain = 10 ** (random.uniform(*GAINS_DB) / 20) if augment else 1.0
        hop = self.sampling_rate // LABELS_PER_SECOND
        needed = round(num_samples * speed)
        first = int(random.integers(max(1, (entry["num_samples"] - needed) // hop + 1)))  # in labels
        begin = entry["start"] + first * hop
        stored = self._samples[begin : min(begin + needed, entry["start"] + entry["num_samples"])]
        samples = stored.astype(np.float32) * (gain / 32767)
        if speed != 1.0:
            samples = soxr.resample(samples, self.sampling_rate * speed, self.sampling_rate, quality="HQ")
        samples = np.pad(samples[:num_samples], (0, max(0, num_samples - len(samples)))).clip(-1, 1)
        positions = first + (np.arange(num_samples // hop) * speed).astype(int)
        known = self._labels[entry["label_start"] : entry["label_start"] + entry["num_labels"]]
        inside, last = positions < len(known), np.minimum(positions, len(known) - 1)
        labels = np.where(inside, known[last], UNKNOWN)
        f0 = self._pitch[entry["label_start"] : entry["label_start"] + entry["num_labels"]][last].astype(np.float32)
        octaves = np.where(inside & ~(f0 == 0), np.log2(np.maximum(f0 * speed, 1.0)), 0.0)
        octaves = np.where(np.isnan(f0), np.nan, octaves)
        frame_seconds = frame_size * speed / self.sampling_rate
        middles = first / LABELS_PER_SECOND + (np.arange(num_frames) + 0.5) * frame_seconds
        return samples, labels, octaves, self._features_at(entry, middles)

    def _features_at(self, entry: dict, seconds: np.ndarray) -> np.ndarray:
        # The teacher's vectors nearest in time, `(times, dim)`.
        if not self.feature_dim:
            return np.zeros((len(seconds), 0), np.float32)
        places = (seconds * entry["num_features"] / (entry["num_samples"] / self.sampling_rate)).astype(int)
        stored = self._features[entry["feature_start"] : entry["feature_start"] + entry["num_features"]]
        return stored[np.minimum(places, len(stored) - 1)].astype(np.float32)


def _check(utterances: list[Utterance], sampling_rate: int) -> None:
    ids = [utterance.id for utterance in utterances]
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if not utterances:
        raise ValueError("a corpus needs at least one utterance, got none.")
    if repeated:
        raise ValueError(f"ids of utterances must be unique, got {', '.join(repeated[:3])} more than once.")
    if sampling_rate % LABELS_PER_SECOND:
        raise ValueError(f"sampling_rate must be a multiple of {LABELS_PER_SECOND} Hz, got {sampling_rate}.")


def _write_features(folder: Path, entries: list[dict], sampling_rate: int, teacher: Teacher) -> int:
    # Their dimension; each entry gets its place among them.
    stored = np.memmap(folder / "samples.i16", np.int16, "r")
    found: list[np.ndarray] = []
    for first in range(0, len(entries), TAUGHT_TOGETHER):
        recordings = [
            torch.from_numpy(stored[entry["start"] : entry["start"] + entry["num_samples"]].astype(np.float32) / 32767)
            for entry in entries[first : first + TAUGHT_TOGETHER]
        ]
        found += [features.numpy() for features in teacher.features(recordings, sampling_rate)]
    place = 0
    for entry, features in zip(entries, found, strict=True):
        entry |= {"feature_start": place, "num_features": len(features)}
        place += len(features)
    together = np.concatenate(found)
    normalised = (together - together.mean(axis=0)) / (together.std(axis=0) + 1e-6)
    (folder / "features.f16").write_bytes(normalised.astype(np.float16).tobytes())
    return together.shape[1]


def _labels_in_time(phones: list[Span] | None, names: list[str], num_labels: int) -> np.ndarray:
    # What no phone covers is silence; without an alignment nothing is known.
    if phones is None:
        return np.full(num_labels, UNKNOWN, np.int8)
    labels = np.full(num_labels, names.index(SILENCE), np.int8)
    for phone in phones:
        first, last = (max(0, round(time * LABELS_PER_SECOND)) for time in (phone.start, phone.end))
        labels[first:last] = names.index(phone.label)
    return labels
