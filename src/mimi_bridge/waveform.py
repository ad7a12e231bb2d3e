"""Audio at the model's border: checked, silent where it is padding, padded to whole frames, and cut back at the end.

Source: padding with silence to whole frames is moshi `models/compression.py`; transformers pads inside each layer.
"""

import torch
from torch import Tensor

from .frames import check_tensor, frame_mask_from_padding_mask, num_frames_for


def whole_frames(
    input_values: Tensor,
    padding_mask: Tensor | None,
    num_channels: int,
    frame_size: int,
    must_be_whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """Audio as the encoder wants it, and which of its frames are real.

    Args:
        input_values: `(batch, channels, samples)`, float.
        padding_mask: Non-zero on real samples, `(batch, samples)` or `(batch, channels, samples)`; all are, if None.
        num_channels: Channels that the model expects.
        frame_size: Samples of a frame.
        must_be_whole: Refuse audio that does not fill its last frame, as the chunks of a stream must.

    Returns:
        The audio, 0 in its padding, `(batch, channels, frames * frame_size)`, and its frame mask, `(batch, frames)`.

    Raises:
        ValueError: As `checked_audio`, and if the audio must be whole and is not.
    """
    audio, frame_mask = checked_audio(input_values, padding_mask, num_channels, frame_size)
    missing = -audio.shape[-1] % frame_size
    if must_be_whole and missing:
        raise ValueError(
            f"a stream's chunk must be whole frames of {frame_size} samples, got {audio.shape[-1]} samples; collect "
            f"{missing} more, or pad the last chunk with zeros."
        )
    return torch.nn.functional.pad(audio, (0, missing)) if missing else audio, frame_mask


def checked_audio(
    input_values: Tensor, padding_mask: Tensor | None, num_channels: int, frame_size: int
) -> tuple[Tensor, Tensor]:
    """As `whole_frames`, but as long as it was given, and not copied where there is no padding: it may be hours.

    Raises:
        ValueError: If the audio is empty, of a wrong shape or type, or not finite (the message names the sample), or
            if the mask does not fit or is not right padding.
        TypeError: If the audio is no tensor.
    """
    remedy = "convert it by torch.as_tensor, or use the model's feature extractor with return_tensors='pt'"
    check_tensor(input_values, "input_values", remedy)
    if input_values.dtype in (torch.int16, torch.int32, torch.uint8):
        raise ValueError(
            f"input_values must be floats in [-1, 1], got {input_values.dtype}; divide by the type's full scale "
            "(32768 for int16), or read recordings with mimi_bridge.audio.files.load_audio."
        )
    if input_values.ndim != 3 or input_values.shape[1] != num_channels or not input_values.is_floating_point():
        raise ValueError(
            f"input_values must be floats, (batch, {num_channels}, samples), got {input_values.dtype} of shape "
            f"{tuple(input_values.shape)}; average stereo to {num_channels} channel(s) and keep the channel axis."
        )
    batch_size, _, num_samples = input_values.shape
    if input_values.numel() == 0:
        raise ValueError(f"input_values must hold audio, got none (shape {tuple(input_values.shape)}).")
    if padding_mask is None:
        num_frames = num_frames_for(num_samples, frame_size)
        audio, frame_mask = input_values, input_values.new_ones(batch_size, num_frames, dtype=torch.bool)
    else:
        check_tensor(padding_mask, "padding_mask")
        if padding_mask.shape[-1] != num_samples or len(padding_mask) != batch_size:
            raise ValueError(
                f"padding_mask must have a value for each of the {num_samples} samples of {batch_size} recordings, "
                f"got shape {tuple(padding_mask.shape)}."
            )
        frame_mask = frame_mask_from_padding_mask(padding_mask, frame_size)
        audio = input_values if bool(padding_mask.all()) else silence_padding(input_values, padding_mask)
    if not torch.compiler.is_compiling() and not is_finite(audio):
        sample = int((~torch.isfinite(audio)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"input_values of sample {sample} hold NaN or infinity; repair or drop the recording.")
    return audio, frame_mask


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, without a copy; an empty tensor has none."""
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(values.detach().aminmax())).all())


def silence_padding(audio: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Audio cut to its mask's length, 0 where the mask is: `(batch, channels, samples)`, whatever stood there.

    Raises:
        ValueError: If the mask is of another number of recordings.
    """
    if padding_mask is None:
        return audio
    check_tensor(padding_mask, "padding_mask")
    if len(padding_mask) != len(audio):
        raise ValueError(
            f"padding_mask must have a row for each of the {len(audio)} recordings, got shape "
            f"{tuple(padding_mask.shape)}."
        )
    real = padding_mask[..., : audio.shape[-1]].bool()
    audio = audio[..., : padding_mask.shape[-1]]
    if not torch.compiler.is_compiling() and bool(real.all()):
        return audio
    return audio.masked_fill(~(real if real.ndim == 3 else real[:, None]), 0.0)
