import pytest
import torch
from torch import Tensor

from mimi_bridge.alignment_targets import (
    align_tokens_to_frames,
    durations_to_token_index,
    pool_to_frames,
    spans_to_durations,
    spans_to_frame_weights,
)
from mimi_bridge.frames import (
    RealFrames,
    frame_mask_from_padding_mask,
    mask_from_lengths,
    num_frames_for,
    right_padded_lengths,
)

FRAME_RATE = 12.5  # Hz: a frame lasts 0.08 s


def all_real(num_frames: int, batch_size: int = 1) -> Tensor:
    return torch.ones(batch_size, num_frames, dtype=torch.bool)


def lay_out(hidden: Tensor, frame_mask: Tensor, **placed) -> tuple[Tensor, Tensor]:
    return align_tokens_to_frames(hidden, frame_mask, FRAME_RATE, **placed)


@pytest.mark.parametrize(
    "num_samples, expected", [(0, 0), (1, 1), (1919, 1), (1920, 1), (1921, 2), (3840, 2), (24_000, 13)]
)
def test_number_of_frames_rounds_up(num_samples, expected):
    assert num_frames_for(num_samples, frame_size=1920) == expected


def test_mask_is_true_on_the_first_positions_of_each_row():
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    assert mask_from_lengths(torch.tensor([2, 0, 3]), 3).tolist() == expected


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float32], ids=["bool", "the extractor's int64", "float32"]
)
def test_lengths_are_the_real_samples_of_right_padded_rows(dtype):
    padding_mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=dtype)
    assert right_padded_lengths(padding_mask).tolist() == [4, 1]


def test_lengths_are_given_once_a_sample_when_its_channels_agree():
    padding_mask = torch.tensor([[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]]])
    assert right_padded_lengths(padding_mask).tolist() == [2, 3]


@pytest.mark.parametrize(
    "padding_mask, message",
    [
        ([[1, 1, 1], [0, 1, 1]], "sample 1 has padding before audio"),
        ([[1, 1, 1], [1, 1, 0], [1, 0, 1]], "sample 2 has padding before audio"),
        ([[0, 0, 0], [1, 1, 0]], "marks no audio in sample 0"),
        ([[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 0]]], "the same for every channel of a sample"),
    ],
    ids=["left padding", "hole", "empty row", "channels disagree"],
)
def test_lengths_refuse_a_mask_that_is_not_right_padding(padding_mask, message):
    with pytest.raises(ValueError, match=message):
        right_padded_lengths(torch.tensor(padding_mask))


@pytest.mark.parametrize("channels", [False, True], ids=["a row a sample", "a row a channel"])
def test_frame_is_real_when_it_holds_at_least_one_real_sample(channels):
    padding_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])  # frames of 2, 2 and 1 samples
    padding_mask = padding_mask[:, None].expand(-1, 2, -1) if channels else padding_mask
    expected = [[True, True, True], [True, True, False], [True, False, False]]
    assert frame_mask_from_padding_mask(padding_mask, frame_size=2).tolist() == expected


def test_real_frames_are_gathered_in_order_and_scattered_to_their_places():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, True, True]])
    values = torch.arange(18.0).view(3, 3, 2)
    frames = RealFrames(mask)
    gathered = frames.gather(values.masked_fill(~mask[:, :, None], torch.nan))
    assert torch.equal(gathered, values[mask][None])
    assert torch.equal(frames.scatter(gathered), values * mask[:, :, None])


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3).bool()], ids=["no mask", "all real"])
def test_frames_that_are_all_real_are_not_copied(mask):
    values, frames = torch.randn(2, 3, 4), RealFrames(mask)
    assert frames.gather(values) is values and frames.scatter(values) is values


def test_gradient_reaches_exactly_the_real_frames_through_gathering_and_scattering():
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.randn(2, 2, 3, requires_grad=True)
    frames = RealFrames(mask)
    (frames.scatter(2 * frames.gather(values)) * 3).sum().backward()
    assert torch.equal(values.grad, 6.0 * mask[:, :, None].expand_as(values))


