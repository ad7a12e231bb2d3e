"""Rows of a data set become a batch: padded, masked, and cropped without cutting a token's target wrongly.

A row holds audio, or latents that were computed before, and whatever teachers there are for it; rows with a teacher
and rows without may share a batch. A crop begins and ends between frames. A token that reaches over its edge keeps the
part of its time that lies inside.
"""

import copy
import io
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..alignment_targets import pool_to_frames
from ..audio.files import decode_audio, load_audio, resample
from ..configuration_mimi_bridge import MimiBridgeConfig
from ..frames import num_frames_for
from .characters import characters_by_frame
from .frame_targets import PROSODY, UNKNOWN, phones_by_frame, prosody_by_frame
from .teacher_inputs import TeacherInputs, token_ids_of

FULL_SCALE = 2.0**15  # of samples in 16 bits
MAX_CHANNELS = 16
MAX_QUOTED = 60  # characters of a value, in a message
SPAN_TOLERANCE = 1e-3  # seconds; the model itself allows no more
AUDIO_KEYS = ("audio", "input_values", "audio_path")
FRAME_TARGETS = ("phones", "characters", "prosody", "speaker")  # what batches hold if they are asked for


@dataclass
class _Row:
    """One row as tensors: audio or latents, and the teachers that it has."""

    name: str
    num_frames: int
    audio: Tensor | None = None  # (samples,)
    latents: Tensor | None = None  # (frames, hidden_size)
    target_latents: Tensor | None = None  # (frames, hidden_size)
    qwen_hidden: Tensor | None = None  # (tokens, qwen_dim)
    durations: Tensor | None = None  # (tokens,)
    token_spans: Tensor | None = None  # (tokens, 2), seconds
    token_mask: Tensor | None = None  # (tokens,)
    wavlm_features: Tensor | None = None  # (frames, wavlm_dim)
    phone_ids: Tensor | None = None  # (frames,)
    characters: Tensor | None = None  # (characters, 2), label and frame
    prosody: Tensor | None = None  # (frames, 3), NaN where it is not defined
    speaker: str | None = None
    token_ids: Tensor | None = None  # of all tokens, (tokens,)
    pass_number: int = 0  # of a stream, whose passes have other crops


