"""Rows that were read and cropped become a batch: padded with zeros, and masked."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .frame_targets import PROSODY, UNKNOWN
from .row import Row
from .teacher_inputs import TeacherInputs


def collate_sound(rows: list[Row], frame_size: int) -> dict[str, Tensor]:
    """`input_values` of whole frames and `padding_mask`, or `latents` and `frame_mask`, perhaps with targets."""
    if len({row.audio is None for row in rows}) > 1:
        raise ValueError("a batch must hold audio or latents, not both; got rows of either kind.")
    num_frames = max(row.num_frames for row in rows)
    if rows[0].audio is None:
        sizes = {row.latents.shape[1] for row in rows if row.latents is not None}
        if len(sizes) > 1:
            raise ValueError(f"latents of one batch must have one size, got {sorted(sizes)}.")
        frame_mask = torch.tensor([row.num_frames for row in rows])[:, None] > torch.arange(num_frames)
        batch = {"latents": _stack([row.latents for row in rows], num_frames), "frame_mask": frame_mask}
        has_target = torch.tensor([row.target_latents is not None for row in rows])
        if has_target.any():
            targets = [row.latents if row.target_latents is None else row.target_latents for row in rows]
            batch["target_latents"] = _stack(targets, num_frames)
        if has_target.any() and not has_target.all():
            batch["target_latents"] *= has_target[:, None, None]
            batch["target_mask"] = frame_mask & has_target[:, None]
        return batch
    num_samples = num_frames * frame_size
    audio = [row.audio[:, None] for row in rows if row.audio is not None]
    lengths = torch.tensor([len(samples) for samples in audio])
    return {
        "input_values": _stack(audio, num_samples).transpose(1, 2),
        "padding_mask": (torch.arange(num_samples) < lengths[:, None]).long(),
    }


def collate_tokens(rows: list[Row]) -> dict[str, Tensor]:
    """The language model's states and their places in time; nothing if no row has any."""
    given = [row for row in rows if row.qwen_hidden is not None]
    if not given:
        return {}
    if len({row.durations is None for row in given}) > 1:
        raise ValueError("tokens of one batch must all be placed by durations, or all by token_spans; got both.")
    num_tokens = max(1, *(len(row.qwen_hidden) for row in given if row.qwen_hidden is not None), 1)
    dim = {row.qwen_hidden.shape[1] for row in given if row.qwen_hidden is not None}
    if len(dim) > 1:
        raise ValueError(f"qwen_hidden of one batch must have one size, got {sorted(dim)}.")
    nothing = torch.zeros(0, dim.pop())
    hidden = [nothing if row.qwen_hidden is None else row.qwen_hidden for row in rows]
    batch = {"qwen_hidden": _stack(hidden, num_tokens)}
    if given[0].durations is not None:
        durations = [torch.zeros(0).long() if row.durations is None else row.durations for row in rows]
        batch["durations"] = _stack([d[:, None] for d in durations], num_tokens)[:, :, 0]
    else:
        spans = [torch.zeros(0, 2) if row.token_spans is None else row.token_spans for row in rows]
        batch["token_spans"] = _stack(spans, num_tokens)
    if any(row.token_mask is not None for row in given):
        masks = [
            torch.ones(len(states)).bool() if row.token_mask is None else row.token_mask
            for row, states in zip(rows, hidden, strict=True)
        ]
        batch["token_mask"] = _stack([mask[:, None] for mask in masks], num_tokens)[:, :, 0]
    return batch


def collate_wavlm(rows: list[Row]) -> dict[str, Tensor]:
    """The speech model's features and their mask; nothing if no row has any."""
    given = [row.wavlm_features for row in rows if row.wavlm_features is not None]
    if not given:
        return {}
    sizes = {values.shape[1] for values in given}
    if len(sizes) > 1:
        raise ValueError(f"wavlm_features of one batch must have one size, got {sorted(sizes)}.")
    nothing = given[0].new_zeros(0, given[0].shape[1])
    features = [nothing if row.wavlm_features is None else row.wavlm_features for row in rows]
    lengths, num_frames = torch.tensor([len(values) for values in features]), max(row.num_frames for row in rows)
    return {
        "wavlm_features": _stack(features, num_frames),
        "wavlm_mask": torch.arange(num_frames) < lengths[:, None],
    }