def test_real_frames_refuse_a_mask_of_none():
    with pytest.raises(ValueError, match="frame_mask marks no frame as real; pass at least one"):
        RealFrames(torch.zeros(2, 3).bool())


@pytest.fixture
def ragged_durations():
    """Random durations of 16 samples, many of them zero, and masks with up to 3 real frames after the last token."""
    torch.manual_seed(0)
    durations = torch.randint(0, 4, (16, 10))
    lengths = durations.sum(dim=-1) + torch.randint(0, 4, (16,))
    return durations, mask_from_lengths(lengths, int(lengths.max()) + 2)


def test_token_index_follows_the_durations_by_eye():
    token_index, has_token = durations_to_token_index(torch.tensor([[2, 0, 1]]), all_real(4))
    assert token_index[has_token].tolist() == [0, 0, 2]
    assert has_token.tolist() == [[True, True, True, False]]


def test_token_index_equals_a_literal_loop_on_ragged_durations(ragged_durations):
    durations, frame_mask = ragged_durations
    token_index, has_token = durations_to_token_index(durations, frame_mask)
    for sample, row in enumerate(durations.tolist()):
        expected = [token for token, duration in enumerate(row) for _ in range(duration)]
        assert token_index[sample, : len(expected)].tolist() == expected
        assert has_token[sample].tolist() == [frame < len(expected) for frame in range(frame_mask.shape[1])]


def test_targets_equal_repeat_interleave_of_each_sample_on_ragged_durations(ragged_durations):
    durations, frame_mask = ragged_durations
    hidden = torch.randn(*durations.shape, 3)
    targets, has_target = lay_out(hidden, frame_mask, durations=durations)
    for sample in range(len(hidden)):
        expected = torch.repeat_interleave(hidden[sample], durations[sample], dim=0)
        assert torch.equal(targets[sample, has_target[sample]], expected)


def test_targets_are_zero_on_frames_without_a_token(ragged_durations):
    durations, frame_mask = ragged_durations
    targets, has_target = lay_out(torch.randn(*durations.shape, 3), frame_mask, durations=durations)
    assert (~has_target & frame_mask).any()
    assert not targets[~has_target].any()


def test_no_frame_has_a_target_when_all_durations_are_zero():
    targets, has_target = lay_out(torch.ones(1, 2, 3), all_real(4), durations=torch.zeros(1, 2, dtype=torch.long))
    assert not has_target.any() and not targets.any()


@pytest.mark.parametrize(
    "placed",
    [
        pytest.param({"durations": torch.zeros(1, 0, dtype=torch.long)}, id="durations"),
        pytest.param({"spans": torch.zeros(1, 0, 2)}, id="spans"),
    ],
)
def test_no_frame_has_a_target_when_there_are_no_tokens(placed):
    targets, has_target = lay_out(torch.zeros(1, 0, 3), all_real(4), **placed)
    assert targets.shape == (1, 4, 3)
    assert not has_target.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_durations_may_be_any_whole_number_type(dtype):
    token_index, _ = durations_to_token_index(torch.tensor([[2, 0, 1]], dtype=dtype), all_real(3))
    assert token_index.tolist() == [[0, 0, 2]]


@pytest.mark.parametrize(
    "durations, message",
    [
        ([[1, 1], [2, 2]], "durations of sample 1 sum to 4 frames, but it has 3"),
        ([[4, 0], [1, 1]], "durations of sample 0 sum to 4 frames, but it has 3"),
        ([[1, 1], [-1, 2]], "durations of sample 1 hold a negative number"),
        ([[1.0, 1.0], [1.0, 1.0]], r"whole frames as integers, \(batch, tokens\), got torch.float32"),
        ([[True, True], [True, True]], r"whole frames as integers, \(batch, tokens\), got torch.bool"),
        ([1, 1], r"whole frames as integers, .* of shape \(2,\)"),
        ([[1, 1]], "durations must have one row for each of the 2 samples, got 1"),
    ],
    ids=["overrun of the last", "overrun of the first", "negative", "float", "bool", "1-D", "batch"],
)
def test_durations_that_cannot_be_laid_out_are_refused(durations, message):
    with pytest.raises(ValueError, match=message):
        durations_to_token_index(torch.tensor(durations), all_real(3, batch_size=2))


