"""A released Mimi checkpoint, wherever it is and however it is laid out, as one flat dictionary of tensors.

Accepted: an id on the Hub, a folder in transformers' layout, or one safetensors file in Kyutai's native layout. Files
that must be unpickled are refused unopened: unpickling runs whatever code the file holds.

Source: the native layout's fused, interleaved rotary projections are moshi `modules/transformer.py`,
`modules/rope.py`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import EncodecFeatureExtractor, MimiConfig, MimiModel

from key_map import KYUTAI_KEY_MAP, QUERY_KEY_VALUE, renamed
from mimi_bridge.paths import printable

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".th")
MIN_CODEBOOKS = 8  # the specification's: 1 for prosody, 7 acoustic


class ConversionError(Exception):
    """A source that cannot become a Mimi Bridge model; the message is one sentence for the user."""


@dataclass
class Source:
    """A Mimi checkpoint in memory.

    Attributes:
        name: As the user gave it; of a local one the last part of its path only.
        layout: `"transformers"` or `"kyutai"`.
        tensors: Flat keys, as kyutai/mimi has them on the Hub; float32.
        config: The source's own.
        feature_extractor: What turns audio into its input.
        sha256: Of each weight file, by name.
        revision: The commit on the Hub, or None for a local source.
    """

    name: str
    layout: str
    tensors: dict[str, Tensor]
    config: MimiConfig
    feature_extractor: EncodecFeatureExtractor
    sha256: dict[str, str] = field(default_factory=dict)
    revision: str | None = None

    @property
    def num_codebooks(self) -> int:
        """Codebooks that the tensors hold, whatever the config says."""
        return count_codebooks(self.tensors)

    def build(self) -> MimiModel:
        """The source as transformers' own `MimiModel`, in eval mode.

        Raises:
            ConversionError: If a key of the model is missing, or a tensor has another shape.
        """
        try:
            loaded: Any = MimiModel.from_pretrained(
                None,
                config=self.config,
                state_dict=dict(self.tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (RuntimeError, ValueError) as error:
            raise ConversionError(f"{self.name} does not fit its own config: {one_line(error)}") from error
        model, info = loaded
        problems = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
        if problems:
            raise ConversionError(
                f"{self.name} lacks or misshapes {len(problems)} tensor(s) of a Mimi ({', '.join(problems[:3])}); it "
                "is incomplete, or its config belongs to another checkpoint."
            )
        return model.eval()


def count_codebooks(tensors: dict[str, Tensor]) -> int:
    """Codebooks among flat tensors."""
    return sum(key.endswith("codebook.embed_sum") for key in tensors)


def read_source(source: str, revision: str | None = None) -> Source:
    """Read a Mimi checkpoint.

    Args:
        source: An id on the Hub, a folder in transformers' layout, or a safetensors file in Kyutai's native layout.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ConversionError: If it cannot be had, read, or is no Mimi with 8 or more finite codebooks.
    """
    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise ConversionError(f"--revision is for a source on the Hub, but {source} is local; leave it out.")
    if path.exists() and printable(path.resolve()) != str(path.resolve()):
        raise ConversionError(f"the name of {printable(path)} is not UTF-8, which safetensors needs; rename it.")
    if path.is_file():
        found = _read_kyutai_file(path)
    elif path.is_dir():
        found = _read_folder(path, path.resolve().name)
    else:
        found = _read_hub(source, revision)
    _check(found)
    return found


def _read_hub(source: str, revision: str | None) -> Source:
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=["model*.safetensors", "*.json"]))
    except (HTTPError, OSError, ValueError) as error:
        raise ConversionError(
            f"{source!r} is no local path, and the Hub did not give it: {one_line(error)} Check the name and the "
            "network, or give --source a folder or file."
        ) from error
    found = _read_folder(folder, source)
    found.revision = folder.name
    return found


def _read_folder(folder: Path, name: str) -> Source:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConversionError(f"{name} has no config.json, so it is no transformers checkpoint; give its folder.")
    config = _read_config(config_file, name)
    tensors: dict[str, Tensor] = {}
    files = _weight_files(folder, name)
    for file in files:
        tensors |= _load_tensors(file)
    extractor = _read_feature_extractor(folder, name)
    digests = {file.name: _sha256(file) for file in files}
    return Source(name, "transformers", _to_float32(tensors), config, extractor, digests)


def _weight_files(folder: Path, name: str) -> list[Path]:
    # As transformers chooses them: one file, or the shards of an index. What else lies there may be another model.
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        try:
            return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise ConversionError(
                f"{index.name} of {name} is no index of shards; get the checkpoint again."
            ) from error
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise ConversionError(_refuse_pickle(f"{name}/{pickled[0]}"))
    raise ConversionError(f"{name} holds no model.safetensors; download the checkpoint whole.")


def _read_kyutai_file(path: Path) -> Source:
    if path.suffix in PICKLE_SUFFIXES:
        raise ConversionError(_refuse_pickle(path.name))
    native = _load_tensors(path)
    try:
        tensors = from_kyutai_layout(native)
    except KeyError as error:
        raise ConversionError(
            f"{path.name} is not in Kyutai's native layout: {error.args[0]}; for a checkpoint of transformers give "
            "its folder."
        ) from error
    config = MimiConfig(num_quantizers=max(count_codebooks(tensors), 2))
    digest = {path.name: _sha256(path)}
    return Source(path.name, "kyutai", _to_float32(tensors), config, EncodecFeatureExtractor(), digest)


def _read_config(file: Path, name: str) -> MimiConfig:
    try:
        fields = json.loads(file.read_text())
        model_type = fields.get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise ConversionError(f"config.json of {name} is no json of a model: {one_line(error)}") from error
    if model_type != "mimi":
        raise ConversionError(
            f"{name} is a checkpoint of {model_type!r}, expected 'mimi'; only Mimi can be converted."
        )
    try:
        return MimiConfig.from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"config.json of {name} is none of a Mimi: {one_line(error)}") from error


def from_kyutai_layout(native: dict[str, Tensor], num_heads: int = 8) -> dict[str, Tensor]:
    """Kyutai's native tensors under kyutai/mimi's flat keys.

    Args:
        native: As in Kyutai's own file.
        num_heads: Attention heads; the file does not say.

    Raises:
        KeyError: If a key is not one of the native layout's, or a fused projection has another shape than its heads'.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in native.items():
        target = renamed(key, KYUTAI_KEY_MAP)
        named = {target: value}
        if target.endswith(QUERY_KEY_VALUE):
            if value.ndim != 2 or value.shape[0] % (6 * num_heads):
                raise KeyError(f"{key!r} has shape {tuple(value.shape)}, expected 3 × {num_heads} heads of even size")
            query, keys, values = value.chunk(3)
            prefix = target.removesuffix(QUERY_KEY_VALUE)
            named = {
                f"{prefix}q_proj.weight": _join_rotary_halves(query, num_heads),
                f"{prefix}k_proj.weight": _join_rotary_halves(keys, num_heads),
                f"{prefix}v_proj.weight": values.contiguous(),
            }
        if named.keys() & tensors.keys():
            raise KeyError(f"{key!r} is there twice, under both of its names")
        tensors |= named
    return tensors


