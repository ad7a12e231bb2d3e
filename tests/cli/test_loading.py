"""What can go wrong with a model's folder and its device is said in one sentence."""

import pytest
import torch

from mimi_bridge.cli.loading import load_model


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is a folder, but no model's: it has no config\.json; give what was"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("device", ["meta", "meta:0"])
def test_device_that_holds_no_numbers_is_refused(tiny_model, tmp_path, device):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"--device {device} holds no numbers to compute with; choose cpu, cuda or"):
        load_model(str(tmp_path), device)


def test_device_that_is_not_there_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--device nonsense is not available here"):
        load_model(str(tmp_path), "nonsense")


def test_weights_in_half_precision_are_computed_with_in_full(tiny_model, tmp_path):
    tiny_model.bfloat16().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
