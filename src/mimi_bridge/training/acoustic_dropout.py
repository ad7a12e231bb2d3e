"""What the decoder gets of the acoustic codes of some recordings of a step, so that words must come from the others.

Dropout leaves them out; a shift takes those of another moment of the same recording, whose voice is right and whose
words are not. Which recordings, and how far, depends on the seed, the step and the recording alone, so it is the same
however a step is divided.

Source: FACodec (arXiv:2403.03100) leaves out its acoustic codes in training.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import CausalBridgeQuantizerOutput, MimiBridgeOutput

NUM_DIGESTED = 4096  # samples of a recording, by which it is known
MIN_SHIFT = 0.25  # of a recording, in either direction


@dataclass(frozen=True)
class AcousticChanges:
    """What happens to each recording's acoustic codes on their way to the decoder.

    Attributes:
        left_out: True where the decoder gets none, `(batch,)`.
        shifts: By what share of the recording they are early, what goes beyond its end coming back at its beginning;
            0 where they stay, `(batch,)`.
    """

    left_out: Tensor
    shifts: Tensor


def choose_changes(audio: Tensor, dropout: float, shift: float, seed: int, step: int) -> AcousticChanges:
    """Which recordings `(batch, 1, samples)` lose their acoustic codes, and which get those of another moment.

    Args:
        audio: Of the batch.
        dropout: Share of recordings to leave them out of.
        shift: Share of recordings to shift them in.
        seed: Of the run.
        step: Optimizer steps taken before this one.
    """
    digests = [zlib.crc32(row.float().numpy().tobytes()) for row in audio[:, 0, :NUM_DIGESTED].detach().cpu()]
    left_out, shifts = [], []
    for digest in digests:
        drawn, place = np.random.default_rng((seed, step, digest)).random(2)
        left_out.append(drawn < dropout)
        shifted = dropout <= drawn < dropout + shift
        shifts.append(MIN_SHIFT + (1 - 2 * MIN_SHIFT) * place if shifted else 0.0)
    return AcousticChanges(torch.tensor(left_out, device=audio.device), torch.tensor(shifts, device=audio.device))


@contextmanager
def decoded_with(model: MimiBridgeModel, changes: AcousticChanges) -> Iterator[None]:
    """Let the decoder get other acoustic codes of some rows; `restore_quantized` afterwards."""

    def change(
        module: object, inputs: object, named: dict[str, Any], output: CausalBridgeQuantizerOutput
    ) -> CausalBridgeQuantizerOutput:
        assert output.content is not None and output.prosody is not None
        assert output.acoustic is not None and output.quantized is not None
        acoustic = shifted(output.acoustic, changes.shifts, named.get("frame_mask"))
        acoustic = acoustic.masked_fill(changes.left_out[:, None, None], 0.0)
        changed = changes.left_out | (changes.shifts > 0)
        together = output.content + output.prosody + acoustic
        output.quantized = torch.where(changed[:, None, None], together, output.quantized)
        return output

    handle = model.quantizer.register_forward_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def shifted(frames: Tensor, shifts: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Frames `(batch, frames, dim)` of a later moment of their own recording, by a share of its length, `(batch,)`."""
    places = torch.arange(frames.shape[1], device=frames.device)[None]
    whole = torch.full_like(shifts, frames.shape[1], dtype=torch.long)
    lengths = (whole if frame_mask is None else frame_mask.sum(dim=-1))[:, None]
    later = (places + (shifts[:, None] * lengths).long()) % lengths.clamp(min=1)
    sources = torch.where(places < lengths, later, places)
    return frames.gather(1, sources[:, :, None].expand_as(frames))


def restore_quantized(outputs: MimiBridgeOutput) -> None:
    """Let an output say again what all heads together gave, as every loss but those of audio wants it."""
    assert outputs.content is not None and outputs.prosody is not None and outputs.acoustic is not None
    outputs.quantized = outputs.content + outputs.prosody + outputs.acoustic
