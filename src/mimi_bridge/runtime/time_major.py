"""Mimi's layers with time before channels, where a causal convolution is one matrix product.

    buffer   (batch, tail + steps, channels), rows in a line in memory      kernel 3, stride 1
             ┌────┬────┬────┬────┬────┬────┐
             │ t₀ │ t₁ │ x₀ │ x₁ │ x₂ │ x₃ │      t: tail, the last `kernel - stride` steps of the call before
             └────┴────┴────┴────┴────┴────┘
    windows  ├──── row 0 ───┤                     a row is `kernel` neighbours, so the matrix of all windows
                  ├──── row 1 ───┤                ("im2col") is the same memory read with overlapping strides
                       ├──── row 2 ───┤
    result   windows (steps / stride, kernel · channels) @ weight (kernel · channels, out) + bias

The libraries under torch want rows that do not overlap, and copy such a matrix. So on a CPU the product is taken
apart: `stride` neighbours at a time do not overlap, so the result is a sum of `kernel / stride` products of plain
views, each `stride` steps later than the one before, and of a single recording nothing is copied.

A transposed convolution of kernel `2 · stride` is the same thing: each input step and the one before it give `stride`
output steps, so it is a causal convolution of kernel 2 with `stride · out` channels, its rows then read as steps.
So the whole memory of a convolution is its tail, and a stream is exact because it continues where the call before
ended. The transformer's layers want this layout anyway.

Everything here is for inference: results are written in place, and no gradient passes.

Source: the layers are transformers' `models/mimi/modeling_mimi.py`; streaming by tails is arXiv:2005.06720.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .linear import LinearMap

MIN_COLUMNS_OF_A_SUM = 16  # of a part's input, from which on a sum of products is faster than one product of a copy
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Convolution:
    """A causal convolution as matrix products.

    Attributes:
        parts: One map of whole windows, `kernel * in_channels` to `out`, or `kernel / stride` maps of as many steps
            each as do not overlap; `out` is `upsampling * out_channels`. See `convolution_parts`.
        in_channels: Channels of the input.
        kernel: Steps under the kernel.
        stride: Input steps from one window to the next.
        dilation: Input steps from one tap to the next.
        upsampling: Output steps of one window: the stride of a transposed convolution, else 1.
        activates: Apply ELU to the input first.
        replicates: Start a stream with copies of its first step instead of zeros.
        offset: Where this convolution's tail begins among all tails of its half.
    """

    parts: Sequence[LinearMap]
    in_channels: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    upsampling: int = 1
    activates: bool = False
    replicates: bool = False
    offset: int = 0

    @property
    def tail_steps(self) -> int:
        """Steps that a call must remember for the next."""
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    def __call__(self, x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
        """Convolve, continuing from the tails, which are moved on in place.

        Args:
            x: `(batch, steps, in_channels)`; steps are a multiple of the stride.
            tails: Tails of the whole half, `(batch, size)`.
            is_first: True on rows whose stream begins here, `(batch,)`; None if there is none.

        Returns:
            `(batch, steps / stride * upsampling, out_channels)`, memory of its own.
        """
        batch_size, num_steps, channels = x.shape
        tail_steps = self.tail_steps
        if tail_steps:
            buffer = x.new_empty(batch_size, tail_steps + num_steps, channels)
            tail = tails[:, self.offset : self.offset + tail_steps * channels].view(batch_size, tail_steps, channels)
            buffer[:, :tail_steps] = tail
            put = buffer[:, tail_steps:]
            if self.activates:
                elu(x, out=put)
            else:
                put.copy_(x)
            if self.replicates and is_first is not None:
                buffer[:, :tail_steps] = torch.where(is_first[:, None, None], put[:, :1], buffer[:, :tail_steps])
            tail.copy_(buffer[:, num_steps:])
        else:
            buffer = elu(x) if self.activates else x.contiguous()
        num_windows = num_steps // self.stride
        result: Tensor | None = None
        for number, part in enumerate(self.parts):
            result = part(self._windows(buffer, num_windows, number), result)
        assert result is not None
        return result.view(batch_size, num_windows * self.upsampling, -1)

    def _windows(self, buffer: Tensor, num_windows: int, number: int) -> Tensor:
        """What a part of the convolution sees, `(batch * windows, taps * channels)`; a view where that can be."""
        batch_size, num_steps, channels = buffer.shape
        taps = self.kernel // len(self.parts)
        windows = buffer.as_strided(
            (batch_size, num_windows, taps, channels),
            (num_steps * channels, self.stride * channels, self.dilation * channels, 1),
            buffer.storage_offset() + number * taps * self.dilation * channels,
        )
        return windows.reshape(batch_size * num_windows, taps * channels)


@dataclass(frozen=True)
class Upsampling:
    """A transposed convolution of kernel `2 * stride` that keeps channels apart (as many groups as channels).

    Attributes:
        weight: For the step before and the step itself, `(2, stride, channels)`.
        bias: `(channels,)`, or None.
        offset: As in `Convolution`.
    """

    weight: Tensor
    bias: Tensor | None = None
    offset: int = 0
    tail_steps: ClassVar[int] = 1
    stride: ClassVar[int] = 1

    @property
    def in_channels(self) -> int:
        """Channels of the input, and of the output."""
        return self.weight.shape[-1]

    @property
    def upsampling(self) -> int:
        """Output steps of an input step."""
        return self.weight.shape[1]

    def __call__(self, x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
        """As `Convolution`: `(batch, steps, channels)` -> `(batch, steps * stride, channels)`."""
        batch_size, _, channels = x.shape
        tail = tails[:, self.offset : self.offset + channels]
        before = torch.cat([tail[:, None], x[:, :-1]], dim=1)
        tail.copy_(x[:, -1])
        result = torch.addcmul(before[:, :, None] * self.weight[0], x[:, :, None], self.weight[1])
        if self.bias is not None:
            result += self.bias
        return result.view(batch_size, -1, channels)


@dataclass(frozen=True)
class Residual:
    """A residual block: convolutions beside a shortcut, which is the identity if there is none."""

    convolutions: Sequence[Convolution]
    shortcut: Convolution | None = None

    def __call__(self, x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
        """As `Convolution`; steps and channels stay as they are, and the input's memory may become the output's."""
        result = x
        for convolution in self.convolutions:
            result = convolution(result, tails, is_first)
        shortcut = x if self.shortcut is None else self.shortcut(x, tails, is_first)
        return shortcut.add_(result)


Layer = Convolution | Upsampling | Residual


def elu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """ELU as `max(x, exp(min(x, 0)) - 1)`, into `out` or new memory; torch's own takes `expm1`, three times slower.

    The exponential is taken to base 2, the fastest there is. The difference to torch's is below 1e-7 in float32; half
    precision, where it would be large, takes torch's own.
    """
    out = torch.empty_like(x) if out is None else out
    if x.dtype not in (torch.float32, torch.float64):
        return out.copy_(functional.elu(x))
    torch.mul(x, LOG2_E, out=out)
    return torch.maximum(x, out.clamp_(max=0.0).exp2_().sub_(1.0), out=out)


def convolution_weight(weight: Tensor) -> Tensor:
    """`Conv1d`'s `(out, in, kernel)` -> `(out, kernel * in)`."""
    return weight.permute(0, 2, 1).flatten(1)


