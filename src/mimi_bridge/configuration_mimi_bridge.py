"""Configuration of Mimi Bridge: Mimi's own fields, and what the three heads add to them.

Everything about the encoder and the decoder is inherited from `MimiConfig`; this file adds how the codebooks are
divided among the heads, the sizes of the two teachers, and how the heads are chained and trained.

Source: transformers `models/mimi/configuration_mimi.py`; the numbers are the specification's (1 + 1 + 7 codebooks,
Qwen 1536, WavLM 1024).

A quantizer's settings that may be changed at any time: λ, delay, the codebooks' decay, loss weights, distances.

Each has one owner, the object in `settings`: the config, where the quantizer is a model's, so that what is in force is
what `save_pretrained` writes; one of its own, where it is used alone. They are read and checked at every use.
"""

import math
from collections.abc import Iterator, MutableMapping
from functools import partial
from numbers import Integral, Real
from typing import Any

from huggingface_hub.dataclasses import strict, validated_field
from transformers import MimiConfig

DISTANCES = ("mse", "cosine")
MAX_ACOUSTIC_CODEBOOKS = 31  # kyutai/mimi has 32 codebooks: one becomes the prosody head, 31 are acoustic
WEIGHTS = ("commitment_weight", "codebook_weight", "qwen_weight", "wavlm_weight")


def check_setting(name: str, value: Any) -> None:
    """Refuse a value that a setting, which may be changed at any time, cannot have.

    Raises:
        ValueError: If it breaks the setting's rule.
    """
    if name in ("qwen_distance", "wavlm_distance"):
        if value not in DISTANCES:
            raise ValueError(f"{name} must be one of {DISTANCES}, got {value!r}.")
        return
    if name == "content_delay":
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(
                f"content_delay must be a whole number of frames, at least 0, got {value!r}; 0 is no delay."
            )
        return
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    number = float(value)
    if name == "residual_weight" and not 0.0 <= number <= 1.0:
        raise ValueError(
            f"residual_weight must lie in [0, 1], got {value}: 0 is Mimi's parallel split, 1 the full residual chain. "
            "Choose a value between them."
        )
    if name == "codebook_decay" and not 0.0 < number < 1.0:
        raise ValueError(f"codebook_decay must lie between 0 and 1, both excluded, got {value}.")
    if name in WEIGHTS and not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}; 0 switches that loss off.")


def _setting(name: str, default: Any) -> Any:
    return validated_field(partial(check_setting, name), default=default)