class MimiBridgeCollator:
    """Makes batches for `MimiBridgeModel` and `MimiBridgeTrainer`.

    A row is a dict with

    - `audio`: `{"array", "sampling_rate"}` as in `datasets`, resampled if need be; or `input_values`, samples at the
      model's rate, `(samples,)`, as floats or in 16 bits; or `audio_path`, a file; or `latents`, `(frames,
      hidden_size)`, with `target_latents` if the original Mimi's quantized ones are known;
    - `qwen_hidden`, `(tokens, qwen_dim)`, with `token_spans` in seconds, `(tokens, 2)`, or `durations` in frames,
      `(tokens,)`, and `token_mask`, `(tokens,)`, where some tokens are silence; all may be missing or None;
    - `wavlm_features`, `(frames, wavlm_dim)` at 12.5 Hz, or at 50 Hz, which are pooled; may be missing or None;
    - `token_ids`, `(tokens,)`, in place of `qwen_hidden`, for `with_teachers`;
    - for `with_frame_targets`: `phones`, mappings of `phone`, `start` and `end`; `words`, of `word`; `f0_hz` and
      `level_db`, `(steps,)` at 100 Hz; `speaker`; may be missing or None.

    Args:
        sampling_rate: Of the model, Hz.
        frame_size: Samples of a frame.
        crop_seconds: Longest stretch of a recording that is taken, rounded down to frames; a random one in each
            epoch. None takes whole recordings.
        seed: Of the crops.
        output_losses: Ask for losses in every batch, those without a teacher, too. transformers' plain `Trainer` needs
            that to evaluate; `MimiBridgeTrainer` asks in any case.

    Raises:
        ValueError: If `crop_seconds` holds no frame.
    """

    def __init__(
        self,
        sampling_rate: int,
        frame_size: int,
        crop_seconds: float | None = None,
        seed: int = 0,
        output_losses: bool = False,
    ):
        self.sampling_rate, self.frame_size, self.seed = sampling_rate, frame_size, seed
        self.output_losses = output_losses
        self.frame_rate = sampling_rate / frame_size
        self.crop_frames = None if crop_seconds is None else int(crop_seconds * self.frame_rate + 1e-6)
        if self.crop_frames is not None and self.crop_frames < 1:
            raise ValueError(f"crop_seconds must hold a frame of {1 / self.frame_rate:.3f} s, got {crop_seconds}.")
        self.frame_targets: frozenset[str] = frozenset()
        self.speakers: dict[str, int] = {}
        self.teachers: TeacherInputs | None = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay alive see it move

    @classmethod
    def for_model(
        cls,
        config: MimiBridgeConfig,
        crop_seconds: float | None = None,
        seed: int = 0,
        output_losses: bool = False,
    ) -> "MimiBridgeCollator":
        """The collator that a model of this configuration needs."""
        return cls(config.sampling_rate, config.frame_size, crop_seconds, seed, output_losses)

    @property
    def epoch(self) -> int:
        """The epoch whose crops are taken, one for this process and the workers of its data loaders."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Take other crops; the same epoch takes the same ones."""
        self._epoch.fill_(epoch)

    def without_crops(self) -> "MimiBridgeCollator":
        """This collator taking whole recordings, as an evaluation does."""
        whole = copy.copy(self)
        whole.crop_frames = None
        return whole

    def with_frame_targets(
        self, names: Collection[str], speakers: Mapping[str, int] | None = None
    ) -> "MimiBridgeCollator":
        """This collator whose batches also hold what is known of each frame, see `frame_targets`.

        Args:
            names: Among `phones`: `phone_ids`, `(batch, frames)`, -100 where unknown; `characters`, of the words:
                `character_labels` and `character_frames`, `(batch, characters)`, -100 after the last, and
                `character_mask`, `(batch,)`, True where words are known; `prosody`: `prosody_targets`,
                `(batch, frames, 3)`, pitch, level and voicing, and `prosody_mask` of its shape; `speaker`:
                `speaker_ids`, `(batch,)`, -100 where unknown.
            speakers: Their numbers; others are unknown.

        Raises:
            ValueError: If a name is none of these.
        """
        unknown = sorted(set(names) - set(FRAME_TARGETS))
        if unknown:
            raise ValueError(f"frame targets must be among {', '.join(FRAME_TARGETS)}, got {', '.join(unknown)}.")
        other = copy.copy(self)
        other.frame_targets, other.speakers = frozenset(names), dict(speakers or {})
        return other

    def with_teachers(self, teachers: TeacherInputs) -> "MimiBridgeCollator":
        """This collator whose batches hold what teachers are computed from, in place of what rows store of them.

        Batches then have `teacher_rows`, the rows' names; `teacher_audio` `(batch, samples)` with `teacher_samples`
        and `teacher_frames` `(batch,)`, and `wavlm_index` `(batch, frames)`, which of those frames each frame is;
        `teacher_tokens` `(batch, tokens)` with `teacher_num_tokens` `(batch,)`, and `token_index`, which of them each
        token is; `training.teachers` puts features in their place.
        """
        other = copy.copy(self)
        other.teachers = teachers
        return other

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows to a batch.

        Returns:
            `input_values` `(batch, 1, samples)`, whole frames, with `padding_mask` `(batch, samples)`; or `latents`
            with `frame_mask` and perhaps `target_latents`, with `target_mask` if some rows have none. And, where a row
            has them, `qwen_hidden`, `token_spans` or `durations`, `token_mask`, `wavlm_features` and `wavlm_mask`.
            What `with_frame_targets` asked for. Last, `output_losses`, True, where the collator was told to ask for
            them.

        Raises:
            ValueError: If a row is none, holds neither audio nor latents, its parts do not fit together or are not
                finite, or rows of one batch place their tokens in different ways. The message names the row.
        """
        if not rows:
            raise ValueError("a batch needs at least one row, got none.")
        whole = [self._parse(row, number) for number, row in enumerate(rows)]
        parsed = [self._crop(row) for row in whole]
        of_teachers = self._collate_teachers(whole, parsed)
        batch = self._collate_sound(parsed)
        num_frames = max(row.num_frames for row in parsed)
        asked = {"output_losses": True} if self.output_losses else {}
        batch |= self._collate_tokens(parsed) | _collate_wavlm(parsed, num_frames)
        if of_teachers:
            batch = _by_index(batch | of_teachers)
        return batch | self._collate_frame_targets(parsed, num_frames) | asked

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its audio decoded, at the model's rate, if a batch can hold it.

        Raises:
            OSError: If its audio cannot be read.
            ValueError: As a batch of it.
        """
        if row.get("latents") is None:
            audio = self._audio(row, self._name(row, 0))
            row = {name: value for name, value in row.items() if name not in AUDIO_KEYS} | {"input_values": audio}
        self._parse(row, 0)
        return row

    @staticmethod
    def _name(row: Mapping[str, Any], number: int) -> str:
        return f"row {str(row['id'])!r}" if row.get("id") is not None else f"row {number} of the batch"

    def _parse(self, row: dict[str, Any], number: int) -> _Row:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"row {number} of the batch must be a dict of columns, got {type(row).__name__}; a recording alone is "
                'such a row as {"audio_path": path}.'
            )
        name = self._name(row, number)
        if row.get("latents") is not None:
            latents = _tensor(row["latents"], f"latents of {name}", 2)
            if len(latents) == 0:
                raise ValueError(f"latents of {name} must have at least one frame, got none.")
            parsed = _Row(name, len(latents), latents=latents)
            if row.get("target_latents") is not None:
                parsed.target_latents = _tensor(row["target_latents"], f"target_latents of {name}", 2)
                if parsed.target_latents.shape != latents.shape:
                    raise ValueError(
                        f"target_latents of {name} must have the shape of its latents, {tuple(latents.shape)}, got "
                        f"{tuple(parsed.target_latents.shape)}."
                    )
        else:
            audio = self._audio(row, name)
            parsed = _Row(name, num_frames_for(len(audio), self.frame_size), audio=audio)
        parsed.pass_number = int(row.get("pass_number") or 0)
        self._parse_tokens(row, parsed)
        if self.teachers is not None and self.teachers.speech is not None:
            if parsed.audio is None:
                raise ValueError(f"{name} holds latents, but the speech teacher needs audio; use a data set of audio.")
            parsed.wavlm_features = _places(parsed.num_frames)
        elif row.get("wavlm_features") is not None:
            parsed.wavlm_features = _at_frames(
                _tensor(row["wavlm_features"], f"wavlm_features of {name}", 2), parsed.num_frames, name
            )
        self._parse_frame_targets(row, parsed)
        return parsed

    def _parse_frame_targets(self, row: dict[str, Any], parsed: _Row) -> None:
        name, place = parsed.name, (parsed.num_frames, self.frame_rate, parsed.name)
        if "phones" in self.frame_targets and row.get("phones") is not None:
            parsed.phone_ids = phones_by_frame(row["phones"], *place)
        if "characters" in self.frame_targets and row.get("words") is not None:
            parsed.characters = characters_by_frame(row["words"], *place)
        if "prosody" in self.frame_targets and row.get("f0_hz") is not None and row.get("level_db") is not None:
            f0_hz, level_db = (_tensor(row[column], f"{column} of {name}", 1) for column in ("f0_hz", "level_db"))
            parsed.prosody = prosody_by_frame(f0_hz, level_db, *place)
        if "speaker" in self.frame_targets and row.get("speaker") is not None:
            parsed.speaker = str(row["speaker"])

    def _audio(self, row: dict[str, Any], name: str) -> Tensor:
        given = next((row[key] for key in AUDIO_KEYS if row.get(key) is not None), None)
        if given is None:
            raise ValueError(
                f"{name} holds neither audio, input_values, audio_path nor latents; its columns are {sorted(row)}. If "
                "the data set has one, the Trainer removed it: set remove_unused_columns=False in its arguments."
            )
        if isinstance(given, str | os.PathLike):
            return load_audio(os.fspath(given), self.sampling_rate)[0]
        rate: Any = self.sampling_rate
        if hasattr(given, "get_all_samples"):  # what `datasets` decodes audio to
            samples = given.get_all_samples()
            given, rate = samples.data, samples.sample_rate
        elif isinstance(given, Mapping):
            held = {key for key in ("array", "bytes", "path") if given.get(key) is not None}
            if "array" in held:
                given, rate = given["array"], given.get("sampling_rate")
            elif "bytes" in held:
                return decode_audio(io.BytesIO(given["bytes"]), self.sampling_rate, f"audio of {name}")[0]
            elif "path" in held:
                return load_audio(given["path"], self.sampling_rate)[0]
            else:
                raise ValueError(
                    f"audio of {name} holds neither array, bytes nor path, only {sorted(given)}; drop the row, or "
                    "give it its recording."
                )
        rate = (
            rate.item() if getattr(rate, "shape", None) == () else rate
        )  # of a data set in numpy's or torch's format
        if not isinstance(rate, Real) or rate <= 0 or rate != int(float(rate)):
            raise ValueError(
                f"audio of {name} needs its sampling_rate in Hz, a whole number, beside its array, got {rate!r}; for "
                f"samples at {self.sampling_rate} Hz, give them as input_values."
            )
        audio = _full_scale_1(_array(given, f"audio of {name}"), name)
        if audio.ndim == 2 and audio.shape[0] <= MAX_CHANNELS:
            audio = audio.mean(axis=0)
        if audio.ndim != 1:
            raise ValueError(f"audio of {name} must be samples, (samples,) or (channels, samples), got {audio.shape}.")
        return resample(audio, int(float(rate)), self.sampling_rate, name=f"audio of {name}")[0]

    def _parse_tokens(self, row: dict[str, Any], parsed: _Row) -> None:
        name = parsed.name
        if self.teachers is not None and self.teachers.text:
            parsed.token_ids = token_ids_of(row, name)
            if parsed.token_ids is None:
                return
            hidden = _places(len(parsed.token_ids))
        else:
            if row.get("qwen_hidden") is None:
                return
            states = _array(row["qwen_hidden"], f"qwen_hidden of {name}")
            if len(np.atleast_1d(states)) == 0:
                return
            hidden = _tensor(states, f"qwen_hidden of {name}", 2)
        durations, spans = row.get("durations"), row.get("token_spans")
        if (durations is None) == (spans is None):
            given_as = "qwen_hidden" if parsed.token_ids is None else "token_ids"
            raise ValueError(f"{name} has {given_as} and needs durations or token_spans beside it, exactly one.")
        if durations is not None:
            given = _array(durations, f"durations of {name}")
            if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)) or (given < 0).any():
                raise ValueError(f"durations of {name} must be whole frames, (tokens,), none negative, got {given}.")
            placed = parsed.durations = torch.as_tensor(given.astype(np.int64))
            too_long = int(placed.sum()) > parsed.num_frames
        else:
            placed = parsed.token_spans = _tensor(spans, f"token_spans of {name}", 2, width=2)
            if bool((placed[:, 1] < placed[:, 0]).any()) or bool((placed < -SPAN_TOLERANCE).any()):
                raise ValueError(f"token_spans of {name} must be start and end in seconds, start <= end, from 0 on.")
            latest = parsed.num_frames / self.frame_rate + SPAN_TOLERANCE
            too_long = bool((placed > latest).any())
        if len(placed) != len(hidden):
            what = "vectors of qwen_hidden" if parsed.token_ids is None else "token_ids"
            raise ValueError(f"{name} has {len(hidden)} {what}, but {len(placed)} places in time.")
        if too_long:
            raise ValueError(
                f"the tokens of {name} reach beyond its {parsed.num_frames} frames of {1 / self.frame_rate:.3f} s; "
                "were they aligned to another recording?"
            )
        parsed.qwen_hidden = hidden
        if row.get("token_mask") is not None:
            parsed.token_mask = torch.as_tensor(_array(row["token_mask"], f"token_mask of {name}")).bool()
            if parsed.token_mask.shape != (len(hidden),):
                raise ValueError(
                    f"token_mask of {name} must say something of each of its {len(hidden)} tokens, got shape "
                    f"{tuple(parsed.token_mask.shape)}."
                )

    def _crop(self, row: _Row) -> _Row:
        if self.crop_frames is None or row.num_frames <= self.crop_frames:
            return row
        sound = row.audio if row.audio is not None else row.latents
        assert sound is not None
        digest = zlib.crc32(np.ascontiguousarray(sound[:4096].numpy()).tobytes())
        random = np.random.default_rng((self.seed, self.epoch + row.pass_number, row.num_frames, digest))
        first = int(random.integers(row.num_frames - self.crop_frames + 1))
        last = first + self.crop_frames

        def cut(values: Tensor | None, size: int = 1) -> Tensor | None:
            return None if values is None else values[first * size : last * size]

        cropped = _Row(
            row.name,
            self.crop_frames,
            audio=cut(row.audio, self.frame_size),
            latents=cut(row.latents),
            target_latents=cut(row.target_latents),
            wavlm_features=cut(row.wavlm_features),
            phone_ids=cut(row.phone_ids),
            prosody=cut(row.prosody),
            speaker=row.speaker,
        )
        if row.characters is not None:
            frames = row.characters[:, 1]
            inside = (frames >= first) & (frames < last)
            cropped.characters = row.characters[inside] - torch.tensor([0, first])
        if row.qwen_hidden is not None:
            self._crop_tokens(row, cropped, first, last)
        return cropped

    def _crop_tokens(self, row: _Row, cropped: _Row, first: int, last: int) -> None:
        if row.durations is not None:
            edges = torch.nn.functional.pad(row.durations.cumsum(0), (1, 0)).clamp(first, last)
            durations = edges.diff()
            inside = durations > 0
            cropped.durations = durations[inside]
        else:
            assert row.token_spans is not None
            begin, end = first / self.frame_rate, last / self.frame_rate
            spans = row.token_spans.clamp(begin, end) - begin
            inside = spans[:, 1] > spans[:, 0]
            cropped.token_spans = spans[inside]
        assert row.qwen_hidden is not None
        cropped.qwen_hidden = row.qwen_hidden[inside]
        if row.token_mask is not None:
            cropped.token_mask = row.token_mask[inside]

    def _collate_teachers(self, whole: list[_Row], parsed: list[_Row]) -> dict[str, Any]:
        # Moves the places of a crop's frames to where they lie in what the speech model hears.
        teachers = self.teachers
        if teachers is None:
            return {}
        batch: dict[str, Any] = {"teacher_rows": [row.name for row in whole]}
        if teachers.speech is not None:
            audio, counts = [], []
            for row, part in zip(whole, parsed, strict=True):
                assert row.audio is not None and part.wavlm_features is not None
                crop = int(part.wavlm_features[0, 0]), part.num_frames
                heard, count, start = teachers.audio(
                    row.audio, *crop, self.sampling_rate, self.frame_size, f"audio of {row.name}"
                )
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

    def _collate_sound(self, rows: list[_Row]) -> dict[str, Tensor]:
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
        num_samples = num_frames * self.frame_size
        audio = [row.audio[:, None] for row in rows if row.audio is not None]
        lengths = torch.tensor([len(samples) for samples in audio])
        return {
            "input_values": _stack(audio, num_samples).transpose(1, 2),
            "padding_mask": (torch.arange(num_samples) < lengths[:, None]).long(),
        }

    def _collate_tokens(self, rows: list[_Row]) -> dict[str, Tensor]:
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

    def _collate_frame_targets(self, rows: list[_Row], num_frames: int) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        if "phones" in self.frame_targets:
            batch["phone_ids"] = _filled([row.phone_ids for row in rows], (num_frames,), UNKNOWN)
        if "characters" in self.frame_targets:
            characters = [row.characters for row in rows]
            longest = max([1, *(len(known) for known in characters if known is not None)])
            filled = _filled(characters, (longest, 2), UNKNOWN)
            batch["character_labels"], batch["character_frames"] = filled.unbind(dim=2)
            batch["character_mask"] = torch.tensor([known is not None for known in characters])
        if "prosody" in self.frame_targets:
            values = _filled([row.prosody for row in rows], (num_frames, len(PROSODY)), torch.nan)
            batch["prosody_mask"] = ~values.isnan()
            batch["prosody_targets"] = values.nan_to_num(0.0)
        if "speaker" in self.frame_targets:
            numbers = [UNKNOWN if row.speaker is None else self.speakers.get(row.speaker, UNKNOWN) for row in rows]
            batch["speaker_ids"] = torch.tensor(numbers)
        return batch


