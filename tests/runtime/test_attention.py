"""The transformer on a ring of keys, against transformers' own on whole sequences."""

import pytest
import torch
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from mimi_bridge.runtime import linear as linear_map
from mimi_bridge.runtime.attention import window_bias
from mimi_bridge.runtime.layout import lay_out_transformer
from tiny import TINY

SIZES = {**TINY, "num_quantizers": 9}
CONFIGS = [
    {},
    {"num_key_value_heads": 2},
    {"num_key_value_heads": 1, "head_dim": 8},
    {"attention_bias": True},
    {"hidden_act": "relu"},
    {"sliding_window": 1},
    {"sliding_window": 200},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
]
SHORT, LONG = [1, 2, 16, 5, 1], [60, 3, 40, 120]  # the ring takes 16 steps at once


def reference_and_ours(**fields):
    """transformers' transformer with random weights, and ours from it."""
    torch.manual_seed(0)
    config = MimiConfig(**{**SIZES, **fields})
    config._attn_implementation = "sdpa"
    reference = MimiTransformerModel(config).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False).add_(0.1 * torch.randn_like(parameter))
    return reference, lay_out_transformer(reference, exportable=False)


def new_ring(transformer, batch_size):
    return torch.zeros(len(transformer.layers), batch_size, *transformer.ring_shape)


def in_chunks(transformer, x, lengths):
    """Run chunk by chunk."""
    ring, positions, results = new_ring(transformer, len(x)), torch.zeros(len(x), dtype=torch.long), []
    for chunk in x.split(lengths, dim=1):
        results.append(transformer(chunk, ring, positions, None))
        positions = positions + chunk.shape[1]
    return torch.cat(results, dim=1)


@pytest.fixture(autouse=True, params=[linear_map.MIN_SIZE, 1], ids=["plain", "in blocks"])
def _maps(request, monkeypatch):
    monkeypatch.setattr(linear_map, "MIN_SIZE", request.param)


def close(result, expected) -> bool:
    return bool((result - expected).abs().max() <= 5e-6 * expected.abs().max())


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
@pytest.mark.parametrize("lengths", [SHORT * 8, LONG, [1, 130, 2, 90]], ids=["short", "long", "both"])
def test_any_chunks_give_what_transformers_gives_for_the_whole(fields, lengths):
    reference, transformer = reference_and_ours(**fields)
    x = torch.randn(2, sum(lengths), 64)  # several times the ring's slots
    assert close(in_chunks(transformer, x, lengths), reference(x).last_hidden_state)


@pytest.mark.parametrize("num_steps", [2, 40], ids=["one block", "several blocks"])
def test_rows_with_positions_of_their_own_get_what_they_get_alone(num_steps):
    _, transformer = reference_and_ours()
    past, x = torch.randn(3, 50, 64), torch.randn(3, num_steps, 64)
    counts, ring = [0, 7, 50], new_ring(transformer, 3)
    alone = []
    for row, count in enumerate(counts):
        if count:
            own = ring[:, row : row + 1].clone()
            transformer(past[row : row + 1, :count], own, torch.tensor([0]), None)
            ring[:, row : row + 1] = own
        alone.append(transformer(x[row : row + 1], ring[:, row : row + 1].clone(), torch.tensor([count]), None))
    together = transformer(x, ring, torch.tensor(counts), None)
    assert close(together, torch.cat(alone))


@pytest.mark.parametrize("num_steps", [2, 40], ids=["one block", "several blocks"])
def test_inactive_row_keeps_its_keys_and_values(num_steps):
    _, transformer = reference_and_ours()
    ring = torch.randn_like(new_ring(transformer, 3))
    before, active = ring.clone(), torch.tensor([True, False, True])
    transformer(torch.randn(3, num_steps, 64), ring, torch.tensor([30, 30, 5]), active)
    assert torch.equal(ring[:, 1], before[:, 1])
    assert not torch.equal(ring[:, 0], before[:, 0]) and not torch.equal(ring[:, 2], before[:, 2])


def test_what_stands_in_slots_of_an_ended_stream_is_not_seen():
    _, transformer = reference_and_ours()
    x, positions = torch.randn(1, 2, 64), torch.tensor([0])
    clean = transformer(x, new_ring(transformer, 1), positions, None)
    used = transformer(x, 1e3 * torch.randn_like(new_ring(transformer, 1)), positions, None)
    assert torch.equal(used, clean)


def test_window_bias_shows_each_query_its_own_key_and_those_just_before_it():
    bias = window_bias(torch.tensor([[3, 4]]), torch.tensor([[4, 1, 2, 3, -1]]), 2, torch.float32)
    assert bias.shape == (1, 1, 2, 5)
    assert (bias == 0).tolist() == [[[[False, False, True, True, False], [True, False, False, True, False]]]]
