"""A conversion whose heads have layers of their own: still exactly its source, and it says what it has."""

import json

import pytest
import torch

from conftest import Converted
from converter import convert
from mimi_bridge import MimiBridgeModel
from transplant import transplant


@pytest.fixture(scope="module")
def converted_layers(mimi_folder, speech_file, tmp_path_factory) -> Converted:
    """The tiny Mimi, converted with layers of both heads' own and a delay."""
    folder = tmp_path_factory.mktemp("converted") / "tiny-layers-bridge"
    options = {"content_layers": 2, "prosody_layers": 1, "content_delay": 4}
    return Converted(folder, convert(str(mimi_folder), folder, speech=str(speech_file), **options))


def test_conversion_with_layers_is_proven_exact(converted_layers, converted):
    proof = converted_layers.report["proof"]
    assert proof["passed"] and set(proof["codes_equal"].values()) == {1.0}
    assert proof["waveform_max_abs_difference"] == proof["waveform_max_abs_difference_same_codes"] == 0.0
    assert proof == converted.report["proof"]


def test_converted_folder_has_the_layers_and_the_delay_that_were_asked_for(converted_layers):
    config = json.loads((converted_layers.folder / "config.json").read_text())
    asked = {"content_layers": 2, "prosody_layers": 1, "content_delay": 4}
    assert {name: config[name] for name in asked} == asked
    assert {name: converted_layers.report["config"][name] for name in asked} == asked
    assert MimiBridgeModel.from_pretrained(converted_layers.folder).quantizer.has_contexts


def test_every_tensor_but_the_layers_is_that_of_a_conversion_without_them(converted_layers, converted):
    with_layers, without = converted_layers.tensors, converted.tensors
    added = with_layers.keys() - without.keys()
    assert added and all(".context." in key for key in added)
    assert added <= set(converted_layers.report["keys"]["fresh"])
    assert all(torch.equal(with_layers[key], value) for key, value in without.items())


def test_layers_are_the_same_for_the_same_seed_and_others_for_another(tiny_source):
    first, again, other = (
        transplant(tiny_source, seed=seed, content_layers=1).model.quantizer.head_content.context.state_dict()
        for seed in (3, 3, 4)
    )
    name = "transformer.layers.0.mlp.fc1.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_card_says_which_heads_have_layers_and_how_late_content_answers(converted_layers, converted):
    card = (converted_layers.folder / "README.md").read_text()
    assert "The content head has 2 causal layer(s) of its own" in card
    assert "The prosody head has 1 causal layer(s) of its own" in card
    assert "`content_delay` is 4 frame(s), 320 ms" in card
    assert "layer(s)" not in (converted.folder / "README.md").read_text()
    assert "content_delay" not in (converted.folder / "README.md").read_text()
