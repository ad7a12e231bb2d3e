"""The packed quantizer: the codes and latents of the quantizer that it is made of, whatever stands beside a frame."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from mimi_bridge import CausalBridgeQuantizer
from mimi_bridge.runtime.quantizer import PackedQuantizer

DIM = 32


@pytest.fixture(params=[1.0, 0.5, 0.0], ids="residual_weight={}".format)
def quantizer(request) -> CausalBridgeQuantizer:
    torch.manual_seed(0)
    quantizer = CausalBridgeQuantizer(
        DIM, codebook_size=64, codebook_dim=16, num_acoustic_codebooks=3, residual_weight=request.param
    )
    with torch.no_grad():
        for head in quantizer.heads.values():
            for codebook in head.codebooks:
                codebook.normal_(std=0.3)
    return quantizer.eval()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 50, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_quantizers", [1, 2, 3, 5])
def test_codes_and_latents_are_the_quantizer_s(quantizer, latents, num_quantizers):
    packed = PackedQuantizer(quantizer)
    codes = packed.encode(latents, num_quantizers)
    assert torch.equal(codes, quantizer.encode(latents, num_quantizers=num_quantizers))
    assert min(len(codebook.unique()) for codebook in codes.unbind(dim=1)) >= 20
    torch.testing.assert_close(packed.decode(codes), quantizer.decode(codes), rtol=0, atol=1e-6)


def test_residual_weight_is_the_quantizer_s_of_now(quantizer, latents):
    packed = PackedQuantizer(quantizer)
    before = packed.encode(latents, 5)
    quantizer.residual_weight = 0.25
    assert torch.equal(packed.encode(latents, 5), quantizer.encode(latents))
    assert not torch.equal(packed.encode(latents, 5), before)


def test_a_frame_s_codes_do_not_depend_on_what_stands_beside_it(quantizer, latents):
    packed = PackedQuantizer(quantizer)
    together = packed.encode(latents, 5)
    alone = [[packed.encode(frame, 5) for frame in row[None].split(1, dim=1)] for row in latents]
    assert torch.equal(torch.cat([torch.cat(row, dim=-1) for row in alone]), together)


def test_the_first_of_equal_entries_is_chosen(quantizer, latents):
    for head in quantizer.heads.values():
        for store in head.vq_codebooks:
            store.embed[0, 32:] = store.embed[0, :32]
    assert PackedQuantizer(quantizer).encode(latents, 5).max() < 32


def test_nan_gives_a_code_in_range_and_harms_no_other_frame(quantizer, latents):
    packed = PackedQuantizer(quantizer)
    expected = packed.encode(latents, 5)
    latents[0, 7] = torch.nan
    codes = packed.encode(latents, 5)
    assert 0 <= codes.min() and codes.max() < 64
    codes[0, :, 7] = expected[0, :, 7]
    assert torch.equal(codes, expected)


def test_half_precision_is_the_quantizer_s_with_codebooks_in_single(quantizer, latents):
    half = deepcopy(quantizer)
    for head in half.heads.values():
        head.project_in.bfloat16(), head.project_out.bfloat16()
    packed, latents = PackedQuantizer(half), latents.bfloat16()
    codes = packed.encode(latents, 5)
    assert (codes == half.encode(latents)).float().mean() > 0.98
    assert packed.decode(codes).dtype == torch.bfloat16
