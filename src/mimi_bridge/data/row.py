"""One row of a data set as tensors that fit together: its recording or latents, and what teachers say of it."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..alignment_targets import pool_to_frames
from ..frames import num_frames_for
from .characters import characters_by_frame
from .frame_targets import phones_by_frame, prosody_by_frame
from .row_audio import audio_of
from .teacher_inputs import TeacherInputs, token_ids_of
from .values import array_of, tensor_of

SPAN_TOLERANCE = 1e-3  # seconds; the model itself allows no more


@dataclass
class Row:
    """A row: audio or latents, and the teachers that it has."""

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

    def first_frame_of_crop(self, num_frames: int, seed: int, epoch: int) -> int:
        """Where a crop of so many frames begins: at random, but the same for the same row, seed and epoch."""
        sound = self.audio if self.audio is not None else self.latents
        assert sound is not None
        digest = zlib.crc32(np.ascontiguousarray(sound[:4096].numpy()).tobytes())
        random = np.random.default_rng((seed, epoch + self.pass_number, self.num_frames, digest))
        return int(random.integers(self.num_frames - num_frames + 1))

    def cropped(self, first: int, num_frames: int, frame_size: int, frame_rate: float) -> "Row":
        """So many frames from the first on; of a token, the part of its time that lies in them."""
        last = first + num_frames

        def cut(values: Tensor | None, size: int = 1) -> Tensor | None:
            return None if values is None else values[first * size : last * size]

        row = replace(
            self,
            num_frames=num_frames,
            audio=cut(self.audio, frame_size),
            latents=cut(self.latents),
            target_latents=cut(self.target_latents),
            wavlm_features=cut(self.wavlm_features),
            phone_ids=cut(self.phone_ids),
            prosody=cut(self.prosody),
        )
        if self.characters is not None:
            frames = self.characters[:, 1]
            inside = (frames >= first) & (frames < last)
            row.characters = self.characters[inside] - torch.tensor([0, first])
        if self.qwen_hidden is None:
            return row
        if self.durations is not None:
            edges = torch.nn.functional.pad(self.durations.cumsum(0), (1, 0)).clamp(first, last)
            durations = edges.diff()
            inside = durations > 0
            row.durations = durations[inside]
        else:
            assert self.token_spans is not None
            begin, end = first / frame_rate, last / frame_rate
            spans = self.token_spans.clamp(begin, end) - begin
            inside = spans[:, 1] > spans[:, 0]
            row.token_spans = spans[inside]
        row.qwen_hidden = self.qwen_hidden[inside]
        row.token_mask = None if self.token_mask is None else self.token_mask[inside]
        return row


@dataclass(frozen=True)
class RowReader:
    """Reads rows for a model.

    Attributes:
        sampling_rate: Of the model, Hz.
        frame_size: Samples of a frame.
        frame_targets: What is read beside teachers: `phones`, `characters`, `prosody`, `speaker`.
        teachers: Those that are computed while training; places stand where their vectors will.
    """

    sampling_rate: int
    frame_size: int
    frame_targets: Collection[str] = ()
    teachers: TeacherInputs | None = None

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.frame_size

    def __call__(self, given: Mapping[str, Any], number: int) -> Row:
        """The row with this number of its batch.

        Raises:
            OSError: If its audio cannot be read.
            ValueError: If its parts do not fit together or are not finite.
        """
        if not isinstance(given, Mapping):
            raise ValueError(
                f"row {number} of the batch must be a dict of columns, got {type(given).__name__}; a recording alone "
                'is such a row as {"audio_path": path}.'
            )
        name = name_of(given, number)
        if given.get("latents") is not None:
            row = _row_of_latents(given, name)
        else:
            audio = audio_of(given, name, self.sampling_rate)
            row = Row(name, num_frames_for(len(audio), self.frame_size), audio=audio)
        row.pass_number = int(given.get("pass_number") or 0)
        if self.teachers is not None and self.teachers.text:
            row.token_ids = token_ids_of(given, name)
            row.qwen_hidden = None if row.token_ids is None else _places(len(row.token_ids))
        elif given.get("qwen_hidden") is not None:
            states = array_of(given["qwen_hidden"], f"qwen_hidden of {name}")
            if len(np.atleast_1d(states)):
                row.qwen_hidden = tensor_of(states, f"qwen_hidden of {name}", 2)
        if row.qwen_hidden is not None:
            self._place_tokens(given, row, len(row.qwen_hidden))
        if self.teachers is not None and self.teachers.speech is not None:
            if row.audio is None:
                raise ValueError(f"{name} holds latents, but the speech teacher needs audio; use a data set of audio.")
            row.wavlm_features = _places(row.num_frames)
        elif given.get("wavlm_features") is not None:
            features = tensor_of(given["wavlm_features"], f"wavlm_features of {name}", 2)
            row.wavlm_features = _at_frames(features, row.num_frames, name)
        self._read_frame_targets(given, row)
        return row

    def _place_tokens(self, given: Mapping[str, Any], row: Row, num_tokens: int) -> None:
        name, durations, spans = row.name, given.get("durations"), given.get("token_spans")
        if (durations is None) == (spans is None):
            given_as = "qwen_hidden" if row.token_ids is None else "token_ids"
            raise ValueError(f"{name} has {given_as} and needs durations or token_spans beside it, exactly one.")
        if durations is not None:
            frames = array_of(durations, f"durations of {name}")
            if frames.ndim != 1 or (frames.size and not np.issubdtype(frames.dtype, np.integer)) or (frames < 0).any():
                raise ValueError(f"durations of {name} must be whole frames, (tokens,), none negative, got {frames}.")
            placed = row.durations = torch.as_tensor(frames.astype(np.int64))
            too_long = int(placed.sum()) > row.num_frames
        else:
            placed = row.token_spans = tensor_of(spans, f"token_spans of {name}", 2, width=2)
            if bool((placed[:, 1] < placed[:, 0]).any()) or bool((placed < -SPAN_TOLERANCE).any()):
                raise ValueError(f"token_spans of {name} must be start and end in seconds, start <= end, from 0 on.")
            latest = row.num_frames / self.frame_rate + SPAN_TOLERANCE
            too_long = bool((placed > latest).any())
        if len(placed) != num_tokens:
            what = "vectors of qwen_hidden" if row.token_ids is None else "token_ids"
            raise ValueError(f"{name} has {num_tokens} {what}, but {len(placed)} places in time.")
        if too_long:
            raise ValueError(
                f"the tokens of {name} reach beyond its {row.num_frames} frames of {1 / self.frame_rate:.3f} s; "
                "were they aligned to another recording?"
            )
        if given.get("token_mask") is not None:
            row.token_mask = torch.as_tensor(array_of(given["token_mask"], f"token_mask of {name}")).bool()
            if row.token_mask.shape != (num_tokens,):
                raise ValueError(
                    f"token_mask of {name} must say something of each of its {num_tokens} tokens, got shape "
                    f"{tuple(row.token_mask.shape)}."
                )

    def _read_frame_targets(self, given: Mapping[str, Any], row: Row) -> None:
        place = row.num_frames, self.frame_rate, row.name
        if "phones" in self.frame_targets and given.get("phones") is not None:
            row.phone_ids = phones_by_frame(given["phones"], *place)
        if "characters" in self.frame_targets and given.get("words") is not None:
            row.characters = characters_by_frame(given["words"], *place)
        if "prosody" in self.frame_targets and given.get("f0_hz") is not None and given.get("level_db") is not None:
            f0_hz, level_db = (tensor_of(given[name], f"{name} of {row.name}", 1) for name in ("f0_hz", "level_db"))
            row.prosody = prosody_by_frame(f0_hz, level_db, *place)
        if "speaker" in self.frame_targets and given.get("speaker") is not None:
            row.speaker = str(given["speaker"])


def name_of(given: Mapping[str, Any], number: int) -> str:
    """What messages call the row with this number of its batch."""
    return f"row {str(given['id'])!r}" if given.get("id") is not None else f"row {number} of the batch"


def _row_of_latents(given: Mapping[str, Any], name: str) -> Row:
    latents = tensor_of(given["latents"], f"latents of {name}", 2)
    if len(latents) == 0:
        raise ValueError(f"latents of {name} must have at least one frame, got none.")
    row = Row(name, len(latents), latents=latents)
    if given.get("target_latents") is not None:
        row.target_latents = tensor_of(given["target_latents"], f"target_latents of {name}", 2)
        if row.target_latents.shape != latents.shape:
            raise ValueError(
                f"target_latents of {name} must have the shape of its latents, {tuple(latents.shape)}, got "
                f"{tuple(row.target_latents.shape)}."
            )
    return row


def _places(count: int) -> Tensor:
    # Stands where a teacher's vectors will: which of them belongs there, (count, 1).
    return torch.arange(count, dtype=torch.float32)[:, None]


def _at_frames(features: Tensor, num_frames: int, name: str) -> Tensor:
    if len(features) == num_frames:
        return features
    try:
        return pool_to_frames(features[None], torch.ones(1, num_frames, dtype=torch.bool))[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
