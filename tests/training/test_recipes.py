"""Recipes: what they say fits the arguments and the model; a model that gets layers gives the codes that it gave."""

from dataclasses import fields

import pytest
import torch
from test_readouts import rows_of
from test_trainer import assert_same, audio_model, audio_rows, latents_model, moved, state_of, train

from mimi_bridge import MimiBridgeConfig
from mimi_bridge.training import MimiBridgeTrainingArguments
from mimi_bridge.training.recipes import CONFIG_CHANGES, DEFAULT_RECIPE, RECIPES, model_with, recipe_named

LAYERS = {"content_layers": 2, "prosody_layers": 1, "content_delay": 2}
EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)


@EVERY_RECIPE
def test_recipe_names_arguments_and_config_that_there_are(tmp_path, name):
    recipe = recipe_named(name)
    assert recipe.arguments.keys() <= {argument.name for argument in fields(MimiBridgeTrainingArguments)}
    assert recipe.config.keys() <= set(CONFIG_CHANGES)
    MimiBridgeTrainingArguments(str(tmp_path), **recipe.arguments)
    MimiBridgeConfig(**recipe.config)


def test_default_recipe_changes_nothing():
    recipe = recipe_named(DEFAULT_RECIPE)
    assert (DEFAULT_RECIPE, recipe.arguments, recipe.config) == ("specification", {}, {})
    model = latents_model()
    before = state_of(model)
    assert model_with(model, recipe.config) is model
    assert_same(state_of(model), before)


def test_unknown_recipe_is_refused_with_those_that_there_are():
    with pytest.raises(
        ValueError, match="recipe must be one of specification, content, decoder, swaps, got 'contents'"
    ):
        recipe_named("contents")


def test_model_that_gets_layers_gives_the_codes_that_it_gave_and_holds_the_weights_that_it_held():
    model = audio_model().eval()
    audio = audio_rows()[0]["input_values"][None, None]
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    grown = model_with(model, LAYERS)
    assert torch.equal(torch.rand(2), expected)
    assert {name: getattr(grown.config, name) for name in LAYERS} == LAYERS
    assert torch.equal(grown.encode(audio).audio_codes, model.encode(audio).audio_codes)
    before, after = state_of(model), state_of(grown)
    assert_same({name: after[name] for name in before}, before)
    assert any("head_content" in name for name in after.keys() - before.keys())


def test_delay_alone_is_set_in_the_model_itself():
    model = latents_model()
    assert model_with(model, {"content_delay": 3}) is model
    assert model.config.content_delay == model.quantizer.content_delay == 3


def test_model_that_has_the_layers_already_is_given_back_and_another_number_is_refused():
    grown = model_with(latents_model(), LAYERS)
    assert model_with(grown, LAYERS) is grown
    with pytest.raises(ValueError, match="content_layers must be 2, which the model has and has learned, got 1"):
        model_with(grown, {"content_layers": 1})


def test_layers_learn_with_their_head(tmp_path):
    model = model_with(latents_model(), LAYERS)
    before = state_of(model)
    train(tmp_path, model, rows_of(), max_steps=3, **recipe_named("content").arguments)
    new = before.keys() - state_of(latents_model()).keys()
    learned = set(moved(before, state_of(model))) & new
    assert {name.split(".")[1] for name in learned} == {"head_content", "head_prosody"}
