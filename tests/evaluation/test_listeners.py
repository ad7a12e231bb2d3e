"""Models that listen, named by the user: here scripted ones."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from mimi_bridge.audio.sound import Sound
from mimi_bridge.evaluation import listeners
from mimi_bridge.evaluation.intervals import mean_with_interval
from mimi_bridge.evaluation.listeners import dnsmos, mos_predictor, recognizer, speaker_encoder, word_error

SILENCE = torch.zeros(1, 24_000)


@pytest.mark.parametrize(
    ("decoded", "error"),
    [("the cat sat down", 0), ("The cat, sat. Down!", 0), ("", 1), ("cat sat down", 0.25), ("a b c d e f g h", 2)],
)
def test_word_error_counts_words_changed_added_and_dropped(decoded, error):
    assert word_error(decoded, "The cat sat down.") == error


def test_recognizer_hears_the_decoded_sound_at_16_khz(monkeypatch):
    calls = []

    def pipeline(task, model, device, dtype):
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
    values, weights = [1.0, 0.0], [1, 50]  # "yes" decoded as "no", beside fifty words decoded right
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


@pytest.mark.parametrize(("knows", "asked"), [({"is_multilingual": True}, {"task": "transcribe"}), ({}, {})])
def test_recognizer_that_writes_transcribes_as_much_as_the_length_allows(monkeypatch, knows, asked):
    given = []

    class Recognize:
        type = "seq2seq_whisper"
        model = SimpleNamespace(can_generate=lambda: True, generation_config=SimpleNamespace(**knows))

        def __call__(self, audio, generate_kwargs, return_timestamps=False):
            given.append((generate_kwargs, return_timestamps))
            return {"text": "hello"}

    monkeypatch.setattr("transformers.pipeline", lambda *args, **options: Recognize())
    metric = recognizer("some/model")
    for seconds in (1, 3, 300):
        metric.measure(Sound(SILENCE.repeat(1, seconds), 24_000), Sound(SILENCE, 24_000, "Hello"))
    assert [generate_kwargs for generate_kwargs, _ in given] == [
        {"max_new_tokens": most, **asked} for most in (26, 46, 440)
    ]
    assert [timestamps for _, timestamps in given] == [False, False, True]  # Whisper needs them beyond 30 s


def test_voices_are_compared_by_a_model_of_transformers(x_vector_model, speech):
    metric = speaker_encoder(x_vector_model)
    one, other = Sound(speech[:, :24_000], 24_000), Sound(torch.randn(1, 24_000) * 0.1, 24_000)
    assert metric.measure(one, one) == pytest.approx(1, abs=1e-5)
    assert metric.measure(other, one) < 1 - 1e-4
    assert metric.measure(Sound(SILENCE[:, :6_000], 24_000), one) is None  # a quarter of a second has no voice
    assert metric.higher_is_better


@pytest.mark.parametrize("make", [recognizer, speaker_encoder])
def test_model_that_is_not_there_is_named(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder: .*nothing"):
        make(str(tmp_path / "nothing"))


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", "auto")])
def test_recognizer_stored_in_half_precision_is_widened_on_a_cpu(monkeypatch, device, dtype):
    given = {}
    monkeypatch.setattr("transformers.pipeline", lambda *args, **options: given.update(options))
    recognizer("some/model", device)
    assert given["dtype"] == dtype


def test_speaker_encoder_stored_in_half_precision_takes_any_sound(x_vector_model, speech, tmp_path):
    half = tmp_path / "half"
    WavLMForXVector.from_pretrained(x_vector_model, dtype=torch.float16).save_pretrained(half)
    Wav2Vec2FeatureExtractor().save_pretrained(half)
    one, other = Sound(speech[:, :24_000], 24_000), Sound(speech[:, 24_000:48_000], 24_000)
    assert speaker_encoder(str(half)).measure(one, other) == pytest.approx(
        speaker_encoder(x_vector_model).measure(one, other), abs=1e-2
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (speaker_encoder, "--speaker needs the package resemblyzer, or the name of a model"),
        (dnsmos, "--mos needs the package speechmos; run pip install speechmos"),
    ],
)
def test_package_that_is_missing_is_named(monkeypatch, make, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=message):
        make()


@pytest.mark.parametrize(("make", "package"), [(dnsmos, "speechmos"), (speaker_encoder, "resemblyzer")])
def test_packages_that_carry_their_weights_tell_speech_from_noise(make, package, speech):
    pytest.importorskip(package)
    metric = make()
    spoken = Sound(speech[:, :72_000], 24_000)
    noise = Sound(torch.randn(1, 72_000, generator=torch.Generator().manual_seed(0)) * 0.1, 24_000)
    assert metric.measure(spoken, spoken) > metric.measure(noise, spoken) + 0.1


@pytest.fixture(scope="module")
def x_vector_model(tmp_path_factory) -> str:
    """A tiny WavLM with an x-vector, and its feature extractor."""
    folder = tmp_path_factory.mktemp("x-vector")
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16, 16),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16),
        tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1),
        xvector_output_dim=8,
    )
    torch.manual_seed(0)
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)
