"""A Mimi with random weights whose codebooks fit speech, for demo and tests where the real weights are out of reach.

It says nothing about sound quality: its audio is noise. It makes a proof of the surgery mean something, because its
codebooks give many different codes; a random Mimi as transformers builds it has empty codebooks and gives one code for
everything.
"""

import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel

NOISE = 0.1  # of the deviation of what is quantized: parts entries so that rounding does not choose between them
PEAK = 0.5  # of the decoded audio: random decoders are far too loud


@torch.no_grad()
def random_mimi(config: MimiConfig, speech: Tensor, seed: int = 0) -> MimiModel:
    """Build a Mimi and fill its codebooks from the latents it gives for speech.

    Level by level, entries are what the level before left of the latents, drawn at random and shrunk toward their
    mean, so that direction decides which entry is nearest and something is left for the next level.

    Args:
        config: Any Mimi's.
        speech: Audio at the config's rate, `(1, samples)`; a minute or more fits 2,048 entries well.
        seed: Of weights and codebooks.

    Returns:
        The model in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MimiModel(config).eval()
    latents = model.encoder(_whole_frames(speech, config.frame_size)[None]).latents
    quantizer = model.quantizer
    for chain in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        residual = chain.input_proj(latents)[0].T
        for layer in chain.layers:
            chosen = torch.randint(len(residual), (config.codebook_size,), generator=generator)
            shrink = torch.empty(config.codebook_size, 1).uniform_(0.2, 0.5, generator=generator)
            entries = residual.mean(dim=0) + shrink * (residual[chosen] - residual.mean(dim=0))
            entries += NOISE * residual.std() * torch.randn(entries.shape, generator=generator)
            usage = torch.empty(config.codebook_size).uniform_(0.5, 20.0, generator=generator)
            layer.codebook.cluster_usage.copy_(usage)
            layer.codebook.embed_sum.copy_(entries * usage[:, None])
            residual = residual - layer.codebook.decode(layer.codebook.encode(residual))
    last_convolution = model.decoder.decoder_seanet.layers[-1].conv
    loudest = model.decode(model.encode(speech[None, :, : 4 * config.sampling_rate]).audio_codes).audio_values
    scale = PEAK / loudest.abs().max()
    last_convolution.weight.mul_(scale)
    last_convolution.bias.mul_(scale)
    return model


def _whole_frames(audio: Tensor, frame_size: int) -> Tensor:
    return torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame_size))
