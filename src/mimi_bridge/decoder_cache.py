"""transformers' way to stream, by caches handed from call to call, made to work for the decoder.

transformers gives its decoder a cache of keys and values but none for the convolutions, so chunks decoded with it do
not fit together. Here the convolutions have one, too. A `MimiBridgeStream` does the same with less to carry, faster,
and with rows that start and pause on their own.

Source: transformers `models/mimi/modeling_mimi.py`, whose encoder works this way.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.models.mimi.modeling_mimi import MimiDecoderModel

from .checkpoint import call_with_cache
from .inference import DecoderHalf, for_inference


class MimiBridgeDecoderPaddingCache:
    """What the decoder's convolutions need of the call before; made empty, and moved on by each call.

    Attributes:
        tails: `(batch, size)`, or None before the first call.
    """

    def __init__(self) -> None:
        self.tails: Tensor | None = None


@for_inference
def decode_with_caches(
    half: DecoderHalf,
    decoder: MimiDecoderModel,
    latents: Tensor,
    cache: Cache | None,
    padding_cache: MimiBridgeDecoderPaddingCache,
) -> tuple[Tensor, Cache | None]:
    """Decode the next frames of a stream, the transformer by transformers' own module and cache.

    Args:
        half: The packed decoder, for the convolutions.
        decoder: transformers' decoder.
        latents: `(batch, frames, hidden_size)`.
        cache: Keys and values of the call before, or None.
        padding_cache: Of the call before, or an empty one; moved on.

    Returns:
        Audio `(batch, channels, frames * frame_size)`, and the keys and values for the next call.

    Raises:
        ValueError: If one of the caches is of a stream that has begun and the other is not, or of other rows.
    """
    tails, has_keys = padding_cache.tails, cache is not None and cache.get_seq_length() > 0
    if (tails is not None) != has_keys:
        raise ValueError(
            "decoder_cache and decoder_padding_cache must come from the same call, got one of a stream that "
            "has begun and one that is new; pass both, or neither."
        )
    if tails is not None and len(tails) != len(latents):
        raise ValueError(
            f"decoder_padding_cache holds {len(tails)} rows, but audio_codes have {len(latents)}; a stream's batch "
            "size must stay as it began."
        )
    is_first = latents.new_full((len(latents),), tails is None, dtype=torch.bool)
    tails = latents.new_zeros(len(latents), half.tails_size) if tails is None else tails.clone()
    hidden = half.before_transformer(latents, tails, is_first)
    decoded, cache = call_with_cache(decoder.decoder_transformer, hidden, cache=cache, use_cache=True)
    audio = half.after_transformer(decoded.last_hidden_state, tails, is_first)
    padding_cache.tails = tails
    return audio, cache