@strict
class MimiBridgeConfig(MimiConfig):
    """Configuration of a [`MimiBridgeModel`]. The defaults have kyutai/mimi's sizes and nine codebooks.

    λ, delay, decay, weights and distances may be changed at any time; a model made of the config follows at its next
    call. A value that one of them cannot have is refused where it is set.

    Args:
        num_quantizers: Codebooks in all heads together. Left out, it is the sum of the three below.
        num_content_codebooks: Codebooks of the content head; this architecture has exactly 1.
        num_prosody_codebooks: Codebooks of the prosody head; this architecture has exactly 1.
        num_acoustic_codebooks: Codebooks of the acoustic head, 1 to 31.
        qwen_dim: Size of the language model's hidden states, the teacher of the content head.
        wavlm_dim: Size of the speech model's features, the teacher of content + prosody.
        content_layers: Causal transformer layers of the content head's own, over the latents; 0, the specification's,
            is none. They have the sizes of the encoder's and its `sliding_window`, which counts frames here.
        prosody_layers: The same of the prosody head.
        residual_weight: λ in [0, 1]. The acoustic head quantizes `latents - λ (content + prosody)`: 1 is the
            specification's residual chain, 0 is Mimi's parallel split, for which Mimi's codebooks were trained.
        content_delay: Frames by which content answers late: the content code at frame `t` is taught what was said
            until frame `t - content_delay`. It changes no code by itself; whoever reads the codes must know it.
        codebook_decay: Decay of the codebooks' moving averages while training, per training forward.
        commitment_weight: Weight in the model's loss of each head's commitment loss.
        codebook_weight: Weight in the model's loss of each head's codebook loss, where codebooks learn by gradients.
        qwen_weight: Weight in the model's loss of the distance between the content head and the language model.
        wavlm_weight: Weight in the model's loss of the distance between content + prosody and the speech model.
        qwen_distance: `"mse"` (the specification's) or `"cosine"`.
        wavlm_distance: `"mse"` or `"cosine"` (the one Mimi was trained with).
        **kwargs: Any field of `MimiConfig`.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has the wrong type or breaks a rule below.

    Example:
    ```python
    >>> from mimi_bridge import MimiBridgeConfig
    >>> config = MimiBridgeConfig()
    >>> config.num_quantizers, config.frame_size, config.frame_rate
    (9, 1920, 12.5)

    ```
    """

    model_type = "mimi_bridge"
    # A plain Trainer joins what batches give along their second axis, here frames, and fills it up with
    # -100, which no mask can hold, and wants the same names of every batch.
    keys_to_ignore_at_inference = [
        "audio_codes",
        "audio_values",
        "audio_codes_mask",
        "losses",
        "distances",
        "hidden_states",
        "attentions",
        "encoder_cache",
        "decoder_cache",
    ]

    num_quantizers: int | None = None  # type: ignore[assignment]
    num_content_codebooks: int = 1
    num_prosody_codebooks: int = 1
    num_acoustic_codebooks: int = 7
    qwen_dim: int = 1536
    wavlm_dim: int = 1024
    content_layers: int = 0
    prosody_layers: int = 0
    residual_weight: float | int = _setting("residual_weight", 1.0)
    content_delay: int = _setting("content_delay", 0)
    codebook_decay: float | int = _setting("codebook_decay", 0.99)
    commitment_weight: float | int = _setting("commitment_weight", 0.25)
    codebook_weight: float | int = _setting("codebook_weight", 1.0)
    qwen_weight: float | int = _setting("qwen_weight", 1.0)
    wavlm_weight: float | int = _setting("wavlm_weight", 1.0)
    qwen_distance: str = _setting("qwen_distance", "mse")
    wavlm_distance: str = _setting("wavlm_distance", "mse")

    def __post_init__(self, **kwargs):
        if self.num_quantizers is None:
            self.num_quantizers = self.num_content_codebooks + self.num_prosody_codebooks + self.num_acoustic_codebooks
        super().__post_init__(**kwargs)

    @property
    def context_layers(self) -> dict[str, int]:
        """Layers of a head's own, by head, where it has some."""
        layers = {"content": self.content_layers, "prosody": self.prosody_layers}
        return {name: number for name, number in layers.items() if number > 0}

    def validate_architecture(self):
        """Part of `@strict`-powered validation: each rule is one sentence with what was expected, got, and to do."""
        self._validate_codebooks()
        super().validate_architecture()
        if not self.use_causal_conv:
            raise ValueError(
                "use_causal_conv must be True, got False: streaming and padded batches are exact only for causal "
                "convolutions. Leave it out."
            )
        for name in ("qwen_dim", "wavlm_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be the teacher's hidden size, at least 1, got {getattr(self, name)}.")

        for name in ("content_layers", "prosody_layers"):
            number = getattr(self, name)
            if isinstance(number, bool) or number < 0:
                raise ValueError(f"{name} must be a whole number of layers, at least 0, got {number}; 0 is none.")

    def _validate_codebooks(self):
        for name in ("num_content_codebooks", "num_prosody_codebooks", "num_semantic_quantizers"):
            if getattr(self, name) != 1:
                raise ValueError(f"{name} must be 1 in this architecture, got {getattr(self, name)}. Leave it out.")
        if not 1 <= self.num_acoustic_codebooks <= MAX_ACOUSTIC_CODEBOOKS:
            raise ValueError(
                f"num_acoustic_codebooks must be 1 to {MAX_ACOUSTIC_CODEBOOKS}, got {self.num_acoustic_codebooks}: "
                "kyutai/mimi has 32 codebooks, one of which becomes the prosody head."
            )
        total = self.num_content_codebooks + self.num_prosody_codebooks + self.num_acoustic_codebooks
        if self.num_quantizers != total:
            raise ValueError(
                f"num_quantizers must be {total}, the sum of the three heads' codebooks, got {self.num_quantizers}. "
                "Leave it out, or set num_acoustic_codebooks instead."
            )
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {self.codebook_size}.")
        if self.codebook_dim != self.vector_quantization_hidden_dimension:
            raise ValueError(
                f"codebook_dim must equal vector_quantization_hidden_dimension "
                f"({self.vector_quantization_hidden_dimension}), got {self.codebook_dim}: every head projects into "
                "the space of its codebooks. Set both to the same number."
            )


MimiBridgeConfig.register_for_auto_class()


LOSSES = ("commitment", "codebook", "qwen", "wavlm")  # each weighed by the setting of its name and `_weight`


class Setting:
    """An attribute that is read from, and written to, the setting of its name in its object's `settings`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else setting(instance.settings, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        change_setting(instance.settings, self._name, value)


class LossWeights(MutableMapping[str, float]):
    """The weight of each loss by name, read from and written to `settings`."""

    def __init__(self, settings: Any):
        self._settings = settings

    def __getitem__(self, loss: str) -> float:
        if loss not in LOSSES:
            raise KeyError(loss)
        return setting(self._settings, f"{loss}_weight")

    def __setitem__(self, loss: str, weight: float) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss_weights must name losses of {LOSSES}, got {loss!r}.")
        change_setting(self._settings, f"{loss}_weight", weight)

    def __delitem__(self, loss: str) -> None:
        raise ValueError(f"the weight of {loss!r} cannot be left out; set it to 0 to do without that loss.")

    def __iter__(self) -> Iterator[str]:
        return iter(LOSSES)

    def __len__(self) -> int:
        return len(LOSSES)

    def __repr__(self) -> str:
        return repr(dict(self))


def setting(settings: Any, name: str) -> Any:
    """The value of a setting; a `ValueError` if it breaks a rule of the config."""
    value = getattr(settings, name)
    check_setting(name, value)
    return value


def change_setting(settings: Any, name: str, value: Any) -> None:
    """Give a setting another value; a `ValueError` if that breaks a rule of the config, and then it stays as it is."""
    check_setting(name, value)
    if isinstance(value, Real):
        value = value if name == "content_delay" else float(value)
    setattr(settings, name, value)
