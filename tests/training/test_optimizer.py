"""Each part of the model has its own rate, at every step of a schedule, and what has none is left out."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.codebook import CodebookLearner
from mimi_bridge.training.optimizer import (
    PARTS,
    freeze,
    frozen_by_hand,
    learning_rates,
    parameter_groups,
    rates_in,
    set_frozen_modules_to_eval,
)
from tiny import TINY, TINY_TEACHERS

RATES = {"content": 1e-3, "prosody": 5e-4, "bridges": 2e-3, "acoustic": 1e-4, "encoder": 1e-6, "decoder": 3e-6}
OF_PART = {  # the modules of each part, by hand
    "content": ["quantizer.head_content"],
    "prosody": ["quantizer.head_prosody"],
    "bridges": ["quantizer.proj_qwen", "quantizer.proj_wavlm"],
    "acoustic": ["quantizer.acoustic_residual"],
    "encoder": ["encoder"],
    "decoder": ["decoder"],
}
WEIGHTS = {  # one of each part
    "content": "quantizer.head_content.project_in.weight",
    "prosody": "quantizer.head_prosody.project_out.weight",
    "bridges": "quantizer.proj_wavlm.weight",
    "acoustic": "quantizer.acoustic_residual.project_in.weight",
}

BOTH_UPDATES = pytest.mark.parametrize("model", ["ema", "gradient"], indirect=True)
EVERY_PART = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(scope="module")
def _models() -> dict[str, MimiBridgeModel]:
    torch.manual_seed(0)
    models = {"ema": MimiBridgeModel(MimiBridgeConfig(**TINY, **TINY_TEACHERS, num_acoustic_codebooks=3))}
    models["gradient"] = deepcopy(models["ema"])
    for head in models["gradient"].quantizer.heads.values():
        head.learner = CodebookLearner(head.vq_codebooks, "gradient", decay=0.99)
    return models


@pytest.fixture
def model(request, _models) -> MimiBridgeModel:
    """A tiny model in training mode, by default one whose codebooks are parameters, too; a copy."""
    return deepcopy(_models[getattr(request, "param", "gradient")]).train()


def groups_of(model: nn.Module, rates: dict[str, float], weight_decay: float = 0.1) -> list[dict]:
    freeze(model, rates)
    return parameter_groups(model, rates, weight_decay)


def ids_of(*modules: nn.Module) -> list[int]:
    return sorted(id(parameter) for module in modules for parameter in module.parameters())


def ids_in(groups: list[dict]) -> list[int]:
    return sorted(id(parameter) for group in groups for parameter in group["params"])


def modules_of(model: nn.Module, part: str) -> list[nn.Module]:
    return [model.get_submodule(name) for name in OF_PART[part]]


# --- rates ---


def test_rates_are_shares_of_the_learning_rate_unless_given():
    expected = {"content": 2.0, "prosody": 2.0, "bridges": 7.0, "acoustic": 0.2, "encoder": 0.0, "decoder": 0.0}
    assert learning_rates(2.0, {"bridges": 7.0}) == pytest.approx(expected)


def test_every_unknown_part_is_named():
    with pytest.raises(ValueError, match=r"head_learning_rates names acustic, vocoder, but the parts are content, "):
        learning_rates(1.0, {"vocoder": 1.0, "content": 1.0, "acustic": 1.0})


@pytest.mark.parametrize(
    ("given", "encoder", "decoder"),
    [
        ({"codec": 3.0}, 3.0, 3.0),
        ({"encoder": 3.0}, 3.0, 0.0),
        ({"decoder": 3.0}, 0.0, 3.0),
        ({"codec": 3.0, "encoder": 0.0}, 0.0, 3.0),
        ({"decoder": 5.0, "codec": 3.0}, 3.0, 5.0),
    ],
)
def test_codec_is_the_rate_of_both_halves_and_a_half_that_is_named_has_its_own(given, encoder, decoder):
    rates = learning_rates(1.0, given)
    assert (rates["encoder"], rates["decoder"]) == (encoder, decoder) and "codec" not in rates


# --- groups ---


@BOTH_UPDATES
def test_every_trainable_parameter_is_in_exactly_one_group(model):
    assert ids_in(groups_of(model, RATES)) == ids_of(model)


@BOTH_UPDATES
@EVERY_PART
def test_groups_of_a_part_hold_its_modules_parameters_at_its_rate(model, part):
    groups = [group for group in groups_of(model, RATES) if group["name"] == part]
    assert ids_in(groups) == ids_of(*modules_of(model, part))
    assert {group["lr"] for group in groups} == {RATES[part]}


def test_weights_decay_and_nothing_else_does(model):
    expected = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            expected.append(id(module.weight))
    groups = groups_of(model, RATES, weight_decay=0.3)
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert ids_in([group for group in groups if group["weight_decay"]]) == sorted(expected)


@pytest.mark.parametrize(
    "kind, least",
    [("_codebook.embed", 5), (".bias", 20), ("layernorm.weight", 8), ("layer_scale.scale", 8)],
    ids=["codebooks", "biases", "norms", "layer scales"],
)
def test_kind_of_parameter_does_not_decay(model, kind, least):
    ids = {id(parameter) for name, parameter in model.named_parameters() if name.endswith(kind)}
    assert len(ids) >= least
    assert not ids & set(ids_in([group for group in groups_of(model, RATES) if group["weight_decay"]]))


def test_step_without_a_gradient_shrinks_what_decays_by_rate_times_decay_and_moves_nothing_else(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = groups_of(model, RATES, weight_decay=100.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups).step()
    for part, name in WEIGHTS.items():
        torch.testing.assert_close(model.get_parameter(name), before[name] * (1 - 100 * RATES[part]))
    moved = [name for name, value in before.items() if not torch.equal(value, model.get_parameter(name))]
    assert [name for name in moved if not name.endswith(".weight") or "norm" in name] == []


# --- schedules ---


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_ratios_of_the_rates_hold_at_every_step_of_a_schedule(model, schedule):
    optimizer = torch.optim.AdamW(groups_of(model, RATES))
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=3, num_training_steps=12)
    shares = []
    for _ in range(12):
        shares += [{group["lr"] / RATES[group["name"]] for group in optimizer.param_groups}]
        optimizer.step()
        scheduler.step()
    factors = [min(share) for share in shares]
    assert factors[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert factors[-1] == 1.0 if schedule == "constant_with_warmup" else factors[-1] < 0.2
    for factor, share in zip(factors, shares, strict=True):
        assert max(share) == pytest.approx(factor)


# --- frozen ---


@BOTH_UPDATES
@EVERY_PART
def test_part_of_rate_0_has_no_gradient_and_no_place_in_the_optimizer(model, part):
    groups = groups_of(model, {**RATES, part: 0.0})
    frozen = ids_of(*modules_of(model, part))
    assert part not in {group["name"] for group in groups}
    assert sorted(id(parameter) for parameter in model.parameters() if not parameter.requires_grad) == frozen
    assert sorted(ids_in(groups) + frozen) == ids_of(model)


@EVERY_PART
def test_part_of_rate_0_is_held_in_eval_mode_and_no_other(model, part):
    set_frozen_modules_to_eval(model, {**RATES, part: 0.0})
    held = {id(module) for root in modules_of(model, part) for module in root.modules()}
    assert {id(module) for module in model.modules() if not module.training} == held


@pytest.mark.parametrize("model", ["ema"], indirect=True)
@pytest.mark.parametrize("part, head", [("content", 0), ("prosody", 1), ("acoustic", 2)])
def test_codebooks_of_a_part_of_rate_0_stay_while_the_others_move(model, part, head):
    set_frozen_modules_to_eval(model, {**RATES, part: 0.0})
    heads = list(model.quantizer.heads.values())
    before = [head.codebooks[0].clone() for head in heads]
    model(latents=torch.randn(2, 40, TINY["hidden_size"]))
    same = [torch.equal(head.codebooks[0], entries) for head, entries in zip(heads, before, strict=True)]
    assert same == [number == head for number in range(3)]


def test_freezing_tells_what_it_froze_and_leaves_what_was_frozen_by_hand(model):
    by_hand = model.quantizer.head_content.project_in.weight.requires_grad_(False)
    frozen = freeze(model, {**RATES, "content": 0.0})
    assert sorted([id(by_hand), *(id(parameter) for parameter in frozen)]) == ids_of(model.quantizer.head_content)
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert freeze(model, RATES) == []
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [
        "quantizer.head_content.project_in.weight"
    ]
    assert frozen_by_hand(model, RATES) == ["quantizer.head_content.project_in.weight"]
    assert frozen_by_hand(model, {**RATES, "content": 0.0}) == []


def test_part_that_was_frozen_by_hand_as_a_whole_is_refused_unless_its_rate_is_0(model):
    model.quantizer.head_prosody.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"every parameter of prosody was frozen \(requires_grad=False\), but prosody has"
    ):
        freeze(model, RATES)
    assert freeze(model, {**RATES, "prosody": 0.0}) == []


def test_rates_in_an_optimizer_are_its_fastest_groups_and_0_for_what_it_does_not_hold(model):
    head = model.quantizer.head_content
    groups = [
        {"params": [head.project_in.weight], "lr": 0.5},
        {"params": [head.project_out.weight], "lr": 2.0},
        {"params": [*model.quantizer.proj_qwen.parameters()], "lr": 3.0},
    ]
    found = rates_in(torch.optim.SGD(groups, lr=1.0), model)
    assert found == {"content": 2.0, "prosody": 0.0, "bridges": 3.0, "acoustic": 0.0, "encoder": 0.0, "decoder": 0.0}


# --- refusals ---


def test_part_without_a_trainable_parameter_is_refused_with_its_rate(model):
    model.encoder = model.decoder = None
    message = r"no trainable parameter starts with encoder\., but encoder has the learning rate 1e-06; "
    with pytest.raises(ValueError, match=message):
        groups_of(model, RATES)
    assert {group["name"] for group in groups_of(model, RATES | {"encoder": 0.0, "decoder": 0.0})} == {
        *("content", "prosody", "bridges", "acoustic")
    }


def test_part_that_was_frozen_elsewhere_is_refused(model):
    model.quantizer.head_prosody.requires_grad_(False)
    with pytest.raises(ValueError, match=r"starts with quantizer\.head_prosody\., but prosody has the learning rate"):
        parameter_groups(model, RATES, 0.1)


def test_half_a_codec_learns_where_the_other_half_is_missing(model):
    model.encoder = None
    assert ids_in([group for group in groups_of(model, RATES) if group["name"] in ("encoder", "decoder")]) == ids_of(
        model.decoder
    )


def test_nothing_to_learn_at_all_is_refused(model):
    with pytest.raises(ValueError, match="every learning rate is 0, so nothing would learn"):
        groups_of(model, dict.fromkeys(PARTS, 0.0))
