"""Weights that accelerate's hooks bring, for methods that read them outside of a module's `forward`.

`device_map`, `cpu_offload` and `disk_offload` keep a module's weights elsewhere and bring them for the time of its
`forward`. The heads read codebooks and projections in other methods, too, so these do what `forward` does. One
thread's hooks would put away what another is reading, so that threads wait for each other where there are any.

Source: accelerate `hooks.py`, `add_hook_to_module`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from threading import RLock

import torch
from torch import Tensor, nn

_BRINGING = RLock()  # of all models: a lock of its own could not be copied or pickled with a model


def alone_where_offloaded(model: nn.Module) -> AbstractContextManager:
    """For the time of a block other threads wait, if hooks bring weights of the model or of its parts."""
    if torch.compiler.is_compiling() or not is_hooked(*model.modules()):
        return nullcontext()
    return _BRINGING


def takes_turns(method: Callable) -> Callable:
    """Let a model's method run in a block of `alone_where_offloaded`."""

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        with alone_where_offloaded(self):
            return method(self, *args, **kwargs)

    return wrapped


@contextmanager
def weights_at_hand(*modules: nn.Module) -> Iterator[None]:
    """Bring what hooks keep elsewhere of the modules' own weights and buffers, and put it away again."""
    with ExitStack() as stack:
        if is_hooked(*modules):
            stack.enter_context(_BRINGING)
        _bring(stack, modules, (), {})
        yield


def brings_weights(method: Callable) -> Callable:
    """Let a method find the weights of the modules in `self.read_modules`, as `forward` finds its own.

    Its arguments are moved to where the weights are, and a tensor that it returns back to where the first one was.
    """

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        modules = self.read_modules
        if not is_hooked(*modules):
            return method(self, *args, **kwargs)
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with _BRINGING, ExitStack() as stack:
            args, kwargs = _bring(stack, modules, args, kwargs)
            result = method(self, *args, **kwargs)
            return result.to(device) if isinstance(result, Tensor) else result

    return wrapped


def is_hooked(*modules: nn.Module) -> bool:
    """Whether accelerate has a hook on one of the modules."""
    return any("_hf_hook" in module.__dict__ for module in modules)


def _bring(stack: ExitStack, modules: Iterable[nn.Module], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    for module in modules:
        hook = module.__dict__.get("_hf_hook")
        if hook is not None:
            args, kwargs = hook.pre_forward(module, *args, **kwargs)
            stack.callback(hook.post_forward, module, None)
    return args, kwargs
