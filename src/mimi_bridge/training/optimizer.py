"""A learning rate for each part of the model: its parameters in groups, and what stands still.

Rates are the groups' own, so that a schedule, which multiplies them all, keeps their ratios. Weights decay; codebooks,
biases, norms and layer scales do not. What has the rate 0 is frozen: no gradient, no moving average, no decay.
"""

import math
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

MAX_NAMED = 5
PARTS = {
    "content": ("quantizer.head_content.",),
    "prosody": ("quantizer.head_prosody.",),
    "bridges": ("quantizer.proj_qwen.", "quantizer.proj_wavlm."),
    "acoustic": ("quantizer.acoustic_residual.",),
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
}
CODEC = ("encoder", "decoder")  # what `codec` names, where neither is named itself
LR_SCALES = {"content": 1.0, "prosody": 1.0, "bridges": 1.0, "acoustic": 0.1, "encoder": 0.0, "decoder": 0.0}
UNDECAYED = ("_codebook.embed", ".bias", "_scale.scale")


def learning_rates(learning_rate: float, other: dict[str, float]) -> dict[str, float]:
    """The rate of every part.

    Args:
        learning_rate: Of content, prosody and bridges; the acoustic head's is a tenth of it, the codec's 0.
        other: Rates that are not so, by part; `codec` is that of encoder and decoder, unless they have their own.

    Raises:
        ValueError: If there is no such part, or a rate is no number, negative or infinite.
    """
    unknown = sorted(set(other) - {*PARTS, "codec"})
    if unknown:
        raise ValueError(
            f"head_learning_rates names {', '.join(unknown)}, but the parts are {', '.join(PARTS)}, and codec for the "
            "last two."
        )
    named = dict.fromkeys(CODEC, other["codec"]) if "codec" in other else {}
    named |= {part: rate for part, rate in other.items() if part != "codec"}
    rates = {part: named.get(part, share * learning_rate) for part, share in LR_SCALES.items()}
    for part, rate in (other | rates).items():
        if not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise ValueError(f"the learning rate of {part} must be at least 0, got {rate!r}; 0 freezes it.")
    return {part: float(rate) for part, rate in rates.items()}


def part_of(name: str) -> str | None:
    """Which part a parameter belongs to, by its name in the model; None if to none."""
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), None)


def rates_in(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    """The rate of every part in an optimizer that somebody made: the fastest of its groups, 0 if it is in none."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    found = dict.fromkeys(PARTS, 0.0)
    for name, parameter in model.named_parameters():
        if (part := part_of(name)) is not None:
            found[part] = max(found[part], rates.get(id(parameter), 0.0))
    return found


def freeze(model: nn.Module, rates: dict[str, float]) -> list[nn.Parameter]:
    """Take the gradient from the parts whose rate is 0, and name what has none in the others.

    Returns:
        The parameters that had one: give it back to them after training. What had none is left as it is.

    Raises:
        ValueError: If somebody took the gradient from all of a part that has a rate.
    """
    for part, prefixes in PARTS.items():
        needs = [p.requires_grad for name, p in model.named_parameters() if name.startswith(prefixes)]
        if rates[part] > 0 and needs and not any(needs):
            raise ValueError(
                f"every parameter of {part} was frozen (requires_grad=False), but {part} has the learning rate "
                f"{rates[part]}; set it to 0 in head_learning_rates, so that its codebooks stand still, too, or give "
                "the parameters their gradient again."
            )
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (owner := part_of(name)) is not None and rates[owner] == 0
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if named := frozen_by_hand(model, rates):
        more = "" if len(named) <= MAX_NAMED else f" and {len(named) - MAX_NAMED} more"
        logger.warning("frozen before training, so they stay as they are: %s%s", ", ".join(named[:MAX_NAMED]), more)
    return frozen


def frozen_by_hand(model: nn.Module, rates: dict[str, float]) -> list[str]:
    """Names of the parameters that have no gradient although their part has a rate."""
    return [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and (part := part_of(name)) is not None and rates[part] > 0
    ]


def set_frozen_modules_to_eval(model: nn.Module, rates: dict[str, float]) -> None:
    """Put the parts whose rate is 0 into eval mode, in which no codebook moves."""
    frozen = [prefix.removesuffix(".") for part, prefixes in PARTS.items() if rates[part] == 0 for prefix in prefixes]
    for module in (attrgetter(name)(model) for name in frozen):
        if module is not None:  # as the half is that a model was loaded without
            module.eval()


def parameter_groups(model: nn.Module, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters by part, those that decay and those that do not apart.

    Args:
        model: A `MimiBridgeModel`, after `freeze`.
        rates: The rate of every part.
        weight_decay: Of what decays.

    Returns:
        Groups for an optimizer, each with `params`, `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: If a part with a rate has no trainable parameter, or none is left at all.
    """
    groups = []
    for part, prefixes in PARTS.items():
        if rates[part] == 0:
            continue
        named = [(n, p) for n, p in model.named_parameters() if n.startswith(prefixes) and p.requires_grad]
        if part in CODEC and getattr(model, part) is None and any(getattr(model, half) is not None for half in CODEC):
            continue  # the other half learns; `check_model` has refused a missing half that was named
        if not named:
            raise ValueError(
                f"no trainable parameter starts with {' or '.join(prefixes)}, but {part} has the learning rate "
                f"{rates[part]}; set it to 0, or load the model whole."
            )
        decayed = [p for n, p in named if not _is_undecayed(n, p)]
        undecayed = [p for n, p in named if _is_undecayed(n, p)]
        for parameters, decay in ((decayed, weight_decay), (undecayed, 0.0)):
            if parameters:
                groups.append({"params": parameters, "lr": rates[part], "weight_decay": decay, "name": part})
    if not groups:
        raise ValueError("every learning rate is 0, so nothing would learn; give one of them a rate.")
    return groups


def optimizer_of(groups: list[dict[str, Any]], name: str, kind: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of `parameter_groups`, of the class and with the options that transformers has for its name.

    Raises:
        ValueError: If that optimizer makes groups of its own.
    """
    is_plain = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if not is_plain or {"params", "model", "optimizer_dict"} & set(options):
        raise ValueError(
            f"optim={name!r} divides the parameters in its own way, but here every part has its own learning rate; "
            "choose an optimizer that takes groups, such as adamw_torch."
        )
    return kind(groups, **options)


def _is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith(UNDECAYED) or parameter.ndim == 1
