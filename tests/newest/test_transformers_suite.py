"""transformers' own tests of a model, run on ours: its source distribution carries `tests/test_modeling_common.py`.

`make test-newest` fetches them for the transformers that it installed; without them this file skips. What ours cannot
or need not pass is named below, each with its reason.
"""

import os
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel

FOLDER = os.environ.get("TRANSFORMERS_TESTS")  # of test_modeling_common.py
if not FOLDER:
    pytest.skip("TRANSFORMERS_TESTS names no folder of transformers' tests", allow_module_level=True)


def import_common() -> types.ModuleType:
    """transformers' `tests.test_modeling_common`, without the files beside it that its distribution leaves out."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [FOLDER]
    sys.modules[package.__name__] = package
    for path, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        if (Path(FOLDER) / f"{path.replace('.', '/')}.py").is_file():
            continue
        for module in (f"{package.__name__}.{path.split('.')[0]}", f"{package.__name__}.{path}"):
            sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[f"{package.__name__}.{path}"], mixin, type(mixin, (), {}))
    __import__("transformers_tests.test_modeling_common")
    return sys.modules["transformers_tests.test_modeling_common"]


common = import_common()
DIFFERENCES = {
    "test_init_weights_can_init_buffers": "codebooks are buffers that begin with random entries, which differ",
    "test_model_get_set_embeddings": "there are no embeddings of text, as in transformers' Mimi",
    "test_model_outputs_equivalence": "its message subtracts outputs, and a mask of frames is bool; tested below",
    "test_model_weights_reload_no_missing_tied_weights": "it loads a checkpoint without weights, which ours refuses",
    "test_attention_outputs": "MimiModel skips it, too: two transformers, none of them over text",
    "test_hidden_states_output": "MimiModel skips it, too: two transformers, none of them over text",
}


class ModelTester:
    """Makes the config and the inputs of the tests."""

    batch_size, num_channels, is_training, seq_length = 3, 1, False, 64

    def get_config(self) -> MimiBridgeConfig:
        return MimiBridgeConfig(
            audio_channels=self.num_channels,
            hidden_size=32,
            intermediate_size=40,
            num_filters=8,
            upsampling_ratios=[8, 4],
            codebook_size=64,
            codebook_dim=64,
            vector_quantization_hidden_dimension=64,
            upsample_groups=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=4,
            num_acoustic_codebooks=3,
            qwen_dim=24,
            wavlm_dim=20,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        audio = common.floats_tensor([self.batch_size, self.num_channels, 2 * config.frame_size])
        return config, {"input_values": audio}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common

    def prepare_config_and_inputs_for_model_class(self, model_class):
        return self.prepare_config_and_inputs_for_common()


class TransformersSuite(common.ModelTesterMixin, unittest.TestCase):
    """transformers' tests, and their settings for our model."""

    all_model_classes = (MimiBridgeModel,)
    is_encoder_decoder = True  # two transformers, as transformers says of its Mimi
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ModelTester()

    def test_tuple_holds_the_values_of_the_dictionary(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = MimiBridgeModel(config).eval()
        expected = [value for value in model(**inputs).values() if isinstance(value, torch.Tensor)]
        found = [value for value in model(**inputs, return_dict=False) if isinstance(value, torch.Tensor)]
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))


for name, reason in DIFFERENCES.items():
    assert hasattr(common.ModelTesterMixin, name), f"transformers has no {name} any more"
    setattr(TransformersSuite, name, unittest.skip(reason)(lambda self: None))
del common.ModelTesterMixin
