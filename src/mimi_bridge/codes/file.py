"""Codes on disk: one safetensors file a recording, with the length and rate that decoding needs.

The file holds a fingerprint of the codebooks that made it, so that codes are never decoded with another model's, and
one of the whole encoder, so that a folder that is gone on with is of one model.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..atomic_files import write_whole
from ..modeling_mimi_bridge import MimiBridgeModel
from ..offloading import weights_at_hand
from ..paths import printable

FORMAT = "mimi-bridge-codes-1"
OPTIONAL = ("encoder_sha256", "remark")  # of a file's metadata


@dataclass
class Codes:
    """One recording's codes.

    Attributes:
        audio_codes: `(codebooks, frames)`, int64, in the order content, prosody, acoustic.
        num_samples: Length of the recording at `sampling_rate`.
        sampling_rate: Hz, of the model.
        codebooks_sha256: Fingerprint of the codebooks that made them, see `fingerprint`.
        encoder_sha256: Fingerprint of all that made them, see `encoder_fingerprint`; None if it is not known.
        remark: A remark about the recording, such as that it ends before its header says, or None.
    """

    audio_codes: Tensor
    num_samples: int
    sampling_rate: int
    codebooks_sha256: str
    encoder_sha256: str | None = None
    remark: str | None = None


def fingerprint(model: MimiBridgeModel) -> str:
    """sha256 over all codebook entries of a model, content to acoustic."""
    digest = hashlib.sha256()
    quantizer = model.quantizer
    for head in (quantizer.head_content, quantizer.head_prosody, quantizer.acoustic_residual):
        with weights_at_hand(*head.read_modules):
            for codebook in head.codebooks:
                digest.update(codebook.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoder_fingerprint(model: MimiBridgeModel, codebooks_sha256: str) -> str:
    """sha256 over all that turns a recording into codes: the encoder, the heads with their codebooks, and λ."""
    parts = (model.encoder, model.encoder_transformer, model.downsample, *model.quantizer.heads.values())
    return _digest(parts, codebooks_sha256, str(float(model.config.residual_weight)))


def decoder_fingerprint(model: MimiBridgeModel, codebooks_sha256: str) -> str:
    """sha256 over all that turns codes into a recording: the codebooks, their ways out, and the decoder."""
    ways_out = (head.project_out for head in model.quantizer.heads.values())
    return _digest((*ways_out, model.upsample, model.decoder_transformer, model.decoder), codebooks_sha256)


def _digest(parts: Iterable[nn.Module | None], *texts: str) -> str:
    digest = hashlib.sha256(" ".join(texts).encode())
    for module in (module for part in parts if part is not None for module in part.modules()):
        with weights_at_hand(module):
            for parameter in module.parameters(recurse=False):
                digest.update(parameter.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_codes(path: str | Path, codes: Codes) -> None:
    """Write a recording's codes, atomically.

    Raises:
        OSError: If the file cannot be written; a full disk is named.
        ValueError: If its name is not UTF-8, which safetensors cannot read.
    """
    path = Path(path)
    _refuse_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "num_samples": str(codes.num_samples),
        "sampling_rate": str(codes.sampling_rate),
        "codebooks_sha256": codes.codebooks_sha256,
    }
    metadata |= {name: value for name in OPTIONAL if (value := getattr(codes, name)) is not None}
    write_whole(path, save({"audio_codes": codes.audio_codes.cpu().to(torch.int32).contiguous()}, metadata))


def _refuse_name(path: Path) -> None:
    if printable(path) != str(path):
        raise ValueError(
            f"the name of {printable(path)} is not UTF-8, which files of codes must have; rename it, or its folders."
        )


def load_codes(path: str | Path) -> Codes:
    """Read what `save_codes` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a complete codes file, or its name is not UTF-8.
    """
    _refuse_name(Path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such codes file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is no codes file of this version (format {metadata.get('format')!r}, expected "
                    f"{FORMAT!r}); make it with `mimi-bridge encode`."
                )
            audio_codes = file.get_tensor("audio_codes")
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); encode the recording again.") from error
    try:
        num_samples, sampling_rate = int(metadata["num_samples"]), int(metadata["sampling_rate"])
        sha256 = metadata["codebooks_sha256"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not say what codes it holds ({error}); encode the recording again.") from error
    is_whole = not (audio_codes.is_floating_point() or audio_codes.is_complex() or audio_codes.dtype == torch.bool)
    if not is_whole or min(num_samples, sampling_rate) < 1:
        raise ValueError(
            f"{path} must hold integers, and the length and rate of a recording, got {audio_codes.dtype}, "
            f"{num_samples} samples at {sampling_rate} Hz; encode the recording again."
        )
    return Codes(audio_codes.long(), num_samples, sampling_rate, sha256, *map(metadata.get, OPTIONAL))
