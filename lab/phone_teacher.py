"""A small speech teacher for the recipe study: WavLM's architecture, trained for minutes to recognize phones.

WavLM's weights need a network, and random weights have nothing that a head could learn. This model is trained on the
training speakers' recordings and the phones of their alignments; its features are the states of its last layer.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from mimi_bridge.data.manifest import Utterance, read_phones
from mimi_bridge.data.segments import load_recording

RATE, HOP, WINDOW = 16_000, 320, 400  # Hz, samples, samples of the first frame: 50 frames a second
CROP_SECONDS = 2.0
BATCH = 8
LEARNING_RATE = 1e-3
HELD_BACK = 20  # every N-th recording measures its accuracy


def train_phone_teacher(folder: Path, utterances: Sequence[Utterance], num_steps: int, seed: int = 0) -> float:
    """Train the teacher and write it for `WavLMTeacher`.

    Args:
        folder: To write it to.
        utterances: With alignments, of the training speakers alone.
        num_steps: Of 16 s of speech each.
        seed: Of weights and crops.

    Returns:
        Share of the frames of held-back recordings whose phone it recognizes.
    """
    torch.manual_seed(seed)
    model = WavLMModel(
        WavLMConfig(
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=256,
            conv_dim=(48,) * 7,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
            layerdrop=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            apply_spec_augment=False,
        )
    )
    phones = {u.id: read_phones(u.alignment) for u in utterances if u.alignment is not None}
    names = sorted({phone.label for spans in phones.values() for phone in spans})
    numbers = {name: number for number, name in enumerate(names)}
    recordings = [(_normalised(load_recording(u, RATE)[0]), _labels(phones[u.id], numbers)) for u in utterances]
    kept_back, trained = recordings[::HELD_BACK], [r for n, r in enumerate(recordings) if n % HELD_BACK]
    readout = nn.Linear(128, len(names))
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    draw = random.Random(seed)
    model.train()
    for _ in range(num_steps):
        crops = [_crop(*draw.choice(trained), draw) for _ in range(BATCH)]
        audio, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
        predicted = readout(model(audio).last_hidden_state)
        loss = nn.functional.cross_entropy(
            predicted.flatten(0, 1), labels[:, : predicted.shape[1]].flatten(), ignore_index=-1
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return _accuracy(model, readout, kept_back)


def _normalised(audio: Tensor) -> Tensor:
    return (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-7).sqrt()


def _labels(phones: list, numbers: dict[str, int]) -> Tensor:
    # The phone in the middle of each frame, -1 where there is none.
    labels = torch.full((int(phones[-1].end * RATE / HOP) + 2 if phones else 1,), -1)
    for phone in phones:
        first, last = (round((second * RATE - WINDOW / 2) / HOP) for second in (phone.start, phone.end))
        labels[max(0, first) : last] = numbers[phone.label]
    return labels


def _crop(audio: Tensor, labels: Tensor, draw: random.Random) -> tuple[Tensor, Tensor]:
    num_frames = int(CROP_SECONDS * RATE / HOP)
    first = draw.randint(0, max(0, len(audio) // HOP - num_frames))
    piece = audio[first * HOP : (first + num_frames) * HOP]
    labels = labels[first : first + num_frames]
    return (
        nn.functional.pad(piece, (0, num_frames * HOP - len(piece))),
        nn.functional.pad(labels, (0, num_frames - len(labels)), value=-1),
    )


@torch.inference_mode()
def _accuracy(model: WavLMModel, readout: nn.Linear, recordings: list[tuple[Tensor, Tensor]]) -> float:
    right = count = 0
    for audio, labels in recordings:
        predicted = readout(model(audio[None]).last_hidden_state)[0].argmax(dim=-1)
        wanted = labels[: len(predicted)]
        known = wanted >= 0
        right += int((predicted[: len(wanted)][known] == wanted[known]).sum())
        count += int(known.sum())
    return right / max(1, count)
