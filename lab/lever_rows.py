"""What levers.py trains and measures on: rows of corpora by train_codec.py, and recordings of real speakers."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from codec_training.corpus import LABELS_PER_SECOND, UNKNOWN, SpeechCorpus
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.sound import Sound
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.data.frame_targets import level_by_step
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.data.manifest import read_manifest
from mimi_bridge.data.segments import load_recording
from mimi_bridge.evaluation.labels import FrameLabels, energy_labels, phone_labels, pitch_labels, spans_of
from mimi_bridge.evaluation.probe_matrix import ProbedRecording
from variants import quiet

MADE = "voices/"  # before the voices of made_voices.py


def held_out(arguments: Namespace, original: OriginalLatents, config: MimiBridgeConfig) -> Iterator[dict]:
    """Latents, labels and audio of the recordings to measure on."""
    aligner = PocketsphinxAligner()
    rate, frame_rate = config.sampling_rate, config.frame_rate
    spoken = [u for u in read_manifest(arguments.speech) if any(fnmatch(u.speaker, p) for p in arguments.held_out)]
    for utterance in spoken[:: arguments.every]:
        audio = load_recording(utterance, rate)
        latents, _ = original(audio)
        sound = Sound(audio, rate)
        phones, _ = spans_of(utterance, sound, aligner)
        labels = FrameLabels(
            phone_labels(phones, len(latents), frame_rate),
            [None] * len(latents),
            pitch_labels(sound.f0_hz, len(latents), frame_rate),
            energy_labels(audio, len(latents), config.frame_size),
        )
        recording = ProbedRecording(utterance.speaker, labels)
        said = [{"phone": phone.label} for phone in phones]
        yield {
            "recording": recording,
            "latents": latents,
            "audio": audio,
            "phones": said,
            "text": utterance.text,
            "pitch": mean_pitch(sound),
        }


def write_rows(job: tuple[Path, Path, Path]) -> Path:
    """Rows of a corpus in a file: those to train on, and of made voices that are held out."""
    folder, path, model_folder = job
    quiet()
    original, rows = OriginalLatents(MimiBridgeModel.from_pretrained(model_folder).eval()), {}
    for part in ("train", "held_out"):
        rows[part] = [row_of(*place, original) for place in places_in(folder, part)]
    torch.save(rows, path)
    return path


def places_in(folder: Path, part: str) -> list[tuple[SpeechCorpus, int]]:
    """The utterances of a corpus that are used: all to train on, of those held out made voices' alone."""
    corpus = SpeechCorpus(folder / part)
    used = (n for n, e in enumerate(corpus.utterances) if part == "train" or e["speaker"].startswith(MADE))
    return [(corpus, number) for number in used]


def row_of(corpus: SpeechCorpus, number: int, original: OriginalLatents) -> dict:
    """A row for `MimiBridgeCollator` of an utterance of the corpus."""
    entry, audio = corpus.utterances[number], corpus.audio(number)
    latents, target = original(audio)
    labels, pitch = corpus.labels_and_pitch(number)
    phones, step = [], 0
    for label, group in groupby(labels.tolist()):
        length = len(list(group))
        if label != UNKNOWN:
            start, end = step / LABELS_PER_SECOND, (step + length) / LABELS_PER_SECOND
            phones.append({"phone": corpus.labels[label], "start": start, "end": end})
        step += length
    return {
        "id": entry["id"],
        "speaker": entry["speaker"],
        "latents": latents,
        "target_latents": target,
        "phones": phones or None,
        "f0_hz": torch.from_numpy(np.nan_to_num(pitch.astype(np.float32))),
        "level_db": torch.from_numpy(level_by_step(audio[0].numpy(), corpus.sampling_rate)),
    }


class RowsWithAudio(Dataset):
    """Rows with their audio in place of latents.

    Args:
        rows: Those of `write_rows`.
        folders: Of the corpora that they are of, in its order.
        part: `"train"` or `"held_out"`.
    """

    def __init__(self, rows: list[dict], folders: list[Path], part: str):
        self._rows = rows
        self._places = [place for folder in folders for place in places_in(folder, part)]
        ids = [corpus.utterances[number]["id"] for corpus, number in self._places]
        if ids != [row["id"] for row in rows]:
            sys.exit(f"levers: --rows holds other recordings than --corpus, {len(rows)} and {len(ids)}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict:
        corpus, number = self._places[place]
        kept = {key: value for key, value in self._rows[place].items() if "latents" not in key}
        return kept | {"input_values": corpus.audio(number)[0]}


@torch.inference_mode()
def encode_again(model: MimiBridgeModel, data: dict, folders: list[Path], with_corpora: bool) -> None:
    """Put the latents of an encoder that has learned in the place of the original's; of the corpora only if asked."""
    for row in data["held_out"]:
        row["latents"] = model.get_latents(row["audio"][None])[0]
    for part, name in (("rows", "train"), ("made", "held_out")) if with_corpora else ():
        for row, with_audio in zip(data[part], RowsWithAudio(data[part], folders, name), strict=True):
            row["latents"] = model.get_latents(with_audio["input_values"][None, None])[0]


def mean_pitch(sound: Sound) -> float | None:
    """Mean log2 F0 where there is one; None if there is none."""
    voiced = sound.f0_hz[sound.f0_hz > 0]
    return voiced.log2().mean().item() if len(voiced) else None
