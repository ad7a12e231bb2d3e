"""A device that is not there: its tensors say that they live on it, and the CPU does their arithmetic.

What a GPU would punish is seen without one: tensors of two devices in one operation raise, as they would there, and
every time that the host reads a value of the device, and so would wait for all work before it, is counted.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "pretend:0"
IS_POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # torch 2.10 and newer
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
FOLLOWED = ("mimi_bridge", "transformers", "vector_quantize_pytorch")
FLOAT64: Counter[str] = Counter()  # places where tensors of this type were made on the device; MPS has none


class PretendTensor(torch.Tensor):
    """A tensor of the device; its values are in an inner one on the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: torch.Tensor):
        self.inner = inner
        if inner.dtype == torch.float64:
            FLOAT64[_place()] += 1

    def __repr__(self) -> str:
        return f"PretendTensor({self.inner})"

    def tolist(self) -> list:
        return self.cpu().tolist()  # torch's own refuses subclasses

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {}, Counter())


class PretendDevice(TorchDispatchMode):
    """While it is active the device exists; `waits` counts by file and line how often the host waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {}, self.waits)


@contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    """A device for the length of a block; modules are brought there by `.to(DEVICE)`."""
    _register()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with PretendDevice() as device:
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend("pretend")
    torch.get_device_module("pretend").get_amp_supported_dtype = lambda: [torch.bfloat16]  # torch.autocast asks


def _run(function: Any, args: tuple, kwargs: dict, waits: Counter) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.ndim > 0]
    asked = kwargs.get("device")
    goes_there = there if asked is None else torch.device(asked).type == "pretend"
    if there and here and function not in COPIES and "index" not in str(function):
        raise RuntimeError(f"{function}: tensors of two devices; on the CPU {[tuple(x.shape) for x in here]}.")
    if function is torch.ops.aten.copy_.default:
        goes_there = isinstance(args[0], PretendTensor)
    if there and (function in READS or (function in COPIES and not goes_there)):
        waits[_place()] += 1
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tree_map(lambda value: value.inner if isinstance(value, PretendTensor) else value, (args, kwargs))
    result = function(*inner[0], **inner[1])
    if not goes_there:
        return result
    result = tree_map(lambda value: PretendTensor(value) if type(value) is torch.Tensor else value, result)
    return return_and_correct_aliasing(function, args, kwargs, result) if there else result


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        if any(name in frame.filename for name in FOLLOWED):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "elsewhere"