def test_durations_may_not_overrun_the_real_frames_when_there_is_padding_after_them():
    frame_mask = mask_from_lengths(torch.tensor([4, 2]), 4)
    with pytest.raises(ValueError, match="durations of sample 1 sum to 3 frames, but it has 2"):
        durations_to_token_index(torch.tensor([[3], [3]]), frame_mask)


@pytest.fixture
def ragged_spans():
    """Random consecutive spans of 8 samples with 6 tokens, some far shorter than a frame, starting after a silence."""
    torch.manual_seed(0)
    lengths = torch.randint(5, 12, (8,))
    bounds = torch.rand(8, 7).sort(dim=-1).values * lengths[:, None] / FRAME_RATE
    spans = torch.stack([bounds[:, :-1], bounds[:, 1:]], dim=-1)
    return spans, mask_from_lengths(lengths, int(lengths.max()))


def literal_overlap(span: list[float], frame: int) -> float:
    """Seconds that a span shares with a frame, as a share of the frame."""
    start, end = span
    frame_start, frame_end = frame / FRAME_RATE, (frame + 1) / FRAME_RATE
    return max(0.0, min(end, frame_end) - max(start, frame_start)) * FRAME_RATE


def test_frame_weights_are_shares_of_a_frame_by_eye():
    spans = torch.tensor([[[0.02, 0.12], [0.12, 0.16]]])  # frames are 0 to 0.08 and 0.08 to 0.16 s
    weights = spans_to_frame_weights(spans, all_real(2), FRAME_RATE)
    torch.testing.assert_close(weights, torch.tensor([[[0.75, 0.0], [0.5, 0.5]]]))


def test_frame_weights_equal_a_literal_loop_on_ragged_spans(ragged_spans):
    spans, frame_mask = ragged_spans
    expected = [
        [
            [literal_overlap(span, frame) if real else 0.0 for span in sample_spans]
            for frame, real in enumerate(sample_mask)
        ]
        for sample_spans, sample_mask in zip(spans.tolist(), frame_mask.tolist(), strict=True)
    ]
    weights = spans_to_frame_weights(spans, frame_mask, FRAME_RATE)
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-5, rtol=0)