def _join_rotary_halves(weight: Tensor, num_heads: int) -> Tensor:
    # Kyutai rotates neighbours (0, 1), (2, 3); transformers rotates (0, d/2), (1, d/2 + 1): same pairs, other order.
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


def _read_feature_extractor(folder: Path, name: str) -> EncodecFeatureExtractor:
    if not (folder / "preprocessor_config.json").is_file():
        return EncodecFeatureExtractor()
    try:
        return EncodecFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ConversionError(f"preprocessor_config.json of {name} cannot be read: {one_line(error)}") from error


def _check(source: Source) -> None:
    config, extractor = source.config, source.feature_extractor
    if source.num_codebooks < MIN_CODEBOOKS:
        raise ConversionError(
            f"{source.name} has {source.num_codebooks} codebooks, expected at least {MIN_CODEBOOKS}: one becomes the "
            "prosody head, seven the acoustic one; use a checkpoint with more."
        )
    if config.num_semantic_quantizers != 1:
        raise ConversionError(
            f"{source.name} has {config.num_semantic_quantizers} semantic codebooks, expected 1: only one can become "
            "the prosody head."
        )
    if extractor.sampling_rate != config.sampling_rate or extractor.feature_size != config.audio_channels:
        raise ConversionError(
            f"the feature extractor of {source.name} gives {extractor.feature_size} channel(s) at "
            f"{extractor.sampling_rate} Hz, but the model expects {config.audio_channels} at {config.sampling_rate} "
            "Hz; correct preprocessor_config.json."
        )
    for key, tensor in source.tensors.items():
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"{source.name} holds NaN or infinity in {key}; the file is damaged, get it again.")


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{file.name} is no whole safetensors file ({one_line(error)}); it may be cut off, get it again."
        ) from error


def _to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in tensors.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_pickle(name: str) -> str:
    return f"{name} must be unpickled, which can run any code it holds, so it is refused; give a .safetensors file."


def one_line(error: BaseException) -> str:
    """The beginning of an error's message as one line that ends with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]).rstrip(".") + "."
