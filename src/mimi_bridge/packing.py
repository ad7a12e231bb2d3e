"""Laying out the model's weights for inference, and noticing that they have changed.

Copied is only what gains by it: the convolutions, and the transformers' maps that widen. A packed half is good as long
as every module and tensor it was made from is still in its place with the same address and version, and some values of
each tensor are the same: fused optimizers, and whoever writes through `.data`, change weights and count no version.
All that is looked up at each call; a stream's step looks at the values of a part of the tensors only, another one each
time. Packed halves are no part of the model's state: they are neither saved, copied nor moved with it, but made again.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
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

from .attention import Transformer, TransformerLayer
from .inference import DecoderHalf, EncoderHalf, for_inference
from .time_major import (
    Convolution,
    Layer,
    Residual,
    Upsampling,
    convolution_weight,
    laid_out,
    transposed_convolution_weight,
    with_offsets,
)

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
MIN_STEPS_IN_PIECES = 64  # steps of a frame from which on a layer runs in pieces: fewer would waste its weights
IDLE_HOOKS = "transformers.utils.output_capturing"  # stay on a model that once gave its hidden states, and do nothing
SAMPLES_PER_TENSOR = 16  # values compared
NUM_PARTS = 16  # of the tensors: a quick look compares values of one part


class Unsupported(Exception):
    """Why a half has no packed form."""


class PackedHalves:
    """The packed halves of one model, made when they are first asked for and again when the weights have changed."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Watch, EncoderHalf | DecoderHalf | Unsupported]] = {}

    def __reduce__(self):
        return PackedHalves, ()  # copies of a model and saved models start without

    def get(self, name: str, module: nn.Module, thoroughly: bool = True) -> EncoderHalf | DecoderHalf | Unsupported:
        """The packed form of a half, or why there is none.

        Args:
            name: `"encoder"` or `"decoder"`.
            module: The half.
            thoroughly: Compare some values of all tensors, not of a part of them.
        """
        watch, packed = self._kept.get(name, (None, None))
        if watch is not None and packed is not None and watch.finds_all_as_it_was(thoroughly):
            return packed
        self._kept.pop(name, None)
        watch = Watch(module)
        try:
            watch.check()
            packed = _pack_encoder(module) if name == "encoder" else _pack_decoder(module)
        except Unsupported as reason:
            packed = reason
        self._kept[name] = watch, packed
        return packed

    def require(self, name: str, module: nn.Module, thoroughly: bool = True) -> Any:
        """As `get`, for what has no other way.

        Raises:
            ValueError: If the half has no packed form.
        """
        packed = self.get(name, module, thoroughly)
        if isinstance(packed, Unsupported):
            raise ValueError(
                f"this model cannot stream, because of its {name}: {packed}. Encode and decode whole recordings."
            )
        return packed

    def clear(self) -> None:
        """Let go of all packed weights."""
        self._kept.clear()


