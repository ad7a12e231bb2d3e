"""What is kept of the original: its quantized latents to the bit, and how far its codebooks have moved since."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel

from mimi_bridge import MimiBridgeModel
from mimi_bridge.codebook import CodebookLearner
from mimi_bridge.quantizer import CausalBridgeQuantizer
from mimi_bridge.training.codebooks import set_entries
from mimi_bridge.training.reference import Reference
from source import read_source
from tiny import TINY
from transplant import transplant

DIM, CODEBOOK_SIZE = TINY["hidden_size"], TINY["codebook_size"]
HEADS = ("prosody", "acoustic")


@pytest.fixture(scope="module")
def mimi() -> MimiModel:
    """A tiny Mimi of eight codebooks, none of them trained, all of them with entries."""
    torch.manual_seed(0)
    mimi = MimiModel(MimiConfig(**TINY, num_quantizers=8)).eval()
    for name, buffer in mimi.quantizer.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_(std=0.3)
        if name.endswith("cluster_usage"):
            buffer.uniform_(0.5, 2.0)
    return mimi


@pytest.fixture(scope="module")
def _converted(mimi, tmp_path_factory) -> MimiBridgeModel:
    folder = tmp_path_factory.mktemp("mimi")
    mimi.save_pretrained(folder)
    return transplant(read_source(str(folder))).model


@pytest.fixture
def quantizer(_converted) -> CausalBridgeQuantizer:
    """The quantizer of `mimi` after its conversion, λ = 0; a copy."""
    return deepcopy(_converted.quantizer)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 40, DIM, generator=torch.Generator().manual_seed(1))


def teach_content_head_to_speak(quantizer: CausalBridgeQuantizer) -> None:
    torch.nn.init.normal_(quantizer.head_content.project_out.weight)


# --- fresh and original ---


def test_quantizer_is_freshly_converted_until_its_content_head_says_anything(quantizer):
    assert quantizer.is_freshly_converted and quantizer.head_content.is_silent
    quantizer.head_content.project_out.weight.data[3, 2] = 1e-30
    assert not quantizer.is_freshly_converted and not quantizer.head_content.is_silent


def test_quantizer_trained_beside_a_frozen_content_head_is_not_taken_for_freshly_converted(quantizer):
    quantizer.residual_weight = 1.0  # as conversion with --residual-weight 1 does, too
    assert quantizer.is_freshly_converted
    quantizer.proj_wavlm.std.fill_(2.0)  # as training with a teacher does
    assert quantizer.head_content.is_silent and not quantizer.is_freshly_converted
    assert not Reference(quantizer).is_original


def test_reference_is_original_if_it_was_taken_of_a_fresh_quantizer_and_stays_so(quantizer):
    reference = Reference(quantizer)
    teach_content_head_to_speak(quantizer)
    assert reference.is_original
    assert not Reference(quantizer).is_original


# --- quantized latents ---


def test_reference_gives_the_original_mimis_quantized_latents_to_the_bit(quantizer, mimi, latents):
    codes = mimi.quantizer.encode(latents.transpose(1, 2)).transpose(0, 1)
    expected = mimi.quantizer.decode(codes).transpose(1, 2)
    assert min(len(codebook.unique()) for codebook in codes.unbind(dim=1)) > 10  # equality means much
    assert torch.equal(Reference(quantizer)(latents), expected)


def test_reference_gives_what_a_fresh_quantizer_in_parallel_gives(quantizer, latents):
    assert torch.equal(Reference(quantizer)(latents), quantizer.decode(quantizer.encode(latents)))


@pytest.mark.parametrize("residual_weight", [0.0, 0.6, 1.0])
def test_reference_of_a_model_that_was_trained_before_gives_what_that_model_gives(quantizer, latents, residual_weight):
    teach_content_head_to_speak(quantizer)
    quantizer.residual_weight = residual_weight
    reference = Reference(quantizer)
    expected = quantizer.decode(quantizer.encode(latents))
    torch.testing.assert_close(reference(latents), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            torch.equal(reference(latents), reference(latents.clone())) and reference(latents).dtype == torch.float32
        )
    quantizer.residual_weight = 0.3
    torch.testing.assert_close(reference(latents), expected)


@pytest.mark.parametrize("padding", [0.0, 1e4, math.nan])
def test_reference_is_silent_on_masked_frames_whatever_they_hold(quantizer, latents, padding):
    mask = torch.arange(latents.shape[1]) < torch.tensor([[40], [7], [1]])
    got = Reference(quantizer)(latents.masked_fill(~mask[:, :, None], padding), mask)
    assert torch.equal(got, Reference(quantizer)(latents).masked_fill(~mask[:, :, None], 0.0))


def test_reference_gives_the_same_whatever_becomes_of_the_quantizer(quantizer, latents):
    reference = Reference(quantizer)
    expected = reference(latents)
    teach_content_head_to_speak(quantizer)
    quantizer.residual_weight = 1.0
    quantizer.train()(latents)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1.0)
    assert torch.equal(reference(latents), expected)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_reference_learns_nothing_in_training_mode_either(quantizer, latents, update):
    learners = {name: CodebookLearner(head.vq_codebooks, update, decay=0.5) for name, head in quantizer.heads.items()}
    for name, head in quantizer.heads.items():
        head.learner = learners[name]
    reference = Reference(quantizer).train()
    before = deepcopy(reference.state_dict())
    assert not reference(latents.requires_grad_()).requires_grad
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert not any(learner.statistics().any() for learner in learners.values())
    assert quantizer.head_prosody.learner is learners["prosody"]


def test_reference_is_restored_from_its_state(quantizer, latents):
    reference = Reference(quantizer)
    teach_content_head_to_speak(quantizer)
    quantizer.train()(latents)
    other = Reference(quantizer)
    assert not torch.equal(other(latents), reference(latents))
    other.load_state_dict(reference.state_dict())
    assert torch.equal(other(latents), reference(latents))


# --- drift ---


def move_entries(quantizer: CausalBridgeQuantizer, head: str, level: int, entries: Tensor) -> None:
    store = quantizer.heads[head].vq_codebooks[level]
    set_entries(store, torch.arange(CODEBOOK_SIZE), entries, torch.ones(CODEBOOK_SIZE))


def test_drift_is_0_before_anything_moves(quantizer):
    assert Reference(quantizer).drift(quantizer) == {"prosody": 0.0, "acoustic": 0.0}


@pytest.mark.parametrize("factor, expected", [(1.25, 0.25), (0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("head", HEADS)
def test_drift_of_entries_that_were_scaled_is_by_how_much(quantizer, head, factor, expected):
    reference = Reference(quantizer)
    for level, entries in enumerate(quantizer.heads[head].codebooks):
        move_entries(quantizer, head, level, factor * entries)
    assert reference.drift(quantizer) == pytest.approx({"prosody": 0.0, "acoustic": 0.0} | {head: expected})


def test_drift_is_the_root_of_the_mean_square_over_the_codebooks_of_a_head(quantizer):
    reference = Reference(quantizer)
    for level, factor in enumerate((1.3, 0.6)):
        move_entries(quantizer, "acoustic", level, factor * quantizer.acoustic_residual.codebooks[level])
    assert reference.drift(quantizer)["acoustic"] == pytest.approx(math.sqrt((0.3**2 + 0.4**2) / 7))


def test_drift_of_one_entry_is_its_share_of_the_codebooks_length(quantizer):
    reference = Reference(quantizer)
    before = quantizer.head_prosody.codebooks[0].clone()
    moved = before.clone()
    moved[5] += 2.0
    move_entries(quantizer, "prosody", 0, moved)
    expected = (moved[5] - before[5]).norm() / before.norm()
    assert reference.drift(quantizer)["prosody"] == pytest.approx(expected.item(), rel=1e-5)


def test_drift_is_of_entries_alone(quantizer):
    reference = Reference(quantizer)
    teach_content_head_to_speak(quantizer)
    for head in quantizer.heads.values():
        torch.nn.init.normal_(head.project_in.weight)
        for store in head.vq_codebooks:
            store.cluster_size.mul_(2)
    move_entries(quantizer, "content", 0, torch.zeros_like(quantizer.head_content.codebooks[0]))
    assert reference.drift(quantizer) == {"prosody": 0.0, "acoustic": 0.0}
