"""When `encode`, `decode` and `get_latents` may take the packed model, and how recordings of any length go through.

They may where it computes what transformers' own modules would, up to rounding: in inference, no gradient is asked
for, no hidden states, no other precision than the weights', and nothing in the model that its packed form does not
know. Elsewhere transformers' modules run, silently.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .codec import DecoderRuntime, EncoderRuntime, for_inference
from .invalidation import Unsupported
from .quantizer import PackedQuantizer
from .steps import DecodeStep, EncodeStep


def packed_parts(model: Any, given: Tensor, *names: str) -> list[Any] | None:
    """The packed parts of a `MimiBridgeModel` where they serve, else None.

    Args:
        model: The model.
        given: What is given to them: audio, or codes.
        names: Of the parts.
    """
    if not isinstance(given, Tensor) or given.is_meta or torch.compiler.is_compiling():
        return None
    if model.training or not model.use_fast_path:
        return None
    modules = [getattr(model, name) for name in names]
    if None in modules or torch.is_autocast_enabled(given.device.type) or _asks_for_gradients(given, names, modules):
        return None
    try:
        parts = [model.packed.get(name, module) for name, module in zip(names, modules, strict=True)]
    except Unsupported:
        return None
    half = parts[0]
    fits = half.like.device == given.device and (not given.is_floating_point() or half.like.dtype == given.dtype)
    return parts if fits else None


def _asks_for_gradients(given: Tensor, names: tuple[str, ...], modules: list[nn.Module]) -> bool:
    if not torch.is_grad_enabled() or names == ("encoder", "quantizer"):  # codes have no gradient to ask for
        return False
    return given.requires_grad or any(each.requires_grad for module in modules for each in module.parameters())


def encode_recordings(
    half: EncoderRuntime, quantizer: PackedQuantizer, audio: Tensor, audio_codes_mask: Tensor, num_quantizers: int
) -> Tensor:
    """Codes of recordings of any length; on a CPU a padded batch row by row, each without its padding.

    Args:
        half: The packed encoder.
        quantizer: The packed quantizer.
        audio: `(batch, channels, samples)`, 0 in its padding.
        audio_codes_mask: True on real frames, `(batch, frames)`.
        num_quantizers: Give the first so many codebooks only.

    Returns:
        `(batch, codebooks, frames)`, 0 on masked frames.
    """
    step = EncodeStep(half, quantizer, num_quantizers)

    def codes_of(audio: Tensor) -> Tensor:
        return torch.cat(list(half.in_chunks(audio, step)), dim=-1)

    if audio.device.type != "cpu":  # which would be waited for to say whether all are real
        return codes_of(audio).masked_fill(~audio_codes_mask[:, None], 0)
    if bool(audio_codes_mask.all()):
        return codes_of(audio)
    num_frames = audio_codes_mask.shape[-1]
    rows = zip(audio, audio_codes_mask.sum(dim=-1).tolist(), strict=True)
    padded = [
        nn.functional.pad(codes_of(row[None, :, : count * half.frame_size]), (0, num_frames - count))
        for row, count in rows
    ]
    return torch.cat(padded)


@for_inference
def decode_recordings(half: DecoderRuntime, quantizer: PackedQuantizer, audio_codes: Tensor) -> Tensor:
    """Audio of codes of any length: `(batch, codebooks, frames)` -> `(batch, channels, frames * frame_size)`."""
    batch_size, _, num_frames = audio_codes.shape
    audio = half.like.new_empty(batch_size, half.channels, num_frames * half.frame_size)
    step, state, start = DecodeStep(half, quantizer), None, 0
    for codes in audio_codes.split(half.chunk_frames(batch_size), dim=-1):
        end = start + codes.shape[-1] * half.frame_size
        audio[..., start:end], state = step(state, codes)
        start = end
    return audio