def collate_frame_targets(rows: list[Row], names: Collection[str], speakers: Mapping[str, int]) -> dict[str, Tensor]:
    """What is known of each frame, of the targets that are asked for; see `MimiBridgeCollator.with_frame_targets`."""
    batch: dict[str, Tensor] = {}
    num_frames = max(row.num_frames for row in rows)
    if "phones" in names:
        batch["phone_ids"] = _filled([row.phone_ids for row in rows], (num_frames,), UNKNOWN)
    if "characters" in names:
        characters = [row.characters for row in rows]
        longest = max([1, *(len(known) for known in characters if known is not None)])
        filled = _filled(characters, (longest, 2), UNKNOWN)
        batch["character_labels"], batch["character_frames"] = filled.unbind(dim=2)
        batch["character_mask"] = torch.tensor([known is not None for known in characters])
    if "prosody" in names:
        values = _filled([row.prosody for row in rows], (num_frames, len(PROSODY)), torch.nan)
        batch["prosody_mask"] = ~values.isnan()
        batch["prosody_targets"] = values.nan_to_num(0.0)
    if "speaker" in names:
        numbers = [UNKNOWN if row.speaker is None else speakers.get(row.speaker, UNKNOWN) for row in rows]
        batch["speaker_ids"] = torch.tensor(numbers)
    return batch


def collate_teachers(
    teachers: TeacherInputs, whole: list[Row], crops: list[Row], sampling_rate: int, frame_size: int
) -> dict[str, Any]:
    """What teachers are computed from, of the whole rows.

    It moves the places of a crop's frames to where they lie in what the speech model hears.
    """
    batch: dict[str, Any] = {"teacher_rows": [row.name for row in whole]}
    if teachers.speech is not None:
        audio, counts = [], []
        for row, part in zip(whole, crops, strict=True):
            assert row.audio is not None and part.wavlm_features is not None
            crop = int(part.wavlm_features[0, 0]), part.num_frames
            heard, count, start = teachers.audio(row.audio, *crop, sampling_rate, frame_size, f"audio of {row.name}")
            part.wavlm_features = part.wavlm_features - start
            audio.append(heard[:, None])
            counts.append(count)
        lengths = [len(samples) for samples in audio]
        batch["teacher_audio"] = _stack(audio, max(lengths))[:, :, 0]
        batch |= {"teacher_samples": torch.tensor(lengths), "teacher_frames": torch.tensor(counts)}
    ids = [torch.zeros(0).long() if row.token_ids is None else row.token_ids for row in whole]
    if any(len(row) for row in ids):
        lengths = [len(row) for row in ids]
        batch["teacher_tokens"] = _stack([row[:, None] for row in ids], max(lengths))[:, :, 0]
        batch["teacher_num_tokens"] = torch.tensor(lengths)
    return batch


def by_index(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose places, which were cropped and padded as vectors are, are numbers under names of their own."""
    for told, name, inputs in (
        ("wavlm_features", "wavlm_index", "teacher_audio"),
        ("qwen_hidden", "token_index", "teacher_tokens"),
    ):
        if inputs in batch:
            batch[name] = batch.pop(told)[:, :, 0].long()
    return batch


def _filled(values: list[Tensor | None], shape: tuple[int, ...], nothing: float) -> Tensor:
    # Rows that may be shorter than the first axis of a shape, or missing, become one tensor.
    filled = torch.full((len(values), *shape), nothing)
    for row, value in zip(filled, values, strict=True):
        if value is not None:
            row[: len(value)] = value
    return filled


def _stack(values: list, length: int) -> Tensor:
    # Rows of (length_i, dim) become (rows, length, dim), zeros after their end.
    return torch.stack([torch.nn.functional.pad(value, (0, 0, 0, length - len(value))) for value in values])