def test_targets_are_the_means_of_a_frame_s_tokens_weighted_by_overlap(ragged_spans):
    spans, frame_mask = ragged_spans
    hidden = torch.randn(8, 6, 3)
    targets, has_target = lay_out(hidden, frame_mask, spans=spans)
    for sample, frame in has_target.nonzero().tolist():
        weights = torch.tensor([literal_overlap(span, frame) for span in spans[sample].tolist()])
        expected = (weights[:, None] * hidden[sample]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(targets[sample, frame], expected, atol=1e-4, rtol=1e-4)


def test_targets_exist_exactly_where_a_span_touches_a_real_frame(ragged_spans):
    spans, frame_mask = ragged_spans
    _, has_target = lay_out(torch.randn(8, 6, 3), frame_mask, spans=spans)
    expected = [
        [
            any(literal_overlap(span, frame) > 0 for span in sample_spans) and real
            for frame, real in enumerate(sample_mask)
        ]
        for sample_spans, sample_mask in zip(spans.tolist(), frame_mask.tolist(), strict=True)
    ]
    assert has_target.tolist() == expected


def test_token_shorter_than_a_frame_contributes_its_share():
    spans = torch.tensor([[[0.0, 0.06], [0.06, 0.08]]])  # three quarters and one quarter of one frame
    targets, _ = lay_out(torch.tensor([[[0.0], [8.0]]]), all_real(1), spans=spans)
    assert targets.item() == pytest.approx(2.0)


def test_spans_of_whole_frames_give_the_targets_of_durations():
    hidden = torch.randn(1, 3, 4)
    by_durations = lay_out(hidden, all_real(6), durations=torch.tensor([[2, 1, 2]]))
    by_spans = lay_out(hidden, all_real(6), spans=torch.tensor([[[0.0, 0.16], [0.16, 0.24], [0.24, 0.4]]]))
    torch.testing.assert_close(by_spans, by_durations)


def test_span_that_ends_with_a_frame_leaves_the_next_one_without_a_target():
    for num_frames in range(1, 200):
        span = torch.tensor([[[0.0, num_frames * 0.08]]])
        _, has_target = lay_out(torch.ones(1, 1, 1), all_real(200), spans=span)
        assert has_target.sum() == num_frames


def test_equal_start_and_end_give_a_token_no_frame():
    weights = spans_to_frame_weights(torch.tensor([[[0.04, 0.04], [0.0, 0.0]]]), all_real(2), FRAME_RATE)
    assert not weights.any()


@pytest.mark.parametrize("span", [(-0.0005, 0.08), (0.08, 0.1605)])
def test_span_is_accepted_when_it_leaves_the_recording_by_less_than_a_millisecond(span):
    weights = spans_to_frame_weights(torch.tensor([[span]]), all_real(2), FRAME_RATE)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "span, message",
    [
        ((0.1, 0.2), r"sample 1 hold 0.100 to 0.200 s \(token 0\), .* inside the recording's 0.16 s"),
        ((-0.1, 0.1), r"sample 1 hold -0.100 to 0.100 s \(token 0\)"),
        ((0.1, 0.05), r"sample 1 hold 0.100 to 0.050 s \(token 0\), but a span must run forward"),
        ((float("nan"), 0.1), r"sample 1 hold nan to 0.100 s \(token 0\)"),
        ((0.0, float("nan")), r"sample 1 hold 0.000 to nan s \(token 0\)"),
        ((0.0, float("inf")), r"sample 1 hold 0.000 to inf s \(token 0\)"),
    ],
    ids=["past the end", "before the start", "reversed", "NaN start", "NaN end", "infinite"],
)
def test_spans_that_cannot_be_laid_out_are_refused(span, message):
    spans = torch.tensor([[(0.0, 0.16)], [span]])  # both recordings have two frames, 0.16 s
    with pytest.raises(ValueError, match=f"token_spans of {message}"):
        spans_to_frame_weights(spans, all_real(2, batch_size=2), FRAME_RATE)


def test_span_may_not_enter_the_padding_of_its_sample():
    frame_mask = mask_from_lengths(torch.tensor([3, 1]), 3)
    with pytest.raises(ValueError, match=r"token_spans of sample 1 .* inside the recording's 0.08 s"):
        spans_to_frame_weights(torch.tensor([[[0.0, 0.2]], [[0.0, 0.2]]]), frame_mask, FRAME_RATE)


@pytest.mark.parametrize(
    "spans, message",
    [
        (torch.zeros(1, 2, 2, dtype=torch.long), "token_spans must be seconds, .* got torch.int64"),
        (torch.zeros(1, 2), r"token_spans must be seconds, .* of shape \(1, 2\)"),
        (torch.zeros(1, 2, 3), r"token_spans must be seconds, .* of shape \(1, 2, 3\)"),
        (torch.zeros(2, 2, 2), "token_spans must have one row for each of the 1 samples, got 2"),
    ],
    ids=["integers", "2-D", "three times a token", "batch"],
)
def test_spans_of_a_wrong_form_are_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        spans_to_frame_weights(spans, all_real(2), FRAME_RATE)


def test_durations_of_spans_are_frames_between_rounded_edges_by_eye():
    spans = torch.tensor([[[0.05, 0.16], [0.16, 0.19], [0.27, 0.4]]])  # edges 0.625, 2, 2, 2.375, 3.375, 5
    durations, token_mask = spans_to_durations(spans, all_real(6), FRAME_RATE)
    assert durations.tolist() == [[1, 1, 0, 0, 1, 2, 1]]
    assert token_mask.tolist() == [[False, True, False, True, False, True, False]]


def test_durations_of_spans_sum_to_the_frames_and_keep_every_edge_within_half_a_frame(ragged_spans):
    spans, frame_mask = ragged_spans
    durations, _ = spans_to_durations(spans, frame_mask, FRAME_RATE)
    assert torch.equal(durations.sum(dim=-1), frame_mask.sum(dim=-1))
    assert bool((durations >= 0).all())
    edges = durations.cumsum(dim=-1)[:, :-1] / FRAME_RATE
    assert (edges - spans.flatten(1)).abs().max() <= 0.5 / FRAME_RATE + 1e-6


