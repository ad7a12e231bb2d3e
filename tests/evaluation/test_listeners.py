"""Models that listen, named by the user: here scripted ones."""

import pytest
import torch

from mimi_bridge.evaluation import listeners
from mimi_bridge.evaluation.listeners import judge, recognizer, word_error
from mimi_bridge.evaluation.sound import Sound

SILENCE = torch.zeros(1, 24_000)


@pytest.mark.parametrize(
    ("heard", "error"),
    [("the cat sat down", 0), ("The cat, sat. Down!", 0), ("", 1), ("cat sat down", 0.25), ("a b c d e f g h", 2)],
)
def test_word_error_counts_words_changed_added_and_dropped(heard, error):
    assert word_error(heard, "The cat sat down.") == error


def test_recognizer_hears_the_decoded_sound_at_16_khz(monkeypatch):
    calls = []

    def pipeline(task, model, device):
        def recognize(audio):
            calls.append((task, model, audio["sampling_rate"], audio["raw"].shape))
            return {"text": "hello"}

        return recognize

    monkeypatch.setattr("transformers.pipeline", pipeline)
    metric = recognizer("some/model")
    assert metric.measure(Sound(SILENCE, 24_000), Sound(SILENCE, 24_000, "Hello there.")) == 0.5
    assert metric.measure(Sound(SILENCE, 24_000), Sound(SILENCE, 24_000)) is None
    assert calls == [("automatic-speech-recognition", "some/model", 16_000, (16_000,))]
    assert not metric.higher_is_better


def test_judge_is_loaded_from_a_repository_and_gives_its_score(tmp_path):
    (tmp_path / "hubconf.py").write_text(
        "import torch\n\nclass Judge(torch.nn.Module):\n    def forward(self, audio, rate):\n"
        "        return audio.shape[-1] / rate + audio.mean(dim=-1)\n\ndef judge():\n    return Judge()\n"
    )
    metric = judge(str(tmp_path), "judge")
    assert metric.measure(Sound(SILENCE + 0.5, 24_000), Sound(SILENCE, 24_000)) == pytest.approx(1.5, abs=0.02)
    assert metric.higher_is_better


def test_apostrophes_are_part_of_words():
    assert listeners.spoken_words("Don’t stop; it's 5 o'clock") == ["don't", "stop", "it's", "5", "o'clock"]
