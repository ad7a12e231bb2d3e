"""Models that listen, named by the user: here scripted ones."""

import pytest
import torch

from mimi_bridge.audio.sound import Sound
from mimi_bridge.evaluation import listeners
from mimi_bridge.evaluation.intervals import mean_with_interval
from mimi_bridge.evaluation.listeners import mos_predictor, recognizer, word_error

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


def test_mos_predictor_is_loaded_from_a_repository_and_gives_its_score(tmp_path):
    (tmp_path / "hubconf.py").write_text(
        "import torch\n\nclass Predictor(torch.nn.Module):\n    def forward(self, audio, rate):\n"
        "        return audio.shape[-1] / rate + audio.mean(dim=-1)\n\ndef utmos():\n    return Predictor()\n"
    )
    metric = mos_predictor(str(tmp_path), "utmos")
    assert metric.measure(Sound(SILENCE + 0.5, 24_000), Sound(SILENCE, 24_000)) == pytest.approx(1.5, abs=0.02)
    assert metric.higher_is_better


def test_apostrophes_are_part_of_words():
    assert listeners.spoken_words("Don’t stop; it's 5 o'clock") == ["don't", "stop", "it's", "5", "o'clock"]


def test_word_error_over_recordings_is_that_of_the_corpus(monkeypatch):
    monkeypatch.setattr("transformers.pipeline", lambda *args, **options: lambda audio: {"text": "no"})
    metric = recognizer("some/model")
    sound = Sound(SILENCE, 24_000, "one two three")
    assert metric.weight(sound) == 3
    values, weights = [1.0, 0.0], [1, 50]  # "yes" heard as "no", beside fifty words heard right
    found = mean_with_interval(values, weights)
    assert found["mean"] == pytest.approx(1 / 51)
    assert (found["low"], found["high"], found["count"]) == (0, 1, 2)


def test_recognizer_names_the_package_that_counts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package torchmetrics; run pip install"):
        recognizer("some/model")


def test_whatever_a_model_raises_is_named_as_its_own(monkeypatch):
    def fail(audio):
        raise TypeError("no such argument")

    monkeypatch.setattr("transformers.pipeline", lambda *args, **options: fail)
    with pytest.raises(RuntimeError, match="some/model raised TypeError: no such argument"):
        recognizer("some/model").measure(Sound(SILENCE, 24_000), Sound(SILENCE, 24_000, "Hello"))
