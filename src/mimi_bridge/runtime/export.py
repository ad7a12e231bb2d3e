"""One call of a stream as a program without Python: `torch.export` of the encode and the decode step.

A step is a pure function, state in and state out, with the weights inside: it runs in ONNX Runtime, or in any process
that has torch but not this package. The state is that of `codec`; zeros begin a stream. Nothing is checked in it: not
whether audio is finite, nor whether codes are in range.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from ..modeling_mimi_bridge import MimiBridgeModel
from ..offloading import is_hooked
from .codec import State, with_own_rings
from .packing import PackedModel
from .quantizer import PackedQuantizer
from .steps import DecodeStep, EncodeStep, Step

STATE = (
    "tails",
    "keys_values",
    "positions",
)  # the order in a step's arguments and results; see `EncodeStep.new_state`


class ExportableStep(nn.Module):
    """A step as `(given, *state) -> (result, *state)`, the state in the order of `step.new_state`."""

    def __init__(self, step: Step):
        super().__init__()
        self.step, self.names = step, list(step.new_state(1))

    def forward(self, given: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Encode or decode whole frames; the given state stays as it is."""
        result, moved = self.step(with_own_rings(dict(zip(self.names, state, strict=True))), given)
        return result, *(moved[name] for name in self.names)


def export_encode_step(
    model: MimiBridgeModel, batch_size: int = 1, num_quantizers: int | None = None, num_frames: int = 1
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """The program of an `EncodeStep`, and the state that begins its streams.

    Args:
        model: On the device and in the precision that the program is for.
        batch_size: Rows, fixed in the program.
        num_quantizers: Give the first so many codebooks only.
        num_frames: Frames of a call, fixed in the program.

    Raises:
        ValueError: If the model cannot stream, or weights of it are offloaded.
    """
    half, quantizer = _packed_copy(model, "encoder")
    step = EncodeStep(half, quantizer, model.quantizer.check_num_quantizers(num_quantizers))
    return _export(step, half.like.new_zeros(batch_size, half.channels, num_frames * half.frame_size))


def export_decode_step(
    model: MimiBridgeModel, batch_size: int = 1, num_quantizers: int | None = None, num_frames: int = 1
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """As `export_encode_step`, of a `DecodeStep`, which gets `num_quantizers` codebooks: all, if left out."""
    half, quantizer = _packed_copy(model, "decoder")
    num_quantizers = model.quantizer.check_num_quantizers(num_quantizers)
    return _export(DecodeStep(half, quantizer), half.like.new_zeros(batch_size, num_quantizers, num_frames).long())


def _export(step: Step, given: Tensor) -> tuple[ExportedProgram, State]:
    state = step.new_state(len(given))
    with torch.no_grad():  # or each change of the mode inside the step would become a part of the program
        return export(ExportableStep(step), (given, *state.values())), state


def _packed_copy(model: MimiBridgeModel, name: str) -> tuple[Any, PackedQuantizer]:
    # A half and the quantizer, copied, so that the program's weights are its own and the model can be trained on.
    if is_hooked(*model.modules()):
        raise ValueError(
            "a program holds its weights, but accelerate's hooks keep some of this model's elsewhere (device_map, "
            "cpu_offload or disk_offload); load it whole."
        )
    copy, packed = deepcopy(model).eval().requires_grad_(False), PackedModel(exportable=True)
    return packed.require(name, getattr(copy, name)), packed.require("quantizer", copy.quantizer)
