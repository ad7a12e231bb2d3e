"""Noticing that a module, or a weight of it, is no longer what it was.

A module is as it was as long as every part and tensor of it is still in its place with the same address and version,
and some values of each tensor are the same: fused optimizers, and whoever writes through `.data`, change weights and
count no version. All that is looked up at each call; a stream's step looks at the values of a part of the tensors
only, another one each time.
"""

from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mimi.modeling_mimi import (
    MimiAttention,
    MimiConv1d,
    MimiConvTranspose1d,
    MimiDecoder,
    MimiDecoderModel,
    MimiEncoder,
    MimiEncoderModel,
    MimiLayerScale,
    MimiMLP,
    MimiResnetBlock,
    MimiRotaryEmbedding,
    MimiTransformerLayer,
    MimiTransformerModel,
)

from .offloading import is_hooked

KNOWN_MODULES = {
    MimiAttention,
    MimiConv1d,
    MimiConvTranspose1d,
    MimiDecoder,
    MimiDecoderModel,
    MimiEncoder,
    MimiEncoderModel,
    MimiLayerScale,
    MimiMLP,
    MimiResnetBlock,
    MimiRotaryEmbedding,
    MimiTransformerLayer,
    MimiTransformerModel,
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.ELU,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.ModuleList,
}
IDLE_HOOKS = "transformers.utils.output_capturing"  # stay on a model that once gave its hidden states, and do nothing
STOCK_ATTENTION = {"sdpa": sdpa_attention_forward, "eager": None}  # as transformers registers them
SAMPLES_PER_TENSOR = 16  # values compared
NUM_PARTS = 16  # of the tensors: a quick look compares values of one part


class Unsupported(Exception):
    """Why a half has no packed form."""


def has_stock_attention(config: PreTrainedConfig) -> bool:
    """Whether the attention that a half is configured with is one that the packed form computes.

    Users may register their own, under a new name or an old one: `AttentionInterface.register`.
    """
    name = config._attn_implementation
    return name in STOCK_ATTENTION and ALL_ATTENTION_FUNCTIONS.get(name) is STOCK_ATTENTION[name]


def check_can_be_packed(module: nn.Module) -> None:
    """Refuse a module that computes something else than Mimi's does, or whose tensors cannot be read or watched.

    Raises:
        Unsupported: With the reason.
    """
    modules = list(module.modules())
    tensors = [*module.parameters(), *module.buffers()]
    if is_hooked(*modules):
        raise Unsupported("accelerate's hooks bring its weights (device_map, cpu_offload or disk_offload)")
    if any(tensor.is_inference() for tensor in tensors):
        raise Unsupported("its weights were made in inference mode, where changes of a tensor leave no trace")
    if any(tensor.is_meta for tensor in tensors):
        raise Unsupported("its weights are not loaded")
    if any(type(tensor) not in (nn.Parameter, Tensor) for tensor in tensors):
        raise Unsupported("its weights are no plain tensors")
    if len({tensor.device for tensor in tensors}) != 1 or len({each.dtype for each in module.parameters()}) != 1:
        raise Unsupported("its weights do not all have one type and one device")
    if _has_hooks(modules):
        raise Unsupported("one of its modules has a hook or a forward of its own")
    activations = {type(each.activation_fn) for each in modules if isinstance(each, MimiMLP)}
    foreign = sorted({type(each).__name__ for each in modules if type(each) not in KNOWN_MODULES | activations})
    if foreign:
        raise Unsupported(f"it holds modules that are not Mimi's own ({', '.join(foreign)})")


class Watch:
    """What a module's tensors looked like.

    It holds on to their memory, because an address says nothing once it may be given to another tensor. Several
    threads may ask at once.

    Args:
        module: One that `check_can_be_packed`.
    """

    def __init__(self, module: nn.Module):
        self._modules = list(module.modules())
        self._tables: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._entries: list[Any] = []
        for each in self._modules:
            for table in (each._modules, each._parameters, each._buffers):
                for name, entry in table.items():
                    self._tables.append(table)
                    self._names.append(name)
                    self._entries.append(entry)
        self._hooks = [table for each in self._modules for table in (each._forward_hooks, each._forward_pre_hooks)]
        self._tensors = [entry for entry in self._entries if isinstance(entry, Tensor)]
        self._memory = [tensor.detach() for tensor in self._tensors]
        self._versions = self._current_versions()
        self._addresses = self._current_addresses()
        self._views = [_some_values(tensor) for tensor in self._memory if tensor.is_floating_point()]
        self._samples = [self._sampled(part) for part in range(NUM_PARTS)]
        self._next_part = 0

    def finds_all_as_it_was(self, thoroughly: bool) -> bool:
        """Whether modules and tensors are those that were packed, unchanged."""
        parts = range(NUM_PARTS) if thoroughly else [self._next_part]
        self._next_part = (self._next_part + 1) % NUM_PARTS
        return (
            all(map(is_, map(dict.get, self._tables, self._names), self._entries))
            and self._versions == self._current_versions()
            and self._addresses == self._current_addresses()
            and not (any(self._hooks) and _has_hooks(self._modules))
            and all(torch.equal(self._samples[part], self._sampled(part)) for part in parts)
            and not (thoroughly and _has_hooks(self._modules))
        )

    def _current_versions(self) -> list[int]:
        return list(map(attrgetter("_version"), self._tensors))

    def _current_addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def _sampled(self, part: int) -> Tensor:
        views = self._views[part::NUM_PARTS]
        return torch.cat([view.float() for view in views]) if views else torch.empty(0)


def _has_hooks(modules: list[nn.Module]) -> bool:
    hooks = (
        hook for each in modules for table in (each._forward_hooks, each._forward_pre_hooks) for hook in table.values()
    )
    return any(hook.__module__ != IDLE_HOOKS for hook in hooks) or any(
        "forward" in each.__dict__ and _has_another_forward(each) for each in modules
    )


def _has_another_forward(module: nn.Module) -> bool:
    # accelerate, when it takes its hooks off, leaves the class's own forward bound to the module
    return getattr(module.__dict__["forward"], "__func__", None) is not type(module).forward


def _some_values(tensor: Tensor) -> Tensor:
    """A view of a few values, spread over the tensor's memory."""
    step = max(1, tensor.numel() // SAMPLES_PER_TENSOR)
    return tensor.as_strided((min(tensor.numel(), SAMPLES_PER_TENSOR),), (step,))
