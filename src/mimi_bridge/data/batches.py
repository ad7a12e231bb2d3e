"""Rows that were read and cropped become a batch: padded with zeros, and masked."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .frame_targets import PROSODY, UNKNOWN
from .row import Row
from .teacher_inputs import TeacherInputs


def collate_sound(rows: list[Row], frame_size: int) -> dict[str, Tensor]:
    """`input_values` of whole frames and `padding_mask`, or `latents` and `frame_mask`, perhaps with targets."""
    if len({row.audio is None for row in rows}) > 1:
        raise ValueError("a batch must hold audio or latents, not both; got rows of either kind.")
    num_frames = max(row.num_frames for row in rows)
    if rows[0].audio is not None:
        num_samples, audio = num_frames * frame_size, _column(rows, "audio")
        padding_mask = (torch.arange(num_samples) < _lengths(audio)[:, None]).long()
        return {"input_values": _stack(audio, num_samples)[:, None], "padding_mask": padding_mask}
    frame_mask = torch.tensor([row.num_frames for row in rows])[:, None] > torch.arange(num_frames)
    batch = {"latents": _stack(_column(rows, "latents"), num_frames), "frame_mask": frame_mask}
    has_target = torch.tensor([row.target_latents is not None for row in rows])
    if has_target.any():
        batch["target_latents"] = _stack(_column(rows, "target_latents"), num_frames)
    if has_target.any() and not has_target.all():
        batch["target_mask"] = frame_mask & has_target[:, None]
    return batch


def collate_tokens(rows: list[Row]) -> dict[str, Tensor]:
    """The language model's states and their places in time; nothing if no row has any."""
    given = [row for row in rows if row.qwen_hidden is not None]
    if not given:
        return {}
    if len({row.durations is None for row in given}) > 1:
        raise ValueError("tokens of one batch must all be placed by durations, or all by token_spans; got both.")
    hidden = _column(rows, "qwen_hidden")
    num_tokens = max(1, *map(len, hidden))
    places = "token_spans" if given[0].durations is None else "durations"
    batch = {"qwen_hidden": _stack(hidden, num_tokens), places: _stack(_column(rows, places), num_tokens)}
    if any(row.token_mask is not None for row in given):
        masks = [
            torch.ones(len(states)).bool() if row.token_mask is None else row.token_mask
            for row, states in zip(rows, hidden, strict=True)
        ]
        batch["token_mask"] = _stack(masks, num_tokens)
    return batch


def collate_wavlm(rows: list[Row]) -> dict[str, Tensor]:
    """The speech model's features and their mask; nothing if no row has any."""
    if all(row.wavlm_features is None for row in rows):
        return {}
    features, num_frames = _column(rows, "wavlm_features"), max(row.num_frames for row in rows)
    wavlm_mask = torch.arange(num_frames) < _lengths(features)[:, None]
    return {"wavlm_features": _stack(features, num_frames), "wavlm_mask": wavlm_mask}


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
            sizes = sampling_rate, frame_size
            speech, count, start = teachers.audio(row.audio, *crop, *sizes, f"audio of {row.name}")
            part.wavlm_features = part.wavlm_features - start
            audio.append(speech)
            counts.append(count)
        batch |= {"teacher_samples": _lengths(audio), "teacher_frames": torch.tensor(counts)}
        batch["teacher_audio"] = _stack(audio, max(map(len, audio)))
    if any(row.token_ids is not None for row in whole):
        ids = _column(whole, "token_ids")
        batch |= {"teacher_tokens": _stack(ids, max(map(len, ids))), "teacher_num_tokens": _lengths(ids)}
    return batch


def by_index(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose places, which were cropped and padded as vectors are, are numbers under names of their own."""
    for places, name, inputs in (
        ("wavlm_features", "wavlm_index", "teacher_audio"),
        ("qwen_hidden", "token_index", "teacher_tokens"),
    ):
        if inputs in batch:
            batch[name] = batch.pop(places)[:, :, 0].long()
    return batch


def _filled(values: list[Tensor | None], shape: tuple[int, ...], nothing: float) -> Tensor:
    # Rows that may be shorter than the first axis of a shape, or missing, become one tensor.
    filled = torch.full((len(values), *shape), nothing)
    for row, value in zip(filled, values, strict=True):
        if value is not None:
            row[: len(value)] = value
    return filled


def _column(rows: list[Row], name: str) -> list[Tensor]:
    # One column of rows, at least one of which has it; empty for those that do not.
    given = [values for row in rows if (values := getattr(row, name)) is not None]
    sizes = {values.shape[-1] for values in given if values.ndim > 1}
    if len(sizes) > 1:
        raise ValueError(f"{name} of one batch must have one size, got {sorted(sizes)}.")
    return [given[0][:0] if getattr(row, name) is None else getattr(row, name) for row in rows]


def _lengths(values: list[Tensor]) -> Tensor:
    return torch.tensor([len(each) for each in values])


def _stack(values: list[Tensor], length: int) -> Tensor:
    # Rows of (length_i, ...) become (rows, length, ...), zeros after their end.
    return torch.stack([pad(each, (0, 0) * (each.ndim - 1) + (0, length - len(each))) for each in values])
