"""Training stops at what no step can mend, and the message says at which step and whose it is."""

import math

import pytest
import torch
from torch import Tensor

from mimi_bridge.quantizer import CausalBridgeQuantizer
from mimi_bridge.training.guards import (
    HeadCollapsedError,
    raise_if_collapsed,
    raise_if_gradient_not_finite,
    raise_if_not_finite,
)
from mimi_bridge.training.metrics import TrainingMetrics
from mimi_bridge.training.terms import Term

CODEBOOK_SIZE, NUM_ACOUSTIC = 8, 3
ALL_LEVELS = {"content": range(0, 1), "prosody": range(1, 2), "acoustic": range(2, 2 + NUM_ACOUSTIC)}


def terms(**values: float) -> dict[str, Term]:
    return {name: Term(torch.tensor(value), torch.tensor(1)) for name, value in values.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name, owner",
    [
        ("qwen", "content head"),
        ("wavlm", "content and prosody heads"),
        ("commitment_content", "content head"),
        ("commitment_prosody", "prosody head"),
        ("codebook_acoustic", "acoustic head"),
        ("mel", "whole model"),
        ("latents", "whole model"),
        ("adversarial", "whole model"),
    ],
)
def test_loss_that_is_not_finite_is_named_with_its_step_and_head(name, owner, value):
    with pytest.raises(FloatingPointError, match=rf"^step 17: the loss {name} of the {owner} is not finite\."):
        raise_if_not_finite({**terms(commitment_acoustic=1.0), **terms(**{name: value})}, step=17)


def test_first_of_several_losses_that_are_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="the loss commitment_prosody of the prosody head"):
        raise_if_not_finite(terms(qwen=1.0, commitment_prosody=math.nan, mel=math.inf), step=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_losses_pass_however_large_in_any_precision(dtype):
    large = Term(torch.tensor(torch.finfo(dtype).max, dtype=dtype), torch.tensor(1))
    raise_if_not_finite({"qwen": large, **terms(wavlm=0.0, latents=-3e38)}, step=1)


@pytest.mark.parametrize("as_given", [float, torch.tensor], ids=["number", "tensor"])
def test_gradient_that_is_not_finite_is_refused_with_its_step(as_given):
    for norm in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match=r"^step 5: the gradient is not finite\. .* are sound\.$"):
            raise_if_gradient_not_finite(as_given(norm), step=5)
    raise_if_gradient_not_finite(as_given(1e30), step=5)


def metrics_of(code_counts: dict[int, list[int]], num_frames: int = 64) -> TrainingMetrics:
    """Metrics in which codebooks use all their entries alike, but for those that are given."""
    metrics = TrainingMetrics(
        CausalBridgeQuantizer(4, 3, 2, num_acoustic_codebooks=NUM_ACOUSTIC, codebook_size=CODEBOOK_SIZE)
    )
    metrics.code_counts[:] = num_frames / CODEBOOK_SIZE
    for number, counts in code_counts.items():
        metrics.code_counts[number] = torch.tensor(counts + [0] * (CODEBOOK_SIZE - len(counts)))
    return metrics


@pytest.mark.parametrize(
    "number, head", [(0, "content"), (1, "prosody"), (2, "acoustic"), (4, "acoustic")], ids=lambda value: str(value)
)
def test_collapsed_codebook_is_named_with_its_step_head_and_perplexity(number, head):
    message = rf"^step 9: the {head} head collapsed: codebook {number} uses its 8 entries with a perplexity of 2\.0\."
    with pytest.raises(HeadCollapsedError, match=message):
        raise_if_collapsed(metrics_of({number: [32, 32]}), ALL_LEVELS, share=0.3, step=9)


@pytest.mark.parametrize("number, head", [(0, "content"), (1, "prosody"), (3, "acoustic")])
def test_head_that_does_not_learn_is_not_checked(number, head):
    learning = {name: levels for name, levels in ALL_LEVELS.items() if name != head}
    raise_if_collapsed(metrics_of({number: [64]}), learning, share=1e-6, step=9)
    with pytest.raises(HeadCollapsedError, match=rf"the {head} head"):
        raise_if_collapsed(metrics_of({number: [64]}), ALL_LEVELS, share=1e-6, step=9)


def collapses(counts: list[int], share: float) -> bool:
    try:
        raise_if_collapsed(metrics_of({0: counts}), ALL_LEVELS, share, step=1)
    except HeadCollapsedError:
        return True
    return False


@pytest.mark.parametrize(
    "counts, share, expected",
    [
        ([16, 16, 16, 16], 0.49, False),  # a perplexity of 4, half the size
        ([16, 16, 16, 16], 0.51, True),
        ([64], 0.01, True),  # one entry is a collapse, however small the share
        ([60, 4], 0.01, True),  # a perplexity of 1.26
        ([32, 32], 0.01, False),
        ([64], 0.0, False),  # 0 never stops
        ([7], 1.0, False),  # fewer frames than entries say nothing
        ([8], 1.0, True),
    ],
)
def test_codebook_collapses_below_a_share_of_its_size_and_below_one_and_a_half(counts, share, expected):
    assert collapses(counts, share) is expected


def test_perplexity_of_the_message_is_that_of_the_codes():
    counts: Tensor = torch.tensor([40.0, 16.0, 8.0])
    perplexity = torch.distributions.Categorical(counts / 64).entropy().exp()
    with pytest.raises(HeadCollapsedError, match=rf"a perplexity of {perplexity:.1f}\."):
        raise_if_collapsed(metrics_of({1: [40, 16, 8]}), ALL_LEVELS, share=0.9, step=1)
