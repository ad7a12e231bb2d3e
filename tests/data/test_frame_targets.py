"""What is known of each frame: phones, pitch, level and voicing, against slow loops; and how batches carry it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.frame_targets import (
    LEVEL_UNIT,
    MIN_LEVEL_DB,
    PHONES,
    PITCH_UNIT,
    UNKNOWN,
    level_by_step,
    phone_number,
    phones_by_frame,
    prosody_by_frame,
)

RATE, FRAME, FRAME_RATE = 100, 8, 12.5
SAID = [("HH", 0.0, 0.1), ("AH0", 0.1, 0.27), ("L", 0.27, 0.3), ("spn", 0.5, 0.7), ("OW1", 0.72, 0.96)]
EVERYTHING = ("phones", "prosody", "speaker")


def phones(*said: tuple[str, float, float]) -> list[dict[str, Any]]:
    return [{"phone": label, "start": start, "end": end} for label, start, end in said or SAID]


def row(num_frames: int, seed: int = 0, **other: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    steps = num_frames * FRAME
    f0 = random.uniform(80, 300, steps) * (random.uniform(size=steps) < 0.6)
    return {
        "input_values": np.arange(steps, dtype=np.float32) + 1000 * seed,
        "f0_hz": f0.astype(np.float32),
        "level_db": random.uniform(-60, -10, steps).astype(np.float32),
        "phones": phones(),
        "speaker": f"speaker{seed}",
        **other,
    }


def collator(crop_seconds: float | None = None, **options: Any) -> MimiBridgeCollator:
    made = MimiBridgeCollator(RATE, FRAME, crop_seconds)
    return made.with_frame_targets(EVERYTHING, {"speaker0": 0, "speaker1": 1}, **options)


# --- phones ---


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        *(("AA1", "AA"), ("aa", "AA"), ("ZH", "ZH"), ("ng", "NG")),
        *(("SIL", "SIL"), ("sp", "SIL"), ("", "SIL"), ("<sil>", "SIL")),
        *(("spn", None), ("+NOISE+", None), ("ʃ", None), ("AA3", None)),
    ],
)
def test_phone_has_one_number_whatever_its_case_and_stress(label, expected):
    assert phone_number(label) == (UNKNOWN if expected is None else PHONES.index(expected))


def test_inventory_is_the_39_of_arpabet_and_silence():
    assert len(PHONES) == len(set(PHONES)) == 40


def test_frame_has_the_phone_that_covers_most_of_it_and_is_silence_where_phones_cover_less_than_half():
    found = phones_by_frame(phones(), 14, FRAME_RATE, "row")
    slow = []
    for frame in range(14):
        first, last = frame / FRAME_RATE, (frame + 1) / FRAME_RATE
        covered = [max(0.0, min(end, last) - max(start, first)) for _, start, end in SAID]
        label = SAID[int(np.argmax(covered))][0] if sum(covered) >= 0.04 else "SIL"
        slow.append(phone_number(label))
    assert found.tolist() == slow
    assert {PHONES[number] for number in slow if number >= 0} == {"HH", "AH", "SIL", "OW"} and UNKNOWN in slow


def test_recording_without_phones_says_nothing_of_any_frame():
    assert phones_by_frame([], 3, FRAME_RATE, "row").tolist() == [UNKNOWN] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([{"label": "AA", "start": 0, "end": 1}], "phones of row 'x' must be mappings of phone, start and end"),
        (["AA", "B"], "phones of row 'x' must be mappings of phone, start and end"),
        (phones(("AA", 0.5, 0.1)), "phones of row 'x' must begin before they end"),
        (phones(("AA", 0.0, math.nan)), "phones of row 'x' must begin before they end"),
    ],
)
def test_phones_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        collator()([row(4, id="x") | {"phones": wrong}])


# --- prosody ---


def test_prosody_is_what_a_slow_loop_over_the_steps_gives():
    given = row(9, seed=3)
    f0, level = given["f0_hz"][:-3], given["level_db"][:-3]
    found = prosody_by_frame(torch.tensor(f0), torch.tensor(level), 9, FRAME_RATE, "row")
    pitch, loudness, voicing = [], [], []
    for frame in range(9):
        steps, power = f0[8 * frame : 8 * frame + 8], 10 ** (level[8 * frame : 8 * frame + 8].astype(float) / 10)
        voiced = [math.log(value) for value in steps if value > 0]
        voicing.append(float(2 * len(voiced) >= len(steps)))
        pitch.append(sum(voiced) / len(voiced) if voicing[-1] else math.nan)
        loudness.append(10 * math.log10(power.mean()))
    expected = [
        (np.array(pitch) - np.nanmean(pitch)) / PITCH_UNIT,
        (np.array(loudness) - np.mean(loudness)) / LEVEL_UNIT,
        np.array(voicing),
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), atol=1e-5)
    assert 0 < sum(voicing) < 9


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_prosody_does_not_tell_how_high_or_loud_a_voice_is(factor):
    given = row(9, seed=3)
    f0, level = torch.tensor(given["f0_hz"]), torch.tensor(given["level_db"])
    plain = prosody_by_frame(f0, level, 9, FRAME_RATE, "row")
    other = prosody_by_frame(factor * f0, level + 5 * factor - 2, 9, FRAME_RATE, "row")
    torch.testing.assert_close(other, plain, equal_nan=True, atol=1e-4, rtol=0)


def test_steps_of_another_recording_are_refused():
    with pytest.raises(
        ValueError, match=r"f0_hz of row 'x' must have 64 to 73 steps at 100 Hz for its 9 frames, got 8"
    ):
        collator()([row(9, id="x") | {"f0_hz": np.ones(80, np.float32)}])


def test_level_is_the_power_of_ten_milliseconds_and_has_a_floor():
    audio = np.concatenate([np.full(240, 0.1), np.full(240, 1.0), np.zeros(300)]).astype(np.float32)
    np.testing.assert_allclose(level_by_step(audio, 24_000), [-20, 0, MIN_LEVEL_DB, MIN_LEVEL_DB], atol=1e-5)


# --- batches ---


def test_batch_holds_nothing_of_it_unless_it_is_asked_for():
    batch = MimiBridgeCollator(RATE, FRAME)([row(5), row(3, seed=1)])
    assert batch.keys() == {"input_values", "padding_mask"}


def test_batch_holds_unknown_in_padding_and_where_a_row_has_nothing():
    bare = {"input_values": np.ones(4 * FRAME, np.float32), "speaker": "somebody"}
    batch = collator()([row(5), bare, row(3, seed=1)])
    assert batch["phone_ids"].shape == (3, 5) and batch["phone_ids"].dtype == torch.int64
    assert (batch["phone_ids"][1] == UNKNOWN).all() and (batch["phone_ids"][2, 3:] == UNKNOWN).all()
    assert not batch["prosody_mask"][1].any() and not batch["prosody_mask"][2, 3:].any()
    assert batch["prosody_mask"][0, :, 1:].all() and batch["prosody_targets"].isfinite().all()
    assert torch.equal(batch["prosody_mask"][0, :, 0], batch["prosody_targets"][0, :, 2] == 1)
    assert batch["speaker_ids"].tolist() == [0, UNKNOWN, 1]


@pytest.mark.parametrize("epoch", range(5))
def test_targets_of_a_crop_are_the_slice_of_the_uncropped_ones(epoch):
    cropping = collator(5 / FRAME_RATE)
    cropping.set_epoch(epoch)
    given = row(14)
    whole, crop = collator()([given]), cropping([given])
    first = int(crop["input_values"][0, 0, 0]) // FRAME
    for name in ("phone_ids", "prosody_targets", "prosody_mask"):
        assert torch.equal(crop[name][0], whole[name][0, first : first + 5]), name


@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_rows_of_a_data_set_in_any_format_give_the_same(format):
    rows = [row(5), row(14, seed=1)]
    expected = collator()(rows)
    data = Dataset.from_list(rows).with_format(format)
    batch = collator()([data[0], data[1]])
    for name in ("phone_ids", "prosody_targets", "prosody_mask", "speaker_ids"):
        assert torch.equal(batch[name], expected[name]), name


def test_unknown_frame_target_is_refused():
    message = "frame targets must be among phones, characters, prosody, speaker, got words"
    with pytest.raises(ValueError, match=message):
        MimiBridgeCollator(RATE, FRAME).with_frame_targets(["words"])


def test_evaluations_collator_keeps_the_targets_and_the_epoch_is_one():
    cropping = collator(5 / FRAME_RATE)
    whole = cropping.without_crops()
    cropping.set_epoch(3)
    assert whole.epoch == 3 and "phone_ids" in whole([row(14)])
