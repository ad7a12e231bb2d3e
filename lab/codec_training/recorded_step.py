"""A training step that a GPU records once and replays, so that its thousands of launches cost the host nothing.

Source: PyTorch's notes on CUDA graphs, "whole-network capture".
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

EAGER_STEPS = 3  # before a recording: libraries choose their algorithms, and what is made once is made

Tensors = dict[str, Tensor]


class RecordedStep:
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
        self._graph: torch.cuda.CUDAGraph | None = None
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
        if self._num_eager < EAGER_STEPS:
            self._num_eager += 1
            return self._on_a_stream_of_its_own(inputs)
        graph = self._graph = self._graph or self._record(inputs)
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}

    def _on_a_stream_of_its_own(self, inputs: Tensors) -> Tensors:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._step(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: Tensors) -> torch.cuda.CUDAGraph:
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        # Another thread pins the next batches' memory, which a recording of this thread does not concern.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._step(self._inputs)
        return graph