def transposed_convolution_weight(weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """`ConvTranspose1d`'s `(in, out / groups, 2 * stride)` -> `(stride * out, 2 * in)`, zeros between groups."""
    channels, share, _ = weight.shape
    if groups > 1:
        of_group = torch.arange(channels, device=weight.device) // (channels // groups)
        same = functional.one_hot(of_group, groups).to(weight.dtype)  # (in, groups)
        weight = (same[:, :, None, None] * weight[:, None]).reshape(channels, groups * share, -1)
    before, itself = weight[:, :, stride:], weight[:, :, :stride]
    return torch.cat([before, itself]).permute(2, 1, 0).flatten(0, 1)


def convolution_parts(
    weight: Tensor, bias: Tensor | None, in_channels: int, stride: int = 1, dilation: int = 1, exportable: bool = False
) -> list[LinearMap]:
    """The maps of a `Convolution`: on a CPU taken apart, where that saves a copy of the windows.

    The weight is `(out, kernel * in_channels)`, the bias `(out,)` or None; the rest is as in `Convolution`.
    `exportable` makes one map whose weight is as given, of which a program can be exported.
    """
    columns = stride * in_channels
    is_whole = weight.shape[1] % columns != 0 or (stride > 1 and dilation > 1)
    if exportable or weight.device.type != "cpu" or is_whole or columns < MIN_COLUMNS_OF_A_SUM:
        return [LinearMap.of(weight.contiguous(), bias, exportable)]
    first, *others = weight.split(columns, dim=1)
    return [LinearMap.of(first.contiguous(), bias), *(LinearMap.of(each.contiguous()) for each in others)]


def with_offsets(layers: Sequence[Layer], offset: int = 0) -> tuple[list[Any], int]:
    """Give each convolution its place among the tails; returns the layers and where the last one's tail ends."""
    placed: list[Any] = []
    for layer in layers:
        if isinstance(layer, Residual):
            inner, offset = with_offsets(layer.convolutions, offset)
            shortcut, offset = with_offsets([] if layer.shortcut is None else [layer.shortcut], offset)
            placed.append(replace(layer, convolutions=inner, shortcut=shortcut[0] if shortcut else None))
        else:
            placed.append(replace(layer, offset=offset))
            offset += layer.tail_steps * layer.in_channels
    return placed, offset


def run(layers: Sequence[Callable[..., Tensor]], x: Tensor, tails: Tensor, is_first: Tensor | None) -> Tensor:
    """Layers one after the other; see `Convolution`."""
    for layer in layers:
        x = layer(x, tails, is_first)
    return x
