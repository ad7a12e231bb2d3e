"""Arguments of a fine-tuning run: transformers' `TrainingArguments` and those of the three heads.

The defaults are the specification's rates (content, prosody and bridges 1e-4, acoustic 1e-5, AdamW with betas 0.8 and
0.99, gradient accumulation) on a frozen codec.
"""

import json
import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..codebook import CODEBOOK_UPDATES
from .optimizer import learning_rates

CONTENT_INITS = ("k-means", "least-squares", "none")
READOUT_WEIGHTS = (
    *("phone_weight", "character_weight", "speech_content_weight"),
    *("prosody_weight", "speaker_reversal_weight"),
)
SHARDED = "codebooks move as a whole; start one process a device with torchrun, which needs no such argument"
UNSUPPORTED = {  # transformers' arguments that could not be honoured, and why
    "remove_unused_columns": "the collator reads columns that the model does not take, such as audio; leave it out",
    "label_smoothing_factor": "there are no labels to smooth",
    "label_names": "a recording has no labels; teachers are columns that the collator knows",
    "neftune_noise_alpha": "there are no token embeddings to add noise to",
    "fsdp": SHARDED,
    "deepspeed": SHARDED,
    "parallelism_config": SHARDED,
}


@dataclass
class MimiBridgeTrainingArguments(TrainingArguments):
    """Arguments of [`MimiBridgeTrainer`], beside transformers' own, some of which have other defaults here.

    `remove_unused_columns` is False, and `length_column_name`, by which `train_sampling_strategy="group_by_length"`
    groups, is `"num_frames"`, the column that `mimi-bridge prepare` writes.

    Args:
        learning_rate: Of content and prosody head and bridges; the acoustic head's is a tenth, the codec's 0.
        head_learning_rates: Other rates, by name: `content`, `prosody`, `bridges`, `acoustic`, `encoder`, `decoder`;
            `codec` is for the last two, of which one that is named itself has its own. 0 freezes. On a command line,
            a json object.
        codebook_update: `"ema"`: moving averages, once an optimizer step. `"gradient"`: parameters of their head's
            group.
        codebook_decay: Of the averages of a head that learns at `learning_rate`; one that learns at a tenth of it
            forgets at a tenth of the speed, one that learns ten times as fast at ten times. Left out, the model's.
        qwen_weight: Weight of the distance to the language model. Left out, the model's, as the next two.
        wavlm_weight: Weight of the distance to the speech model.
        commitment_weight: Weight of the distance of a head's inputs from their entries.
        mel_weight: Weight of the mel distance of the decoded audio, which needs audio and the decoder; 0 does without
            them. Left out, 1 where there are both.
        latents_weight: Weight of the distance of the quantized latents from the original Mimi's; in a model that was
            trained before, from its own as training begins, where the data set does not hold the original's.
        adversarial_weight: Weight of the adversarial loss of the decoded audio and, twice, of feature matching; needs
            audio and the decoder. 0 does without a discriminator.
        timbre_weight: Weight, in training, of how far the mean spectrum of a recording that is decoded with the
            acoustic codes of the next of its batch is from that one's; needs audio, the decoder and two recordings in
            a batch. An even number of them leaves a step the same however it is divided.
        phone_weight: Weight of the cross-entropy of the phone that is spoken, read from the content head's entries by
            a linear map; needs `phones` in the rows. 0 does without, as in the next five.
        character_weight: Weight of the characters that are written of what is said, in any language, read from the
            content head's entries by CTC; needs `words` in the rows.
        speech_content_weight: Weight of the distance to the speech model, read from content alone; needs
            `wavlm_features`.
        prosody_weight: Weight of pitch, level (smooth L1) and voicing (cross-entropy), read from the prosody head's
            entries; needs `f0_hz` and `level_db`.
        speaker_reversal_weight: Weight of the cross-entropy of the speaker, read from content, whose gradient is
            reversed on its way to the content head; needs `speaker`.
        acoustic_dropout: Share of recordings that are decoded without their acoustic codes in training; needs audio
            and the decoder.
        acoustic_shift: Share of recordings, others, that are decoded with the acoustic codes of another moment of
            themselves in training, at least a quarter of the crop away; needs audio and the decoder.
        readout_learning_rate: Of the maps that read phones, features, prosody and speakers.
        residual_weight_end: λ at the end. Left out, 1; the model's own where neither the encoder nor a head learns, so
            that codes stay what they are.
        residual_weight_warmup_ratio: Share of the steps over which λ moves there from the model's own; 0: at once.
        content_init: Where a content head that is new begins: `"k-means"` of what it gets to see; `"least-squares"`,
            the directions in which latents tell the teacher, and k-means there; or `"none"`.
        init_frames: Frames looked at before the first step, for `content_init` and for the teachers' statistics.
        revive_every: Steps between two looks for entries of the content head that are hardly used; 0 never looks.
        revive_below: An entry is replaced if it is used less than this share of the mean.
        collapse_below: Training stops if the perplexity of a codebook that learns falls below this share of its
            size; 0 never stops it.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "of content, prosody and bridges"})
    adam_beta1: float = field(default=0.8, metadata={"help": "AdamW's first beta"})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW's second beta"})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "batches a step"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "the collator reads what it needs"})
    length_column_name: str = field(default="num_frames", metadata={"help": "column of the lengths to group by"})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "codebooks are kept equal anyway"})

    head_learning_rates: dict | str | None = field(
        default=None, metadata={"help": 'rates by name, such as {"acoustic": 0, "codec": 1e-6}'}
    )
    codebook_update: str = field(default="ema", metadata={"help": "ema or gradient"})
    codebook_decay: float | None = field(default=None, metadata={"help": "of the codebooks' moving averages"})
    qwen_weight: float | None = field(default=None, metadata={"help": "distance to the language model"})
    wavlm_weight: float | None = field(default=None, metadata={"help": "distance to the speech model"})
    commitment_weight: float | None = field(default=None, metadata={"help": "distance of inputs from entries"})
    mel_weight: float | None = field(default=None, metadata={"help": "mel distance of the decoded audio"})
    latents_weight: float = field(default=1.0, metadata={"help": "distance from the original's quantized latents"})
    adversarial_weight: float = field(default=0.0, metadata={"help": "adversarial and feature matching loss"})
    timbre_weight: float = field(default=0.0, metadata={"help": "mean spectrum of swaps within a batch"})
    phone_weight: float = field(default=0.0, metadata={"help": "phones from content"})
    character_weight: float = field(default=0.0, metadata={"help": "characters from content, by CTC"})
    speech_content_weight: float = field(default=0.0, metadata={"help": "speech model's features from content alone"})
    prosody_weight: float = field(default=0.0, metadata={"help": "pitch, level and voicing from prosody"})
    speaker_reversal_weight: float = field(default=0.0, metadata={"help": "speaker from content, reversed"})
    acoustic_dropout: float = field(default=0.0, metadata={"help": "share decoded without acoustic codes"})
    acoustic_shift: float = field(default=0.0, metadata={"help": "share decoded with those of another moment"})
    readout_learning_rate: float = field(default=1e-3, metadata={"help": "of what reads phones, prosody, speakers"})
    residual_weight_end: float | None = field(default=None, metadata={"help": "lambda at the end"})
    residual_weight_warmup_ratio: float = field(
        default=0.6, metadata={"help": "share of the steps over which it moves"}
    )
    content_init: str = field(default="k-means", metadata={"help": "k-means, least-squares or none"})
    init_frames: int = field(default=60_000, metadata={"help": "frames looked at before the first step"})
    revive_every: int = field(default=10, metadata={"help": "steps between two looks for unused entries"})
    revive_below: float = field(default=0.1, metadata={"help": "share of the mean use"})
    collapse_below: float = field(default=0.01, metadata={"help": "share of a codebook's size"})

    def __post_init__(self):
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name, None):
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported here: {reason}.")
        super().__post_init__()
        if isinstance(self.head_learning_rates, str):
            self.head_learning_rates = _parsed(self.head_learning_rates)
        _ = self.rates  # checked now
        if "inputs" in self.include_for_metrics:
            raise ValueError("include_for_metrics='inputs' is not supported here: recordings differ in length.")
        _check_choice("codebook_update", self.codebook_update, CODEBOOK_UPDATES)
        _check_choice("content_init", self.content_init, CONTENT_INITS)
        of_heads = ("qwen", "wavlm", "commitment", "mel", "latents", "adversarial", "timbre")
        for name in (*of_heads, "phone", "character", "speech_content", "prosody", "speaker_reversal"):
            value = getattr(self, f"{name}_weight")
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}_weight must be at least 0, got {value}; 0 switches that loss off.")
        for name, least in (("revive_every", 0), ("init_frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("residual_weight_end", "residual_weight_warmup_ratio", "revive_below", "collapse_below"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}.")
        for name in ("acoustic_dropout", "acoustic_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie in [0, 1), got {getattr(self, name)}; with 1 no acoustic code would be decoded "
                    "at its own time."
                )
        if self.acoustic_dropout + self.acoustic_shift >= 1:
            raise ValueError(
                f"acoustic_dropout and acoustic_shift must be less than 1 together, got {self.acoustic_dropout} and "
                f"{self.acoustic_shift}; some recordings must be decoded with their own acoustic codes."
            )
        if self.timbre_weight and self.per_device_train_batch_size < 2:
            raise ValueError(
                f"timbre_weight={self.timbre_weight} needs two recordings in a batch, whose heads are swapped, got "
                f"per_device_train_batch_size={self.per_device_train_batch_size}; give 2 or more, or leave it out."
            )
        if not 0 < self.readout_learning_rate < math.inf:
            raise ValueError(f"readout_learning_rate must be more than 0, got {self.readout_learning_rate}.")
        if self.codebook_decay is not None and not 0 < self.codebook_decay < 1:
            raise ValueError(f"codebook_decay must lie between 0 and 1, both excluded, got {self.codebook_decay}.")

    @property
    def readout_weights(self) -> dict[str, float]:
        """The weight of every readout, by the name of its argument."""
        return {name: getattr(self, name) for name in READOUT_WEIGHTS}

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of every part."""
        given = self.head_learning_rates or {}
        assert isinstance(given, dict)
        return learning_rates(self.learning_rate, given)

    def to_dict(self):
        """As in transformers; the rates are there under their own names."""
        return super().to_dict() | {"head_learning_rates": self.rates}


def _parsed(text: str) -> dict:
    try:
        rates = json.loads(text)
    except json.JSONDecodeError as error:
        rates = error
    if not isinstance(rates, dict):
        raise ValueError(f'head_learning_rates must be a json object such as {{"acoustic": 1e-5}}, got {text!r}.')
    return rates


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
