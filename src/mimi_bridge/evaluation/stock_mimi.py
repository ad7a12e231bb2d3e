"""The stock Mimi beside which a model stands in every table, at one codebook less than the model has: 8 for 9.

It is a checkpoint that is named, the one that a converted model's report names, or, in a model that was never trained,
the model itself: heads 1 to 8 of a fresh conversion are Mimi to the bit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import MimiModel

from ..modeling_mimi_bridge import MimiBridgeModel
from ..weights import SMALL_CODEC, small_codec

REPORT_FILE = "conversion_report.json"


@dataclass
class StockMimi:
    """A Mimi that encodes and decodes recordings.

    Attributes:
        name: Of its checkpoint.
        model: A `MimiModel`, or a fresh conversion, whose content head is silent.
        num_codebooks: How many of its codebooks are used.
    """

    name: str
    model: MimiModel
    num_codebooks: int

    @property
    def is_conversion(self) -> bool:
        """Whether the model is a fresh conversion, whose first codebook is none of Mimi's."""
        return isinstance(self.model, MimiBridgeModel)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio of whole frames, `(1, 1, samples)` -> codes `(codebooks, frames)`."""
        if self.is_conversion:
            return self.model.encode(audio).audio_codes[0, 1:]
        return self.model.encode(audio, num_quantizers=self.num_codebooks).audio_codes[0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes `(codebooks, frames)` -> `(1, samples)`."""
        if self.is_conversion:
            codes = torch.cat([torch.zeros_like(codes[:1]), codes])  # any content code: its projection out is zero
        return self.model.decode(codes[None]).audio_values[0]

    def entries(self) -> list[Tensor]:
        """Each codebook's entries, `(codebook_size, codebook_dim)`."""
        if isinstance(self.model, MimiBridgeModel):
            return codebook_entries(self.model)[1:]
        quantizer = self.model.quantizer
        layers = [
            *quantizer.semantic_residual_vector_quantizer.layers,
            *quantizer.acoustic_residual_vector_quantizer.layers,
        ]
        return [layer.codebook.embed.detach() for layer in layers[: self.num_codebooks]]


def codebook_entries(model: MimiBridgeModel) -> list[Tensor]:
    """Each codebook's entries, content to acoustic, `(codebook_size, codebook_dim)`."""
    return [codebook.detach() for head in model.quantizer.heads.values() for codebook in head.codebooks]


def find_stock_mimi(model: MimiBridgeModel, folder: str | None = None, reference: str | None = None) -> StockMimi:
    """The stock Mimi of a model.

    Args:
        model: Its config says how many codebooks are used, and which rates the stock Mimi must have.
        folder: Where the model was loaded from; its `conversion_report.json`, if it has one, names the source.
        reference: A Mimi checkpoint, folder or id, instead.

    Raises:
        ValueError: If there is none, or one of other rates or fewer codebooks.
    """
    wanted = (model.config.num_quantizers or 0) - 1
    name = reference or _source_named_in(folder)
    is_mimi = model.quantizer.is_freshly_converted and model.config.residual_weight == 0
    if name is None or (reference is None and is_mimi):
        if not is_mimi:
            raise ValueError("no stock Mimi is known for this model; name its source by --reference.")
        return StockMimi(name or "the conversion itself", model, wanted)
    path = small_codec() if name in (SMALL_CODEC, small_codec().name) else name
    try:
        found = MimiModel.from_pretrained(path, dtype=torch.float32).eval().to(model.device)
    except (OSError, ValueError) as error:
        raise ValueError(f"the stock Mimi {name} cannot be loaded: {' '.join(str(error).split())}") from error
    config = found.config
    if (config.sampling_rate, config.frame_size) != (model.config.sampling_rate, model.config.frame_size):
        raise ValueError(f"the stock Mimi {name} has other rates than the model; name another by --reference.")
    if config.num_quantizers < wanted:
        raise ValueError(f"the stock Mimi {name} must have {wanted} codebooks or more, got {config.num_quantizers}.")
    return StockMimi(Path(name).name if Path(name).exists() else name, found, wanted)


def _source_named_in(folder: str | None) -> str | None:
    if folder is None or not (Path(folder) / REPORT_FILE).is_file():
        return None
    try:
        return str(json.loads((Path(folder) / REPORT_FILE).read_text())["source"]["name"])
    except (KeyError, TypeError, ValueError):
        return None
