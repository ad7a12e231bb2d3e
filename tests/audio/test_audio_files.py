"""Recordings at the border: rates, channels, formats, and what is no recording."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mimi_bridge.audio import files as audio_module
from mimi_bridge.audio import reading as audio_reading
from mimi_bridge.audio.files import WRITTEN, load_audio, resample, save_audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_load_audio_reads_common_formats_at_the_wanted_rate(tmp_path, tone, suffix):
    soundfile.write(tmp_path / f"tone.{suffix}", tone, 48_000)
    audio = load_audio(tmp_path / f"tone.{suffix}", 24_000)
    assert audio.dtype == torch.float32
    assert audio.shape[0] == 1
    assert abs(audio.shape[1] - 12_000) <= 1200  # mp3 adds a few hundred samples of its own
    spectrum = torch.fft.rfft(audio[0, 2000:10_000] * torch.hann_window(8000)).abs()
    assert abs(int(spectrum.argmax()) * 24_000 / 8000 - 440) <= 3


def test_load_audio_averages_channels(tmp_path):
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 24_000, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "stereo.wav", 24_000), torch.full((1, 100), 0.125))


def test_resample_leaves_audio_alone_when_the_rate_is_right(tone):
    assert np.array_equal(resample(tone, 24_000, 24_000)[0].numpy(), tone)


def test_resample_removes_what_the_lower_rate_cannot_hold():
    above = np.sin(2 * np.pi * 15_000 * np.arange(48_000) / 48_000).astype(np.float32)
    assert resample(above, 48_000, 24_000)[0, 500:-500].abs().max() < 1e-3


def test_load_audio_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such recording: .*nothing\.wav"):
        load_audio(tmp_path / "nothing.wav", 24_000)


def test_load_audio_names_a_file_that_is_no_audio(tmp_path):
    (tmp_path / "letter.wav").write_text("Dear Sir,")
    with pytest.raises(ValueError, match=r"letter\.wav is not audio"):
        load_audio(tmp_path / "letter.wav", 24_000)


def test_load_audio_names_an_empty_recording(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 24_000)
    with pytest.raises(ValueError, match=r"empty\.wav holds no audio"):
        load_audio(tmp_path / "empty.wav", 24_000)


def test_load_audio_names_a_recording_with_nan(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 24_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        load_audio(tmp_path / "nan.wav", 24_000)


def test_save_audio_writes_what_load_audio_reads(tmp_path):
    audio = torch.linspace(-0.9, 0.9, 2400)[None]
    save_audio(tmp_path / "new" / "ramp.wav", audio, 24_000)
    torch.testing.assert_close(load_audio(tmp_path / "new" / "ramp.wav", 24_000), audio, atol=1 / 32_768, rtol=0)


def test_save_audio_refuses_a_format_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match=r"must end in a format.*'\.docx'"):
        save_audio(tmp_path / "sound.docx", torch.zeros(1, 10), 24_000)


def test_save_audio_leaves_an_existing_file_whole_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "kept.wav"
    save_audio(path, torch.full((1, 10), 0.5), 24_000)
    before = path.read_bytes()

    def fail_half_way(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_audio(path, torch.zeros(1, 10), 24_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_long_recording_is_read_block_by_block_as_if_at_once(tmp_path, monkeypatch, rate):
    samples = np.random.default_rng(0).uniform(-1, 1, (10_000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", samples, rate, subtype="FLOAT")
    at_once = resample(samples.mean(axis=1), rate, 24_000)
    monkeypatch.setattr(audio_module, "BLOCK", 999)
    monkeypatch.setattr(audio_reading, "BLOCK", 999)
    assert torch.equal(load_audio(tmp_path / "noise.wav", 24_000), at_once)
    save_audio(tmp_path / "again.wav", at_once, 24_000)
    assert torch.allclose(load_audio(tmp_path / "again.wav", 24_000), at_once.clamp(-1, 1), atol=1 / 32_000)


def test_hours_of_audio_are_held_once(tmp_path):
    rate, seconds = 48_000, 150
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 2) as file:
        for second in range(seconds):
            file.write(np.full((rate, 2), 0.1 + second / 1e3))
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")  # resets the peak
    except OSError:
        pytest.skip("this system does not tell a process's peak memory")

    def mebibytes(name: str) -> float:
        return int(status.read_text().partition(f"{name}:")[2].split()[0]) / 1024

    before = mebibytes("VmRSS")
    audio = load_audio(tmp_path / "long.wav", 24_000)
    held = audio.numel() * audio.element_size() / 2**20
    assert held == pytest.approx(seconds * 24_000 * 4 / 2**20)
    assert mebibytes("VmHWM") - before < 1.5 * held + 8  # stereo at 48 kHz would be four times as much


@pytest.mark.parametrize("suffix", WRITTEN)
def test_save_audio_writes_every_suffix_that_it_names(tmp_path, suffix):
    save_audio(tmp_path / f"tone{suffix}", torch.linspace(-0.5, 0.5, 24_000)[None], 24_000)
    assert load_audio(tmp_path / f"tone{suffix}", 24_000).shape == (1, 24_000)


def test_save_audio_names_a_rate_that_the_format_does_not_take(tmp_path):
    with pytest.raises(ValueError, match=r"x\.opus cannot be written at 22050 Hz with 1 channel.*such as \.wav"):
        save_audio(tmp_path / "x.opus", torch.zeros(1, 100), 22_050)
    assert list(tmp_path.iterdir()) == []


def test_save_audio_names_a_full_disk(tmp_path, small_files):
    with small_files(), pytest.raises(OSError, match=r"x\.wav cannot be written \(.*\); make room"):
        save_audio(tmp_path / "x.wav", torch.zeros(1, 400_000), 24_000)
    assert list(tmp_path.iterdir()) == []


def test_save_audio_and_load_audio_take_a_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    save_audio(path, torch.zeros(1, 100), 24_000)
    assert load_audio(path, 24_000).shape == (1, 100)
