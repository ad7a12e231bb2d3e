"""The stock Mimi: found where the user, the report or the model itself says, and otherwise missed."""

import json

import pytest
import torch

from mimi_bridge.evaluation.stock_mimi import codebook_entries, find_stock_mimi
from mimi_bridge.evaluation.systems import Systems


@pytest.fixture(autouse=True)
def without_gradients():
    """As the evaluator runs: with gradients, a model decodes by other operations, which round otherwise."""
    with torch.no_grad():
        yield


@pytest.fixture
def fresh(tiny_model):
    """As a conversion leaves a model."""
    torch.nn.init.zeros_(tiny_model.quantizer.head_content.project_out.weight)
    tiny_model.set_residual_weight(0.0)
    return tiny_model


@pytest.fixture
def mimi_folder(tiny_mimi, tmp_path):
    tiny_mimi.save_pretrained(tmp_path / "mimi")
    return str(tmp_path / "mimi")


def test_checkpoint_that_is_named_is_taken_with_one_codebook_less(tiny_model, tiny_mimi, mimi_folder, voiced_audio):
    stock = find_stock_mimi(tiny_model, None, mimi_folder)
    codes = stock.encode(voiced_audio)
    expected = tiny_mimi.encode(voiced_audio, num_quantizers=8).audio_codes[0]
    assert (stock.name, stock.num_codebooks) == ("mimi", 8)
    assert torch.equal(codes, expected)
    assert torch.equal(stock.decode(codes), tiny_mimi.decode(expected[None]).audio_values[0])
    entries = stock.entries()
    assert len(entries) == 8
    first = tiny_mimi.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed
    assert torch.equal(entries[0], first)


def test_checkpoint_in_half_precision_is_computed_in_single(tiny_model, tiny_mimi, tmp_path, voiced_audio):
    tiny_mimi.half().save_pretrained(tmp_path / "half")
    stock = find_stock_mimi(tiny_model, None, str(tmp_path / "half"))
    assert stock.decode(stock.encode(voiced_audio)).dtype == torch.float32


def test_report_of_the_conversion_names_it(tiny_model, mimi_folder, tmp_path):
    (tmp_path / "conversion_report.json").write_text(json.dumps({"source": {"name": mimi_folder}}))
    assert find_stock_mimi(tiny_model, str(tmp_path)).name == "mimi"


def test_fresh_conversion_is_its_own_stock_mimi(fresh, voiced_audio):
    stock = find_stock_mimi(fresh)
    codes = fresh.encode(voiced_audio).audio_codes
    assert torch.equal(stock.encode(voiced_audio), codes[0, 1:])
    assert torch.equal(stock.decode(codes[0, 1:]), fresh.decode(codes).audio_values[0])
    assert all(map(torch.equal, stock.entries(), codebook_entries(fresh)[1:]))


def test_trained_model_of_unknown_source_has_none(tiny_model):
    assert not tiny_model.quantizer.is_freshly_converted
    with pytest.raises(ValueError, match="no stock Mimi is known for this model; name its source by --reference"):
        find_stock_mimi(tiny_model)


def test_small_codec_is_found_by_its_name_and_refused_where_its_rates_differ(tiny_model):
    assert find_stock_mimi(tiny_model, None, "small").name == "small"
    tiny_model.config.sampling_rate = 16_000
    with pytest.raises(ValueError, match="has other rates than the model"):
        find_stock_mimi(tiny_model, None, "small")


def test_checkpoint_that_is_none_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        find_stock_mimi(tiny_model, None, str(tmp_path))


def test_systems_decode_what_their_names_say(fresh, speech):
    systems = Systems(fresh, find_stock_mimi(fresh))
    audio = speech[:, :20_000]
    codes, stock_codes = systems.encode(audio), systems.encode_stock(audio)
    assert list(systems.labels()) == ["original", "mimi_8", "bridge_9", "bridge_1", "bridge_2"]
    whole = systems.decode("bridge_9", codes, 20_000)
    assert whole.shape == audio.shape
    assert torch.equal(whole, systems.decode("mimi_8", stock_codes, 20_000))
    first = fresh.decode(codes[None, :2]).audio_values[0, :, :20_000]
    assert torch.equal(systems.decode("bridge_2", codes, 20_000), first)
    assert not torch.equal(first, whole)


def test_probe_features_of_equal_codes_are_equal(fresh, speech):
    systems = Systems(fresh, find_stock_mimi(fresh))
    codes, stock_codes = systems.encode(speech[:, :20_000]), systems.encode_stock(speech[:, :20_000])
    features = systems.probe_features(codes, stock_codes)
    assert set(features) == set(systems.probe_inputs())
    assert torch.equal(features["prosody"], features["mimi_1"])
    assert torch.equal(features["acoustic"], features["mimi_2_8"])
    assert features["all"].shape == (11, 3 * 32)


def test_delayed_content_is_read_where_it_says_what_is_spoken(fresh, speech, monkeypatch):
    systems = Systems(fresh)
    codes = systems.encode(speech[:, :48_000])
    plain = systems.probe_features(codes, None)
    monkeypatch.setattr(fresh.config, "content_delay", 2)
    delayed = systems.probe_features(codes, None)
    assert torch.equal(delayed["content"][:-2], plain["content"][2:])
    assert torch.equal(delayed["content"][-2:], plain["content"][-1:].expand(2, -1))
    assert torch.equal(delayed["prosody"], plain["prosody"]) and torch.equal(delayed["acoustic"], plain["acoustic"])
