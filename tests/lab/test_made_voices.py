"""Made voices: the same from a seed, at the pitch they should have, and a text that cannot be spoken stops none."""

import argparse
import sys

import numpy as np
import pytest

from made_voices import PITCH_RANGE_FACTORS, SAMPLING_RATE, Voice, changed, made_voices, spoken

pytest.importorskip("parselmouth")


def test_voices_of_a_seed_are_the_same_and_their_formants_follow_their_pitch():
    voices = made_voices(200, seed=3)
    assert voices == made_voices(200, seed=3) != made_voices(200, seed=4)
    pitches, shifts = ([getattr(voice, name) for voice in voices] for name in ("median_pitch_hz", "formant_shift"))
    assert 0.8 < np.corrcoef(np.log(pitches), shifts)[0, 1] < 0.999
    assert all(low <= v.pitch_range_factor <= high for v in voices for low, high in [PITCH_RANGE_FACTORS])


def test_voice_has_the_pitch_that_was_asked_for_and_the_length_of_the_first(speech):
    import parselmouth

    audio = speech[0, :72_000].double().numpy()
    for hertz in (95.0, 220.0):
        other = changed(audio, Voice(hertz, 1.0, 1.0))
        pitch = parselmouth.Sound(other, SAMPLING_RATE).to_pitch_ac(pitch_floor=50, pitch_ceiling=500)
        found = pitch.selected_array["frequency"]
        assert np.median(found[found > 0]) == pytest.approx(hertz, rel=0.1)
        assert len(other) == pytest.approx(len(audio), rel=0.01)
        assert np.abs(other).max() <= 0.951


def test_line_that_cannot_be_spoken_is_named_and_left_out(monkeypatch, tmp_path, capsys):
    def fail(text, speed, seed):
        raise RuntimeError("no such sound")

    monkeypatch.setattr("made_voices.first_voice", lambda: fail)
    arguments = argparse.Namespace(output=tmp_path, seed=0)
    assert spoken((7, "Hm.", 0, made_voices(1, 0), arguments)) is None
    assert "line 7 is left out: RuntimeError: no such sound" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_lines_become_a_manifest_of_recordings(monkeypatch, tmp_path, speech):
    audio = speech[0, :48_000].numpy()
    monkeypatch.setattr("made_voices.first_voice", lambda: lambda text, speed, seed: audio)
    row = spoken((7, "Hm.", 1, made_voices(2, 0), argparse.Namespace(output=tmp_path, seed=0)))
    assert row == {
        "id": "voices/000007",
        "path": "000007.flac",
        "speaker": "voices/1",
        "text": "Hm.",
        "seconds": pytest.approx(2.0, abs=0.02),
    }
    assert (tmp_path / row["path"]).is_file()


def test_file_without_a_line_is_refused(monkeypatch, tmp_path):
    import made_voices as module

    (tmp_path / "texts").write_text("\n \n")
    monkeypatch.setattr(sys, "argv", ["made_voices.py", str(tmp_path / "texts"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="holds no line of text"):
        module.main()
