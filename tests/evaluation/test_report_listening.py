"""Sounds and pictures of the page's examples."""

import io
from base64 import b64decode

import numpy as np
import pytest
import soundfile
import torch

from mimi_bridge.evaluation.report.listening import SAMPLING_RATE, mp3, prepare_listening, sound_file, time_ticks
from mimi_bridge.evaluation.report.values import Values


def listening(folder, evaluation, max_bytes=1_000_000):
    return prepare_listening(folder, Values(evaluation), max_bytes)


def test_mp3_is_as_long_and_nearly_as_the_sound(speech):
    audio = speech[0, : 3 * SAMPLING_RATE]
    decoded, rate = soundfile.read(io.BytesIO(mp3(audio)), dtype="float32")
    assert rate == SAMPLING_RATE
    assert abs(len(decoded) - len(audio)) < 0.06 * SAMPLING_RATE
    length = min(len(decoded), len(audio))
    error = torch.from_numpy(decoded[:length]) - audio[:length]
    assert error.square().sum() < 0.01 * audio.square().sum()


def test_page_holds_the_sound_of_each_system(short):
    folder, evaluation = short
    example = listening(folder, evaluation).examples[0]
    assert [sound.label for sound in example.sounds] == [system["label"] for system in evaluation["systems"]]
    assert example.seconds == 0.2
    for sound, system in zip(example.sounds, evaluation["systems"], strict=True):
        embedded, _ = soundfile.read(io.BytesIO(b64decode(sound.audio.split(",")[1])))
        original, _ = soundfile.read(folder / evaluation["examples"][0]["audio"][system["name"]])
        error = embedded[: len(original)] - original
        assert (error**2).sum() < 0.05 * (original**2).sum()


def test_sound_whose_file_is_missing_is_said_to_be(short):
    folder, evaluation = short
    example = evaluation["examples"][0]
    (folder / example["audio"]["mimi_8"]).unlink()
    del example["audio"]["bridge_1"]
    sounds = {sound.label: sound for sound in listening(folder, evaluation).examples[0].sounds}
    assert sounds["stock Mimi, 8 codebooks"].missing == f"no file {example['audio']['mimi_8']}"
    assert sounds["content alone"].missing == "not decoded"
    assert sounds["original"].audio and not sounds["original"].missing


@pytest.mark.parametrize(
    "samples, reason", [(None, "is not audio"), ([], "holds no audio"), ([0.0, np.nan], "holds NaN")]
)
def test_sound_that_cannot_be_read_is_said_to_be_and_costs_no_other(short, samples, reason):
    folder, evaluation = short
    path = folder / evaluation["examples"][0]["audio"]["original"]
    path.write_text("no sound")
    if samples is not None:
        soundfile.write(path, np.array(samples), SAMPLING_RATE, subtype="FLOAT")
    sounds = listening(folder, evaluation).examples[0].sounds
    assert reason in sounds[0].missing and not sounds[0].audio
    assert all(sound.audio and not sound.missing for sound in sounds[1:])


def test_system_that_the_list_lacks_is_shown_by_its_name(short):
    folder, evaluation = short
    evaluation["systems"] = evaluation["systems"][:1]
    figure = listening(folder, evaluation).examples[0]
    assert [sound.label for sound in figure.sounds] == ["original", "mimi_8", "bridge_9", "bridge_2", "bridge_1"]
    assert {index for index, _, _ in figure.pitch.lines} <= set(range(5))


def test_example_without_sounds_keeps_its_pitch_and_codes(short):
    folder, evaluation = short
    evaluation["examples"][0] |= {"audio": {}, "f0_hz": {"original": [100.0] * 50}}
    figure = listening(folder, evaluation).examples[0]
    assert figure.seconds == 0.5
    assert figure.pitch and [stripe.head for stripe in figure.codes] == ["content", "prosody", "acoustic"]
    assert [len(stripe.numbers) for stripe in figure.codes] == [1, 1, 7]


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/hostname", "audio/../../x.wav"])
def test_sound_outside_the_folder_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="must lie inside"):
        sound_file(tmp_path, path)


def test_silence_is_white(short, spoken):
    folder, evaluation = short
    samples = torch.zeros(4_800).numpy()
    soundfile.write(folder / evaluation["examples"][0]["audio"]["original"], samples, SAMPLING_RATE)
    sound = listening(folder, evaluation).examples[0].sounds[0]
    from matplotlib.image import imread

    assert imread(io.BytesIO(b64decode(sound.spectrogram.split(",")[1])), format="png")[..., :3].min() == 1


def test_limit_is_kept_by_examples_and_swaps_each(short):
    folder, evaluation = short
    evaluation["examples"] *= 10
    audio = evaluation["examples"][0]["audio"]["original"]
    evaluation["swaps"] = [{"content_of": "a", "voice_of": "b", "audio": audio, "numbers": {}}] * 10
    weight = listening(folder, evaluation).examples[0].num_bytes
    limited = listening(folder, evaluation, max_bytes=3 * weight)
    assert len(limited.examples) == 3 and limited.num_left_out["examples"] == 7
    assert 0 < len(limited.swaps) < 10 and limited.num_left_out["swaps"] == 10 - len(limited.swaps)


@pytest.mark.parametrize(
    "seconds, labels", [(0.0, []), (0.2, ["0"]), (3.0, ["0", "0.5"]), (4.7, ["0", "1"]), (900.0, ["0", "300"])]
)
def test_time_axis_has_few_labels(seconds, labels):
    ticks = time_ticks(seconds)
    assert [label for label, _ in ticks][:2] == labels
    assert len(ticks) <= 9 and all(0 <= share <= 1 for _, share in ticks)
