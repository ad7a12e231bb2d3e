"""A model for the command line: what can go wrong with its name, its kind and its device, in one sentence each."""

import argparse
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from ..configuration_mimi_bridge import MimiBridgeConfig
from ..modeling_mimi_bridge import MimiBridgeModel
from ..paths import printable


def load_model(name: str, device: str = "cpu") -> MimiBridgeModel:
    """A Mimi Bridge model from a folder or the Hub, in eval mode.

    Raises:
        OSError: If there is none.
        ValueError: If it is another kind of model, a broken one, or the device is not there or computes nothing.
    """
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"no such model folder: {printable(name)}")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name} is a folder, but no model's: it has no config.json; give what was converted.")
    if device.partition(":")[0] == "meta":
        raise ValueError(f"--device {device} holds no numbers to compute with; choose cpu, cuda or another.")
    if printable(name) != name:
        raise ValueError(f"the name of {printable(name)} is not UTF-8, which safetensors cannot read; rename it.")
    if Path(name).is_file():
        raise NotADirectoryError(f"{name} is a file, but a model is the folder that the conversion wrote.")
    try:
        config = AutoConfig.from_pretrained(name)
    except StrictDataclassError as error:
        raise ValueError(f"the config.json of {name} is not valid: {error}") from error
    except OSError as error:
        raise OSError(f"no model is found at {name!r}: {error}") from error
    if not isinstance(config, MimiBridgeConfig):
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, expected 'mimi_bridge'; convert a Mimi checkpoint with "
            "conversion/convert_kyutai.py."
        )
    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()  # what commands read is
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"the weights of {name} have other sizes than its config.json says; restore the config.json that was "
            "written with them."
        ) from error
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # the last, of a device that torch knows by name only
        raise ValueError(f"--device {device} is not available here: {error}") from error


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that `load_model` wants."""
    parser.add_argument("-m", "--model", required=True, help="folder that the conversion wrote, or an id on the Hub")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
