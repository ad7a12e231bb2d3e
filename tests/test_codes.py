"""Codes on disk."""

from dataclasses import asdict

import pytest
import torch

from mimi_bridge.codes import Codes, fingerprint, load_codes, save_codes


@pytest.fixture
def codes():
    return Codes(torch.arange(18).reshape(9, 2), num_samples=3000, sampling_rate=24_000, codebooks_sha256="abc")


def test_load_codes_gives_back_what_save_codes_wrote(tmp_path, codes):
    save_codes(tmp_path / "new" / "one.safetensors", codes)
    loaded = load_codes(tmp_path / "new" / "one.safetensors")
    assert torch.equal(loaded.audio_codes, codes.audio_codes)
    assert asdict(loaded) | {"audio_codes": None} == asdict(codes) | {"audio_codes": None}


def test_load_codes_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such codes file"):
        load_codes(tmp_path / "nothing.safetensors")


def test_load_codes_refuses_a_file_that_was_cut_off(tmp_path, codes):
    path = tmp_path / "cut.safetensors"
    save_codes(path, codes)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_codes(path)


def test_load_codes_refuses_other_safetensors(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no codes file of this version"):
        load_codes(tmp_path / "model.safetensors")


def test_fingerprint_changes_with_one_entry_of_one_codebook(tiny_model):
    before = fingerprint(tiny_model)
    assert fingerprint(tiny_model) == before
    tiny_model.quantizer.acoustic_residual.layers[-1]._codebook.embed[0, 0, 0] += 1
    assert fingerprint(tiny_model) != before
