"""Time-major layers: each against torch's own, whole and in chunks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mimi_bridge.runtime import linear as linear_map
from mimi_bridge.runtime.time_major import (
    Convolution,
    Residual,
    Upsampling,
    convolution_parts,
    convolution_weight,
    elu,
    run,
    transposed_convolution_weight,
    with_offsets,
)


@pytest.fixture(autouse=True, params=[linear_map.MIN_SIZE, 1], ids=["plain", "in blocks"])
def _inference(request, monkeypatch):
    monkeypatch.setattr(linear_map, "MIN_SIZE", request.param)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def packed(convolution: nn.Conv1d, plain: bool = False, **options) -> Convolution:
    """Torch's convolution as ours."""
    sizes = convolution.in_channels, convolution.stride[0], convolution.dilation[0]
    channels, stride, dilation = sizes
    return Convolution(
        convolution_parts(convolution_weight(convolution.weight), convolution.bias, *sizes, exportable=plain),
        channels,
        kernel=convolution.kernel_size[0],
        stride=stride,
        dilation=dilation,
        **options,
    )


def whole(layers, x):
    """Run layers on a whole recording."""
    placed, size = with_offsets(layers)
    return run(placed, x, x.new_zeros(len(x), size), torch.ones(len(x), dtype=torch.bool))


def chunked(layers, x, lengths):
    """Run layers chunk by chunk, with one set of tails."""
    placed, size = with_offsets(layers)
    tails = x.new_zeros(len(x), size)
    results = [
        run(placed, chunk, tails, torch.full((len(x),), number == 0))
        for number, chunk in enumerate(x.split(lengths, dim=1))
    ]
    return torch.cat(results, dim=1)


def close(result, expected) -> bool:
    return bool((result - expected).abs().max() <= 2e-6 * expected.abs().max())


CONVOLUTIONS = [  # kernel, stride, dilation, channels
    (6, 2, 1, 8),
    (5, 2, 1, 8),
    (4, 2, 2, 8),
    (1, 1, 1, 3),
    (3, 1, 1, 16),
    (7, 1, 1, 1),
    (3, 1, 4, 16),
    (8, 4, 1, 16),
    (10, 5, 1, 4),
]


@pytest.mark.parametrize("sizes", CONVOLUTIONS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_steps", [20, 400], ids=["few steps", "many steps"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_convolution_is_torch_s_with_zeros_before_the_start(sizes, batch_size, num_steps, bias, plain):
    kernel, stride, dilation, channels = sizes
    convolution = nn.Conv1d(channels, 6, kernel, stride, dilation=dilation, bias=bias)
    x = torch.randn(batch_size, num_steps, channels)
    padded = functional.pad(x.transpose(1, 2), ((kernel - 1) * dilation + 1 - stride, 0))
    assert close(whole([packed(convolution, plain)], x), convolution(padded).transpose(1, 2))


@pytest.mark.parametrize("sizes", CONVOLUTIONS)
@pytest.mark.parametrize("replicates", [True, False])
def test_convolution_in_chunks_gives_the_whole(sizes, replicates):
    kernel, stride, dilation, channels = sizes
    layer = packed(nn.Conv1d(channels, 6, kernel, stride, dilation=dilation), activates=True, replicates=replicates)
    x = torch.randn(2, 24 * stride, channels)
    lengths = [stride * count for count in (1, 1, 5, 2, 15)]
    assert close(chunked([layer], x, lengths), whole([layer], x))


def test_convolution_that_replicates_begins_with_copies_of_its_first_step():
    convolution, x = nn.Conv1d(4, 4, 4, 2), torch.randn(2, 10, 4)
    padded = functional.pad(x.transpose(1, 2), (2, 0), mode="replicate")
    assert close(whole([packed(convolution, replicates=True)], x), convolution(padded).transpose(1, 2))


def test_only_rows_that_begin_are_padded_with_their_first_step():
    layers, size = with_offsets([packed(nn.Conv1d(4, 4, 4, 2), replicates=True)])
    x, tails = torch.randn(2, 10, 4), torch.randn(2, size)
    result = run(layers, x, tails.clone(), torch.tensor([True, False]))
    assert torch.equal(result[:1], run(layers, x[:1], tails[:1].clone(), torch.tensor([True])))
    assert torch.equal(result[1:], run(layers, x[1:], tails[1:].clone(), torch.tensor([False])))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [2, 5])
def test_transposed_convolution_is_a_causal_convolution_of_kernel_2(groups, stride):
    convolution = nn.ConvTranspose1d(8, 8, 2 * stride, stride, groups=groups)
    layer = Convolution(
        convolution_parts(
            transposed_convolution_weight(convolution.weight, stride, groups), convolution.bias.repeat(stride), 8
        ),
        8,
        kernel=2,
        upsampling=stride,
    )
    x = torch.randn(3, 11, 8)
    expected = convolution(x.transpose(1, 2))[..., :-stride].transpose(1, 2)
    assert close(whole([layer], x), expected)
    assert close(chunked([layer], x, [1, 2, 8]), expected)


def test_upsampling_is_torch_s_transposed_convolution_with_a_group_a_channel():
    convolution = nn.ConvTranspose1d(8, 8, 4, 2, groups=8)
    weight = torch.stack([convolution.weight[:, 0, 2:].T, convolution.weight[:, 0, :2].T])
    x = torch.randn(3, 11, 8)
    expected = convolution(x.transpose(1, 2))[..., :-2].transpose(1, 2)
    assert close(whole([Upsampling(weight, convolution.bias)], x), expected)
    assert close(chunked([Upsampling(weight, convolution.bias)], x, [1, 2, 8]), expected)


@pytest.mark.parametrize("has_shortcut", [True, False])
def test_residual_block_adds_its_convolutions_to_its_shortcut(has_shortcut):
    inner, outer, shortcut = nn.Conv1d(8, 4, 3), nn.Conv1d(4, 8, 1), nn.Conv1d(8, 8, 1)
    block = Residual([packed(inner, activates=True), packed(outer, activates=True)], packed(shortcut))
    block = block if has_shortcut else Residual(block.convolutions)
    x = torch.randn(2, 30, 8)
    first = x.transpose(1, 2)
    hidden = outer(functional.elu(inner(functional.elu(functional.pad(first, (2, 0))))))
    expected = (shortcut(first) if has_shortcut else first) + hidden
    assert close(whole([block], x.clone()), expected.transpose(1, 2))


def test_tails_of_layers_do_not_overlap():
    layers, size = with_offsets(
        [packed(nn.Conv1d(2, 3, 7)), Upsampling(torch.randn(2, 2, 3)), packed(nn.Conv1d(3, 1, 3))]
    )
    assert [layer.offset for layer in layers] == [0, 12, 15]
    assert size == 12 + 3 + 6


def test_elu_is_torch_s_within_rounding():
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, -torch.inf, 1e30])])
    assert (elu(x) - functional.elu(x)).abs().max() <= 1e-7
    double = x.double()
    assert (elu(double) - functional.elu(double)).abs().max() <= 1e-15


def test_elu_of_half_precision_is_torch_s():
    x = torch.randn(1000, dtype=torch.bfloat16)
    assert torch.equal(elu(x), functional.elu(x))


def test_elu_writes_where_it_is_to():
    x, out = torch.randn(3, 5), torch.empty(6, 5)
    elu(x, out=out[2:5])
    assert torch.equal(out[2:5], elu(x))
