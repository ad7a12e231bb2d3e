"""The checkpoint's keys, and the names that transformers changes from one release to the next.

Encoder and decoder lie on disk as in kyutai/mimi, and no key may be missing or foreign. transformers keeps Mimi's flat
layout by a table under the class's name, which a subclass must ask for itself; without it a flat checkpoint would load
as random weights. And it only warns of wrong keys, or hides them.

transformers 5.24 renamed the caches of Mimi and of its two halves from `past_key_values` to `cache`. This file is the
only one that knows: the installed version gets and gives its own name, and users may write either.

Source: transformers `conversion_mapping.py`, the entry `MimiModel`; `models/mimi/modeling_mimi.py`.
"""

import inspect
import re
import shutil
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

CACHE = "cache" if "cache" in inspect.signature(MimiTransformerModel.forward).parameters else "past_key_values"
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


def call_with_cache(module: nn.Module, *args: Any, cache: Cache | None, **kwargs: Any) -> tuple[Any, Cache | None]:
    """Call a half of Mimi, or its transformer, with its cache under the name that the installed transformers has.

    Args:
        module: transformers' encoder, decoder or transformer.
        *args: For it.
        cache: Keys and values of the call before, or None.
        **kwargs: For it.

    Returns:
        What it returns, and the cache in there.
    """
    output = module(*args, **{CACHE: cache}, **kwargs)
    return output, getattr(output, CACHE if hasattr(output, CACHE) else f"decoder_{CACHE}")


def cache_from(cache: Cache | None, kwargs: Any, half: str) -> Cache | None:
    """The half's cache by whichever of its two names the caller used, `encoder_cache` or `encoder_past_key_values`.

    Args:
        cache: What was passed under the newer name.
        kwargs: The call's other keywords; the older name is taken out.
        half: `"encoder"` or `"decoder"`.

    Raises:
        ValueError: If both names were used.
    """
    older = kwargs.pop(f"{half}_past_key_values", None)
    if cache is not None and older is not None:
        raise ValueError(
            f"{half}_cache and {half}_past_key_values are two names of one cache, got both; pass {half}_cache alone."
        )
    return older if cache is None else cache


def raise_on_unknown(kwargs: Any, method: str, known: tuple[str, ...]) -> None:
    """Refuse keywords that the method would ignore.

    Args:
        kwargs: What is left of the call's keywords; None counts as not given.
        method: Its name, for the message.
        known: Keywords that are passed on and have an effect.

    Raises:
        TypeError: If one is not known.
    """
    unknown = [name for name, value in kwargs.items() if name not in known and value is not None]
    if unknown:
        raise TypeError(
            f"{method}() takes no {', '.join(map(repr, unknown))}: it would have no effect. Beside named arguments "
            f"it takes {', '.join(known)} and return_dict; correct the name or leave it out."
        )


def raise_on_ignored(where: str, given: Any) -> None:
    """Refuse arguments that this way to call the method would ignore.

    Args:
        where: The way, for the message.
        given: Arguments by name; None and False count as not given.

    Raises:
        ValueError: If one is given.
    """
    ignored = [name for name, value in given.items() if value is not None and value is not False]
    if ignored:
        raise ValueError(f"{', '.join(ignored)} would have no effect {where}; leave it out.")


def keep_sizes_on_cpu(model: nn.Module) -> None:
    """Keep the sizes that transformers' convolutions hold as tensors where the host reads them.

    On a GPU every convolution would wait for it, twice and more, to compute its padding.
    """
    for module in model.modules():
        for name in ("stride", "kernel_size", "padding_total"):
            size = module._buffers.get(name)
            if size is not None and not size.is_meta:
                module._buffers[name] = size.cpu()


def give_usual_mode(folder: str | PathLike[str]) -> None:
    """Let weights be read by whoever may read the config beside them: safetensors lets their owner alone."""
    config = Path(folder) / "config.json"
    for weights in Path(folder).glob("model*.safetensors") if config.is_file() else ():
        shutil.copymode(config, weights)


def raise_on_wrong_keys(model: PreTrainedModel, source: object, loading_info: dict) -> None:
    """Refuse what transformers would load with a warning, or none.

    Args:
        model: The model; keys of a half that it was loaded without are none of its business.
        source: Where the checkpoint is, for the message.
        loading_info: What `from_pretrained(..., output_loading_info=True)` returned.

    Raises:
        ValueError: If a key is missing or foreign; the message names up to three.
    """
    dropped = tuple(prefix for half, names in HALVES.items() if getattr(model, half) is None for prefix in names)
    wrong = {
        "lacks {} key(s)": loading_info["missing_keys"],
        "holds {} foreign key(s)": [key for key in loading_info["unexpected_keys"] if not key.startswith(dropped)],
    }
    for what, keys in wrong.items():
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise ValueError(
                f"the checkpoint {source} {what.format(len(keys))} of a {type(model).__name__}: {shown}. Convert a "
                "Mimi checkpoint with conversion/convert_kyutai.py, or load the folder that it wrote."
            )
