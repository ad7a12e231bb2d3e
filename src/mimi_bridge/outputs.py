"""What the quantizer and the model return.

Source: the field names are transformers' own where it has them (`models/mimi/modeling_mimi.py`).
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.models.mimi.modeling_mimi import MimiConv1dPaddingCache
from transformers.utils import ModelOutput

from .distillation import TeacherDistance


@dataclass
class CausalBridgeQuantizerOutput(ModelOutput):
    """What the quantizer returns; the first three are the specification's triple, `output[:3]`.

    Args:
        quantized: Sum of the heads, `(batch, frames, codec_dim)`; zero on masked frames.
        codes: `(batch, codebooks, frames)`, int64, in the order content, prosody, acoustic; 0 on masked frames.
        loss: Weighted sum of `losses`, a scalar; 0 where none was computed: in inference without a teacher.
        losses: Each loss by name, unweighted scalars, or none: `commitment_content`, `commitment_prosody`,
            `commitment_acoustic`, `codebook_content` and so on where codebooks learn by gradients, and `qwen` and
            `wavlm` where their teacher was given.
        distances: How far each head is from its teacher, `qwen` and `wavlm`, and over how many frames.
        content: The content head's share of `quantized`, `(batch, frames, codec_dim)`.
        prosody: The prosody head's; None if only the first codebook was asked for.
        acoustic: The acoustic head's; None if only the first two codebooks were asked for.
    """

    quantized: Tensor | None = None
    codes: Tensor | None = None
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    distances: dict[str, TeacherDistance] | None = None
    content: Tensor | None = None
    prosody: Tensor | None = None
    acoustic: Tensor | None = None


class _OlderCacheNames:
    """The names that transformers' Mimi gave its caches before 5.24, to read."""

    @property
    def encoder_past_key_values(self) -> Cache | None:
        return getattr(self, "encoder_cache", None)

    @property
    def decoder_past_key_values(self) -> Cache | None:
        return getattr(self, "decoder_cache", None)


@dataclass
class MimiBridgeOutput(_OlderCacheNames, ModelOutput):
    """Output of [`MimiBridgeModel.forward`]; without a loss, codes and audio come first, as in transformers' Mimi.

    Args:
        loss: Weighted sum of `losses`, a scalar; None in inference without a teacher.
        audio_codes: `(batch, codebooks, frames)`, in the order content, prosody, acoustic.
        audio_values: Decoded audio, `(batch, channels, samples)`, as long as the input and silent in its padding; None
            if the model was loaded without its decoder, or was asked for none.
        audio_codes_mask: True on real frames, `(batch, frames)`; None if codes were given.
        losses: Each loss by name, unweighted; see `CausalBridgeQuantizerOutput`.
        distances: How far each head is from its teacher, by the teacher's name.
        latents: The encoder's, or those that were given, `(batch, frames, hidden_size)`; None if codes were given.
        quantized: Sum of the heads, what the decoder gets, `(batch, frames, hidden_size)`.
        content: The content head's share of `quantized`; None if codes were given.
        prosody: The prosody head's share.
        acoustic: The acoustic head's share.
        hidden_states: Of the encoder transformer (of the decoder's, if codes or latents were given), if asked for.
        attentions: Of the same transformer, if asked for.
        encoder_cache: The encoder transformer's cache, if one is kept; `encoder_past_key_values` reads it, too.
        decoder_cache: The decoder transformer's cache, if one is kept; `decoder_past_key_values` reads it, too.
    """

    loss: Tensor | None = None
    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    distances: dict[str, TeacherDistance] | None = None
    latents: Tensor | None = None
    quantized: Tensor | None = None
    content: Tensor | None = None
    prosody: Tensor | None = None
    acoustic: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    encoder_cache: Cache | None = None
    decoder_cache: Cache | None = None


@dataclass
class MimiBridgeEncoderOutput(_OlderCacheNames, ModelOutput):
    """Output of [`MimiBridgeModel.encode`]: the fields of transformers' Mimi, and which frames are real.

    Args:
        audio_codes: `(batch, codebooks, frames)`, in the order content, prosody, acoustic.
        encoder_cache: The encoder transformer's cache, if one is kept; `encoder_past_key_values` reads it, too.
        padding_cache: Cache of the encoder's convolutions, if one is kept.
        hidden_states: Of the encoder transformer, if asked for.
        attentions: Of the encoder transformer, if asked for.
        audio_codes_mask: True on real frames, `(batch, frames)`; codes of other frames are 0 and mean nothing.
    """

    audio_codes: Tensor | None = None
    encoder_cache: Cache | None = None
    padding_cache: MimiConv1dPaddingCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    audio_codes_mask: Tensor | None = None


@dataclass
class MimiBridgeDecoderOutput(_OlderCacheNames, ModelOutput):
    """Output of [`MimiBridgeModel.decode`]: the fields of transformers' Mimi, and the cache of the convolutions.

    Args:
        audio_values: `(batch, channels, samples)`.
        decoder_cache: The decoder transformer's cache, if one is kept; `decoder_past_key_values` reads it, too.
        hidden_states: Of the decoder transformer, if asked for.
        attentions: Of the decoder transformer, if asked for.
    """

    audio_values: Tensor | None = None
    decoder_cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
