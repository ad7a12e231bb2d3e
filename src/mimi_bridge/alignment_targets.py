"""What teachers say, laid out on frames: tokens by durations or spans in seconds, features at 50 Hz by pooling.

A language model has one vector a text token; it is laid out on frames by integer durations or by spans in seconds. A
speech model has 50 vectors a second, pooled to 12.5.

Source: the pooling (kernel 8, stride 4, not causal) is the Moshi technical report (arXiv:2410.00037), section 3.3.2.
"""

import torch
from torch import Tensor

from .frames import mask_from_lengths

POOLING_KERNEL = 8  # speech-model frames averaged into one of ours
POOLING_STRIDE = 4  # speech-model frames per frame of ours: 50 Hz / 12.5 Hz
OVERLAP_FLOOR = 1e-3  # of a frame: 1.2 s are 15.0000006 frames in float32, and must not reach into the sixteenth
SPAN_TOLERANCE_SECONDS = 1e-3  # an aligner's rounding at the very end of a recording is no error


def durations_to_token_index(durations: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which token each frame belongs to, from whole-frame durations; ragged, without a loop.

    Args:
        durations: Frames of each token, `(batch, tokens)`, integers; 0 for a token that gets no frame and for padding.
        frame_mask: True on real frames, `(batch, frames)`.

    Returns:
        Token of each frame, `(batch, frames)`, and True where a frame has one, `(batch, frames)`. Frames after the
        last token have none.

    Raises:
        ValueError: If durations are not integers, one is negative, or they overrun a sample's frames; the message
            names the sample.
    """
    if durations.ndim != 2 or durations.is_floating_point() or durations.dtype == torch.bool:
        raise ValueError(
            f"durations must be whole frames as integers, (batch, tokens), got {durations.dtype} of shape "
            f"{tuple(durations.shape)}; pass times in seconds as token_spans."
        )
    _check_batch("durations", durations, frame_mask)
    ends = durations.cumsum(dim=-1)
    total, available = durations.sum(dim=-1), frame_mask.sum(dim=-1)
    is_negative = (durations < 0).any(dim=-1)
    if bool((is_negative | (total > available)).any()):  # asked once: a GPU must be waited for
        if bool(is_negative.any()):
            sample = int(is_negative.nonzero()[0])
            raise ValueError(f"durations of sample {sample} hold a negative number; use 0 for padding.")
        sample = int((total > available).nonzero()[0])
        raise ValueError(
            f"durations of sample {sample} sum to {int(total[sample])} frames, but it has {int(available[sample])}; "
            "check the frame rate they were made for, or shorten them."
        )
    positions = torch.arange(frame_mask.shape[1], device=durations.device).expand(len(durations), -1)
    token_index = torch.searchsorted(ends.contiguous(), positions.contiguous(), right=True)
    has_token = mask_from_lengths(total, frame_mask.shape[1]) & frame_mask
    return token_index.masked_fill(~has_token, 0), has_token


def spans_to_frame_weights(spans: Tensor, frame_mask: Tensor, frame_rate: float) -> Tensor:
    """How much of each frame each token covers, from spans in seconds: no token is too short to count.

    Args:
        spans: Start and end of each token in seconds, `(batch, tokens, 2)`; equal start and end for padding.
        frame_mask: True on real frames, `(batch, frames)`.
        frame_rate: Frames a second (Hz).

    Returns:
        Overlap of frame and token as a share of the frame, `(batch, frames, tokens)`, float32, in [0, 1].

    Raises:
        ValueError: If a span is not finite, ends before it starts, or lies outside its recording; the message names
            the sample.
    """
    starts, ends = _checked_spans(spans, frame_mask, frame_rate)
    frame_starts = torch.arange(frame_mask.shape[1], device=spans.device, dtype=torch.float32)[:, None]
    overlap = torch.minimum(ends[:, None] * frame_rate, frame_starts + 1) - torch.maximum(
        starts[:, None] * frame_rate, frame_starts
    )
    return overlap.masked_fill(overlap < OVERLAP_FLOOR, 0.0) * frame_mask[:, :, None]


def spans_to_durations(spans: Tensor, frame_mask: Tensor, frame_rate: float) -> tuple[Tensor, Tensor]:
    """Whole frames of each token, from spans in seconds: every boundary is rounded to the nearest frame's edge.

    Rounding boundaries, not lengths, keeps every token within half a frame of its place; a token between two edges
    gets no frame, which `spans_to_frame_weights` would give it a share of. Silence takes its time as an entry of its
    own, before and after each token, so that durations sum to the frames: token `i` is entry `2 i + 1`, and

    >>> hidden = torch.ones(1, 3, 8)  # (batch, tokens, dim)
    >>> with_silence = hidden.new_zeros(1, 7, 8)
    >>> with_silence[:, 1::2] = hidden

    goes to `align_tokens_to_frames` with what is returned here.

    Args:
        spans: Start and end of each token in seconds, `(batch, tokens, 2)`; equal start and end for padding.
        frame_mask: True on real frames, `(batch, frames)`.
        frame_rate: Frames a second (Hz).

    Returns:
        Durations, `(batch, 2 tokens + 1)`, integers that sum to the real frames, and the `token_mask` that is True on
        tokens and False on silence, of the same shape.

    Raises:
        ValueError: As `spans_to_frame_weights`.
    """
    _checked_spans(spans, frame_mask, frame_rate)
    num_frames = frame_mask.sum(dim=-1, keepdim=True)
    edges = (spans.float() * frame_rate + 0.5).floor().long().flatten(1).clamp(min=0)
    edges = torch.minimum(edges, num_frames).cummax(dim=-1).values  # tokens that overlap share nothing
    bounds = torch.cat([torch.zeros_like(num_frames), edges, num_frames], dim=-1)
    is_token = torch.arange(bounds.shape[1] - 1, device=spans.device) % 2 == 1
    return bounds.diff(dim=-1), is_token.expand(len(spans), -1)


def align_tokens_to_frames(
    hidden: Tensor,
    frame_mask: Tensor,
    frame_rate: float,
    durations: Tensor | None = None,
    spans: Tensor | None = None,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One teacher vector a token becomes one a frame, by durations in frames or spans in seconds.

    With spans, a frame shared by several tokens gets their mean, weighted by overlap. Frames without a token (silence,
    padding, tokens that `token_mask` leaves out) have no target: they are masked, never pulled to zero.

    Args:
        hidden: Teacher states, `(batch, tokens, dim)`; whatever stands in padding is never read.
        frame_mask: True on real frames, `(batch, frames)`.
        frame_rate: Frames a second (Hz).
        durations: Frames of each token, `(batch, tokens)`, integers.
        spans: Start and end of each token in seconds, `(batch, tokens, 2)`; instead of `durations`.
        token_mask: True on tokens that are targets, `(batch, tokens)`; False on silence that takes time.

    Returns:
        Targets `(batch, frames, dim)`, zero where there is none, and the mask of frames that have one.

    Raises:
        ValueError: If not exactly one of durations and spans is given, shapes disagree, or times do not fit.
    """
    if (durations is None) == (spans is None):
        raise ValueError("pass exactly one of durations (whole frames) and token_spans (seconds) beside qwen_hidden.")
    placed = durations if durations is not None else spans
    assert placed is not None
    if placed.shape[:2] != hidden.shape[:2]:
        name = "durations" if durations is not None else "token_spans"
        raise ValueError(
            f"{name} must have one entry for each of the {tuple(hidden.shape[:2])} (batch, tokens) hidden states, got "
            f"{tuple(placed.shape[:2])}."
        )
    if token_mask is not None and token_mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"token_mask must have one entry for each of the {tuple(hidden.shape[:2])} (batch, tokens) hidden states, "
            f"got {tuple(token_mask.shape)}."
        )
    if hidden.shape[1] == 0:
        return hidden.new_zeros(*frame_mask.shape, hidden.shape[-1]), torch.zeros_like(frame_mask)
    if durations is not None:
        token_index, target_mask = durations_to_token_index(durations, frame_mask)
        if token_mask is not None:
            target_mask = target_mask & token_mask.bool().gather(1, token_index)
        targets = hidden.gather(1, token_index[:, :, None].expand(-1, -1, hidden.shape[-1]))
    else:
        weights = spans_to_frame_weights(placed, frame_mask, frame_rate)
        if token_mask is not None:
            weights = weights * token_mask.bool()[:, None, :]
        coverage = weights.sum(dim=-1, keepdim=True)
        target_mask = coverage[:, :, 0] > 0
        in_use = (weights > 0).any(dim=1)
        targets = (weights / coverage.clamp(min=1e-9)) @ hidden.float().masked_fill(~in_use[:, :, None], 0.0)
    return targets.masked_fill(~target_mask[:, :, None], 0.0), target_mask


