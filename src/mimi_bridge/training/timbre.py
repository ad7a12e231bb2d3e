"""The timbre of swapped heads: how near the voice comes that the acoustic codes are of.

Of every two recordings of a batch, the first is decoded with the acoustic codes of the second. Nobody knows how the
second's speaker would have said it, but the voice's mean spectrum is known from its own recording; what the words add
to it differs from pair to pair, and averages out over many.
"""

import torch
from torch import Tensor

from ..frames import right_padded_lengths, silence_padding
from ..losses.reconstruction import mean_spectrum
from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .terms import Term

NUM_MELS = {512: 20, 2048: 80}  # by window in samples: formants; and, in low voices, harmonics, so that pitch counts


def timbre_term(
    outputs: MimiBridgeOutput, audio: Tensor, model: MimiBridgeModel, padding_mask: Tensor | None = None
) -> Term | None:
    """Mean absolute difference of the swaps' mean spectra from their voices', nepers; a pair counts by its frames.

    Args:
        outputs: Of the model.
        audio: That it got, `(batch, channels, samples)`.
        model: Whose decoder takes part; heads that learn are reached, too.
        padding_mask: Of the audio.

    Returns:
        None for a recording alone.
    """
    assert outputs.content is not None and outputs.prosody is not None and outputs.acoustic is not None
    assert outputs.audio_codes_mask is not None and model.decoder is not None
    pairs = len(audio) // 2
    if pairs == 0:
        return None
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    num_frames = outputs.audio_codes_mask.sum(dim=-1)
    acoustic = outputs.acoustic[second]
    places = torch.arange(acoustic.shape[1], device=acoustic.device)[None] % num_frames[second, None].clamp(min=1)
    voice = acoustic.gather(1, places[:, :, None].expand_as(acoustic))  # repeated if it is shorter
    mixed = outputs.content[first] + outputs.prosody[first] + voice
    decoded = model.decoder(mixed.transpose(1, 2)).audio_values
    real = outputs.audio_codes_mask[first].repeat_interleave(model.config.frame_size, dim=-1)
    lengths = num_frames * model.config.frame_size if padding_mask is None else right_padded_lengths(padding_mask)
    swapped = silence_padding(decoded, real), num_frames[first] * model.config.frame_size
    voices = silence_padding(audio, padding_mask)[second], lengths[second]
    differences = []
    for scale in NUM_MELS.items():
        ours, theirs = (
            mean_spectrum(sound, model.config.sampling_rate, *scale, samples) for sound, samples in (swapped, voices)
        )
        differences.append((ours - theirs).abs().mean(dim=1))
    by_pair = torch.stack(differences).mean(dim=0).unflatten(0, (pairs, -1)).mean(dim=1)
    frames = num_frames[first] + num_frames[second]
    return Term((by_pair * frames).sum() / frames.sum().clamp(min=1), frames.sum())
