"""Acoustic dropout: some recordings of a step are decoded without their acoustic codes, so that words must do without.

Which ones depends on the seed, the step and the recording alone, so it is the same however a step is divided.

Source: FACodec (arXiv:2403.03100) leaves out its acoustic codes in training.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import CausalBridgeQuantizerOutput, MimiBridgeOutput

NUM_DIGESTED = 4096  # samples of a recording, by which it is known


def choose_rows(audio: Tensor, share: float, seed: int, step: int) -> Tensor:
    """Which recordings `(batch, 1, samples)` go without their acoustic codes, `(batch,)`, on the audio's device."""
    digests = [zlib.crc32(row.float().numpy().tobytes()) for row in audio[:, 0, :NUM_DIGESTED].detach().cpu()]
    chosen = [np.random.default_rng((seed, step, digest)).random() < share for digest in digests]
    return torch.tensor(chosen, device=audio.device)


@contextmanager
def decoded_without_acoustic(model: MimiBridgeModel, rows: Tensor) -> Iterator[None]:
    """Let the decoder get content and prosody alone of some rows `(batch,)`; `restore_quantized` afterwards."""

    def leave_out(module: object, inputs: object, output: CausalBridgeQuantizerOutput) -> CausalBridgeQuantizerOutput:
        assert output.content is not None and output.prosody is not None and output.quantized is not None
        output.quantized = torch.where(rows[:, None, None], output.content + output.prosody, output.quantized)
        return output

    handle = model.quantizer.register_forward_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def restore_quantized(outputs: MimiBridgeOutput) -> None:
    """Let an output say again what all heads together gave, as every loss but those of audio wants it."""
    assert outputs.content is not None and outputs.prosody is not None and outputs.acoustic is not None
    outputs.quantized = outputs.content + outputs.prosody + outputs.acoustic
