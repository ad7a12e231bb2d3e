"""Packs the weights of transformers' encoder and decoder for inference: the one place that knows both layouts.

It rearranges the convolutions and, where oneDNN's blocks are faster (see `linear`), the transformer's linear maps.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiConvTranspose1d, MimiResnetBlock

from .attention import Transformer, TransformerLayer
from .codec import DecoderRuntime, EncoderRuntime, for_inference
from .invalidation import Unsupported
from .linear import LinearMap
from .pieces import WaveformLayers, with_rates
from .time_major import (
    Convolution,
    Layer,
    Residual,
    Upsampling,
    convolution_parts,
    convolution_weight,
    transposed_convolution_weight,
    with_offsets,
)

MIN_STEPS_IN_PIECES = 64  # steps of a frame from which on a layer runs in pieces: fewer would waste its weights


@for_inference
def lay_out(name: str, module: Any, exportable: bool = False) -> EncoderRuntime | DecoderRuntime:
    """A half for inference.

    Args:
        name: `"encoder"` or `"decoder"`.
        module: The half, transformers' `MimiEncoderModel` or `MimiDecoderModel`.
        exportable: Keep to PyTorch's public operations, of which a program can be exported.

    Raises:
        Unsupported: If it computes something that this layout does not.
    """
    config, is_encoder, seanet = module.config, name == "encoder", getattr(module, f"{name}_seanet").layers
    modules = [*seanet, module.downsample] if is_encoder else [module.upsample, *seanet]
    if None in modules:
        raise Unsupported(f"it has no {'down' if is_encoder else 'up'}sampling")
    if math.prod(config.upsampling_ratios) * config.latent_stride != config.frame_size or (
        config.frame_size != config.sampling_rate / config.frame_rate
    ):
        raise Unsupported("its ratios do not make up a frame")
    layers, tails_size = with_offsets(_seanet(modules, exportable))
    from_audio = layers[:-1] if is_encoder else layers[:0:-1]
    count, ratio = _boundary(from_audio, config.frame_size)
    half: dict[str, Any] = {
        "transformer": lay_out_transformer(getattr(module, f"{name}_transformer"), exportable),
        "tails_size": tails_size,
        "frame_size": config.frame_size,
        "channels": config.audio_channels,
        "steps_per_frame": config.latent_stride,
    }
    if is_encoder:
        channels = next(with_rates(layers[count:]))[0].in_channels
        waveform = WaveformLayers(layers[:count], config.frame_size, channels)
        return EncoderRuntime([waveform, *layers[count:-1]], after=layers[-1:], **half)
    split = len(layers) - count
    waveform = WaveformLayers(layers[split:], config.frame_size // ratio, config.audio_channels)
    return DecoderRuntime(layers[:1], after=[*layers[1:split], waveform], **half)


def _boundary(layers_from_audio: Sequence[Layer], frame_size: int) -> tuple[int, int]:
    """How many of the layers, from the audio on, run in pieces, and samples of a step where they end."""
    ratio = 1
    for count, layer in enumerate(layers_from_audio):
        further = ratio * layer.stride * layer.upsampling if isinstance(layer, Convolution) else ratio
        if frame_size // further < MIN_STEPS_IN_PIECES or count == len(layers_from_audio) - 1:
            return count, ratio
        ratio = further
    return 0, ratio


def _seanet(modules: Iterable[Any], exportable: bool) -> list[Layer]:
    layers: list[Layer] = []
    activates = False
    for module in modules:
        if isinstance(module, nn.ELU):
            if module.alpha != 1.0:
                raise Unsupported(f"an ELU has alpha {module.alpha}, not 1")
            activates = True
            continue
        if isinstance(module, MimiConv1d):
            layers.append(_convolution(module, activates, exportable))
        elif isinstance(module, MimiConvTranspose1d):
            layers.append(_transposed(module, activates, exportable))
        elif isinstance(module, MimiResnetBlock) and not activates:
            inner = [layer for layer in _seanet(module.block, exportable) if isinstance(layer, Convolution)]
            has_shortcut = isinstance(module.shortcut, MimiConv1d)
            layers.append(Residual(inner, _convolution(module.shortcut, False, exportable) if has_shortcut else None))
        else:
            raise Unsupported(f"it has a {type(module).__name__} where Mimi has none")
        activates = False
    return layers


def _convolution(module: Any, activates: bool, exportable: bool) -> Convolution:
    convolution = module.conv
    if not module.causal or module.pad_mode not in ("constant", "replicate"):
        raise Unsupported(f"a convolution is not causal or padded by {module.pad_mode!r}")
    if convolution.groups != 1 or convolution.padding != (0,):
        raise Unsupported("a convolution has groups or padding of its own")
    stride, dilation = convolution.stride[0], convolution.dilation[0]
    weight = convolution_weight(convolution.weight)
    laid_out = Convolution(
        convolution_parts(weight, convolution.bias, convolution.in_channels, stride, dilation, exportable),
        convolution.in_channels,
        kernel=convolution.kernel_size[0],
        stride=stride,
        dilation=dilation,
        activates=activates,
        replicates=module.pad_mode == "replicate",
    )
    if laid_out.tail_steps < 0:
        raise Unsupported("a convolution has a kernel shorter than its stride")
    return laid_out


def _transposed(module: Any, activates: bool, exportable: bool) -> Convolution | Upsampling:
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
    weight = transposed_convolution_weight(convolution.weight, stride, convolution.groups)
    repeated = None if bias is None else bias.repeat(stride)
    return Convolution(
        convolution_parts(weight, repeated, convolution.in_channels, exportable=exportable),
        convolution.in_channels,
        kernel=2,
        upsampling=stride,
        activates=activates,
    )


def lay_out_transformer(module: Any, exportable: bool = False) -> Transformer:
    """A transformer for inference.

    Args:
        module: transformers' `MimiTransformerModel`.
        exportable: As in `lay_out`.

    Raises:
        Unsupported: If it computes something that this layout does not.
    """
    first, rotary = module.layers[0], module.rotary_emb
    if rotary.rope_type != "default":
        raise Unsupported(f"its rotary embedding is of type {rotary.rope_type!r}, not 'default'")

    def joined(*linears):
        weights, biases = [each.weight for each in linears], [each.bias for each in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return LinearMap.of(weight, None if biases[0] is None else torch.cat(biases), exportable)

    def tensors(norm):
        return norm.weight.detach(), norm.bias.detach()

    layers = [
        TransformerLayer(
            attention_norm=tensors(layer.input_layernorm),
            query_key_value=joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            attention_out=joined(layer.self_attn.o_proj),
            attention_scale=layer.self_attn_layer_scale.scale.detach(),
            feedforward_norm=tensors(layer.post_attention_layernorm),
            feedforward_in=joined(layer.mlp.fc1),
            feedforward_out=joined(layer.mlp.fc2),
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
