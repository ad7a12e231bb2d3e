"""What the quantizer and the model return.

Source: the field names are transformers' own where it has them (`models/mimi/modeling_mimi.py`).
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.models.mimi.modeling_mimi import MimiDecoderOutput, MimiEncoderOutput
from transformers.utils import ModelOutput

from .bridges import TeacherDistance
from .decoder_cache import MimiBridgeDecoderPaddingCache


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


@dataclass
class MimiBridgeOutput(ModelOutput):
    """Output of [`MimiBridgeModel.forward`].

    Args:
        loss: Weighted sum of `losses`, a scalar; None in inference without a teacher.
        losses: Each loss by name, unweighted; see `CausalBridgeQuantizerOutput`.
        distances: How far each head is from its teacher, by the teacher's name.
        audio_codes: `(batch, codebooks, frames)`, in the order content, prosody, acoustic.
        audio_codes_mask: True on real frames, `(batch, frames)`.
        audio_values: Decoded audio, `(batch, channels, samples)`, as long as the input and silent in its padding; None
            if the model was loaded without its decoder, or was asked for none.
        latents: The encoder's, or those that were given, `(batch, frames, hidden_size)`; None if codes were given.
        quantized: Sum of the heads, what the decoder gets, `(batch, frames, hidden_size)`.
        content: The content head's share of `quantized`; None if codes were given.
        prosody: The prosody head's share.
        acoustic: The acoustic head's share.
        encoder_past_key_values: The encoder transformer's cache, if one is kept.
        decoder_past_key_values: The decoder transformer's cache, if one is kept.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    distances: dict[str, TeacherDistance] | None = None
    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    audio_values: Tensor | None = None
    latents: Tensor | None = None
    quantized: Tensor | None = None
    content: Tensor | None = None
    prosody: Tensor | None = None
    acoustic: Tensor | None = None
    encoder_past_key_values: Cache | None = None
    decoder_past_key_values: Cache | None = None


@dataclass
class MimiBridgeEncoderOutput(MimiEncoderOutput):
    """Output of [`MimiBridgeModel.encode`]: transformers' own fields, and which frames are real.

    Args:
        audio_codes: `(batch, codebooks, frames)`, in the order content, prosody, acoustic.
        audio_codes_mask: True on real frames, `(batch, frames)`; codes of other frames are 0 and mean nothing.
    """

    audio_codes: Tensor | None = None  # type: ignore[assignment]
    audio_codes_mask: Tensor | None = None


@dataclass
class MimiBridgeDecoderOutput(MimiDecoderOutput):
    """Output of [`MimiBridgeModel.decode`]: transformers' own fields, and the cache of the convolutions.

    Args:
        audio_values: `(batch, channels, samples)`.
        padding_cache: To pass on as `decoder_padding_cache`; None if the call kept none.
    """

    audio_values: Tensor | None = None  # type: ignore[assignment]
    padding_cache: MimiBridgeDecoderPaddingCache | None = None
