"""Products with a weight that stays: torch's own within rounding, and a row the same to the bit in any company."""

import pytest
import torch
from torch.nn import functional

from mimi_bridge.runtime import linear as linear_map
from mimi_bridge.runtime.linear import LinearMap

LARGE, SMALL = (128, 320), (12, 20)  # out and in: one is put into blocks, one is not


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def close(result, expected) -> bool:
    return bool((result - expected).abs().max() <= 2e-6 * expected.abs().max())


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("plain", [True, False])
def test_map_is_torch_s_linear_and_may_add_it_to_something(num_rows, has_bias, sizes, plain):
    weight, bias = torch.randn(sizes), torch.randn(sizes[0]) if has_bias else None
    x, add = torch.randn(num_rows, sizes[1]), torch.randn(num_rows, sizes[0])
    linear = LinearMap.of(weight, bias, plain)
    expected = functional.linear(x, weight, bias)
    assert close(linear(x), expected)
    assert close(linear(x, add.clone()), expected + add)


def test_only_large_weights_of_a_cpu_are_put_into_blocks():
    if not linear_map.can_lay_out_in_blocks():
        pytest.skip("this PyTorch has no product of oneDNN's blocks")
    assert LinearMap.of(torch.randn(LARGE)).weight.is_mkldnn
    for others in (
        LinearMap.of(torch.randn(SMALL)),
        LinearMap.of(torch.randn(LARGE), exportable=True),
        LinearMap.of(torch.randn(LARGE).double()),
        LinearMap.of(torch.randn(LARGE).bfloat16()),
        LinearMap.of(torch.randn(LARGE, device="meta")),
    ):
        assert not others.weight.is_mkldnn


@pytest.mark.parametrize("fault", [AttributeError, NotImplementedError, RuntimeError, TypeError, "wrong"])
def test_products_are_plain_where_torch_s_operation_is_missing_or_wrong(monkeypatch, fault):
    def reorder(weight, num_rows):
        if fault == "wrong":
            return 2 * weight
        raise fault("there is no such thing")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    linear_map.can_lay_out_in_blocks.cache_clear()
    try:
        weight, x = torch.randn(LARGE), torch.randn(5, LARGE[1])
        assert not linear_map.can_lay_out_in_blocks()
        assert torch.equal(LinearMap.of(weight)(x), functional.linear(x, weight))
    finally:
        linear_map.can_lay_out_in_blocks.cache_clear()


@pytest.mark.usefixtures("_row_by_row")
@pytest.mark.parametrize("sizes", [LARGE, SMALL, (512, 2048)], ids=str)
def test_a_row_s_product_is_the_same_to_the_bit_in_any_company(sizes):
    linear, x = LinearMap.of(torch.randn(sizes), torch.randn(sizes[0])), torch.randn(300, sizes[1])
    together, added = linear(x), torch.randn(300, sizes[0])
    for num_rows in (1, 2, 3, 4, 5, 16, 50):
        assert torch.equal(linear(x[:num_rows]), together[:num_rows])
        last = slice(300 - num_rows, 300)
        assert torch.equal(linear(x[last], added[last].clone()), linear(x, added.clone())[last])