def test_durations_of_spans_lay_tokens_out_where_spans_do(ragged_spans):
    spans, frame_mask = ragged_spans
    hidden = torch.randn(8, 6, 3)
    with_silence = torch.full((8, 13, 3), torch.nan)
    with_silence[:, 1::2] = hidden
    durations, token_mask = spans_to_durations(spans, frame_mask, FRAME_RATE)
    targets, has_target = lay_out(with_silence, frame_mask, durations=durations, token_mask=token_mask)
    weights = spans_to_frame_weights(spans, frame_mask, FRAME_RATE)
    assert has_target.any() and bool((weights.sum(dim=-1)[has_target] > 0).all())
    for sample, frame in has_target.nonzero().tolist():
        (token,) = (hidden[sample] == targets[sample, frame]).all(dim=-1).nonzero()[:, 0].tolist()
        assert weights[sample, frame, token] > 0


def test_tokens_that_overlap_divide_the_frames_and_padding_gets_none():
    spans = torch.tensor([[[0.08, 0.32], [0.16, 0.48], [0.0, 0.0], [0.0, 0.0]]])
    durations, _ = spans_to_durations(spans, all_real(7), FRAME_RATE)
    assert durations.tolist() == [[1, 3, 0, 2, 0, 0, 0, 0, 1]]


def test_durations_refuse_a_span_outside_its_recording():
    with pytest.raises(ValueError, match="inside the recording's 0.16 s"):
        spans_to_durations(torch.tensor([[[0.1, 0.2]]]), all_real(2), FRAME_RATE)


BOTH_WAYS = pytest.mark.parametrize(
    "placed",
    [
        {"durations": torch.tensor([[1, 1, 2, 0]])},
        {"spans": torch.tensor([[[0.0, 0.08], [0.08, 0.16], [0.16, 0.32], [0.0, 0.0]]])},
    ],
    ids=["durations", "spans"],
)


@BOTH_WAYS
def test_token_mask_leaves_silence_without_a_target(placed):
    token_mask = torch.tensor([[True, False, True, False]])
    targets, has_target = lay_out(torch.ones(1, 4, 1), all_real(5), token_mask=token_mask, **placed)
    assert has_target.tolist() == [[True, False, True, True, False]]
    assert targets[0, :, 0].tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]


def test_token_mask_may_be_a_tokenizer_s_integers_when_durations_are_given():
    token_mask = torch.tensor([[1, 0]])
    _, has_target = lay_out(torch.ones(1, 2, 1), all_real(2), durations=torch.tensor([[1, 1]]), token_mask=token_mask)
    assert has_target.tolist() == [[True, False]]


def test_frame_shared_with_silence_takes_its_target_from_the_word_alone():
    spans = torch.tensor([[[0.0, 0.06], [0.06, 0.08]]])
    token_mask = torch.tensor([[False, True]])
    targets, _ = lay_out(torch.tensor([[[0.0], [8.0]]]), all_real(1), spans=spans, token_mask=token_mask)
    assert targets.item() == pytest.approx(8.0)


@BOTH_WAYS
def test_nan_in_padded_states_never_reaches_a_target(placed):
    hidden = torch.ones(1, 4, 2)
    hidden[:, 3] = torch.nan  # the token without a frame
    targets, has_target = lay_out(hidden, all_real(5), **placed)
    assert targets[has_target].unique().tolist() == [1.0]
    assert not targets[~has_target].any()


def test_nan_in_the_first_state_never_reaches_a_frame_without_a_token():
    hidden = torch.tensor([[[torch.nan], [1.0]]])
    targets, _ = lay_out(hidden, all_real(2), durations=torch.tensor([[0, 1]]))
    assert targets[0, :, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "placed",
    [{}, {"durations": torch.tensor([[1]]), "spans": torch.zeros(1, 1, 2)}],
    ids=["neither", "both"],
)
def test_exactly_one_of_durations_and_spans_must_be_given(placed):
    with pytest.raises(ValueError, match=r"exactly one of durations \(whole frames\) and token_spans \(seconds\)"):
        lay_out(torch.zeros(1, 1, 1), all_real(1), **placed)


