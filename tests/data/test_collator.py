"""Batches of rows: padded, masked, cropped; every target of a crop is the slice of the uncropped one."""

import math
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor

from mimi_bridge.alignment_targets import align_tokens_to_frames, pool_to_frames
from mimi_bridge.audio.files import load_audio, resample, save_audio
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.frames import num_frames_for

RATE, FRAME = 100, 8  # Hz and samples: 12.5 frames a second, as Mimi has
DIM, QWEN_DIM, WAVLM_DIM = 4, 3, 2
CROP_FRAMES = 6
EPOCHS = range(40)


def new_collator(crop_seconds: float | None = None, seed: int = 0) -> MimiBridgeCollator:
    return MimiBridgeCollator(RATE, FRAME, crop_seconds, seed)


def cropping(epoch: int = 0, seed: int = 0) -> MimiBridgeCollator:
    collator = new_collator(CROP_FRAMES / 12.5, seed)
    collator.set_epoch(epoch)
    return collator


def audio_row(num_samples: int, offset: int = 0, **teachers: Any) -> dict[str, Any]:
    """Samples that count up, so that a crop says where it begins."""
    return {"input_values": offset + np.arange(1, num_samples + 1, dtype=np.float32), **teachers}


def latents_row(num_frames: int, seed: int = 0, **teachers: Any) -> dict[str, Any]:
    """Latents whose first number is the frame's own."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(num_frames, DIM, generator=generator)
    latents[:, 0] = torch.arange(num_frames)
    return {"latents": latents, "target_latents": latents + 1000, **teachers}


def states(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, QWEN_DIM, generator=torch.Generator().manual_seed(seed))


def features(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, WAVLM_DIM, generator=torch.Generator().manual_seed(seed))


DURATIONS = [2, 0, 5, 1, 4, 3, 0, 6]  # 21 frames
SPANS = [[0.03, 0.11], [0.11, 0.115], [0.2, 0.71], [0.71, 0.71], [0.9, 1.02], [1.02, 1.3], [1.3, 1.55]]


# --- sound ---


def test_audio_is_padded_with_silence_to_whole_frames_of_the_longest_row():
    batch = new_collator()([audio_row(13), audio_row(3 * FRAME - 1)])
    assert (batch["input_values"].shape, batch["input_values"].dtype) == ((2, 1, 3 * FRAME), torch.float32)
    assert batch["input_values"][0, 0].tolist() == [*range(1, 14), *[0] * 11]
    assert batch["input_values"][1, 0].tolist() == [*range(1, 24), 0]
    assert batch.keys() == {"input_values", "padding_mask"}


def test_padding_mask_is_1_on_the_samples_that_were_given():
    batch = new_collator()([audio_row(13), audio_row(3 * FRAME - 1), audio_row(3 * FRAME)])
    assert batch["padding_mask"].shape == (3, 3 * FRAME)
    assert [row.tolist() for row in batch["padding_mask"]] == [[1] * n + [0] * (24 - n) for n in (13, 23, 24)]


def test_latents_are_padded_with_zeros_and_masked():
    rows = [latents_row(2), latents_row(5, seed=1)]
    batch = new_collator()(rows)
    assert batch["frame_mask"].tolist() == [[True, True, False, False, False], [True] * 5]
    for name in ("latents", "target_latents"):
        assert torch.equal(batch[name][0, :2], rows[0][name])
        assert not batch[name][0, 2:].any()
        assert torch.equal(batch[name][1], rows[1][name])
    assert batch.keys() == {"latents", "frame_mask", "target_latents"}


def test_rows_without_target_latents_are_named_beside_those_that_have_them():
    rows = [latents_row(2), latents_row(3) | {"target_latents": None}]
    batch = new_collator()(rows)
    assert batch.keys() == {"latents", "frame_mask", "target_latents", "target_mask"}
    assert batch["target_mask"].tolist() == [[True, True, False], [False] * 3]
    assert torch.equal(batch["target_latents"][0, :2], rows[0]["target_latents"])
    assert not batch["target_latents"][1].any()
    assert new_collator()(rows[1:]).keys() == {"latents", "frame_mask"}


def test_half_precision_latents_become_float32():
    row = {"latents": np.ones((3, DIM), dtype=np.float16), "wavlm_features": np.ones((3, 2), dtype=np.float16)}
    batch = new_collator()([row])
    assert {batch["latents"].dtype, batch["wavlm_features"].dtype} == {torch.float32}


SOUND = np.sin(np.arange(40) / 3)


@pytest.mark.parametrize(
    "row",
    [
        {"input_values": SOUND.tolist()},
        {"input_values": torch.from_numpy(SOUND)},
        {"input_values": np.stack([SOUND + 1, SOUND - 1])},
        {"audio": SOUND},
        {"audio": {"array": SOUND, "sampling_rate": RATE}},
        {"audio": None, "input_values": SOUND},
        {"audio": SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=SOUND[None], sample_rate=RATE))},
    ],
    ids=["list", "tensor", "stereo", "array", "dict", "no audio but input_values", "decoder"],
)
def test_audio_is_taken_in_every_form_that_a_row_may_hold(row):
    batch = new_collator()([row])
    np.testing.assert_allclose(batch["input_values"][0, 0], SOUND, atol=1e-6)


@pytest.mark.parametrize("form", ["dict", "decoder"])
def test_audio_of_another_rate_is_resampled(form):
    audio = {
        "dict": {"array": SOUND, "sampling_rate": 50},
        "decoder": SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=SOUND[None], sample_rate=50)),
    }[form]
    batch = new_collator()([{"audio": audio}])
    assert torch.equal(batch["input_values"][0], resample(SOUND, 50, RATE))
    assert batch["input_values"].shape[-1] == 80


@pytest.mark.parametrize("dtype, scale", [(np.int16, 2**15), (np.float32, 1), (np.float64, 1)])
def test_samples_in_16_bits_are_scaled_to_1_and_floats_are_left(dtype, scale):
    given = (np.array([-1.0, 0.5, 0.0, -0.25]) * scale).astype(dtype)
    found = new_collator()([{"input_values": given}])["input_values"]
    assert found[0, 0, :4].tolist() == [-1.0, 0.5, 0.0, -0.25]


@pytest.mark.parametrize("make", [audio_row, latents_row])
def test_row_may_hold_tensors_in_bfloat16_or_with_a_gradient(make):
    row = {name: values for name, values in make(3).items() if name != "target_latents"}
    (name,) = row
    values = torch.as_tensor(row[name])
    expected = new_collator()([{name: values.bfloat16().float()}])
    assert torch.equal(new_collator()([{name: values.bfloat16()}])[name], expected[name])
    assert torch.equal(new_collator()([{name: values.clone().requires_grad_()}])[name], new_collator()([row])[name])


def test_latents_of_two_sizes_share_no_batch():
    with pytest.raises(ValueError, match=r"latents of one batch must have one size, got \[4, 5\]"):
        new_collator()([latents_row(3), {"latents": torch.zeros(3, 5)}])


@pytest.mark.parametrize("rate", [RATE, 50])
def test_audio_is_read_from_its_path_at_any_rate(tmp_path, rate):
    path = tmp_path / "sound.wav"
    save_audio(path, torch.from_numpy(SOUND)[None] / 2, rate)
    batch = new_collator()([{"audio_path": str(path)}])
    assert torch.equal(batch["input_values"][0], load_audio(path, RATE))
    np.testing.assert_allclose(batch["input_values"][0], resample(SOUND / 2, rate, RATE), atol=1e-4)


def test_model_s_own_rate_and_frame_are_taken_from_its_config(tiny_config):
    collator = MimiBridgeCollator.for_model(tiny_config, crop_seconds=1.0, seed=5)
    assert (collator.sampling_rate, collator.frame_size, collator.frame_rate) == (24_000, 1920, 12.5)
    assert (collator.crop_frames, collator.seed) == (12, 5)


@pytest.mark.parametrize("make", [audio_row, latents_row])
def test_batch_asks_for_losses_where_the_collator_is_asked_to(tiny_config, make):
    collator = MimiBridgeCollator.for_model(tiny_config, output_losses=True)
    assert collator([make(5)])["output_losses"] is True
    assert collator.without_crops()([make(5)])["output_losses"] is True
    assert "output_losses" not in MimiBridgeCollator.for_model(tiny_config)([make(5)])


# --- teachers ---


def test_rows_with_and_without_teachers_share_a_batch():
    rows = [
        latents_row(4, qwen_hidden=states(2), durations=[1, 3], wavlm_features=None),
        latents_row(3, qwen_hidden=None, durations=None, wavlm_features=features(3)),
        latents_row(5),
        latents_row(2, qwen_hidden=states(3, 1), durations=[0, 1, 1], wavlm_features=features(2, 1)),
    ]
    batch = new_collator()(rows)
    assert batch["durations"].tolist() == [[1, 3, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert batch["wavlm_mask"].tolist() == [[n < length for n in range(5)] for length in (0, 3, 0, 2)]
    for number, row in enumerate(rows):
        for name in ("qwen_hidden", "wavlm_features"):
            given = row.get(name)
            length = 0 if given is None else len(given)
            assert length == 0 or torch.equal(batch[name][number, :length], given)
            assert not batch[name][number, length:].any()
    assert (batch["qwen_hidden"].shape, batch["wavlm_features"].shape) == ((4, 3, QWEN_DIM), (4, 5, WAVLM_DIM))
    assert "token_mask" not in batch and "token_spans" not in batch


def test_batch_without_teachers_has_no_teachers():
    rows = [audio_row(20, qwen_hidden=None, durations=[1, 2], wavlm_features=None)]
    assert new_collator()(rows).keys() == {"input_values", "padding_mask"}


def test_spans_are_padded_with_spans_of_no_length():
    rows = [latents_row(3), latents_row(4, qwen_hidden=states(2), token_spans=[[0.0, 0.1], [0.1, 0.3]])]
    spans = new_collator()(rows)["token_spans"]
    torch.testing.assert_close(spans, torch.tensor([[[0.0, 0.0]] * 2, [[0.0, 0.1], [0.1, 0.3]]]))


def test_tokens_are_all_targets_in_rows_that_have_no_token_mask():
    rows = [
        latents_row(4, qwen_hidden=states(3), durations=[1, 1, 1], token_mask=[True, False, True]),
        latents_row(4, qwen_hidden=states(2), durations=[1, 1]),
        latents_row(4),
    ]
    mask = new_collator()(rows)["token_mask"]
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, False, True], [True, True, False], [False] * 3]


@pytest.mark.parametrize("length", range(4 * 7 - 5, 4 * 7 + 1))
def test_features_at_50_hz_are_pooled_to_frames(length):
    given = features(length)
    batch = new_collator()([latents_row(7, wavlm_features=given), latents_row(9, wavlm_features=features(9, 1))])
    expected = pool_to_frames(given[None], torch.ones(1, 7).bool())[0]
    assert torch.equal(batch["wavlm_features"][0, :7], expected)
    assert batch["wavlm_mask"].sum(dim=1).tolist() == [7, 9]


def test_rows_are_left_as_they_were():
    row = latents_row(20, qwen_hidden=states(8), durations=[1] * 8, token_mask=[True] * 8, wavlm_features=features(79))
    before = deepcopy(row)
    cropping()([row, latents_row(3)])
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(before[name])) for name, value in row.items())


# --- crops ---


def first_frame(batch: dict[str, Tensor], number: int = 0) -> int:
    """Where the crop of a row begins, from what its samples or latents count."""
    if "latents" in batch:
        return int(batch["latents"][number, 0, 0])
    return (int(batch["input_values"][number, 0, 0]) - 1) // FRAME


def crops(rows: list[dict[str, Any]], **options: int) -> list[dict[str, Tensor]]:
    """The batch of each epoch."""
    return [cropping(epoch, **options)(rows) for epoch in EPOCHS]


@pytest.mark.parametrize("make", [lambda: audio_row(21 * FRAME), lambda: latents_row(21)], ids=["audio", "latents"])
def test_crops_begin_at_every_frame_from_which_enough_is_left(make):
    found = {first_frame(cropping(epoch)([make()])) for epoch in range(300)}
    assert found == set(range(21 - CROP_FRAMES + 1))


def test_crop_is_one_stretch_of_whole_frames_of_everything_that_has_frames():
    row = latents_row(21, wavlm_features=features(21))
    for batch in crops([row]):
        stretch = slice(first_frame(batch), first_frame(batch) + CROP_FRAMES)
        assert all(torch.equal(batch[name][0], row[name][stretch]) for name in row)
        assert batch["frame_mask"].tolist() == [[True] * CROP_FRAMES]


def test_crop_of_audio_is_one_stretch_that_begins_between_frames():
    for batch in crops([audio_row(21 * FRAME)]):
        begin = first_frame(batch) * FRAME + 1
        assert batch["input_values"][0, 0].tolist() == [*range(begin, begin + CROP_FRAMES * FRAME)]
        assert batch["padding_mask"].all()


def test_crop_at_the_end_of_audio_that_ends_inside_a_frame_is_padded_with_silence():
    num_samples = 20 * FRAME + 3
    lengths = set()
    for batch in crops([audio_row(num_samples)]):
        length = min(CROP_FRAMES * FRAME, num_samples - first_frame(batch) * FRAME)
        assert batch["padding_mask"].tolist() == [[1] * length + [0] * (CROP_FRAMES * FRAME - length)]
        assert not batch["input_values"][0, 0, length:].any()
        lengths.add(length)
    assert lengths == {CROP_FRAMES * FRAME, (CROP_FRAMES - 1) * FRAME + 3}


def test_features_at_50_hz_are_pooled_before_they_are_cropped():
    given = features(4 * 21 - 1)
    pooled = pool_to_frames(given[None], torch.ones(1, 21).bool())[0]
    for batch in crops([latents_row(21, wavlm_features=given)]):
        assert torch.equal(batch["wavlm_features"][0], pooled[first_frame(batch) :][:CROP_FRAMES])


@pytest.mark.parametrize("num_frames", [1, CROP_FRAMES - 1, CROP_FRAMES])
def test_row_no_longer_than_a_crop_is_taken_whole(num_frames):
    row = latents_row(num_frames, qwen_hidden=states(1), durations=[num_frames], wavlm_features=features(num_frames))
    whole, cropped = new_collator()([row]), cropping()([row])
    assert whole.keys() == cropped.keys()
    assert all(torch.equal(cropped[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "crop_seconds, num_frames", [(0.08, 1), (0.1599, 1), (0.16, 2), (0.24, 3), (1.0, 12), (2.32, 29)]
)
def test_crop_is_rounded_down_to_frames(crop_seconds, num_frames):
    batch = new_collator(crop_seconds)([latents_row(30)])
    assert batch["latents"].shape[1] == num_frames


def test_same_epoch_takes_the_same_crop_and_another_epoch_another():
    row = latents_row(500)
    once, again = ([first_frame(cropping(epoch)([deepcopy(row)])) for epoch in EPOCHS] for _ in range(2))
    assert once == again
    assert len(set(once)) > len(EPOCHS) / 2


def test_collator_comes_back_to_the_crops_of_an_epoch():
    collator, row, found = cropping(), latents_row(500), []
    for epoch in (3, 7, 3):
        collator.set_epoch(epoch)
        found.append(first_frame(collator([row])))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_stay_alive_take_the_crops_of_each_epoch(context):
    rows = [latents_row(500)] * 2
    collator, options = cropping(), {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": context}
    loader, found = torch.utils.data.DataLoader(rows, collate_fn=collator, **options), []
    for epoch in (0, 1, 2):
        collator.set_epoch(epoch)
        found.append([first_frame(batch) for batch in loader])
    assert found == [[first_frame(cropping(epoch)(rows[:1]))] * 2 for epoch in (0, 1, 2)]
    assert len({crop for (crop, _) in found}) > 1


def test_collator_without_crops_takes_whole_recordings_and_leaves_the_other_as_it_was():
    collator = cropping()
    assert collator.without_crops()([latents_row(50)])["latents"].shape[1] == 50
    assert collator([latents_row(50)])["latents"].shape[1] == CROP_FRAMES


def test_another_seed_takes_other_crops():
    row = latents_row(500)
    one, other = ([first_frame(batch) for batch in crops([row], seed=seed)] for seed in (0, 1))
    assert sum(a != b for a, b in zip(one, other, strict=True)) > len(EPOCHS) / 2


@pytest.mark.parametrize("sound", ["audio", "latents"])
def test_crop_of_a_row_is_the_same_whatever_rows_are_beside_it_in_whatever_order(sound):
    def make(number: int) -> dict[str, Any]:
        if sound == "audio":
            return audio_row((200 + number) * FRAME, offset=FRAME * number)
        return latents_row(200 + number, seed=number)

    collator, rows, name = cropping(epoch=2), [make(n) for n in range(5)], "input_values"
    name = "latents" if sound == "latents" else name
    alone = [collator([row])[name][0] for row in rows]
    together, reversed_order = collator(rows)[name], collator(rows[::-1])[name].flip(0)
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(reversed_order, together)


def test_rows_of_one_length_take_crops_of_their_own():
    batch = cropping()([latents_row(500, seed=seed) for seed in range(20)])
    assert len({first_frame(batch, number) for number in range(20)}) > 10


# --- tokens in crops, frame by frame ---


def targets_by_frame(batch: dict[str, Tensor], num_frames: int) -> tuple[Tensor, Tensor]:
    frame_mask = torch.ones(1, num_frames).bool()
    placed = (batch.get("durations"), batch.get("token_spans"), batch.get("token_mask"))
    return align_tokens_to_frames(batch["qwen_hidden"], frame_mask, 12.5, *placed)


TOKENS = {
    "durations": {"durations": DURATIONS},
    "spans": {"token_spans": SPANS},
    "durations that end early": {"durations": [1, 3, 2]},
    "spans that begin late": {"token_spans": [[1.1, 1.31], [1.31, 1.64]]},
    "one long span": {"token_spans": [[0.01, 1.67]]},
    "one long duration": {"durations": [21]},
    "spans to the last frame's end": {"token_spans": [[0.0, 0.4], [0.4, 1.2], [1.2, 1.68]]},
    "overlapping spans": {"token_spans": [[0.0, 0.5], [0.3, 0.9], [0.8, 1.5], [0.1, 1.6]]},
}


@pytest.mark.parametrize("with_mask", [False, True], ids=["all targets", "token_mask"])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_targets_of_a_crop_are_the_slice_of_the_targets_of_the_whole(tokens, with_mask):
    num_tokens = len(next(iter(tokens.values())))
    row = latents_row(21, qwen_hidden=states(num_tokens), **tokens)
    if with_mask:
        row["token_mask"] = [number % 3 != 0 for number in range(num_tokens)]
    whole, has_target = targets_by_frame(new_collator()([row]), 21)
    beginnings = set()
    for epoch in range(120):
        batch = cropping(epoch)([row])
        stretch = slice(first_frame(batch), first_frame(batch) + CROP_FRAMES)
        targets, mask = targets_by_frame(batch, CROP_FRAMES)
        assert torch.equal(mask, has_target[:, stretch])
        torch.testing.assert_close(targets, whole[:, stretch], rtol=1e-3, atol=1e-4)
        beginnings.add(stretch.start)
    assert beginnings == set(range(21 - CROP_FRAMES + 1))


def test_token_over_the_edge_of_a_crop_keeps_the_part_inside_by_hand():
    row = latents_row(7, qwen_hidden=states(3), durations=[3, 2, 2])
    by_first = {0: [3, 2, 1], 1: [2, 2, 2]}
    spans = {0: [[0.0, 0.24], [0.24, 0.4], [0.4, 0.48]], 1: [[0.0, 0.16], [0.16, 0.32], [0.32, 0.48]]}
    in_seconds = latents_row(7, qwen_hidden=states(3), token_spans=[[0.0, 0.24], [0.24, 0.4], [0.4, 0.56]])
    seen = set()
    for batch, other in zip(crops([row]), crops([in_seconds]), strict=True):
        first = first_frame(batch)
        assert batch["durations"].tolist() == [by_first[first]]
        torch.testing.assert_close(other["token_spans"], torch.tensor([spans[first_frame(other)]]))
        seen.add(first)
    assert seen == {0, 1}


def test_tokens_outside_a_crop_are_left_out_of_the_batch():
    row = latents_row(21, qwen_hidden=states(21), durations=[1] * 21, token_mask=[n % 2 == 0 for n in range(21)])
    for batch in crops([row]):
        first = first_frame(batch)
        assert torch.equal(batch["qwen_hidden"][0], row["qwen_hidden"][first : first + CROP_FRAMES])
        assert batch["token_mask"].tolist() == [row["token_mask"][first : first + CROP_FRAMES]]


def test_crop_in_which_no_token_lies_has_no_target_and_can_still_be_batched():
    row = latents_row(200, qwen_hidden=states(1), durations=[1])
    batch = next(batch for batch in crops([row]) if first_frame(batch) > 0)
    assert batch["qwen_hidden"].shape == (1, 1, QWEN_DIM)
    assert not targets_by_frame(batch, CROP_FRAMES)[1].any()


def test_audio_and_latents_of_a_crop_have_frames_for_their_targets():
    row = audio_row(20 * FRAME + 3, qwen_hidden=states(8), durations=DURATIONS, wavlm_features=features(21))
    for batch in crops([row]):
        assert num_frames_for(batch["input_values"].shape[-1], FRAME) == CROP_FRAMES
        assert int(batch["durations"].sum()) == batch["wavlm_features"].shape[1] == CROP_FRAMES


# --- errors ---

TOKENS_OF_TWO = {"qwen_hidden": states(2), "durations": [1, 1]}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, r"row 1 of the batch holds neither audio, input_values, audio_path nor latents; its columns are \[\]"),
        ({"id": "a7", "text": "x"}, r"row 'a7' holds neither audio.* its columns are \['id', 'text'\]"),
        (
            {"input_values": np.zeros((1, 2, 9))},
            r"audio of row 1 of the batch must be samples, .* got \(1, 2, 9\)",
        ),
        ({"id": 3, "input_values": []}, "audio of row '3' holds no audio"),
        ({"input_values": [0.0, math.nan]}, "audio of row 1 of the batch holds NaN or infinity"),
        (audio_row(9) | {"qwen_hidden": states(2)}, "row 1 of the batch has qwen_hidden and needs .* exactly one"),
        (
            audio_row(9) | TOKENS_OF_TWO | {"token_spans": [[0.0, 0.0]] * 2},
            "row 1 of the batch has qwen_hidden and needs durations or token_spans beside it, exactly one",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2)[0], "durations": [1]},
            r"qwen_hidden of row 1 .* 2 axes, got shape \(3,\)",
        ),
        (
            audio_row(9) | TOKENS_OF_TWO | {"durations": [1]},
            "row 1 of the batch has 2 vectors of qwen_hidden, but 1 places",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2), "token_spans": [[0.0, 0.1]] * 3},
            "row 1 of the batch has 2 vectors of qwen_hidden, but 3 places in time",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2), "token_spans": [0.0, 0.1]},
            r"token_spans of row 1 of the batch must have the shape \(any, 2\), got shape \(2,\)",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(1), "token_spans": [[0.0, math.inf]]},
            "token_spans of row 1 of the batch hold NaN or infinity; compute them again",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2) / 0, "durations": [1, 1]},
            "qwen_hidden of row 1 of the batch hold NaN",
        ),
        (
            audio_row(9) | TOKENS_OF_TWO | {"durations": [1, 2]},
            r"the tokens of row 1 .* beyond its 2 frames of 0\.080 s",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2), "token_spans": [[0.0, 0.1], [0.1, 0.3]]},
            "the tokens of row 1 of the batch reach beyond its 2 frames of .* aligned to another recording",
        ),
        (
            audio_row(9) | {"wavlm_features": features(9)},
            r"row 1 of the batch: wavlm_features must have 2 frames .* got 9",
        ),
        (
            audio_row(9) | {"wavlm_features": np.zeros(2)},
            r"wavlm_features of row 1 .* must have 2 axes, got shape \(2,\)",
        ),
        (audio_row(9) | {"wavlm_features": np.full((2, 2), np.nan)}, "wavlm_features of row 1 of the batch hold NaN"),
        (latents_row(3), "a batch must hold audio or latents, not both; got rows of either kind"),
        ({"latents": torch.zeros(3)}, r"latents of row 1 of the batch must have 2 axes, got shape \(3,\)"),
        ({"latents": torch.full((3, DIM), torch.inf)}, "latents of row 1 of the batch hold NaN or infinity"),
        (
            latents_row(3) | {"target_latents": torch.zeros(2, DIM)},
            r"target_latents of row 1 .* shape of its latents, \(3, 4\), got \(2, 4\)",
        ),
        (
            audio_row(9) | {"qwen_hidden": states(2), "token_spans": [[0.0, 0.0], [0.0, 0.1]]},
            "tokens of one batch must all be placed by durations, or all by token_spans; got both",
        ),
        (
            audio_row(9) | {"qwen_hidden": np.zeros((1, 5)), "durations": [1]},
            r"qwen_hidden of one batch must have one size, got \[3, 5\]",
        ),
        ("a.wav", "row 1 of the batch must be a dict of columns, got str; a recording alone is such a row as"),
        (None, "row 1 of the batch must be a dict of columns, got NoneType"),
        (
            {"audio": {"array": SOUND}},
            "audio of row 1 .* needs its sampling_rate in Hz, .* got None; for samples at 100",
        ),
        ({"audio": {"array": SOUND, "sampling_rate": "100"}}, "needs its sampling_rate in Hz, .* got '100'"),
        ({"audio": {"array": SOUND, "sampling_rate": 0}}, "needs its sampling_rate in Hz, .* got 0"),
        ({"audio": {"array": SOUND, "sampling_rate": 22.5}}, r"needs its sampling_rate in Hz, .* got 22\.5"),
        (
            {"audio": {"array": None, "sampling_rate": 100}},
            r"audio of row 1 of the batch holds neither array, bytes nor path, only \['array', 'sampling_rate'\]",
        ),
        ({"audio": {}}, r"holds neither array, bytes nor path, only \[\]; drop the row"),
        ({"audio": ["a", "b"]}, r"audio of row 1 of the batch must be numbers, got \['a', 'b'\]"),
        ({"audio": object()}, "audio of row 1 of the batch must be numbers in rows of one length, got <object"),
        ({"audio": [[1.0], [1.0, 2.0]]}, "audio of row 1 of the batch must be numbers in rows of one length"),
        ({"audio": SOUND > 0}, r"must be floats in \[-1, 1\] or integers of 16 bits, got bool; divide it by its full"),
        (
            {"audio": (100 * SOUND).astype(np.int32)},
            "integers of 16 bits, got int32; divide it by its full scale, 2147",
        ),
        ({"audio": (100 + SOUND).astype(np.uint8)}, "integers of 16 bits, got uint8"),
        ({"audio": [0, 32768]}, "integers of 16 bits, got int64 from 0 to 32768"),
        ({"latents": [[1.0, 2.0], [1.0]]}, "latents of row 1 of the batch must be numbers in rows of one length"),
        ({"latents": [[1.0, None]]}, "latents of row 1 of the batch hold NaN"),
        (audio_row(9) | {"qwen_hidden": 3.0, "durations": [1]}, r"qwen_hidden of row 1 .* 2 axes, got shape \(\)"),
        (
            audio_row(9) | TOKENS_OF_TWO | {"token_mask": "ab"},
            "token_mask of row 1 of the batch must be numbers, got 'ab'",
        ),
    ],
)
def test_row_that_does_not_fit_is_refused_and_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        new_collator()([audio_row(20, **TOKENS_OF_TWO), wrong])


def test_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="a batch needs at least one row, got none"):
        new_collator()([])


@pytest.mark.parametrize("crop_seconds", [0.0, 0.0799])
def test_crop_that_holds_no_frame_is_refused(crop_seconds):
    with pytest.raises(ValueError, match=rf"crop_seconds must hold a frame of 0\.080 s, got {crop_seconds}"):
        new_collator(crop_seconds)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_samples_in_16_bits_are_scaled_however_the_data_set_gives_them(form):
    features = Features({"input_values": List(Value("int16"))})
    row = Dataset.from_dict({"input_values": [[16384, -32768]]}, features=features).with_format(form)[0]
    batch = MimiBridgeCollator(24_000, 1920)([row])
    assert batch["input_values"][0, 0, :3].tolist() == [0.5, -1.0, 0.0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"durations": [1, 2], "token_mask": [1]}, "token_mask of row 0 .* each of its 2 tokens"),
        ({"durations": [0.9, 1.9]}, "durations of row 0 .* must be whole frames"),
        ({"durations": [3, -2]}, "durations of row 0 .* none negative"),
        ({"token_spans": [[0.2, 0.1], [0.2, 0.3]]}, "token_spans of row 0 .* start <= end"),
        ({"token_spans": [[-1, 0.1], [0.2, 0.3]]}, "token_spans of row 0 .* from 0 on"),
        ({"token_spans": [[0, 0.1], [0.2, 0.35]]}, "the tokens of row 0 of the batch reach beyond its 4 frames"),
    ],
)
@pytest.mark.parametrize("crop_seconds", [None, 0.16])
def test_tokens_that_cannot_be_are_refused_even_where_they_are_cropped_away(crop_seconds, wrong, message):
    collate = MimiBridgeCollator(24_000, 1920, crop_seconds)
    row = {"latents": torch.zeros(4, 5), "qwen_hidden": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        collate([row | wrong])


@pytest.mark.parametrize("crop_seconds", [0.01, -1.0])
def test_crop_without_a_frame_is_refused(crop_seconds):
    with pytest.raises(ValueError, match="crop_seconds must hold a frame"):
        MimiBridgeCollator(24_000, 1920, crop_seconds)


def test_row_without_tokens_is_a_row_without_text():
    row = {"latents": torch.zeros(4, 5), "qwen_hidden": [], "token_spans": []}
    assert "qwen_hidden" not in MimiBridgeCollator(24_000, 1920)([row])


def test_rate_may_be_a_number_of_a_data_set_in_numpy_s_format():
    batches = [
        MimiBridgeCollator(10, 100)([{"audio": {"array": SOUND, "sampling_rate": rate}}])["input_values"]
        for rate in (100, np.array(100), torch.tensor(100))
    ]
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
