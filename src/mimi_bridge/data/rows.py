"""One row of a prepared data set: a recording, its tokens with their states and their time, its features by frame.

A recording that cannot be used is left out with its reason, and the rest goes on. A row depends on its recording and
on the settings alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from ..configuration_mimi_bridge import MimiBridgeConfig
from ..frames import num_frames_for
from ..modeling_mimi_bridge import MimiBridgeModel
from .alignment import Aligner, Alignment
from .alignment_check import check_alignment
from .alignment_files import read_alignment
from .latents import OriginalLatents
from .manifest import Utterance
from .running_statistics import RunningStatistics
from .settings import GIVEN, POCKETSPHINX, Settings
from .shards import ShardNote
from .sources import Source, open_source
from .speech_teacher import WavLMTeacher
from .text_teacher import QwenTeacher, TextStates
from .tokens import token_spans

ROWS_AT_ONCE = 16
RATE, FRAME_SIZE = MimiBridgeConfig().sampling_rate, MimiBridgeConfig().frame_size
FRAME_RATE = RATE / FRAME_SIZE
T = TypeVar("T")


@dataclass
class _Recording:
    utterance: Utterance
    audio: Tensor  # (1, samples)
    alignment: Alignment | None = None
    states: TextStates | None = None
    spans: Tensor | None = None  # (tokens, 2), seconds
    features: Tensor | None = None  # (frames, wavlm_dim)
    reason: str | None = None  # why it is of no use

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / RATE

    @property
    def num_frames(self) -> int:
        return num_frames_for(self.audio.shape[-1], FRAME_SIZE)


class RowMaker:
    """Makes rows; holds the models.

    Args:
        settings: What is wanted.
        device: Where models run.

    Raises:
        OSError: If a model or the source is not to be had.
        ValueError: If a setting fits nothing.
    """

    def __init__(self, settings: Settings, device: str):
        self.settings, self._device = settings, device
        self.source: Source = open_source(settings.source, settings.split, settings.columns)
        self._text = self._speech = self._latents = self._aligner = None
        if settings.text_teacher is not None:
            self._text = QwenTeacher(
                settings.text_teacher, settings.text_layer, settings.final_norm, device=device, dtype=settings.dtype
            )
        if settings.speech_teacher is not None:
            self._speech = WavLMTeacher(
                settings.speech_teacher,
                settings.speech_layer,
                device=device,
                dtype=settings.dtype,
                max_seconds=settings.max_seconds + 1,
            )
        if settings.latents_model is not None:
            model = AutoModel.from_pretrained(settings.latents_model)
            if not isinstance(model, MimiBridgeModel):
                raise ValueError(f"latents_model must be a Mimi Bridge model, got {type(model).__name__}.")
            self._latents = OriginalLatents(model, device)

    @property
    def text_dim(self) -> int | None:
        """Size of the language model's states."""
        return None if self._text is None else self._text.dim

    def features(self) -> Any:
        """The columns, as `datasets.Features`."""
        from datasets import Features, List, Value

        def vectors(dim: int, dtype: str = "float16") -> Any:
            return List(List(Value(dtype), length=dim))

        columns = {"id": Value("string"), "speaker": Value("string"), "text": Value("string")}
        columns |= {"input_values": List(Value("int16"))} if self.settings.samples else {"audio_path": Value("string")}
        columns |= {"seconds": Value("float64"), "num_frames": Value("int32")}
        if self._text is not None:
            word = {"word": Value("string"), "start": Value("float32"), "end": Value("float32")}
            columns |= {"words": List(word), "alignment_score": Value("float32"), "token_ids": List(Value("int32"))}
            columns |= {"token_spans": vectors(2, "float32"), "qwen_hidden": vectors(self._text.dim)}
        if self._speech is not None:
            columns["wavlm_features"] = vectors(self._speech.dim)
        if self._latents is not None:
            columns |= {name: vectors(self._latents.dim) for name in ("latents", "target_latents")}
        return Features(columns)

    def rows(self, recordings: Sequence[int], note: ShardNote, statistics: RunningStatistics) -> Iterator[dict]:
        """The rows of some recordings, in order, without those that are of no use.

        Args:
            recordings: Their numbers in the source.
            note: Is told how much speech there is, and what is left out.
            statistics: Counts token states in, each by its time in frames.
        """
        for first in range(0, len(recordings), ROWS_AT_ONCE):
            block = [self._read(index) for index in recordings[first : first + ROWS_AT_ONCE]]
            self._add_states([recording for recording in block if recording.alignment is not None])
            self._add_features([recording for recording in block if recording.reason is None])
            for recording in block:
                if recording.reason is not None:
                    note.dropped.append((recording.utterance.id, recording.reason))
                    continue
                note.seconds += recording.seconds
                if recording.states is not None and recording.spans is not None:
                    statistics.add(recording.states.hidden, recording.spans.diff(dim=1)[:, 0] * FRAME_RATE)
                yield self._row(recording)

    def _read(self, index: int) -> _Recording:
        recording = _Recording(self.source.utterance(index), torch.zeros(1, 0))
        most = self.settings.max_seconds
        try:
            recording.audio = self.source.audio(index, RATE)
            if recording.seconds > most:
                raise ValueError(f"it is {recording.seconds:.0f} s long, and max_seconds is {most:g}")
            if recording.utterance.text and self._text is not None:
                recording.alignment = self._align(recording)
            elif self._speech is None:
                raise ValueError("it has no transcript, and there is no speech teacher")
        except (OSError, ValueError) as error:
            recording.reason = str(error)
        return recording

    def _align(self, recording: _Recording) -> Alignment:
        utterance = recording.utterance
        if utterance.alignment is not None and not self.settings.realign:
            return read_alignment(utterance.alignment, utterance.id)
        if self.settings.aligner == GIVEN:
            raise ValueError("it has no alignment, and aligner is 'given'")
        if self._aligner is None:
            self._aligner = _aligner(self.settings.aligner, self._device)
        found = self._aligner.align(recording.audio, RATE, utterance.text or "")
        if found is None:
            raise ValueError("the aligner cannot lay the text over it; is it what is said?")
        return found

    def _add_states(self, recordings: list[_Recording]) -> None:
        if self._text is None:
            return
        texts = [recording.utterance.text or "" for recording in recordings]
        for recording, states in zip(recordings, _all_or_each(self._text.states, texts), strict=True):
            if isinstance(states, Exception):
                recording.reason = str(states)
                continue
            assert recording.alignment is not None
            spans = token_spans(recording.utterance.text or "", states.offsets, recording.alignment.words)
            recording.spans = spans.clamp(max=recording.num_frames / FRAME_RATE)
            recording.reason = check_alignment(recording.alignment, recording.spans, recording.seconds)
            recording.states = states

    def _add_features(self, recordings: list[_Recording]) -> None:
        if self._speech is None:
            return
        speech = self._speech
        audio = [recording.audio for recording in recordings]
        for recording, features in zip(
            recordings, _all_or_each(lambda a: speech.features(a, RATE), audio), strict=True
        ):
            if isinstance(features, Exception):
                recording.reason = str(features)
            else:
                recording.features = features

    def _row(self, recording: _Recording) -> dict[str, Any]:
        utterance, alignment, states = recording.utterance, recording.alignment, recording.states
        row: dict[str, Any] = {"id": utterance.id, "speaker": utterance.speaker, "text": utterance.text}
        if self.settings.samples:
            row["input_values"] = (recording.audio[0] * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
        else:
            row["audio_path"] = str(utterance.path.absolute())
        row |= {"seconds": recording.seconds, "num_frames": recording.num_frames}
        if self._text is not None:
            row |= dict.fromkeys(("words", "alignment_score", "token_ids", "token_spans", "qwen_hidden"))
        if alignment is not None and states is not None and recording.spans is not None:
            row["words"] = [{"word": word.label, "start": word.start, "end": word.end} for word in alignment.words]
            row |= {"alignment_score": alignment.score, "token_ids": states.token_ids}
            row |= {"token_spans": recording.spans.numpy(), "qwen_hidden": _half(states.hidden)}
        if recording.features is not None:
            row["wavlm_features"] = _half(recording.features)
        if self._latents is not None:
            found, target = self._latents(recording.audio)
            row |= {"latents": _half(found), "target_latents": _half(target)}
        return row


def _aligner(name: str, device: str) -> Aligner:
    if name == POCKETSPHINX:
        from .pocketsphinx_aligner import PocketsphinxAligner

        return PocketsphinxAligner()
    from .ctc_aligner import CtcAligner

    return CtcAligner(name, device=device)


def _all_or_each(work: Callable[[list], list], items: list) -> list:
    """What comes of all at once; or, if one is refused, of each alone, with the refusal in its place."""
    if not items:
        return []
    try:
        return work(items)
    except ValueError as error:
        if len(items) == 1:
            return [error]
        return [found for item in items for found in _all_or_each(work, [item])]


def _half(values: Tensor) -> np.ndarray:
    largest = torch.finfo(torch.float16).max
    return values.detach().cpu().clamp(-largest, largest).half().numpy()