class Watch:
    """What a module's tensors looked like.

    It holds on to their memory, because an address says nothing once it may be given to another tensor.
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
        self._can_be_watched = not any(tensor.is_inference() for tensor in self._tensors)
        self._versions = self._current_versions() if self._can_be_watched else []
        self._addresses = self._current_addresses()
        self._views = [_some_values(tensor) for tensor in self._memory if tensor.is_floating_point()]
        self._samples = [self._sampled(part) for part in range(NUM_PARTS)]
        self._next_part = 0

    def check(self) -> None:
        """Raise `Unsupported` where something changes what the module computes, or hides changes of its tensors."""
        if not self._can_be_watched:
            raise Unsupported("its weights were made in inference mode, where changes of a tensor leave no trace")
        if len({(tensor.device, tensor.dtype) for tensor in self._weights()}) != 1:
            raise Unsupported("its weights do not all have one type and one device")
        if self._memory[0].device.type == "meta":
            raise Unsupported("its weights are not loaded")
        if self._is_hooked():
            raise Unsupported("one of its modules has a hook or a forward of its own")
        activations = {type(each.activation_fn) for each in self._modules if isinstance(each, MimiMLP)}
        foreign = sorted(
            {type(each).__name__ for each in self._modules if type(each) not in KNOWN_MODULES | activations}
        )
        if foreign:
            raise Unsupported(f"it holds modules that are not Mimi's own ({', '.join(foreign)})")

    def finds_all_as_it_was(self, thoroughly: bool) -> bool:
        """Whether modules and tensors are those that were packed, unchanged."""
        parts = range(NUM_PARTS) if thoroughly else [self._next_part]
        self._next_part = (self._next_part + 1) % NUM_PARTS
        return (
            self._can_be_watched
            and all(map(is_, map(dict.get, self._tables, self._names), self._entries))
            and self._versions == self._current_versions()
            and self._addresses == self._current_addresses()
            and not (any(self._hooks) and self._is_hooked())
            and all(torch.equal(self._samples[part], self._sampled(part)) for part in parts)
            and not (thoroughly and self._is_hooked())
        )

    def _weights(self) -> Iterator[Tensor]:
        return (tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter))

    def _is_hooked(self) -> bool:
        hooks = (hook for table in self._hooks for hook in table.values())
        return any(hook.__module__ != IDLE_HOOKS for hook in hooks) or any(
            "forward" in each.__dict__ for each in self._modules
        )

    def _current_versions(self) -> list[int]:
        return list(map(attrgetter("_version"), self._tensors))

    def _current_addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def _sampled(self, part: int) -> Tensor:
        views = self._views[part::NUM_PARTS]
        return torch.cat([view.float() for view in views]) if views else torch.empty(0)


def _some_values(tensor: Tensor) -> Tensor:
    """A view of a few values, spread over the tensor's memory."""
    step = max(1, tensor.numel() // SAMPLES_PER_TENSOR)
    return tensor.as_strided((min(tensor.numel(), SAMPLES_PER_TENSOR),), (step,))


@for_inference
def _pack_encoder(module: Any) -> EncoderHalf:
    config = module.config
    seanet = _seanet(module.encoder_seanet.layers)
    if not isinstance(module.downsample, MimiConv1d):
        raise Unsupported("it has no downsampling")
    layers, tails_size = with_offsets([*seanet, _convolution(module.downsample, activates=False)])
    boundary, ratio = _boundary(layers[:-1], config.frame_size)
    resampling = layers[-1]
    assert isinstance(resampling, Convolution)
    return EncoderHalf(
        near_audio=layers[:boundary],
        near_transformer=layers[boundary:-1],
        transformer=_transformer(module.encoder_transformer),
        resampling=resampling,
        tails_size=tails_size,
        near_audio_ratio=ratio,
        **_sizes(config),
    )


@for_inference
def _pack_decoder(module: Any) -> DecoderHalf:
    config = module.config
    if not isinstance(module.upsample, MimiConvTranspose1d):
        raise Unsupported("it has no upsampling")
    layers, tails_size = with_offsets(
        [_transposed(module.upsample, activates=False), *_seanet(module.decoder_seanet.layers)]
    )
    boundary, ratio = _boundary(layers[:0:-1], config.frame_size)
    resampling = layers[0]
    assert not isinstance(resampling, Residual)
    return DecoderHalf(
        near_audio=layers[len(layers) - boundary :],
        near_transformer=layers[1 : len(layers) - boundary],
        transformer=_transformer(module.decoder_transformer),
        resampling=resampling,
        tails_size=tails_size,
        near_audio_ratio=ratio,
        **_sizes(config),
    )


def _sizes(config) -> dict[str, int]:
    ratio = 1
    for each in config.upsampling_ratios:
        ratio *= each
    if (
        ratio * config.latent_stride != config.frame_size
        or config.frame_size != config.sampling_rate / config.frame_rate
    ):
        raise Unsupported("its ratios do not make up a frame")
    return {
        "frame_size": config.frame_size,
        "channels": config.audio_channels,
        "hidden_size": config.hidden_size,
        "steps_per_frame": config.latent_stride,
    }


def _boundary(layers_from_audio: Sequence[Layer], frame_size: int) -> tuple[int, int]:
    """How many of the layers, from the audio on, run in pieces, and samples of a step where they end."""
    ratio = 1
    for count, layer in enumerate(layers_from_audio):
        further = ratio * layer.stride * layer.upsampling if isinstance(layer, Convolution) else ratio
        if frame_size // further < MIN_STEPS_IN_PIECES or count == len(layers_from_audio) - 1:
            return count, ratio
        ratio = further
    return 0, ratio


def _seanet(modules: Iterable[Any]) -> list[Layer]:
    layers: list[Layer] = []
    activates = False
    for module in modules:
        if isinstance(module, nn.ELU):
            if module.alpha != 1.0:
                raise Unsupported(f"an ELU has alpha {module.alpha}, not 1")
            activates = True
            continue
        if isinstance(module, MimiConv1d):
            layers.append(_convolution(module, activates))
        elif isinstance(module, MimiConvTranspose1d):
            layers.append(_transposed(module, activates))
        elif isinstance(module, MimiResnetBlock) and not activates:
            inner = [layer for layer in _seanet(module.block) if isinstance(layer, Convolution)]
            has_shortcut = isinstance(module.shortcut, MimiConv1d)
            layers.append(Residual(inner, _convolution(module.shortcut, False) if has_shortcut else None))
        else:
            raise Unsupported(f"it has a {type(module).__name__} where Mimi has none")
        activates = False
    return layers


def _convolution(module: Any, activates: bool) -> Convolution:
    convolution = module.conv
    if not module.causal or module.pad_mode not in ("constant", "replicate"):
        raise Unsupported(f"a convolution is not causal or padded by {module.pad_mode!r}")
    if convolution.groups != 1 or convolution.padding != (0,):
        raise Unsupported("a convolution has groups or padding of its own")
    packed = Convolution(
        convolution_weight(convolution.weight),
        None if convolution.bias is None else convolution.bias.detach(),
        convolution.in_channels,
        kernel=convolution.kernel_size[0],
        stride=convolution.stride[0],
        dilation=convolution.dilation[0],
        activates=activates,
        replicates=module.pad_mode == "replicate",
    )
    if packed.tail_steps < 0:
        raise Unsupported("a convolution has a kernel shorter than its stride")
    return packed


def _transposed(module: Any, activates: bool) -> Convolution | Upsampling:
    convolution = module.conv
    stride = convolution.stride[0]
    bias = None if convolution.bias is None else convolution.bias.detach()
    if not module.causal or module.padding_left != 0:
        raise Unsupported("a transposed convolution is trimmed on the left, so it is not causal")
    if convolution.kernel_size[0] != 2 * stride or convolution.padding != (0,) or convolution.dilation != (1,):
        raise Unsupported("a transposed convolution's kernel is not twice its stride")
    if convolution.groups == convolution.in_channels == convolution.out_channels and not activates:
        before, itself = convolution.weight[:, 0, stride:].T, convolution.weight[:, 0, :stride].T
        return Upsampling(torch.stack([before, itself]), bias)
    return Convolution(
        transposed_convolution_weight(convolution.weight, stride, convolution.groups),
        None if bias is None else bias.repeat(stride),
        convolution.in_channels,
        kernel=2,
        upsampling=stride,
        activates=activates,
    )


def _transformer(module: Any) -> Transformer:
    first, rotary = module.layers[0], module.rotary_emb
    if rotary.rope_type != "default":
        raise Unsupported(f"its rotary embedding is of type {rotary.rope_type!r}, not 'default'")

    def pair(*linears):
        weights, biases = [each.weight.detach() for each in linears], [each.bias for each in linears]
        weight = laid_out(torch.cat(weights).T) if len(weights) > 1 else weights[0].T
        return weight, None if biases[0] is None else torch.cat(biases)

    def plain(norm):
        return norm.weight.detach(), norm.bias.detach()

    layers = [
        TransformerLayer(
            attention_norm=plain(layer.input_layernorm),
            query_key_value=pair(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            attention_out=pair(layer.self_attn.o_proj),
            attention_scale=layer.self_attn_layer_scale.scale.detach(),
            feedforward_norm=plain(layer.post_attention_layernorm),
            feedforward_in=laid_out(layer.mlp.fc1.weight.T),
            feedforward_out=layer.mlp.fc2.weight.detach().T,
            feedforward_scale=layer.mlp_layer_scale.scale.detach(),
        )
        for layer in module.layers
    ]
    return Transformer(
        layers,
        num_heads=first.self_attn.num_heads,
        num_key_value_heads=first.self_attn.num_key_value_heads,
        head_dim=first.self_attn.head_dim,
        window=first.self_attn.sliding_window,
        norm_epsilon=first.input_layernorm.eps,
        activation=first.mlp.activation_fn,
        inverse_frequencies=rotary.inv_freq,
        rotary_scaling=rotary.attention_scaling,
    )
