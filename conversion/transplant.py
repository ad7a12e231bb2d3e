"""The surgery: Mimi's tensors into the heads of Mimi Bridge, each accounted for.

The content head and the bridges are new. The content head starts silent (its way out is zero), so that with λ = 0 the
result is Mimi to the bit, and training decides what the head may say. So do layers of a head's own, if they are asked
for.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from key_map import DERIVED_KEYS, FRESH_KEYS, KEY_MAP, LEFT, matches_any, renamed
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from source import ConversionError, Source

USAGE_FLOOR = 1e-5  # transformers' `MimiEuclideanCodebook.epsilon`
SILENT_KEY = "quantizer.head_content.project_out.weight"


@dataclass
class Transplant:
    """A model and the account of its tensors, by flat key.

    Attributes:
        model: The result, in eval mode.
        moved: Source keys carried over.
        derived: Keys computed from moved ones.
        fresh: Keys made new.
        left: Source keys not carried over.
    """

    model: MimiBridgeModel
    moved: list[str]
    derived: list[str]
    fresh: list[str]
    left: list[str]


def transplant(
    source: Source,
    residual_weight: float = 0.0,
    num_acoustic_codebooks: int = 7,
    seed: int = 0,
    qwen_dim: int = 1536,
    wavlm_dim: int = 1024,
    content_layers: int = 0,
    prosody_layers: int = 0,
    content_delay: int = 0,
) -> Transplant:
    """Build a Mimi Bridge model from a Mimi checkpoint.

    Args:
        source: The checkpoint.
        residual_weight: λ that the result starts with.
        num_acoustic_codebooks: Codebooks of the acoustic head; the source must have one more.
        seed: Of what is made new.
        qwen_dim: Size of the language model's states.
        wavlm_dim: Size of the speech model's features.
        content_layers: Layers of the content head's own; the rest of what is made new is the same with and without.
        prosody_layers: The same of the prosody head.
        content_delay: Frames by which content is to answer late.

    Raises:
        ConversionError: If a key on either side is unaccounted for, or there are too few codebooks.
    """
    if source.num_codebooks < num_acoustic_codebooks + 1:
        raise ConversionError(
            f"{source.name} has {source.num_codebooks} codebooks, expected at least {num_acoustic_codebooks + 1} for "
            f"{num_acoustic_codebooks} acoustic ones; lower --num-acoustic-codebooks."
        )
    config = bridge_config(source, residual_weight, num_acoustic_codebooks, qwen_dim, wavlm_dim)
    new = _new_tensors(config, seed)
    if content_layers or prosody_layers:
        config.content_layers, config.prosody_layers = content_layers, prosody_layers
        new = _new_tensors(config, seed) | new
    config.content_delay = content_delay

    tensors: dict[str, Tensor] = {}
    moved, left = [], []
    for key, value in source.tensors.items():
        target = _target(key, source.name)
        if target == LEFT or (target.startswith("quantizer.acoustic_residual.vq.layers.") and target not in new):
            left.append(key)
        else:
            tensors[target] = value.reshape(new[target].shape) if target in new else value
            moved.append(key)
    derived = sorted(key for key in new if matches_any(key, DERIVED_KEYS))
    for key in derived:
        stem = key.removesuffix("embed")
        usage = tensors[f"{stem}cluster_size"].clamp(min=USAGE_FLOOR)
        tensors[key] = tensors[f"{stem}embed_avg"] / usage[..., None]
    fresh = sorted(key for key in new if matches_any(key, FRESH_KEYS))
    for key in fresh:
        tensors[key] = torch.zeros_like(new[key]) if key == SILENT_KEY else new[key]

    unfilled = sorted(new.keys() - tensors.keys())
    if unfilled:
        raise ConversionError(
            f"{source.name} fills {len(unfilled)} tensor(s) of the heads not at all ({', '.join(unfilled[:3])}); is "
            "its quantizer another one than Mimi's?"
        )
    try:
        model = MimiBridgeModel.from_pretrained(None, config=config, state_dict=tensors)
    except (ValueError, RuntimeError) as error:
        raise ConversionError(f"{source.name} does not fit a Mimi Bridge model: {error}") from error
    return Transplant(model.eval(), sorted(moved), derived, fresh, sorted(left))


def _new_tensors(config: MimiBridgeConfig, seed: int) -> dict[str, Tensor]:
    """The tensors of a new quantizer by flat key."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {f"quantizer.{key}": value for key, value in MimiBridgeModel(config).quantizer.state_dict().items()}


def bridge_config(
    source: Source, residual_weight: float, num_acoustic_codebooks: int, qwen_dim: int, wavlm_dim: int
) -> MimiBridgeConfig:
    """The source's config with three heads."""
    fields = source.config.to_dict()
    for name in ("model_type", "num_quantizers", "architectures", "transformers_version", "dtype", "_name_or_path"):
        fields.pop(name, None)
    try:
        return MimiBridgeConfig(
            **fields,
            num_acoustic_codebooks=num_acoustic_codebooks,
            residual_weight=float(residual_weight),
            qwen_dim=qwen_dim,
            wavlm_dim=wavlm_dim,
        )
    except (StrictDataclassError, TypeError) as error:
        reason = error.__cause__ or error
        raise ConversionError(f"{source.name} has a config that Mimi Bridge cannot take: {reason}") from error


def _target(key: str, name: str) -> str:
    try:
        return renamed(key, KEY_MAP)
    except KeyError as error:
        raise ConversionError(
            f"{name} holds a tensor that a Mimi has not: {error.args[0]}; is it another codec's checkpoint?"
        ) from error
