"""The cache of latents, by its command: what the encoder gives, and the original's quantizer; whole, or not at all."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, load_from_disk

from mimi_bridge.cli.main import main
from mimi_bridge.data import latents as latents_module
from mimi_bridge.data.collator import MimiBridgeCollator

LENGTHS = (30_000, 17_000, 1_920)


@pytest.fixture
def fresh_model(tiny_model):
    torch.nn.init.zeros_(tiny_model.quantizer.head_content.project_out.weight)
    tiny_model.set_residual_weight(0.0)
    return tiny_model


@pytest.fixture
def data(tmp_path, speech, fresh_model):
    """A data set and a model on disk."""
    rows = [
        {
            "id": f"r{number}",
            "audio": {"array": speech[0, :length].numpy(), "sampling_rate": 24_000},
            "text": "hello",
            "qwen_hidden": np.ones((2, 24), np.float32) * number,
            "token_spans": [[0.0, 0.03], [0.03, 0.06]],
        }
        for number, length in enumerate(LENGTHS)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "speech")
    fresh_model.save_pretrained(tmp_path / "model")
    return SimpleNamespace(speech=tmp_path / "speech", model=tmp_path / "model", cached=tmp_path / "cached")


def run(data, *more):
    return main(["cache", str(data.speech), "-o", str(data.cached), "-m", str(data.model), *map(str, more)])


def test_cache_holds_the_encoders_latents_and_the_originals_quantized_ones(data, speech, fresh_model, capsys):
    assert run(data, "--dtype", "float32") == 0
    assert "3 recordings, 26 frames" in capsys.readouterr().out
    assert (
        not [*data.speech.glob("cache-*")] and sorted(path.name for path in data.cached.parent.glob(".cached*")) == []
    )
    for row, length in zip(load_from_disk(data.cached).with_format("numpy"), LENGTHS, strict=True):
        with torch.inference_mode():
            expected = fresh_model(speech[:, None, :length])
        np.testing.assert_allclose(row["latents"], expected.latents[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(row["target_latents"], expected.quantized[0].numpy(), atol=1e-5)


def test_cache_keeps_every_other_column_and_leaves_the_audio_out(data):
    assert run(data) == 0
    cached, given = load_from_disk(data.cached), load_from_disk(data.speech)
    assert set(cached.column_names) == {*given.column_names, "latents", "target_latents"} - {"audio"}
    for name in ("id", "text", "qwen_hidden", "token_spans"):
        assert cached[name][:] == given[name][:]


def test_cache_is_stored_in_half_precision_and_makes_a_batch(data, fresh_model):
    assert run(data) == 0
    cached = load_from_disk(data.cached).with_format("numpy")
    assert all(cached.features[name].feature.feature.dtype == "float16" for name in ("latents", "target_latents"))
    batch = MimiBridgeCollator.for_model(fresh_model.config)(list(cached))
    with torch.inference_mode():
        output = fresh_model(**{name: value for name, value in batch.items() if name != "target_latents"})
    assert output.audio_codes.shape == (3, 9, 16) and output.losses["qwen"].isfinite()


def test_codes_of_half_precision_latents_are_nearly_all_the_same(data, speech, fresh_model):
    assert run(data) == 0
    row = load_from_disk(data.cached).with_format("torch")[0]
    with torch.inference_mode():
        exact = fresh_model.encode(speech[:, None, : LENGTHS[0]]).audio_codes
        codes = fresh_model(latents=row["latents"][None].float()).audio_codes
    assert exact.unique().numel() > 30
    assert (codes == exact).float().mean() > 0.97


@pytest.mark.parametrize("what", ["content", "a bridge"])
def test_cache_refuses_a_model_that_has_been_trained(data, tiny_model, capsys, what):
    if what == "content":
        tiny_model.quantizer.head_content.project_out.weight.data.fill_(0.1)
    else:
        tiny_model.quantizer.proj_wavlm.std.fill_(2.0)
    tiny_model.save_pretrained(data.model)
    assert run(data) == 1
    assert "the model has been trained" in capsys.readouterr().err
    assert not data.cached.exists()


def test_cache_refuses_an_existing_folder(data, capsys):
    data.cached.mkdir()
    assert run(data) == 1
    assert "exists already" in capsys.readouterr().err


def test_cache_of_no_data_set_is_one_sentence(data, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    data.speech = tmp_path / "nothing"
    assert run(data) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_cache_that_fails_half_way_leaves_nothing(data, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(latents_module.os, "replace", broken)
    assert run(data) == 1
    assert "disk full" in capsys.readouterr().err
    assert sorted(path.name for path in data.cached.parent.iterdir()) == ["model", "speech"]


def test_rows_without_audio_that_can_be_read_are_named_and_the_rest_is_cached(data, speech, tmp_path, capsys):
    soundfile.write(tmp_path / "good.wav", speech[0, :17_000].numpy(), 24_000)
    held = (tmp_path / "good.wav").read_bytes()
    audio = [
        {"bytes": held, "path": None},
        None,
        {"bytes": b"no audio", "path": "x.wav"},
    ]
    rows = Dataset.from_dict({"id": ["good", "none", "damaged"], "audio": audio})
    rows.cast_column("audio", Audio()).save_to_disk(tmp_path / "rows")
    data.speech = tmp_path / "rows"
    assert run(data) == 0
    printed = capsys.readouterr()
    assert "1 recordings, 9 frames; 2 left out" in printed.out
    assert all(f"left out: {name}: " in printed.err for name in ("none", "damaged"))
    assert load_from_disk(data.cached)["id"][:] == ["good"]


def test_no_row_with_audio_at_all_is_refused(data, tmp_path, capsys):
    rows = Dataset.from_dict({"audio": [None, None]}, features=Features({"audio": Audio()}))
    rows.save_to_disk(tmp_path / "rows")
    data.speech = tmp_path / "rows"
    assert run(data) == 1
    assert "none of the 2 rows has audio that can be read" in capsys.readouterr().err
    assert not data.cached.exists()
