"""What a prepared data set is made of; see `preparation`."""

from dataclasses import dataclass, field

GIVEN, POCKETSPHINX = "given", "pocketsphinx"
COLUMNS = {  # of a data set, by what they hold: the usual names
    "audio": ("audio",),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text"),
    "id": ("id", "utt_id", "segment_id", "file"),
    "speaker": ("speaker_id", "speaker", "client_id"),
}


@dataclass(frozen=True)
class Settings:
    """All that decides about the content of a prepared data set.

    Attributes:
        source: As in `open_source`.
        split: As in `open_source`.
        columns: As in `open_source`.
        text_teacher: A language model, as in `QwenTeacher`; None leaves `qwen_hidden` out.
        text_layer: As in `QwenTeacher`.
        final_norm: As in `QwenTeacher`.
        speech_teacher: A speech model, as in `WavLMTeacher`; None leaves `wavlm_features` out.
        speech_layer: As in `WavLMTeacher`.
        aligner: `"pocketsphinx"`, the name of a CTC model as in `CtcAligner`, or `"given"`: only what the source has.
        realign: Use the aligner even where the source has an alignment.
        latents_model: A freshly converted model, whose latents are stored; None leaves them out.
        samples: Store audio, 16 bits at 24 kHz, instead of paths.
        dtype: Of the teachers' computation, as in `from_pretrained`.
        max_seconds: Longer recordings are left out.
        recordings_per_shard: Of the source.
    """

    source: str
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    text_teacher: str | None = "Qwen/Qwen2.5-1.5B"
    text_layer: int | None = None
    final_norm: bool = True
    speech_teacher: str | None = "microsoft/wavlm-large"
    speech_layer: int | str | None = None
    aligner: str = POCKETSPHINX
    realign: bool = False
    latents_model: str | None = None
    samples: bool = False
    dtype: str = "auto"
    max_seconds: float = 60.0
    recordings_per_shard: int = 64
