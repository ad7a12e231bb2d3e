"""What a prepared data set is made of; see `prepare`."""

import math
from dataclasses import dataclass, field

GIVEN, POCKETSPHINX = "given", "pocketsphinx"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")  # what teachers compute in
TEACHERS_CHOICES = ("stored", "none")
AUDIO_CHOICES = ("auto", "path", "samples", "none")
COLUMNS = {  # of a data set, by what they hold: the usual names
    "audio": ("audio", "audio_filepath", "audio_path", "file_name", "path"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text"),
    "id": ("id", "utt_id", "segment_id", "file"),
    "speaker": ("speaker_id", "speaker", "client_id"),
}


@dataclass(frozen=True)
class Settings:
    """All that decides about the content of a prepared data set.

    Attributes:
        source: As in `open_source`, as the next four.
        config: Of a data set on the Hub.
        split: Of a data set.
        columns: Of a data set or a manifest.
        allow_outside: Take recordings that a manifest names outside its folder.
        text_teacher: A language model, as in `QwenTeacher`; None leaves `qwen_hidden` out.
        teachers: `"stored"`, or `"none"`: nothing that a teacher computes is stored, but tokens by the text teacher's
            tokenizer, with their place in time, words and phones; for training with teachers in the loop.
        text_layer: As in `QwenTeacher`.
        final_norm: As in `QwenTeacher`.
        speech_teacher: A speech model, as in `WavLMTeacher`; None leaves `wavlm_features` out.
        speech_layer: As in `WavLMTeacher`.
        aligner: `"pocketsphinx"`, the name of a CTC model as in `CtcAligner`, or `"given"`: only what the source has.
        realign: Use the aligner even where the source has an alignment.
        min_score: An alignment below it is rejected; None takes the aligner's own limit.
        require_tokens: Leave out a recording whose tokens cannot be placed in time; otherwise it is kept for its
            speech features, without tokens, and said to be.
        latents_model: A freshly converted model, whose latents are stored; None leaves them out.
        phones: Align and store words and phones where there is no text teacher, too; with one they are always there.
        prosody: Store pitch, as praat finds it, and level of every 10 ms.
        audio: What is stored of it: `"path"`; `"samples"`, 16 bits at 24 kHz; `"none"`, where there are latents; or
            `"auto"`: paths of files, samples of a data set and of segments of files.
        dtype: Of the teachers' computation, as in `from_pretrained`.
        min_seconds: Shorter recordings are left out; by default, those of less than a frame.
        max_seconds: Longer recordings are left out.
        recordings_per_shard: Of the source.

    Raises:
        ValueError: If they make no sense together.
    """

    source: str
    config: str | None = None
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    allow_outside: bool = False
    text_teacher: str | None = "Qwen/Qwen2.5-1.5B"
    teachers: str = "stored"
    text_layer: int | None = None
    final_norm: bool = True
    speech_teacher: str | None = "microsoft/wavlm-large"
    speech_layer: int | str | None = None
    aligner: str = POCKETSPHINX
    realign: bool = False
    min_score: float | None = None
    require_tokens: bool = False
    latents_model: str | None = None
    phones: bool = False
    prosody: bool = False
    audio: str = "auto"
    dtype: str = "auto"
    min_seconds: float = 0.08
    max_seconds: float = 60.0
    recordings_per_shard: int = 64

    def __post_init__(self) -> None:
        if self.teachers not in TEACHERS_CHOICES:
            raise ValueError(f"teachers must be one of {', '.join(TEACHERS_CHOICES)}, got {self.teachers!r}.")
        if self.teachers == "none":
            if self.text_layer is not None or self.speech_layer is not None or not self.final_norm:
                raise ValueError(
                    "teachers is 'none', so no layer of a teacher is stored; give the layers to the training instead."
                )
            object.__setattr__(self, "speech_teacher", None)  # so that its name decides about nothing
        wanted = (
            self.text_teacher,
            self.speech_teacher,
            self.latents_model,
            self.phones or None,
            self.prosody or None,
        )
        if all(part is None for part in wanted):
            raise ValueError("there is nothing to prepare: no text teacher, no speech teacher and no latents.")
        if self.require_tokens and self.text_teacher is None:
            raise ValueError("tokens cannot be required without a text teacher.")
        if self.audio not in AUDIO_CHOICES:
            raise ValueError(f"audio must be one of {', '.join(AUDIO_CHOICES)}, got {self.audio!r}.")
        if self.audio == "none" and self.latents_model is None:
            raise ValueError("audio must be 'path' or 'samples' where no latents are stored, got 'none'.")
        if self.realign and self.aligner == GIVEN:
            raise ValueError("realign needs an aligner, but aligner is 'given'; choose one, or leave realign out.")
        if isinstance(self.speech_layer, str) and self.speech_layer != "mean":
            raise ValueError(f"speech_layer must be a number or 'mean', got {self.speech_layer!r}.")
        if not 0 <= self.min_seconds <= self.max_seconds < math.inf:
            raise ValueError(
                f"min_seconds and max_seconds must be finite, 0 <= min <= max, got {self.min_seconds:g} and "
                f"{self.max_seconds:g}."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.recordings_per_shard < 1:
            raise ValueError(f"recordings_per_shard must be at least 1, got {self.recordings_per_shard}.")

    @property
    def has_words(self) -> bool:
        """Whether words and phones are stored, and so recordings aligned."""
        return self.text_teacher is not None or self.phones
