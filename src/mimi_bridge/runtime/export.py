"""One call of a stream as a program without Python: `torch.export` of the encode and the decode step.

A step is a pure function, state in and state out, with the weights inside: it runs in ONNX Runtime, or in any process
that has torch but not this package. The state is that of `codec`; zeros begin a stream. Nothing is checked in it: not
whether audio is finite, nor whether codes are in range.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from ..modeling_mimi_bridge import MimiBridgeModel
from ..offloading import is_hooked
from .codec import DecoderRuntime, EncoderRuntime, State
from .packing import PackedModel

STATE = ("tails", "keys_values", "positions")  # the order of a step's arguments and results
# An encode step whose heads have layers of their own has `PackedQuantizer.state_names` after these.


class EncodeStep(nn.Module):
    """`(audio, *state) -> (codes, *state)`: `(batch, channels, samples)` to `(batch, codebooks, frames)`."""

    def __init__(self, model: Any, num_quantizers: int | None = None):
        super().__init__()
        packed = PackedModel(exportable=True)
        self.half: EncoderRuntime = packed.require("encoder", model.encoder)
        self.quantizer = packed.require("quantizer", model.quantizer)
        self.num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)
        self.names = (*STATE, *self.quantizer.state_names(self.num_quantizers))

    def new_state(self, batch_size: int) -> State:
        """The state that begins streams."""
        return self.half.new_state(batch_size) | self.quantizer.new_state(batch_size, self.num_quantizers)

    def forward(self, chunk: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Encode whole frames."""
        latents, moved = self.half(_owned(self.names, state), chunk)
        codes, moved = self.quantizer.encode_next(moved, latents, self.num_quantizers)
        return codes, *(moved[name] for name in self.names)


class DecodeStep(nn.Module):
    """`(codes, *state) -> (audio, *state)`: `(batch, codebooks, frames)` to `(batch, channels, samples)`."""

    names = STATE

    def __init__(self, model: Any):
        super().__init__()
        packed = PackedModel(exportable=True)
        self.half: DecoderRuntime = packed.require("decoder", model.decoder)
        self.quantizer = packed.require("quantizer", model.quantizer)

    def new_state(self, batch_size: int) -> State:
        """The state that begins streams."""
        return self.half.new_state(batch_size)

    def forward(self, codes: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Decode whole frames."""
        audio, moved = self.half(_owned(self.names, state), self.quantizer.decode(codes))
        return audio, *(moved[name] for name in self.names)


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
    return _export(step, chunk, batch_size)


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
    return _export(step, codes, batch_size)


def _export(
    step: EncodeStep | DecodeStep, given: Tensor, batch_size: int
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    state = step.new_state(batch_size)
    with torch.no_grad():  # or each change of the mode inside the step would become a part of the program
        return export(step, (given, *(state[name] for name in step.names))), state


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


def _owned(names: Sequence[str], values: Sequence[Tensor]) -> State:
    state = dict(zip(names, values, strict=True))
    return {name: value.clone() if name.endswith("keys_values") else value for name, value in state.items()}
