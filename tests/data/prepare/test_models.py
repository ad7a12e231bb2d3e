"""The models that the settings name, and what is said where one is not there."""

import pytest
import soundfile

from mimi_bridge.data.prepare import models as models_module
from mimi_bridge.data.prepare.sources import open_source
from mimi_bridge.data.settings import Settings


def test_pitch_without_praat_is_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "0.wav", [0.0] * 2400, 24_000)
    settings = Settings(str(tmp_path), text_teacher=None, speech_teacher=None, prosody=True)
    monkeypatch.setattr(models_module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pitch needs the package praat-parselmouth; run pip install"):
        models_module.Models(settings, open_source(settings.source), "cpu")
