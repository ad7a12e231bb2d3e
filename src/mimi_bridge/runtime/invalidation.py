"""Which halves have a packed form, and whether a packed form is still that of its module.

A module is as it was as long as every part and tensor of it is still in its place, none of its tensors was written to,
as PyTorch counts it, and no hook has come. What counts nothing must be said: after writes through `.data`, call
`model.eval()`, which lets go of all packed forms; so does `model.train()`, in which nothing is kept.
"""

from operator import is_
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mimi import modeling_mimi

from ..offloading import is_hooked

KNOWN_MODULES = {
    *(
        getattr(modeling_mimi, f"Mimi{name}")
        for name in "Attention Conv1d ConvTranspose1d Decoder DecoderModel Encoder EncoderModel LayerScale MLP "
        "ResnetBlock RotaryEmbedding TransformerLayer TransformerModel".split()
    ),
    *(nn.Conv1d, nn.ConvTranspose1d, nn.ELU, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList),
}
IDLE_HOOKS = "transformers.utils.output_capturing"  # stay on a model that once gave its hidden states, and do nothing
STOCK_ATTENTION = {"sdpa": sdpa_attention_forward, "eager": None}  # as transformers registers them

PLAIN_TENSORS = (nn.Parameter, Tensor)  # their memory is read as it is


class Unsupported(Exception):
    """Why a part of the model has no packed form."""


def check_half(half: Any) -> None:
    """Refuse a half of Mimi, or a head's transformer, that computes something else than Mimi's does.

    Users may register their own attention, under a new name or an old one: `AttentionInterface.register`.

    Raises:
        Unsupported: With the reason.
    """
    modules = list(half.modules())
    for name, function in _attention_of(modules):
        if name not in STOCK_ATTENTION or function is not STOCK_ATTENTION[name]:
            raise Unsupported(f"its attention is not transformers' own but {name!r}")
    devices = {tensor.device for tensor in _tensors(half) if tensor.is_floating_point()}  # sizes stay on the CPU
    if len(devices) != 1 or len({each.dtype for each in half.parameters()}) != 1:
        raise Unsupported("its weights do not all have one type and one device")
    activations = {type(each.activation_fn) for each in modules if isinstance(each, modeling_mimi.MimiMLP)}
    foreign = sorted({type(each).__name__ for each in modules if type(each) not in KNOWN_MODULES | activations})
    if foreign:
        raise Unsupported(f"it holds modules that are not Mimi's own ({', '.join(foreign)})")


def check_weights(module: nn.Module) -> None:
    """Refuse a module whose tensors cannot be read or watched, or that does not run as its class says.

    Raises:
        Unsupported: With the reason.
    """
    modules, tensors = list(module.modules()), _tensors(module)
    if is_hooked(*modules):
        raise Unsupported("accelerate's hooks bring its weights (device_map, cpu_offload or disk_offload)")
    if any(tensor.is_inference() for tensor in tensors):
        raise Unsupported("its weights were made in inference mode, where changes of a tensor leave no trace")
    if any(tensor.is_meta for tensor in tensors):
        raise Unsupported("its weights are not loaded")
    if any(type(tensor) not in PLAIN_TENSORS for tensor in tensors):
        raise Unsupported("its weights are no plain tensors")
    if _has_hooks(modules):
        raise Unsupported("one of its modules has a hook or a forward of its own")


class Snapshot:
    """What a module's parts and tensors were; it holds on to them. Several threads may ask at once."""

    def __init__(self, module: nn.Module):
        self._modules = list(module.modules())
        places = [
            (table, name, entry)
            for each in self._modules
            for table in (each._modules, each._parameters, each._buffers)
            for name, entry in table.items()
        ]
        self._tables, self._names, self._entries = zip(*places, strict=True)
        self._tensors = [entry for entry in self._entries if isinstance(entry, Tensor)]
        self._seen = self._look()

    def is_current(self) -> bool:
        """Whether the module is as it was."""
        return (
            all(map(is_, map(dict.get, self._tables, self._names), self._entries))
            and self._seen == self._look()
            and not _has_hooks(self._modules)
        )

    def _look(self) -> list[tuple[Any, Any]]:
        tensors = [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]
        return tensors + _attention_of(self._modules)  # may be set at any time, and is no part of the module


def _attention_of(modules: list[nn.Module]) -> list[tuple[str, Any]]:
    # By name, and what transformers has under it; most often one config for all.
    configs = {id(each.config): each.config for each in modules if isinstance(each, modeling_mimi.MimiAttention)}
    names = [config._attn_implementation for config in configs.values()]
    return [(name, ALL_ATTENTION_FUNCTIONS.get(name)) for name in names]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _has_hooks(modules: list[nn.Module]) -> bool:
    return any(
        hook.__module__ != IDLE_HOOKS
        for each in modules
        if each._forward_hooks or each._forward_pre_hooks
        for table in (each._forward_hooks, each._forward_pre_hooks)
        for hook in table.values()
    ) or any("forward" in each.__dict__ and _has_another_forward(each) for each in modules)


def _has_another_forward(module: nn.Module) -> bool:
    # accelerate, when it takes its hooks off, leaves the class's own forward bound to the module
    return getattr(module.__dict__["forward"], "__func__", None) is not type(module).forward
