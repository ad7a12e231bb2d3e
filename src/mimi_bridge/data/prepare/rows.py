"""One row of a prepared data set: a recording, its tokens with their states and their time, its features by frame.

A recording that cannot be used is left out with its reason, one whose tokens cannot be placed in time is kept without
them or left out, as is wished, and the rest goes on. A row depends on its recording and on the settings; by the error
of rounding also on those that shared a forward pass with it, which are always the same of its shard.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from ...alignment_targets import align_tokens_to_frames
from ...audio.sound import f0_or_none
from ...configuration_mimi_bridge import MimiBridgeConfig
from ...frames import num_frames_for
from ...modeling_mimi_bridge import MimiBridgeModel
from ..alignment.check import NO_SCORE, check_alignment
from ..alignment.files import given_alignment
from ..alignment.tokens import token_spans
from ..alignment.types import Aligner, Alignment
from ..columns import row_columns
from ..frame_targets import level_by_step
from ..latents import OriginalLatents
from ..manifest import Utterance
from ..settings import GIVEN, POCKETSPHINX, Settings
from ..tables import is_utf8
from ..teachers.speech import WavLMTeacher
from ..teachers.statistics import RunningStatistics
from ..teachers.text import QwenTeacher, TextStates, TextTokenizer
from .shards import ROWS_AT_ONCE, ShardNote
from .sources import Source

RATE, FRAME_SIZE = MimiBridgeConfig().sampling_rate, MimiBridgeConfig().frame_size
FRAME_RATE = RATE / FRAME_SIZE
MIN_RATE = 16_000  # Hz; what is recorded at less lacks what speech models listen to
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Recording:
    utterance: Utterance
    audio: Tensor = field(default_factory=lambda: torch.zeros(1, 0))  # (1, samples)
    alignment: Alignment | None = None
    min_score: float = NO_SCORE
    states: TextStates | None = None
    spans: Tensor | None = None  # (tokens, 2), seconds
    features: Tensor | None = None  # (frames, wavlm_dim)
    without_tokens: str | None = None  # why
    dropped: str | None = None  # why
    remarks: list[str] = field(default_factory=list)

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
        source: Where recordings come from.
        device: Where models run.

    Raises:
        OSError: If a model is not available.
        ModuleNotFoundError: If pitch is wanted and praat-parselmouth is not installed.
        ValueError: If a setting fits nothing.
    """

    def __init__(self, settings: Settings, source: Source, device: str):
        self.settings, self.source = settings, source
        self._stored = source.stored_audio if settings.audio == "auto" else settings.audio
        self._text: QwenTeacher | TextTokenizer | None = None
        self._speech: WavLMTeacher | None = None
        self._latents: OriginalLatents | None = None
        self._stores_states = settings.teachers == "stored"
        if settings.text_teacher is not None and not self._stores_states:
            with _loading(settings.text_teacher):
                self._text = TextTokenizer(settings.text_teacher)
        elif settings.text_teacher is not None:
            with _loading(settings.text_teacher):
                self._text = QwenTeacher(
                    settings.text_teacher,
                    settings.text_layer,
                    settings.final_norm,
                    device=device,
                    dtype=settings.dtype,
                )
        self._aligner: Aligner | None = None
        if settings.text_teacher is not None or settings.phones:
            is_to_align = settings.aligner != GIVEN and source.has_text_to_align(settings.realign)
            self._aligner = _aligner(settings.aligner, device) if is_to_align else None
        if settings.speech_teacher is not None:
            with _loading(settings.speech_teacher):
                self._speech = WavLMTeacher(
                    settings.speech_teacher,
                    settings.speech_layer,  # type: ignore[arg-type]  # the settings have checked that a text is "mean"
                    device=device,
                    dtype=settings.dtype,
                    max_seconds=settings.max_seconds + 1,
                )
        if settings.prosody and find_spec("parselmouth") is None:
            raise ModuleNotFoundError(
                "pitch needs the package praat-parselmouth; run pip install 'mimi-bridge[eval]', or leave prosody out."
            )
        if settings.latents_model is not None:
            with _loading(settings.latents_model):
                model = AutoModel.from_pretrained(settings.latents_model)
            if not isinstance(model, MimiBridgeModel):
                raise ValueError(f"latents_model must be a Mimi Bridge model, got {type(model).__name__}.")
            self._latents = OriginalLatents(model, device)

    def statistics(self) -> dict[str, RunningStatistics]:
        """Empty ones, of each teacher's targets, frame by frame."""
        dims = {"qwen": getattr(self._text, "dim", None), "wavlm": getattr(self._speech, "dim", None)}
        return {name: RunningStatistics(dim) for name, dim in dims.items() if dim is not None}

    def features(self) -> Any:
        """The columns, as `datasets.Features`."""
        parts = (self._text, self._speech, self._latents)
        text, speech, latents = (getattr(part, "dim", None) for part in parts)
        has_tokens, prosody, phones = self._text is not None, self.settings.prosody, self.settings.phones
        return row_columns(self._stored, text, speech, latents, prosody, phones, has_tokens)

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
            block = [self._read(index) for index in recordings[first : first + ROWS_AT_ONCE]]
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

    def _read(self, index: int) -> _Recording:
        recording, settings = _Recording(self.source.utterance(index)), self.settings
        try:
            stores_path = self._stored == "path"
            recording.audio, rate = self.source.audio(
                index, RATE, settings.max_seconds, stores_path, recording.remarks.append
            )
            if recording.seconds < settings.min_seconds:
                raise ValueError(f"it lasts {recording.seconds:.3f} s, but min_seconds is {settings.min_seconds:g}")
            if stores_path and not recording.utterance.path.is_file():
                raise ValueError("it lies in no file of its own whose path could be stored; store samples")
            if stores_path and not is_utf8(str(recording.utterance.path.absolute())):
                raise ValueError("its path is not UTF-8, so it cannot be stored; rename its folders, or store samples")
        except (OSError, ValueError) as error:
            recording.dropped = _reason(error)
        else:
            if self._text is None and not settings.phones and recording.utterance.problem is not None:
                recording.remarks.append(f"without text: {recording.utterance.problem}")
            if rate < MIN_RATE:
                recording.remarks.append(f"recorded at {rate} Hz, so it holds nothing above {rate // 2} Hz")
        return recording

    def _add_tokens(self, recordings: list[_Recording]) -> None:
        if self._text is None and not self.settings.phones:
            return
        for recording in recordings:
            self._align(recording)
        if self._text is None:
            for recording in recordings:
                _check_words(recording)
            return
        aligned = [recording for recording in recordings if recording.alignment is not None]
        texts = [recording.utterance.text or "" for recording in aligned]
        for recording, states in zip(aligned, _all_or_each(self._text.states, texts), strict=True):
            recording.without_tokens = self._place(recording, states)
        for recording in recordings:
            if recording.without_tokens is None:
                continue
            if (self._speech is None and self._stores_states) or self.settings.require_tokens:
                recording.dropped = recording.without_tokens
            else:
                recording.remarks.append(f"without tokens: {recording.without_tokens}")

    def _align(self, recording: _Recording) -> None:
        utterance, settings = recording.utterance, self.settings
        if utterance.text is None or not utterance.text.strip():
            empty = "it has no transcript" if utterance.text is None else "its transcript is empty"
            recording.without_tokens = utterance.problem or empty
            return
        is_given = utterance.alignment is not None and not settings.realign
        if not is_given and settings.aligner == GIVEN:
            recording.without_tokens = "it has no alignment, and aligner is 'given'"
            return
        try:
            if is_given:
                recording.alignment = given_alignment(utterance)
            else:
                assert self._aligner is not None
                recording.alignment = self._aligner.align(recording.audio, RATE, utterance.text)
                recording.min_score = self._aligner.min_score
        except (OSError, ValueError) as error:
            recording.without_tokens = _reason(error)
        else:
            if recording.alignment is None:
                recording.without_tokens = "its text cannot be laid over it; is it what is said?"
        if settings.min_score is not None:
            recording.min_score = settings.min_score

    def _place(self, recording: _Recording, states: TextStates | ValueError) -> str | None:
        # Give it its states and their spans, or say why not.
        if isinstance(states, ValueError):
            return _reason(states)
        if not bool(torch.isfinite(states.hidden).all()):
            return "its states hold NaN or infinity; compute them in another dtype, such as float32"
        assert recording.alignment is not None
        text = recording.utterance.text or ""
        spans = token_spans(text, states.offsets, recording.alignment.words)
        wrong = check_alignment(
            recording.alignment, spans, recording.seconds, text=text, min_score=recording.min_score
        )
        if wrong is None:
            recording.spans = spans.clamp(0, recording.num_frames / FRAME_RATE)
            recording.states = states
        return wrong

    def _add_features(self, recordings: list[_Recording]) -> None:
        if self._speech is None:
            return
        speech = self._speech
        audio = [recording.audio for recording in recordings]
        found = _all_or_each(lambda some: speech.features(some, RATE), audio)
        for recording, features in zip(recordings, found, strict=True):
            if isinstance(features, ValueError):
                recording.dropped = _reason(features)
            elif not bool(torch.isfinite(features).all()):
                recording.dropped = "its features hold NaN or infinity; compute them in another dtype, such as float32"
            else:
                recording.features = features

    def _row(self, recording: _Recording) -> dict[str, Any]:
        utterance, alignment, states = recording.utterance, recording.alignment, recording.states
        row: dict[str, Any] = {"id": utterance.id, "speaker": utterance.speaker, "text": utterance.text}
        if self._stored == "samples":
            row["input_values"] = (recording.audio[0] * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()
        elif self._stored == "path":
            row["audio_path"] = str(utterance.path.absolute())
        row |= {"seconds": recording.seconds, "num_frames": recording.num_frames}
        if self._text is not None:
            row |= dict.fromkeys(("token_ids", "token_spans", *["qwen_hidden"] * self._stores_states))
        if self._text is not None or self.settings.phones:
            row |= dict.fromkeys(("words", "phones", "alignment_score"))
        if alignment is not None and (self._text is None or recording.spans is not None):
            row["alignment_score"] = alignment.score
            row["words"] = [{"word": word.label, "start": word.start, "end": word.end} for word in alignment.words]
            row["phones"] = [{"phone": said.label, "start": said.start, "end": said.end} for said in alignment.phones]
        if states is not None and recording.spans is not None:
            row |= {"token_ids": states.token_ids, "token_spans": recording.spans.numpy()}
            if self._stores_states:
                row["qwen_hidden"] = _half(states.hidden)
        if recording.features is not None:
            row["wavlm_features"] = _half(recording.features)
        if self._latents is not None:
            found, target = self._latents(recording.audio)
            row |= {"latents": _half(found), "target_latents": _half(target)}
        if self.settings.prosody:
            row["f0_hz"] = f0_or_none(recording.audio, RATE)
            row["level_db"] = level_by_step(recording.audio[0].numpy(), RATE)
        return row


def _check_words(recording: _Recording) -> None:
    # Keep an alignment without tokens, or say why not.
    alignment, wrong = recording.alignment, recording.without_tokens
    if alignment is not None:
        spans = torch.tensor([[word.start, word.end] for word in alignment.words]).reshape(-1, 2)
        text = recording.utterance.text or ""
        wrong = check_alignment(alignment, spans, recording.seconds, text=text, min_score=recording.min_score)
    if wrong is not None:
        recording.alignment = None
        recording.remarks.append(f"without phones: {wrong}")


def _count(row: dict[str, Any], num_frames: int, statistics: dict[str, RunningStatistics]) -> None:
    # As training sees it: a frame's target is the mean of its tokens, by their share of its time.
    if row.get("qwen_hidden") is not None:
        hidden, spans = (torch.from_numpy(row[name]).float()[None] for name in ("qwen_hidden", "token_spans"))
        frame_mask = torch.ones(1, num_frames, dtype=torch.bool)
        targets, has_target = align_tokens_to_frames(hidden, frame_mask, FRAME_RATE, spans=spans)
        statistics["qwen"].add(targets[has_target])
    if row.get("wavlm_features") is not None:
        statistics["wavlm"].add(row["wavlm_features"])


def _aligner(name: str, device: str) -> Aligner:
    if name == POCKETSPHINX:
        from ..alignment.pocketsphinx import PocketsphinxAligner

        return PocketsphinxAligner()
    from ..alignment.ctc import CtcAligner

    with _loading(name):
        return CtcAligner(name, device=device)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    # What transformers says of a model that it cannot load does not always name it.
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"no such model folder: {name}")
    try:
        yield
    except (OSError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} cannot be loaded for this: {error}") from error


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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _half(values: Tensor) -> np.ndarray:
    largest = torch.finfo(torch.float16).max
    return values.detach().cpu().clamp(-largest, largest).half().numpy()
