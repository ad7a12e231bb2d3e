"""The systems compared: the original, the stock Mimi, and the model decoded from all, one or two codebooks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..frames import num_frames_for
from ..modeling_mimi_bridge import MimiBridgeModel
from .probe_matrix import ahead, head_features
from .stock_mimi import StockMimi, codebook_entries

ORIGINAL = "original"


@dataclass
class Systems:
    """A model and the stock Mimi beside it.

    Attributes:
        model: In eval mode.
        stock: None if none is known.
    """

    model: MimiBridgeModel
    stock: StockMimi | None = None

    @property
    def total(self) -> int:
        """The model's codebooks."""
        return self.model.config.num_quantizers or 0

    @property
    def stock_name(self) -> str:
        """The stock Mimi's name in the tables."""
        return f"mimi_{self.total - 1}"

    def labels(self) -> dict[str, str]:
        """Each system's name and what it is, in the order of the tables."""
        stock = {self.stock_name: f"stock Mimi, {self.total - 1} codebooks"} if self.stock else {}
        return {
            ORIGINAL: "original",
            **stock,
            f"bridge_{self.total}": f"all {self.total} codebooks",
            "bridge_1": "content alone",
            "bridge_2": "content + prosody",
        }

    def whole_frames(self, audio: Tensor) -> Tensor:
        """Audio `(1, samples)` padded with silence, `(1, 1, samples)`, on the model's device."""
        size = self.model.config.frame_size
        missing = num_frames_for(audio.shape[-1], size) * size - audio.shape[-1]
        return torch.nn.functional.pad(audio, (0, missing))[None].to(self.model.device)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `(1, samples)` -> the model's codes `(codebooks, frames)`, on the CPU."""
        return self.model.encode(self.whole_frames(audio)).audio_codes[0].cpu()

    @torch.no_grad()
    def encode_stock(self, audio: Tensor) -> Tensor:
        """Audio `(1, samples)` -> the stock Mimi's codes `(codebooks, frames)`, on the CPU."""
        assert self.stock is not None
        return self.stock.encode(self.whole_frames(audio)).cpu()

    @torch.no_grad()
    def decode(self, system: str, codes: Tensor, num_samples: int) -> Tensor:
        """Audio that a system decodes from its codes, `(1, samples)` on the CPU.

        Args:
            system: A name of `labels` other than the original's.
            codes: The stock Mimi's for the stock Mimi, else the model's, `(codebooks, frames)`.
            num_samples: To return; the rest is padding.
        """
        codes = codes.to(self.model.device)
        if system == self.stock_name:
            assert self.stock is not None
            audio = self.stock.decode(codes)
        else:
            count = int(system.removeprefix("bridge_"))
            audio = self.model.decode(codes[None, :count]).audio_values[0]
        return audio[:, :num_samples].float().cpu()

    def probe_inputs(self) -> dict[str, str]:
        """The probes' inputs: name -> label, in the order of the matrix."""
        count = self.total - 1
        inputs = {
            "content": "content",
            "prosody": "prosody",
            "acoustic": "acoustic",
            "content_prosody": "content + prosody",
            "all": "all heads",
        }
        if self.stock is not None:
            inputs |= {
                "mimi_1": "Mimi, codebook 0",
                f"mimi_2_{count}": f"Mimi, codebooks 1-{count - 1}",
                f"mimi_{count}": f"Mimi, all {count}",
            }
        return inputs

    def probe_features(self, codes: Tensor, stock_codes: Tensor | None) -> dict[str, Tensor]:
        """Features of each of `probe_inputs`, `(frames, dim)`, of one recording's codes.

        Content is read `content_delay` frames later, as it is taught.
        """
        entries = [table.float().cpu() for table in codebook_entries(self.model)]
        content, prosody, acoustic = range(0, 1), range(1, 2), range(2, self.total)
        heads = {
            "content": [content],
            "prosody": [prosody],
            "acoustic": [acoustic],
            "content_prosody": [content, prosody],
            "all": [content, prosody, acoustic],
        }
        delay = self.model.config.content_delay
        codes = torch.cat([ahead(codes[:1].T, delay).T, codes[1:]])  # of each frame what content says of it, later
        features = {name: head_features(codes, entries, chosen) for name, chosen in heads.items()}
        if self.stock is None or stock_codes is None:
            return features
        count, entries = self.total - 1, [table.float().cpu() for table in self.stock.entries()]
        first, rest = range(0, 1), range(1, count)
        heads = {"mimi_1": [first], f"mimi_2_{count}": [rest], f"mimi_{count}": [first, rest]}
        return features | {name: head_features(stock_codes, entries, chosen) for name, chosen in heads.items()}
