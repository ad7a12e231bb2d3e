"""Weights that accelerate's hooks bring, for methods that read them outside of a module's `forward`.

`device_map`, `cpu_offload` and `disk_offload` keep a module's weights elsewhere and bring them for the time of its
`forward`. The heads read codebooks and projections in other methods, too, so these do what `forward` does.

Source: accelerate `hooks.py`, `add_hook_to_module`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps

from torch import Tensor, nn


@contextmanager
def weights_at_hand(*modules: nn.Module) -> Iterator[None]:
    """Bring what hooks keep elsewhere of the modules' own weights and buffers, and put it away again."""
    with ExitStack() as stack:
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
        with ExitStack() as stack:
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
