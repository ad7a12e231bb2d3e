"""What the recipes train and are measured on: rows of latents and teachers, and what a frame can tell at all."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from mimi_bridge import MimiBridgeModel
from mimi_bridge.alignment_targets import align_tokens_to_frames
from mimi_bridge.audio.sound import Sound
from mimi_bridge.data.alignment.tokens import token_spans
from mimi_bridge.data.frame_targets import level_by_step
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.data.manifest import Utterance, read_manifest, read_phones, read_words
from mimi_bridge.data.segments import load_recording
from mimi_bridge.data.teachers.speech import WavLMTeacher
from mimi_bridge.data.teachers.text import QwenTeacher
from mimi_bridge.training.content_init import ridge_regression


@dataclass
class Split:
    """Recordings that have word times, by speakers that are trained on and others."""

    train: list[Utterance]
    held_out: list[Utterance]

    @classmethod
    def of(cls, speech: Path, held_out: list[str]) -> "Split":
        """Those of a manifest; speakers that match one of the patterns are held out."""
        utterances = [utterance for utterance in read_manifest(speech) if utterance.alignment is not None]
        aside = {u.id: any(fnmatch(u.speaker, pattern) for pattern in held_out) for u in utterances}
        return cls([u for u in utterances if not aside[u.id]], [u for u in utterances if aside[u.id]])


def row_of(
    utterance: Utterance, original: OriginalLatents, text: QwenTeacher, speech: WavLMTeacher, rate: int
) -> dict:
    """A row for `MimiBridgeCollator`: cached latents, both teachers, phones and prosody."""
    audio = load_recording(utterance, rate)
    latents, target = original(audio)
    assert utterance.text is not None and utterance.alignment is not None
    states = text.states([utterance.text])[0]
    spans = token_spans(utterance.text, states.offsets, read_words(utterance.alignment))
    return {
        "id": utterance.id,
        "latents": latents,
        "target_latents": target,
        "qwen_hidden": states.hidden,
        "token_spans": spans.clamp(max=audio.shape[-1] / rate),
        "wavlm_features": speech.features([audio], rate)[0],
        "phones": [{"phone": p.label, "start": p.start, "end": p.end} for p in read_phones(utterance.alignment)],
        "f0_hz": Sound(audio, rate).f0_hz,
        "level_db": torch.from_numpy(level_by_step(audio[0].numpy(), rate)),
        "speaker": utterance.speaker,
    }


def ceilings(
    model: MimiBridgeModel, train: list[dict], held_out: list[dict], utterances: list[Utterance]
) -> dict[str, tuple[float, float]]:
    """What a frame can tell of the language model, on held-out speakers.

    Returns:
        From `latents`, and from the `phones` that are said in the frame: the squared error of the best linear map, and
        that of the constant.
    """
    frame_rate = model.config.frame_rate
    phones = {u.id: read_phones(u.alignment) for u in utterances if u.alignment is not None}
    names = sorted({phone.label for spans in phones.values() for phone in spans})
    number = {name: index for index, name in enumerate(names)}

    def phone_shares(row: dict) -> Tensor:
        edges = torch.arange(len(row["latents"]) + 1) / frame_rate
        shares = torch.zeros(len(row["latents"]), len(names))
        for phone in phones[row["id"]]:
            overlap = edges[1:].clamp(max=phone.end) - edges[:-1].clamp(min=phone.start)
            shares[:, number[phone.label]] += overlap.clamp(min=0) * frame_rate
        return shares

    def gathered(rows: list[dict], inputs: Callable[[dict], Tensor]) -> tuple[Tensor, Tensor]:
        pairs = []
        for row in rows:
            frame_mask = torch.ones(1, len(row["latents"]), dtype=torch.bool)
            hidden, spans = row["qwen_hidden"][None], row["token_spans"][None]
            targets, mask = align_tokens_to_frames(hidden, frame_mask, frame_rate, spans=spans)
            pairs.append((inputs(row)[mask[0]].double(), targets[0, mask[0]].double()))
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return x, y

    found = {}
    for what, inputs in (("latents", lambda row: row["latents"]), ("phones", phone_shares)):
        (x, y), (unseen, wanted) = (gathered(rows, inputs) for rows in (train, held_out))
        mean, std = y.mean(dim=0), y.std(dim=0)
        fit = ridge_regression(x - x.mean(dim=0), (y - mean) / std)
        wanted = (wanted - mean) / std
        error = ((unseen - x.mean(dim=0)) @ fit - wanted).square().mean()
        found[what] = (float(error), float(wanted.square().mean()))
    return found