def delay_targets(
    targets: Tensor, target_mask: Tensor, delay: int, frame_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Targets for codes that answer late: frame `t` gets the target of frame `t - delay`, the first frames get none.

    >>> values, mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[True, True, False, True]])
    >>> delay_targets(values, mask, 1)
    (tensor([[0, 5, 6, 0]]), tensor([[False,  True,  True, False]]))

    Args:
        targets: One a frame, `(batch, frames, ...)`; anything on frames without one.
        target_mask: True on frames that have a target, `(batch, frames)`.
        delay: In frames, at least 0; 0 gives back what was given.
        frame_mask: True on real frames, `(batch, frames)`; a target that would lie behind them is dropped. All are
            real, if left out.

    Returns:
        Targets as given, zero where there is none, and the mask of frames that have one.

    Raises:
        ValueError: If the delay is negative, or there is not one target for each entry of the mask.
    """
    if delay < 0:
        raise ValueError(f"delay must be a number of frames, at least 0, got {delay}; a code cannot be early.")
    if targets.shape[:2] != target_mask.shape:
        raise ValueError(
            f"targets must be one for each of the {tuple(target_mask.shape)} (batch, frames) of target_mask, got "
            f"shape {tuple(targets.shape)}."
        )
    if delay == 0:
        return targets, target_mask
    is_late_enough = torch.arange(target_mask.shape[1], device=target_mask.device) >= delay
    moved_mask = target_mask.bool().roll(delay, dims=1) & is_late_enough
    if frame_mask is not None:
        moved_mask = moved_mask & frame_mask
    hole = ~moved_mask.view(*moved_mask.shape, *[1] * (targets.ndim - 2))
    return targets.roll(delay, dims=1).masked_fill(hole, 0), moved_mask


def features_at_frames(
    features: Tensor, frame_mask: Tensor, features_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A speech model's features, one a frame, and which frames have one.

    Args:
        features: `(batch, frames, dim)`, or at 50 Hz, which are pooled; see `pool_to_frames`.
        frame_mask: True on real frames, `(batch, frames)`.
        features_mask: True on frames that have features, `(batch, frames)`; all real ones do, if None.

    Raises:
        ValueError: As `pool_to_frames`.
    """
    if features.shape[:2] != frame_mask.shape:
        features = pool_to_frames(features, frame_mask)
    return features, frame_mask if features_mask is None else frame_mask & features_mask.bool()


