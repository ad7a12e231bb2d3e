"""The example that streams a file."""

import torch

import stream_file
from mimi_bridge.audio.files import load_audio, save_audio


@torch.no_grad()
def test_streamed_file_is_what_the_whole_recording_gives(tiny_model, voiced_audio, tmp_path, capsys):
    tiny_model.decoder.decoder_seanet.layers[-1].conv.weight.mul_(0.05)  # or the sound would be clipped
    tiny_model.save_pretrained(tmp_path / "model")
    save_audio(tmp_path / "speech.wav", voiced_audio[0, :, :30_000], 24_000)
    arguments = [str(tmp_path / "speech.wav"), "-o", str(tmp_path / "out.wav"), "--model", str(tmp_path / "model")]
    assert stream_file.main([*arguments, "--chunk-seconds", "0.05"]) == 0
    assert "1.25 s of audio, 15 whole frames" in capsys.readouterr().out
    decoded = load_audio(tmp_path / "out.wav", 24_000)
    codes = tiny_model.encode(load_audio(tmp_path / "speech.wav", 24_000)[None]).audio_codes
    expected = tiny_model.decode(codes).audio_values[0, :, :30_000]
    assert expected.abs().max() < 1.0 and expected.abs().max() > 0.01
    assert (decoded - expected).abs().max() <= 2**-15 + 1e-6  # 16 bits
