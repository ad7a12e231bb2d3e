"""The picture of sounds."""

import torch

from mimi_bridge.audio.spectrogram import FLOOR_DB, log_magnitude, save_spectrograms


def test_log_magnitude_is_loudest_at_the_frequency_of_a_tone():
    tone = torch.sin(2 * torch.pi * 3000 * torch.arange(24_000) / 24_000)
    picture = log_magnitude(tone, 24_000)
    assert picture.max() == 0
    assert picture.min() >= FLOOR_DB
    assert int(picture[:, 20].argmax()) == 3000 * 600 // 24_000  # 600-sample window: bins 40 Hz apart


def test_save_spectrograms_writes_a_png_that_grows_with_the_sounds(tmp_path, voiced_audio):
    save_spectrograms(tmp_path / "one.png", {"one": voiced_audio[0]}, 24_000)
    save_spectrograms(tmp_path / "two.png", {"one": voiced_audio[0], "two": voiced_audio[0]}, 24_000)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one.startswith(b"\x89PNG") and two.startswith(b"\x89PNG")
    height = [int.from_bytes(png[20:24], "big") for png in (one, two)]
    assert height[1] == 2 * height[0]
