"""The checkpoint's keys: encoder and decoder lie on disk as in kyutai/mimi, and none may be missing or foreign.

transformers keeps Mimi's flat layout by a table under the class's name, which a subclass must ask for itself; without
it a flat checkpoint would load as random weights. And it only warns of wrong keys, or hides them.

Source: transformers `conversion_mapping.py`, the entry `MimiModel`.
"""

import re
from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

HALVES = {
    "encoder": ("encoder.", "encoder_transformer.", "downsample."),
    "decoder": ("decoder.", "decoder_transformer.", "upsample."),
}


def keep_mimi_layout(class_name: str) -> None:
    """Give a model class the flat layout of kyutai/mimi on disk."""
    mapping = deepcopy(get_checkpoint_conversion_mapping("MimiModel"))
    register_checkpoint_conversion_mapping(class_name, mapping, overwrite=True)


FLAT_TO_TREE = (
    (r"^(encoder|decoder)\.layers\.", r"\1.\1_seanet.layers."),
    (r"^(encoder|decoder)_transformer\.", r"\1.\1_transformer."),
    (r"^downsample\.", "encoder.downsample."),
    (r"^upsample\.", "decoder.upsample."),
)


def accept_flat_keys(model: nn.Module, state_dict: dict[str, Any], *args: Any) -> None:
    """Let `load_state_dict` take a checkpoint's flat keys, too, as transformers' Trainer gives when it resumes.

    Without it, the Trainer loads the heads and leaves encoder and decoder as they are, with no more than a warning.
    """
    for key in list(state_dict):
        for pattern, target in FLAT_TO_TREE:
            renamed = re.sub(pattern, target, key)
            if renamed != key:
                state_dict[renamed] = state_dict.pop(key)
                break


def raise_on_wrong_keys(model: PreTrainedModel, source: object, loading_info: dict) -> None:
    """Refuse what transformers would load with a warning, or none.

    Args:
        model: The model; keys of a half that it was loaded without are none of its business.
        source: Where the checkpoint is, for the message.
        loading_info: What `from_pretrained(..., output_loading_info=True)` returned.

    Raises:
        ValueError: If a key is missing, foreign or misshapen; the message names up to three.
    """
    dropped = tuple(prefix for half, names in HALVES.items() if getattr(model, half) is None for prefix in names)
    wrong = {
        "lacks {} key(s)": loading_info["missing_keys"],
        "holds {} foreign key(s)": [key for key in loading_info["unexpected_keys"] if not key.startswith(dropped)],
        "holds {} misshapen key(s)": [str(key) for key in loading_info["mismatched_keys"]],
    }
    for what, keys in wrong.items():
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise ValueError(
                f"the checkpoint {source} {what.format(len(keys))} of a {type(model).__name__}: {shown}. Convert a "
                "Mimi checkpoint with conversion/convert_kyutai.py, or load the folder that it wrote."
            )
