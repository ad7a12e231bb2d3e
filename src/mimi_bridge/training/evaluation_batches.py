"""Batches of evaluations: which of their rows count, the codes gathered from them, and a model left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput

PADDING_INDEX = -100  # what transformers fills predictions up with


def num_rows_that_count(num_rows: int, accelerator: Accelerator) -> int:
    """How many rows of this process's batch, its first ones, are no repetitions.

    accelerate repeats rows so that all processes have as many. As its `gather_for_metrics` counts them, they are the
    last of all processes' last batches, one after the other.

    Args:
        num_rows: Of the batch.
        accelerator: In the middle of a data loader.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return num_rows
    return min(num_rows, max(0, state.remainder - num_rows * accelerator.process_index))


def no_codes(num_rows: int, model: MimiBridgeModel, device: torch.device) -> Tensor:
    """Codes of rows that do not count, `(rows, 1, codebooks)`."""
    return torch.full((num_rows, 1, model.quantizer.num_quantizers), PADDING_INDEX, device=device)


def codes_to_gather(outputs: MimiBridgeOutput, num_rows: int) -> Tensor:
    """Codes as transformers gathers predictions, `(rows, frames, codebooks)`: -100 where there is no frame.

    Args:
        outputs: Of the model, for the rows that count.
        num_rows: Of the batch, those that do not count among them.
    """
    assert outputs.audio_codes is not None and outputs.audio_codes_mask is not None
    codes = outputs.audio_codes.transpose(1, 2).masked_fill(~outputs.audio_codes_mask[:, :, None], PADDING_INDEX)
    return nn.functional.pad(codes, (0, 0, 0, 0, 0, num_rows - len(codes)), value=PADDING_INDEX)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Put a model's weights back at the end: transformers rounds them for an evaluation in half precision."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, value) for module in model.modules() for name, value in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, value in buffers:
            module._buffers[name] = value
        model.to(next(model.parameters()).device)  # forgets what was packed of the rounded weights
        model.train(model.training)
