"""Rows of a data set become a batch: padded, masked, and cropped without cutting a token's target wrongly.

A row holds audio, or latents that were computed before, and whatever teachers there are for it; rows with a teacher
and rows without may share a batch. A crop begins and ends between frames. A token that reaches over its edge keeps the
part of its time that lies inside.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..configuration_mimi_bridge import MimiBridgeConfig
from .batches import by_index, collate_frame_targets, collate_sound, collate_teachers, collate_tokens, collate_wavlm
from .row import Row, RowReader, name_of
from .row_audio import AUDIO_KEYS, audio_of
from .teacher_inputs import TeacherInputs

FRAME_TARGETS = ("phones", "characters", "prosody", "speaker")  # what batches hold if they are asked for


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
            What `with_frame_targets` asked for. Last, `output_losses`, True, where the collator is set to ask for
            them.

        Raises:
            ValueError: If a row is none, holds neither audio nor latents, its parts do not fit together or are not
                finite, or rows of one batch place their tokens in different ways. The message names the row.
        """
        if not rows:
            raise ValueError("a batch needs at least one row, got none.")
        read = self._reader
        whole = [read(row, number) for number, row in enumerate(rows)]
        crops = [self._crop(row) for row in whole]
        of_teachers = {}
        if self.teachers is not None:  # first, as it moves the places of crops
            of_teachers = collate_teachers(self.teachers, whole, crops, self.sampling_rate, self.frame_size)
        batch = collate_sound(crops, self.frame_size) | collate_tokens(crops) | collate_wavlm(crops)
        if of_teachers:
            batch = by_index(batch | of_teachers)
        batch |= collate_frame_targets(crops, self.frame_targets, self.speakers)
        return batch | ({"output_losses": True} if self.output_losses else {})

    def checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its audio decoded, at the model's rate, if a batch can hold it.

        Raises:
            OSError: If its audio cannot be read.
            ValueError: As a batch of it.
        """
        if row.get("latents") is None:
            audio = audio_of(row, name_of(row, 0), self.sampling_rate)
            row = {name: value for name, value in row.items() if name not in AUDIO_KEYS} | {"input_values": audio}
        self._reader(row, 0)
        return row

    @property
    def _reader(self) -> RowReader:
        return RowReader(self.sampling_rate, self.frame_size, self.frame_targets, self.teachers)

    def _crop(self, row: Row) -> Row:
        if self.crop_frames is None or row.num_frames <= self.crop_frames:
            return row
        first = row.first_frame_of_crop(self.crop_frames, self.seed, self.epoch)
        return row.cropped(first, self.crop_frames, self.frame_size, self.frame_rate)