def _places(count: int) -> Tensor:
    # Stands where a teacher's vectors will: which of them belongs there, (count, 1).
    return torch.arange(count, dtype=torch.float32)[:, None]


def _by_index(batch: dict[str, Any]) -> dict[str, Any]:
    # Places, which were cropped and padded as vectors are, become numbers under names of their own.
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


def _collate_wavlm(rows: list[_Row], num_frames: int) -> dict[str, Tensor]:
    given = [row.wavlm_features for row in rows if row.wavlm_features is not None]
    if not given:
        return {}
    sizes = {values.shape[1] for values in given}
    if len(sizes) > 1:
        raise ValueError(f"wavlm_features of one batch must have one size, got {sorted(sizes)}.")
    nothing = given[0].new_zeros(0, given[0].shape[1])
    features = [nothing if row.wavlm_features is None else row.wavlm_features for row in rows]
    lengths = torch.tensor([len(values) for values in features])
    return {
        "wavlm_features": _stack(features, num_frames),
        "wavlm_mask": torch.arange(num_frames) < lengths[:, None],
    }


def _full_scale_1(audio: np.ndarray, name: str) -> np.ndarray:
    # As float32. `datasets` may widen 16 bits to 64; of other integers nobody says what their full scale is.
    if np.issubdtype(audio.dtype, np.floating) or audio.size == 0:
        return audio.astype(np.float32)
    if audio.dtype not in (np.int16, np.int64) or max(-int(audio.min()), int(audio.max()) + 1) > FULL_SCALE:
        span = f" from {audio.min()} to {audio.max()}" if audio.dtype == np.int64 else ""
        raise ValueError(
            f"audio of {name} must be floats in [-1, 1] or integers of 16 bits, got {audio.dtype}{span}; divide it by "
            "its full scale, 2147483648 for 32 bits."
        )
    return audio.astype(np.float32) / np.float32(FULL_SCALE)


