"""Samples, seconds and frames: masks, whole frames, and audio at the model's border.

A frame is `frame_size` samples (1,920 at 24 kHz: 80 ms, 12.5 frames a second). A recording that does not fill its last
frame is padded with silence, as Kyutai's own Mimi does, so it has `ceil(samples / frame_size)` frames.

Source: the padding is moshi `models/compression.py`; transformers pads inside each layer.
"""

import torch
from torch import Tensor


def check_tensor(value: object, name: str, remedy: str = "convert it by torch.as_tensor") -> None:
    """Refuse what is no tensor, such as a list or an array of numpy, and a tensor that holds no numbers, or not all.

    Raises:
        TypeError: If it is none.
        ValueError: If it is on the meta device, sparse or nested.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {remedy}.")
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, but is on the meta device, which holds none.")
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name} must be a dense tensor, got one of layout {value.layout}; convert it by to_dense().")


def num_frames_for(num_samples: int, frame_size: int) -> int:
    """Frames of a recording: its samples over the frame size, rounded up.

    >>> num_frames_for(5, 1920), num_frames_for(1920, 1920), num_frames_for(1921, 1920)
    (1, 1, 2)
    """
    return -(-num_samples // frame_size)


def mask_from_lengths(lengths: Tensor, max_length: int) -> Tensor:
    """True on the first `lengths[i]` positions of row `i`: `(batch,)` -> `(batch, max_length)`."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def right_padded_lengths(padding_mask: Tensor) -> Tensor:
    """Real samples of each row of a right-padded batch.

    Args:
        padding_mask: Non-zero on real samples, `(batch, samples)` or `(batch, channels, samples)`.

    Returns:
        Lengths in samples, `(batch,)`.

    Raises:
        ValueError: If a row is padded on the left, has a hole, is empty, or its channels disagree.
    """
    check_tensor(padding_mask, "padding_mask")
    if not torch.compiler.is_compiling() and not bool(_is_right_padded(padding_mask)):
        _raise_on_padding(padding_mask)
    return _one_row_a_sample(padding_mask).sum(dim=-1)


def _one_row_a_sample(padding_mask: Tensor) -> Tensor:
    mask = padding_mask.bool()
    return mask[:, 0] if mask.ndim == 3 else mask


def _is_right_padded(padding_mask: Tensor) -> Tensor:
    # Whether `_raise_on_padding` would not raise: a scalar on the mask's device, so that a GPU is waited for once.
    mask = _one_row_a_sample(padding_mask)
    # No comparison with positions: they would take eight bytes a sample.
    is_right = mask.any(dim=1).all() & ~(mask[:, 1:] > mask[:, :-1]).any()
    return is_right & (padding_mask.bool() == mask[:, None]).all() if padding_mask.ndim == 3 else is_right


def _raise_on_padding(padding_mask: Tensor) -> None:
    mask = _one_row_a_sample(padding_mask)
    if padding_mask.ndim == 3 and not bool((padding_mask.bool() == mask[:, None]).all()):
        raise ValueError("padding_mask must be the same for every channel of a sample; pass one row a sample.")
    rises = (mask[:, 1:] > mask[:, :-1]).any(dim=-1)
    if bool(rises.any()):
        raise ValueError(
            f"padding_mask must be 1 on a sample's audio and 0 after it (right padding), but sample "
            f"{int(rises.nonzero()[0])} has padding before audio. Use the feature extractor with padding_side='right'."
        )
    raise ValueError(
        f"padding_mask marks no audio in sample {int((~mask.any(dim=1)).nonzero()[0])}; every sample needs at least "
        "one real audio sample. Drop the empty ones."
    )


def frame_mask_from_padding_mask(padding_mask: Tensor, frame_size: int) -> Tensor:
    """Which frames hold real audio: `(batch, samples)` or `(batch, channels, samples)` -> `(batch, frames)`, bool.

    Raises:
        ValueError: As `right_padded_lengths`.
    """
    return _frames_of(right_padded_lengths(padding_mask), padding_mask.shape[-1], frame_size)


def _frames_of(lengths: Tensor, num_samples: int, frame_size: int) -> Tensor:
    return mask_from_lengths(-(-lengths // frame_size), num_frames_for(num_samples, frame_size))


class RealFrames:
    """The real frames of a padded batch: side by side without the padding, and back to their places.

    Where they are is asked once, and a GPU waited for once. If all are real, nothing is copied.

    Args:
        frame_mask: True on real frames, `(batch, frames)`; None if all are.

    Raises:
        ValueError: If no frame is real.
    """

    def __init__(self, frame_mask: Tensor | None):
        self._places: Tensor | None = None
        if frame_mask is None:
            return
        self._shape = frame_mask.shape
        places = frame_mask.flatten().nonzero()[:, 0]
        if len(places) == 0:
            raise ValueError("frame_mask marks no frame as real; pass at least one.")
        if len(places) < frame_mask.numel():
            self._places = places

    def gather(self, values: Tensor) -> Tensor:
        """The real frames in order: `(batch, frames, dim)` -> `(1, real frames, dim)`, or all as they are."""
        return values if self._places is None else values.flatten(0, 1).index_select(0, self._places)[None]

    def scatter(self, values: Tensor) -> Tensor:
        """What `gather` gave, or what was made of it, to its places; zero elsewhere: `(batch, frames, dim)`."""
        if self._places is None:
            return values
        everywhere = values.new_zeros(self._shape.numel(), values.shape[-1])
        return everywhere.index_copy(0, self._places, values[0]).view(*self._shape, -1)


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
    if padding_mask is not None:
        check_tensor(padding_mask, "padding_mask")
        if padding_mask.shape[-1] != num_samples or len(padding_mask) != batch_size:
            raise ValueError(
                f"padding_mask must have a value for each of the {num_samples} samples of {batch_size} recordings, "
                f"got shape {tuple(padding_mask.shape)}."
            )
    audio = silence_padding(input_values, padding_mask)
    if not torch.compiler.is_compiling():
        faultless = _all_finite(audio)
        if padding_mask is not None:
            faultless = faultless & _is_right_padded(padding_mask)
        if not bool(faultless):  # the one time that a GPU is waited for
            if padding_mask is not None:
                right_padded_lengths(padding_mask)  # says what is wrong with it, if that is it
            sample = int((~torch.isfinite(audio)).flatten(1).any(dim=1).nonzero()[0])
            raise ValueError(f"input_values of sample {sample} hold NaN or infinity; repair or drop the recording.")
    if padding_mask is None:
        return audio, audio.new_ones(batch_size, num_frames_for(num_samples, frame_size), dtype=torch.bool)
    return audio, _frames_of(_one_row_a_sample(padding_mask).sum(dim=-1), num_samples, frame_size)


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, without a copy; an empty tensor has none."""
    return values.numel() == 0 or bool(_all_finite(values))


def _all_finite(values: Tensor) -> Tensor:
    return torch.isfinite(torch.stack(values.detach().aminmax())).all()


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
    if audio.device.type == "cpu" and not torch.compiler.is_compiling() and bool(real.all()):
        return audio  # a copy of hours of audio is spared; a GPU copies sooner than it answers
    return audio.masked_fill(~(real if real.ndim == 3 else real[:, None]), 0.0)