def pool_to_frames(features: Tensor, frame_mask: Tensor) -> Tensor:
    """Features of a 50 Hz speech model averaged to one a frame, exactly as many as there are frames.

    Windows of 8 features, 4 apart, centred on their frame; at the edges only the real features count. Compute the
    features from audio padded with silence to whole frames, as the codec's is: a recording of `n` frames then has `4 n
    - 1`.

    Args:
        features: `(batch, features, dim)` at 50 Hz; for `n` frames in the longest row, `4 n - 5` to `4 n` features. Of
            a row with `m` real frames the first `4 m - 1` are read.
        frame_mask: True on real frames, `(batch, frames)`.

    Returns:
        `(batch, frames, dim)`, float32, zero on masked frames.

    Raises:
        ValueError: If the number of features does not fit the number of frames, or the rows do not.
    """
    _check_batch("wavlm_features", features, frame_mask)
    num_frames = frame_mask.shape[1]
    expected = num_frames * POOLING_STRIDE
    fewest = max(
        1, expected - POOLING_STRIDE - 1
    )  # WavLM's own count for audio that barely reaches into its last frame
    if not fewest <= features.shape[1] <= expected:
        raise ValueError(
            f"wavlm_features must have {num_frames} frames (12.5 Hz), or {fewest} to {expected} (50 Hz, pooled here), "
            f"for this audio, got {features.shape[1]}; compute them from the same recording."
        )
    lengths = frame_mask.sum(dim=-1) * POOLING_STRIDE - 1
    real = mask_from_lengths(lengths, features.shape[1])[:, :, None]
    margin = (POOLING_KERNEL - POOLING_STRIDE) // 2
    right = margin + expected - features.shape[1]

    def windowed_mean(values: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(values.transpose(1, 2), (margin, right))
        return torch.nn.functional.avg_pool1d(padded, POOLING_KERNEL, POOLING_STRIDE).transpose(1, 2)

    values, weights = windowed_mean(features.float().masked_fill(~real, 0.0)), windowed_mean(real.float())
    return (values / weights.clamp(min=1e-9)).masked_fill(~frame_mask[:, :, None], 0.0)


def _checked_spans(spans: Tensor, frame_mask: Tensor, frame_rate: float) -> tuple[Tensor, Tensor]:
    # Starts and ends, each (batch, tokens), or a ValueError.
    if spans.ndim != 3 or spans.shape[-1] != 2 or not spans.is_floating_point():
        raise ValueError(
            f"token_spans must be seconds, (batch, tokens, 2), got {spans.dtype} of shape {tuple(spans.shape)}; pass "
            "whole frames as durations."
        )
    _check_batch("token_spans", spans, frame_mask)
    starts, ends = spans.float().unbind(dim=-1)
    num_frames = frame_mask.sum(dim=-1)
    limit = num_frames / frame_rate + SPAN_TOLERANCE_SECONDS
    wrong = ~((starts >= -SPAN_TOLERANCE_SECONDS) & (ends >= starts) & (ends <= limit[:, None]))
    if bool(wrong.any()):
        sample, token = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"token_spans of sample {sample} hold {starts[sample, token]:.3f} to {ends[sample, token]:.3f} s (token "
            f"{token}), but a span must run forward inside the recording's {num_frames[sample] / frame_rate:.2f} s; "
            "check the alignment and its unit."
        )
    return starts, ends


def _check_batch(name: str, value: Tensor, frame_mask: Tensor) -> None:
    if len(value) != len(frame_mask):
        raise ValueError(f"{name} must have one row for each of the {len(frame_mask)} samples, got {len(value)}.")