def _array(values: Any, name: str) -> np.ndarray:
    # Of numbers: a `datasets` row may hold lists, arrays or tensors, these in a precision that numpy does not know.
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
        array = array.astype(np.float64) if array.dtype == object else array  # None among numbers is NaN
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in rows of one length, got {_shown(values)}.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {_shown(values)}.")
    return array


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _tensor(values: Any, name: str, ndim: int, width: int | None = None) -> Tensor:
    tensor = torch.as_tensor(_array(values, name))
    tensor = tensor.float() if tensor.is_floating_point() or tensor.numel() == 0 else tensor.double().float()
    if tensor.shape == (0,) and width is not None:  # an empty list of a data set
        tensor = tensor.reshape(0, width)
    if tensor.ndim != ndim or (width is not None and tensor.shape[1] != width):
        axes = f"{ndim} axes" if width is None else f"the shape (any, {width})"
        raise ValueError(f"{name} must have {axes}, got shape {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} hold NaN or infinity; compute them again, or drop the row.")
    return tensor


def _at_frames(features: Tensor, num_frames: int, name: str) -> Tensor:
    if len(features) == num_frames:
        return features
    try:
        return pool_to_frames(features[None], torch.ones(1, num_frames, dtype=torch.bool))[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _stack(values: list, length: int) -> Tensor:
    # Rows of (length_i, dim) become (rows, length, dim), zeros after their end.
    return torch.stack([torch.nn.functional.pad(value, (0, 0, 0, length - len(value))) for value in values])
