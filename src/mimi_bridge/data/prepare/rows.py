"""One row of a prepared data set: a recording, its tokens with their states and their time, its features by frame.

A recording that cannot be used is left out with its reason, one whose tokens cannot be placed in time is kept without
them or left out, as is wished, and the rest goes on. A row depends on its recording and on the settings; by the error
of rounding also on those that shared a forward pass with it, which are always the same of its shard.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...alignment_targets import align_tokens_to_frames
from ...audio.sound import f0_or_none
from ..columns import row_columns
from ..frame_targets import level_by_step
from ..settings import Settings
from ..teachers.statistics import RunningStatistics
from .models import Models
from .recording import FRAME_RATE, RATE, Recording
from .shards import ROWS_AT_ONCE, ShardNote
from .sources import Source

T = TypeVar("T")
R = TypeVar("R")


class RowMaker:
    """Makes rows; holds the models.

    Args:
        settings: What is wanted.
        source: Where recordings come from.
        device: Where models run.

    Attributes:
        features: The columns, as `datasets.Features`.

    Raises:
        OSError, ModuleNotFoundError, ValueError: As `Models`.
    """

    def __init__(self, settings: Settings, source: Source, device: str):
        self.settings, self.source = settings, source
        self._stored = source.stored_audio if settings.audio == "auto" else settings.audio
        self._stores_states = settings.teachers == "stored"
        self._models = models = Models(settings, source, device)
        text, speech, latents = (getattr(part, "dim", None) for part in (models.text, models.speech, models.latents))
        self._dims = {"qwen": text, "wavlm": speech}
        has_tokens = models.text is not None
        self.features = row_columns(self._stored, text, speech, latents, settings.prosody, settings.phones, has_tokens)

    def statistics(self) -> dict[str, RunningStatistics]:
        """Empty ones, of each teacher's targets, frame by frame."""
        return {name: RunningStatistics(dim) for name, dim in self._dims.items() if dim is not None}

    def rows(
        self,
        recordings: Sequence[int],
        note: ShardNote,
        statistics: dict[str, RunningStatistics],
        advance: Callable[[int], object] = lambda count: None,
    ) -> Iterator[dict[str, Any]]:
        """The rows of some recordings, in order, without those that are of no use.

        Args:
            recordings: Their numbers in the source.
            note: Records the amount of speech, and what is left out.
            statistics: Count in the targets of each frame that has one.
            advance: Called with the number of further recordings that are finished.
        """
        for first in range(0, len(recordings), ROWS_AT_ONCE):
            block = [
                Recording.read(self.source, index, self.settings, stores_path=self._stored == "path")
                for index in recordings[first : first + ROWS_AT_ONCE]
            ]
            self._add_tokens([recording for recording in block if recording.dropped is None])
            self._add_features([recording for recording in block if recording.dropped is None])
            for recording in block:
                name = recording.utterance.id
                if recording.dropped is not None:
                    note.dropped.append((name, recording.dropped))
                    continue
                note.remarks += [(name, remark) for remark in recording.remarks]
                note.seconds += recording.seconds
                note.num_with_tokens += recording.states is not None
                for tag in recording.utterance.tags:
                    note.tags[tag] = note.tags.get(tag, 0) + 1
                row = self._row(recording)
                _count(row, recording.num_frames, statistics)
                yield row
            advance(len(block))

    def _add_tokens(self, recordings: list[Recording]) -> None:
        if not self.settings.has_words:
            return
        for recording in recordings:
            recording.align(self._models.aligner, self.settings)
        if self._models.text is None:
            for recording in recordings:
                recording.check_words()
            return
        aligned = [recording for recording in recordings if recording.alignment is not None]
        texts = [recording.utterance.text or "" for recording in aligned]
        for recording, states in zip(aligned, _all_or_each(self._models.text.states, texts), strict=True):
            recording.add_states(states)
        for recording in recordings:
            if recording.without_tokens is None:
                continue
            if (self._models.speech is None and self._stores_states) or self.settings.require_tokens:
                recording.dropped = recording.without_tokens
            else:
                recording.remarks.append(f"without tokens: {recording.without_tokens}")

    def _add_features(self, recordings: list[Recording]) -> None:
        if (speech := self._models.speech) is None:
            return
        audio = [recording.audio for recording in recordings]
        found = _all_or_each(lambda some: speech.features(some, RATE), audio)
        for recording, features in zip(recordings, found, strict=True):
            recording.add_features(features)

    def _row(self, recording: Recording) -> dict[str, Any]:
        utterance, alignment, states = recording.utterance, recording.alignment, recording.states
        row: dict[str, Any] = dict.fromkeys(self.features)
        row |= {"id": utterance.id, "speaker": utterance.speaker, "text": utterance.text}
        if self._stored == "samples":
            row["input_values"] = (recording.audio[0] * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
        elif self._stored == "path":
            row["audio_path"] = str(utterance.path.absolute())
        row |= {"seconds": recording.seconds, "num_frames": recording.num_frames}
        if alignment is not None and (self._models.text is None or recording.spans is not None):
            row["alignment_score"] = alignment.score
            row["words"] = [{"word": word.label, "start": word.start, "end": word.end} for word in alignment.words]
            row["phones"] = [{"phone": said.label, "start": said.start, "end": said.end} for said in alignment.phones]
        if states is not None and recording.spans is not None:
            row |= {"token_ids": states.token_ids, "token_spans": recording.spans.numpy()}
            if self._stores_states:
                row["qwen_hidden"] = _half(states.hidden)
        if recording.features is not None:
            row["wavlm_features"] = _half(recording.features)
        if self._models.latents is not None:
            found, target = self._models.latents(recording.audio)
            row |= {"latents": _half(found), "target_latents": _half(target)}
        if self.settings.prosody:
            row["f0_hz"] = f0_or_none(recording.audio, RATE)
            row["level_db"] = level_by_step(recording.audio[0].numpy(), RATE)
        return row


def _count(row: dict[str, Any], num_frames: int, statistics: dict[str, RunningStatistics]) -> None:
    # As training sees it: a frame's target is the mean of its tokens, by their share of its time.
    if row.get("qwen_hidden") is not None:
        hidden, spans = (torch.from_numpy(row[name]).float()[None] for name in ("qwen_hidden", "token_spans"))
        frame_mask = torch.ones(1, num_frames, dtype=torch.bool)
        targets, has_target = align_tokens_to_frames(hidden, frame_mask, FRAME_RATE, spans=spans)
        statistics["qwen"].add(targets[has_target])
    if row.get("wavlm_features") is not None:
        statistics["wavlm"].add(row["wavlm_features"])


def _all_or_each(work: Callable[[Sequence[T]], Sequence[R]], items: list[T]) -> list[R | ValueError]:
    """What comes of all at once; or, if one is refused, of each alone, with the refusal in its place."""
    if not items:
        return []
    try:
        return [*work(items)]
    except ValueError as error:
        if len(items) == 1:
            return [error]
        return [found for item in items for found in _all_or_each(work, [item])]


def _half(values: Tensor) -> np.ndarray:
    largest = torch.finfo(torch.float16).max
    return values.detach().cpu().clamp(-largest, largest).half().numpy()
