"""The demonstration, with the small codec."""

import json

import pytest
import torch
from transformers import AutoModel

from mimi_bridge.audio.files import load_audio, save_audio
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.cli import demo
from mimi_bridge.codes.file import load_codes


@pytest.fixture(autouse=True)
def no_speech_is_given(monkeypatch):
    monkeypatch.delenv(SPEECH_VARIABLE, raising=False)


def test_demo_leaves_proof_sounds_codes_and_picture(tmp_path, capfd):
    demo.run_demo(tmp_path / "demo", training=False)
    printed = capfd.readouterr().out
    assert "waveform max |Δ| 0 " in printed
    for line in printed.splitlines()[-5:]:
        assert (tmp_path / "demo" / line.strip().split("/demo/")[-1]).is_file()
    report = json.loads((tmp_path / "demo" / "model" / "conversion_report.json").read_text())
    assert set(report["proof"]["codes_equal"].values()) == {1.0}
    original, decoded = (load_audio(tmp_path / "demo" / f"{name}.wav", 24_000) for name in ("original", "decoded"))
    assert original.shape == decoded.shape == (1, 24 * 24_000)
    codes = load_codes(tmp_path / "demo" / "codes.safetensors").audio_codes
    model = AutoModel.from_pretrained(tmp_path / "demo" / "model").eval()
    assert torch.equal(codes, model.encode(original[None]).audio_codes[0])


@pytest.mark.slow
def test_demo_can_be_run_again_and_takes_a_recording(tmp_path, speech, monkeypatch, capfd):
    save_audio(tmp_path / "voice.wav", speech[:, :100_000], 24_000)
    demo.run_demo(tmp_path / "demo", speech=str(tmp_path / "voice.wav"), training=False)
    monkeypatch.setenv(SPEECH_VARIABLE, str(tmp_path / "voice.wav"))
    demo.run_demo(tmp_path / "demo", training=False)
    assert capfd.readouterr().out.count("from voice.wav") == 2
    torch.testing.assert_close(
        load_audio(tmp_path / "demo" / "original.wav", 24_000), speech[:, :100_000], atol=2 / 32_767, rtol=0
    )


def test_demo_fails_when_its_conversion_fails(tmp_path, capfd):
    with pytest.raises(ValueError, match="the conversion failed"):
        demo.run_demo(tmp_path / "demo", source=str(tmp_path))
    assert "has no config.json" in capfd.readouterr().err


def test_demo_says_that_it_needs_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "CONVERTER", tmp_path / "nothing.py")
    with pytest.raises(FileNotFoundError, match="needs a clone"):
        demo.run_demo(tmp_path / "demo")
