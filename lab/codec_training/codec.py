"""A Mimi that can be trained from nothing: transformers' encoder and decoder around a split quantizer that learns.

transformers' own quantizer passes no gradient and cannot train. Here Kyutai's parallel split is two of this package's
heads: the semantic one (1 codebook) and the acoustic one (a chain), both fed the same latents, their outputs added.
The semantic head's entries must tell what is said: a linear map of them names the phone, or a teacher's features.
`to_mimi` gives the result as a `MimiModel`.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from mimi_bridge.checkpoint import keep_sizes_on_cpu
from mimi_bridge.heads import QuantizerHead
from mimi_bridge.training.codebooks import set_entries

FIRST_LOUDNESS = 0.05  # of a random decoder's last convolution, which is far too loud for speech
UNQUANTIZED = -1  # in `num_acoustic`: this sequence passes the acoustic projections without a codebook


@dataclass
class CodecOutput:
    """The codec's outputs for a batch.

    Attributes:
        audio: Decoded, `(batch, 1, samples)`.
        latents: The encoder's, `(batch, frames, hidden_size)`.
        readout: What the semantic head says of the frame, `(batch, frames, readout_dim)`.
        commitment: Mean squared distance of both heads' inputs from their entries, a scalar; None without codebooks.
        codes: `(batch, codebooks, frames)`, semantic first; None without codebooks.
    """

    audio: Tensor
    latents: Tensor
    readout: Tensor
    commitment: Tensor | None
    codes: Tensor | None


class TrainableMimi(nn.Module):
    """Encoder, two heads and decoder of a Mimi.

    Args:
        config: Of the Mimi; one semantic codebook.
        readout_dim: Size of what the semantic head learns to tell by a linear map: phones, or a teacher's features.
        decay: Of the codebooks' moving averages, a step.
    """

    def __init__(self, config: MimiConfig, readout_dim: int, decay: float = 0.99):
        super().__init__()
        mimi = MimiModel(config)
        self.config = config
        self.encoder: nn.Module = cast(nn.Module, mimi.encoder)  # MimiModel may be built without either half
        self.decoder: nn.Module = cast(nn.Module, mimi.decoder)
        shape = (config.hidden_size, config.codebook_dim, config.codebook_size)
        self.semantic = QuantizerHead(*shape, None, decay)
        self.acoustic = QuantizerHead(*shape, config.num_quantizers - config.num_semantic_quantizers, decay)
        self.readout = nn.Linear(config.codebook_dim, readout_dim)
        nn.init.zeros_(self.semantic.project_out.weight)  # the sound begins in the acoustic head alone
        last_convolution = cast(Any, self.decoder).decoder_seanet.layers[-1].conv
        for parameter in last_convolution.parameters():
            nn.init.constant_(parameter, 0.0) if parameter.ndim == 1 else parameter.data.mul_(FIRST_LOUDNESS)

    def to(self, *args: Any, **kwargs: Any) -> "TrainableMimi":
        """As `nn.Module.to`; sizes that transformers' convolutions keep as tensors stay where the host reads them."""
        super().to(*args, **kwargs)
        keep_sizes_on_cpu(self)
        return self

    def forward(self, audio: Tensor, num_acoustic: Tensor | None = None, may_learn: bool = True) -> CodecOutput:
        """Encode, quantize and decode; in training mode the codebooks are updated.

        Args:
            audio: `(batch, 1, samples)`, whole frames.
            num_acoustic: Acoustic codebooks that each sequence is decoded from, `(batch,)`, 0 to all of them, or
                `UNQUANTIZED`; None leaves the heads out of the sound, which is decoded from the latents.
            may_learn: False keeps the codebooks where they are.
        """
        latents = self.encoder(audio).latents.transpose(1, 2)
        semantic, acoustic = (_project_in(head, latents) for head in (self.semantic, self.acoustic))
        if num_acoustic is None:
            return CodecOutput(self._decode(latents), latents, self.readout(semantic), None, None)
        outputs = [head(latents, with_commitment=True, may_learn=may_learn) for head in (self.semantic, self.acoustic)]
        codes = torch.cat([output.codes for output in outputs], dim=1)
        entries = nn.functional.embedding(codes[:, 0], self.semantic.codebooks[0])
        semantic = entries + (semantic - semantic.detach())
        acoustic = self._first_entries(acoustic, codes[:, 1:], num_acoustic)
        quantized = _project_out(self.semantic, semantic) + _project_out(self.acoustic, acoustic)
        commitment = torch.stack([output.commitment for output in outputs]).sum()
        return CodecOutput(self._decode(quantized), latents, self.readout(semantic), commitment, codes)

    @torch.no_grad()
    def load_mimi(self, mimi: MimiModel, frames_per_step: int) -> None:
        """Load the weights and codebooks of a Mimi of the same config.

        Args:
            mimi: Its quantizers' first codebooks are taken, as many as this codec has.
            frames_per_step: Of training, over all processes; the codebooks' running counts begin at its scale.
        """
        self.encoder.load_state_dict(cast(nn.Module, mimi.encoder).state_dict())
        self.decoder.load_state_dict(cast(nn.Module, mimi.decoder).state_dict())
        for head, chain in self._pairs(mimi):
            head.project_in.weight.copy_(chain.input_proj.weight)
            head.project_out.weight.copy_(chain.output_proj.weight)
            for codebook, layer in zip(head.vq_codebooks, chain.layers, strict=True):
                size = len(layer.codebook.embed)
                counts = torch.full((size,), frames_per_step / size)
                set_entries(codebook, torch.arange(size), layer.codebook.embed, counts)

    @torch.no_grad()
    def to_mimi(self) -> MimiModel:
        """The trained codec as a `MimiModel` in eval mode, weights copied."""
        mimi = MimiModel(self.config).eval()
        cast(nn.Module, mimi.encoder).load_state_dict(self.encoder.state_dict())
        cast(nn.Module, mimi.decoder).load_state_dict(self.decoder.state_dict())
        for head, chain in self._pairs(mimi):
            chain.input_proj.weight.copy_(head.project_in.weight)
            chain.output_proj.weight.copy_(head.project_out.weight)
            for entries, layer in zip(head.codebooks, chain.layers, strict=True):
                layer.codebook.embed_sum.copy_(entries)
                layer.codebook.cluster_usage.fill_(1.0)
                layer.codebook.initialized.fill_(1.0)
        return mimi

    def _pairs(self, mimi: MimiModel) -> list[tuple[QuantizerHead, Any]]:
        split = mimi.quantizer
        return [
            (self.semantic, split.semantic_residual_vector_quantizer),
            (self.acoustic, split.acoustic_residual_vector_quantizer),
        ]

    def _decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(quantized.transpose(1, 2)).audio_values

    def _first_entries(self, inputs: Tensor, codes: Tensor, num_acoustic: Tensor) -> Tensor:
        # The sum of each sequence's first entries, with the gradient of the inputs; or the inputs themselves.
        entries = torch.zeros_like(inputs)
        for level, (codebook, indices) in enumerate(zip(self.acoustic.codebooks, codes.unbind(dim=1), strict=True)):
            entries += nn.functional.embedding(indices, codebook) * (num_acoustic > level)[:, None, None]
        passed_through = entries + (inputs - inputs.detach())
        return torch.where((num_acoustic == UNQUANTIZED)[:, None, None], inputs, passed_through)


def _project_in(head: QuantizerHead, latents: Tensor) -> Tensor:
    return head.project_in(latents.transpose(1, 2)).transpose(1, 2)


def _project_out(head: QuantizerHead, entries: Tensor) -> Tensor:
    return head.project_out(entries.transpose(1, 2)).transpose(1, 2)
