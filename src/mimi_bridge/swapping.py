"""Heads of one recording among those of another: the words and the melody of the one in the voice of the other.

How far that holds is what a model has learned, and is measured (`mimi-bridge evaluate`), never promised: while λ is 0,
the acoustic codebooks hold words, too.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .frames import check_tensor


def swap_heads(
    audio_codes: Tensor, other_codes: Tensor, num_codebooks: Mapping[str, int], heads: Collection[str] = ("acoustic",)
) -> Tensor:
    """Codes of one recording with some heads of another.

    The result is as long as the first: the other's codes are cut, or start again where they end.

    Args:
        audio_codes: `(batch, codebooks, frames)`, all codebooks.
        other_codes: `(batch, codebooks, other frames)`; the heads named are taken from here.
        num_codebooks: Codebooks of each head, in the order of the codes.
        heads: Names among `content`, `prosody` and `acoustic`, or one of them.

    Returns:
        `(batch, codebooks, frames)`.

    Raises:
        ValueError: If a head is unknown, or the codes are not all of a model's codebooks for one batch.
        TypeError: If codes are no tensor.
    """
    heads = heads if isinstance(heads, Collection) and not isinstance(heads, str) else (heads,)
    unknown = [head for head in heads if head not in num_codebooks]
    if unknown:
        raise ValueError(f"heads must be among {', '.join(num_codebooks)}, got {', '.join(map(str, unknown))}.")
    total = sum(num_codebooks.values())
    for name, codes in (("audio_codes", audio_codes), ("other_codes", other_codes)):
        check_tensor(codes, name, "pass encode(...).audio_codes")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {codes.dtype}; pass what encode returned.")
        if codes.ndim != 3 or codes.shape[1] != total or codes.shape[2] == 0 or len(codes) != len(audio_codes):
            raise ValueError(
                f"{name} must be ({len(audio_codes)}, {total}, frames), got {tuple(codes.shape)}; pass what encode "
                "returned, of both recordings."
            )
    frames = audio_codes.shape[2]
    other = other_codes.repeat(1, 1, -(-frames // other_codes.shape[2]))[:, :, :frames]
    sizes = list(num_codebooks.values())
    blocks = zip(num_codebooks, audio_codes.split(sizes, dim=1), other.split(sizes, dim=1), strict=True)
    return torch.cat([theirs if name in heads else ours for name, ours, theirs in blocks], dim=1)
