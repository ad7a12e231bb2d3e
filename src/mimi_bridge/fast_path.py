"""When `encode`, `decode` and `get_latents` may take the packed halves, and how recordings of any length go through.

They may where they compute what transformers' own modules would, up to rounding: no gradient is asked for, no hidden
states, no other precision than the weights', and nothing in the half that its packed form does not know. Elsewhere the
reference path runs, without a word.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .inference import DecoderHalf, EncoderHalf
from .quantizer import CausalBridgeQuantizer
from .watch import Unsupported


def asks_for_gradients(*sources: nn.Module | Tensor) -> bool:
    """Whether a result computed from these modules and tensors would have a gradient."""
    if not torch.is_grad_enabled():
        return False
    tensors = (each.parameters() if isinstance(each, nn.Module) else [each] for each in sources)
    return any(tensor.requires_grad for group in tensors for tensor in group)


def fast_half(model: Any, name: str, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The packed half of a `MimiBridgeModel` where it serves, else None.

    Args:
        model: The model.
        name: `"encoder"` or `"decoder"`.
        device: Of what is given to it.
        dtype: Of what is given to it, if that matters.
    """
    module = getattr(model, name)
    if module is None or not model.use_fast_path or torch.compiler.is_compiling():
        return None
    if torch.is_autocast_enabled(device.type) or (model.training and module.config.attention_dropout > 0):
        return None
    half = model.packed_halves.get(name, module)
    if isinstance(half, Unsupported) or half.like.device != device or dtype not in (None, half.like.dtype):
        return None
    return half


def encode_recordings(
    half: EncoderHalf,
    quantizer: CausalBridgeQuantizer,
    audio: Tensor,
    audio_codes_mask: Tensor,
    num_quantizers: int | None,
) -> Tensor:
    """Codes of recordings of any length; on a CPU a padded batch row by row, each without its padding.

    Args:
        half: The packed encoder.
        quantizer: The model's.
        audio: `(batch, channels, samples)`, 0 in its padding.
        audio_codes_mask: True on real frames, `(batch, frames)`.
        num_quantizers: Give the first so many codebooks only.

    Returns:
        `(batch, codebooks, frames)`, 0 on masked frames.
    """
    is_padded = not bool(audio_codes_mask.all())
    if is_padded and audio.device.type == "cpu":
        num_frames = audio_codes_mask.shape[-1]
        padded = []
        for row, count in zip(audio, audio_codes_mask.sum(dim=-1).tolist(), strict=True):
            latents = half.in_chunks(row[None, :, : count * half.frame_size])
            codes = torch.cat([quantizer.encode(chunk, None, num_quantizers) for chunk in latents], dim=-1)
            padded.append(nn.functional.pad(codes, (0, num_frames - count)))
        return torch.cat(padded)
    codes = torch.cat([quantizer.encode(chunk, None, num_quantizers) for chunk in half.in_chunks(audio)], dim=-1)
    return codes.masked_fill(~audio_codes_mask[:, None], 0) if is_padded else codes


@torch.no_grad()
def decode_recordings(half: DecoderHalf, quantizer: CausalBridgeQuantizer, audio_codes: Tensor) -> Tensor:
    """Audio of codes of any length: `(batch, codebooks, frames)` -> `(batch, channels, frames * frame_size)`.

    Raises:
        ValueError: As the quantizer's `decode`.
    """
    quantizer.check_codes(audio_codes)
    batch_size, _, num_frames = audio_codes.shape
    chunks = audio_codes.split(half.chunk_frames(batch_size), dim=-1)
    return half.from_chunks((quantizer.latents_of(chunk) for chunk in chunks), batch_size, num_frames)
