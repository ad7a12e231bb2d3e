"""One call of a stream as a program without Python: `torch.export` of the encode and the decode step.

A step is a pure function, state in and state out, with the weights inside: it runs where Python does not
(AOTInductor), or in any process that has torch but not this package. The state is that of `codec`; zeros begin a
stream. Nothing is checked in it: not whether audio is finite, nor whether codes are in range.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from ..modeling_mimi_bridge import MimiBridgeModel
from ..offloading import is_hooked
from .codec import DecoderHalf, EncoderHalf, Half, State
from .packing import PackedModel

STATE = ("tails", "keys_values", "positions")  # the order of a step's arguments and results


class EncodeStep(nn.Module):
    """`(audio, *state) -> (codes, *state)`: `(batch, channels, samples)` to `(batch, codebooks, frames)`."""

    def __init__(self, model: Any, num_quantizers: int | None = None):
        super().__init__()
        packed = PackedModel(plain=True)
        self.half: EncoderHalf = packed.require("encoder", model.encoder)
        self.quantizer = packed.require("quantizer", model.quantizer)
        self.num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)

    def forward(self, chunk: Tensor, tails: Tensor, keys_values: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Encode whole frames."""
        latents, state = self.half(_owned(tails, keys_values, positions), chunk)
        return self.quantizer.encode(latents, self.num_quantizers), *(state[name] for name in STATE)


class DecodeStep(nn.Module):
    """`(codes, *state) -> (audio, *state)`: `(batch, codebooks, frames)` to `(batch, channels, samples)`."""

    def __init__(self, model: Any):
        super().__init__()
        packed = PackedModel(plain=True)
        self.half: DecoderHalf = packed.require("decoder", model.decoder)
        self.quantizer = packed.require("quantizer", model.quantizer)

    def forward(self, codes: Tensor, tails: Tensor, keys_values: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Decode whole frames."""
        audio, state = self.half(_owned(tails, keys_values, positions), self.quantizer.decode(codes))
        return audio, *(state[name] for name in STATE)


def export_encode_step(
    model: MimiBridgeModel, batch_size: int = 1, num_quantizers: int | None = None, num_frames: int = 1
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """The program of `EncodeStep`, and the state that begins its streams.

    Args:
        model: On the device and in the precision that the program is for.
        batch_size: Rows, fixed in the program.
        num_quantizers: Give the first so many codebooks only.
        num_frames: Frames of a call, fixed in the program.

    Raises:
        ValueError: If the model cannot stream, or weights of it are offloaded.
    """
    step = EncodeStep(_frozen_copy(model), num_quantizers)
    chunk = step.half.like.new_zeros(batch_size, step.half.channels, num_frames * step.half.frame_size)
    return _export(step, step.half, chunk, batch_size)


def export_decode_step(
    model: MimiBridgeModel, batch_size: int = 1, num_quantizers: int | None = None, num_frames: int = 1
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """The program of `DecodeStep`, and the state that begins its streams.

    Args:
        model: On the device and in the precision that the program is for.
        batch_size: Rows, fixed in the program.
        num_quantizers: Codebooks that it gets, fixed in the program; all, if left out.
        num_frames: Frames of a call, fixed in the program.

    Raises:
        ValueError: If the model cannot stream, or weights of it are offloaded.
    """
    step = DecodeStep(_frozen_copy(model))
    num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)
    codes = step.half.like.new_zeros(batch_size, num_quantizers, num_frames).long()
    return _export(step, step.half, codes, batch_size)


def _export(step: nn.Module, half: Half, given: Tensor, batch_size: int) -> tuple[ExportedProgram, dict[str, Tensor]]:
    state = half.new_state(batch_size)
    with torch.no_grad():  # or each change of the mode inside the step would become a part of the program
        return export(step, (given, *(state[name] for name in STATE))), state


def _frozen_copy(model: MimiBridgeModel) -> MimiBridgeModel:
    """A copy, so that the program's weights are its own and the model can be trained on.

    Raises:
        ValueError: If weights of it are offloaded.
    """
    if is_hooked(*model.modules()):
        raise ValueError(
            "a program holds its weights, but accelerate's hooks keep some of this model's elsewhere (device_map, "
            "cpu_offload or disk_offload); load it whole."
        )
    return deepcopy(model).eval().requires_grad_(False)


def _owned(tails: Tensor, keys_values: Tensor, positions: Tensor) -> State:
    return {"tails": tails, "keys_values": keys_values.clone(), "positions": positions}
