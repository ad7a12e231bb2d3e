"""A recording on its way to a row: what is known of it so far, and the reason if it cannot be used.

Each step says what is wrong in half a sentence that can follow the recording's name, and raises nothing for it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...configuration_mimi_bridge import MimiBridgeConfig
from ...frames import num_frames_for
from ..alignment.check import NO_SCORE, check_alignment
from ..alignment.files import given_alignment
from ..alignment.tokens import token_spans
from ..alignment.types import Aligner, Alignment
from ..lines import is_utf8
from ..manifest import Utterance
from ..settings import GIVEN, Settings
from ..teachers.text import TextStates
from .sources import Source

RATE, FRAME_SIZE = MimiBridgeConfig().sampling_rate, MimiBridgeConfig().frame_size
FRAME_RATE = RATE / FRAME_SIZE
MIN_RATE = 16_000  # Hz; what is recorded at less lacks what speech models listen to


@dataclass
class Recording:
    """A recording, and what the steps find.

    Attributes:
        utterance: What its source knows of it.
        audio: `(1, samples)`, at `RATE`.
        alignment: Its words in time, or None.
        min_score: The least that the alignment's score may be.
        states: Its tokens, or None where they have no place in time.
        spans: Where they lie, `(tokens, 2)`, seconds.
        features: Of the speech teacher, `(frames, dim)`.
        without_tokens: Why it has no tokens.
        dropped: Why it is left out.
        remarks: What else is to be said of it.
    """

    utterance: Utterance
    audio: Tensor = field(default_factory=lambda: torch.zeros(1, 0))
    alignment: Alignment | None = None
    min_score: float = NO_SCORE
    states: TextStates | None = None
    spans: Tensor | None = None
    features: Tensor | None = None
    without_tokens: str | None = None
    dropped: str | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.audio.shape[-1] / RATE

    @property
    def num_frames(self) -> int:
        """Its length in Mimi's frames, the last of which may be filled up."""
        return num_frames_for(self.audio.shape[-1], FRAME_SIZE)

    @classmethod
    def read(cls, source: Source, index: int, settings: Settings, stores_path: bool) -> "Recording":
        """Read a recording of a source; `stores_path` says that its row is to name its file."""
        recording = cls(source.utterance(index))
        utterance, remarks = recording.utterance, recording.remarks
        try:
            recording.audio, rate = source.audio(index, RATE, settings.max_seconds, stores_path, remarks.append)
            if recording.seconds < settings.min_seconds:
                raise ValueError(f"it lasts {recording.seconds:.3f} s, but min_seconds is {settings.min_seconds:g}")
            if stores_path and not utterance.path.is_file():
                raise ValueError("it lies in no file of its own whose path could be stored; store samples")
            if stores_path and not is_utf8(str(utterance.path.absolute())):
                raise ValueError("its path is not UTF-8, so it cannot be stored; rename its folders, or store samples")
        except (OSError, ValueError) as error:
            recording.dropped = _reason(error)
        else:
            if not settings.has_words and utterance.problem is not None:
                remarks.append(f"without text: {utterance.problem}")
            if rate < MIN_RATE:
                remarks.append(f"recorded at {rate} Hz, so it holds nothing above {rate // 2} Hz")
        return recording

    def align(self, aligner: Aligner | None, settings: Settings) -> None:
        """Take the alignment that comes with it, or have it made; `aligner` may be None where none is to be made."""
        utterance = self.utterance
        if utterance.text is None or not utterance.text.strip():
            empty = "it has no transcript" if utterance.text is None else "its transcript is empty"
            self.without_tokens = utterance.problem or empty
            return
        is_given = utterance.alignment is not None and not settings.realign
        if not is_given and settings.aligner == GIVEN:
            self.without_tokens = "it has no alignment, and aligner is 'given'"
            return
        try:
            if is_given:
                self.alignment = given_alignment(utterance)
            else:
                assert aligner is not None
                self.alignment = aligner.align(self.audio, RATE, utterance.text)
                self.min_score = aligner.min_score
        except (OSError, ValueError) as error:
            self.without_tokens = _reason(error)
        else:
            if self.alignment is None:
                self.without_tokens = "its text cannot be laid over it; is it what is said?"
        if settings.min_score is not None:
            self.min_score = settings.min_score

    def add_states(self, states: TextStates | ValueError) -> None:
        """Give the tokens of an aligned recording their place in time."""
        if isinstance(states, ValueError):
            self.without_tokens = _reason(states)
        elif not bool(torch.isfinite(states.hidden).all()):
            self.without_tokens = "its states hold NaN or infinity; compute them in another dtype, such as float32"
        else:
            assert self.alignment is not None
            spans = token_spans(self.utterance.text or "", states.offsets, self.alignment.words)
            self.without_tokens = self._problem(self.alignment, spans)
            if self.without_tokens is None:
                self.spans, self.states = spans.clamp(0, self.num_frames / FRAME_RATE), states

    def add_features(self, features: Tensor | ValueError) -> None:
        """Give it its features; without them it is left out."""
        if isinstance(features, ValueError):
            self.dropped = _reason(features)
        elif not bool(torch.isfinite(features).all()):
            self.dropped = "its features hold NaN or infinity; compute them in another dtype, such as float32"
        else:
            self.features = features

    def check_words(self) -> None:
        """Keep an alignment without tokens only if it is good enough."""
        alignment, wrong = self.alignment, self.without_tokens
        if alignment is not None:
            spans = torch.tensor([[word.start, word.end] for word in alignment.words]).reshape(-1, 2)
            wrong = self._problem(alignment, spans)
        if wrong is not None:
            self.alignment = None
            self.remarks.append(f"without phones: {wrong}")

    def _problem(self, alignment: Alignment, spans: Tensor) -> str | None:
        text = self.utterance.text or ""
        return check_alignment(alignment, spans, self.seconds, text=text, min_score=self.min_score)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