@pytest.mark.parametrize(
    "placed, message",
    [
        ({"durations": torch.ones(1, 2, dtype=torch.long)}, r"durations .* the \(1, 3\) .* got \(1, 2\)"),
        ({"spans": torch.zeros(1, 4, 2)}, r"token_spans .* the \(1, 3\) .* got \(1, 4\)"),
    ],
    ids=["durations", "spans"],
)
def test_every_state_needs_a_place(placed, message):
    with pytest.raises(ValueError, match=message):
        lay_out(torch.zeros(1, 3, 2), all_real(4), **placed)


def literal_pooling(features: Tensor, frame_mask: Tensor) -> Tensor:
    """Mean of the features 4 f - 2 to 4 f + 5 of frame f, those among the 4 n - 1 that its n real frames have."""
    pooled = torch.zeros(*frame_mask.shape, features.shape[-1])
    for sample, frame in frame_mask.nonzero().tolist():
        window = [
            features[sample, index]
            for index in range(4 * frame - 2, 4 * frame + 6)
            if 0 <= index < min(features.shape[1], 4 * int(frame_mask[sample].sum()) - 1)
        ]
        pooled[sample, frame] = torch.stack(window).mean(dim=0)
    return pooled


def test_pooling_averages_windows_of_8_by_eye():
    features = torch.arange(12.0)[None, :, None]  # windows: 0 to 5, 2 to 9, 6 to 10: feature 11 is not read
    assert pool_to_frames(features, all_real(3))[0, :, 0].tolist() == pytest.approx([2.5, 5.5, 8.0])


@pytest.mark.parametrize("num_features", [15, 16, 17, 18, 19, 20])
def test_pooling_equals_a_literal_loop_with_up_to_5_features_missing(num_features):
    torch.manual_seed(0)
    features, frame_mask = torch.randn(3, num_features, 2), mask_from_lengths(torch.tensor([5, 3, 1]), 5)
    torch.testing.assert_close(pool_to_frames(features, frame_mask), literal_pooling(features, frame_mask))


@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_pooling_keeps_a_constant_feature_constant_up_to_the_edges(num_frames, missing):
    pooled = pool_to_frames(torch.full((1, 4 * num_frames - missing, 1), 3.0), all_real(num_frames))
    assert pooled[0, :, 0].tolist() == pytest.approx([3.0] * num_frames)


def test_pooling_gives_a_sample_the_same_values_when_it_is_padded():
    torch.manual_seed(0)
    features = torch.randn(1, 20, 2)
    padded = pool_to_frames(features, mask_from_lengths(torch.tensor([3]), 5))
    torch.testing.assert_close(padded[:, :3], pool_to_frames(features[:, :12], all_real(3)))


def test_nan_in_padded_features_reaches_no_frame():
    torch.manual_seed(0)
    frame_mask = mask_from_lengths(torch.tensor([5, 3]), 5)
    features = torch.randn(2, 20, 2)
    poisoned = features.clone()
    poisoned[1, 12:] = torch.nan
    assert torch.equal(pool_to_frames(poisoned, frame_mask), pool_to_frames(features, frame_mask))


def test_pooled_features_are_zero_on_masked_frames():
    pooled = pool_to_frames(torch.ones(1, 12, 2), mask_from_lengths(torch.tensor([2]), 3))
    assert pooled[0, :, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("num_features", [0, 4, 14, 21])
def test_pooling_refuses_a_number_of_features_that_does_not_fit(num_features):
    message = rf"must have 5 frames \(12.5 Hz\), or 15 to 20 \(50 Hz, pooled here\), .* got {num_features}"
    with pytest.raises(ValueError, match=message):
        pool_to_frames(torch.zeros(1, num_features, 2), all_real(5))


def test_a_mask_of_no_samples_marks_no_audio():
    with pytest.raises(ValueError, match="padding_mask marks no audio in sample 0"):
        right_padded_lengths(torch.zeros(2, 0))
