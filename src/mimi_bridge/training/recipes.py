"""Recipes by name: the settings of a run whose user gives no others, and what its model is to be like.

A recipe gives defaults: an argument that is given wins. `specification` changes nothing.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModel

from ..modeling_mimi_bridge import MimiBridgeModel

DEFAULT_RECIPE = "specification"
LAYERS = ("content_layers", "prosody_layers")  # of a config: another number of them is another model
CONFIG_CHANGES = (*LAYERS, "content_delay")  # what a recipe may say of the model


@dataclass(frozen=True)
class Recipe:
    """What a recipe sets.

    Attributes:
        about: In a few words.
        arguments: Of `MimiBridgeTrainingArguments`.
        config: Of `MimiBridgeConfig`, among `CONFIG_CHANGES`.
    """

    about: str
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, int] = field(default_factory=dict)


def _decoder_alone(rate: float) -> dict[str, Any]:
    return {
        "head_learning_rates": {
            **dict.fromkeys(("content", "prosody", "bridges", "acoustic", "encoder"), 0.0),
            "decoder": rate,
        },
        **dict.fromkeys(("qwen_weight", "wavlm_weight", "commitment_weight", "latents_weight"), 0.0),
    }


RECIPES = {
    "specification": Recipe("the specification's own losses and model"),
    "content": Recipe(
        "content that is taught phones and speech features; prosody that is taught pitch and may look back",
        {"learning_rate": 5e-4, "phone_weight": 1.0, "speech_content_weight": 2.0, "prosody_weight": 1.0},
        {"prosody_layers": 2},
    ),
    "decoder": Recipe(
        "the decoder alone, by the sound; every code stays what it is",
        _decoder_alone(1e-4),
    ),
    "swaps": Recipe(
        "the decoder alone, taught to take the words from content and prosody, so that swapped heads keep them",
        _decoder_alone(3e-4) | {"acoustic_shift": 0.25},
    ),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}.")
    return RECIPES[name]


def model_with(model: MimiBridgeModel, config: Mapping[str, int], seed: int = 0) -> MimiBridgeModel:
    """A model as a recipe wants it; new layers change no code until they learn.

    Args:
        model: Given back if it is so already, or all but its delay is.
        config: Among `CONFIG_CHANGES`.
        seed: Of new layers' weights; the caller's random numbers stay what they are.

    Raises:
        ValueError: If the model has layers already, but others.
    """
    changes = {name: value for name, value in config.items() if getattr(model.config, name) != value}
    layers = [name for name in LAYERS if name in changes]
    for name in layers:
        if (number := getattr(model.config, name)) > 0:
            raise ValueError(
                f"{name} must be {number}, which the model has and has learned, got {changes[name]}; leave it out, or "
                "begin with a model without."
            )
    if layers:
        changed = copy.deepcopy(model.config)
        for name, value in changes.items():
            setattr(changed, name, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            grown = AutoModel.from_config(changed, dtype=model.dtype).to(model.device)
        grown.load_state_dict(model.state_dict(), strict=False)  # all that it lacks are the new layers
        return grown.train(model.training)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model
