"""A training step that a GPU records once and replays, so that its thousands of launches cost the host nothing.

Source: PyTorch's notes on CUDA semantics, "CUDA Graphs", whole-network capture.
"""

from collections.abc import Callable, Hashable
from functools import partial

from torch import Tensor

from mimi_bridge.runtime.cuda_graphs import capture, on_a_side_stream

EAGER_STEPS = 3  # before a recording: libraries choose their algorithms, and what is made once is made

Tensors = dict[str, Tensor]


class RecordedGradientStep:
    """Calls a function of tensors; on a GPU, after some calls, by replaying what the device did in one of them.

    Args:
        step: From tensors on the device to tensors there. What it does must depend on the tensors, on their shapes and
            on the call's `key` alone, and it may not wait for the device.
        records: False calls the function each time.
    """

    def __init__(self, step: Callable[[Tensors], Tensors], records: bool):
        self._step, self._records = step, records
        self.forget()

    def forget(self) -> None:
        """Record again: tensors that are not inputs, such as an optimizer's, are no longer those recorded."""
        self._key: Hashable = None
        self._num_eager = 0
        self._replay: Callable[[], None] | None = None
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}

    def __call__(self, inputs: Tensors, key: Hashable) -> Tensors:
        """One step.

        Args:
            inputs: Tensors of the same names, shapes and types at each call of one key.
            key: What else the function's work depends on.
        """
        if not self._records:
            return self._step(inputs)
        if key != self._key:
            self.forget()
            self._key = key
        device = next(iter(inputs.values())).device
        if self._num_eager < EAGER_STEPS:
            self._num_eager += 1
            return on_a_side_stream(partial(self._step, inputs), device)
        if self._replay is None:
            self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            self._replay, self._outputs = capture(partial(self._step, self._inputs), device)
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        self._replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}
