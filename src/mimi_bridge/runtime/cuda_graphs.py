"""CUDA graphs: what a function does on a GPU, recorded once and replayed by a single launch.

Source: PyTorch's notes on CUDA semantics, "CUDA Graphs": warm up on another stream, then capture.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def on_a_side_stream(run: Callable[[], Result], device: torch.device) -> Result:
    """Call a function as it has to be called before it is captured, so that libraries choose their kernels."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = run()
        torch.cuda.current_stream().wait_stream(side)
    return result


def capture(run: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Record a function, which does nothing yet; returns how to replay it, and where its result will be."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            result = run()
    return graph.replay, result
