"""Codes on disk."""

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from mimi_bridge.codes.file import FORMAT, Codes, fingerprint, load_codes, save_codes


@pytest.fixture
def codes():
    return Codes(torch.arange(18).reshape(9, 2), num_samples=3000, sampling_rate=24_000, codebooks_sha256="abc")


def test_load_codes_gives_back_what_save_codes_wrote(tmp_path, codes):
    save_codes(tmp_path / "new" / "one.safetensors", codes)
    loaded = load_codes(tmp_path / "new" / "one.safetensors")
    assert torch.equal(loaded.audio_codes, codes.audio_codes)
    assert asdict(loaded) | {"audio_codes": None} == asdict(codes) | {"audio_codes": None}


def test_codes_have_the_mode_that_the_umask_gives(tmp_path, codes):
    save_codes(tmp_path / "one.safetensors", codes)
    (tmp_path / "other").write_text("")
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_save_codes_names_a_full_disk(tmp_path, codes, small_files):
    codes.audio_codes = torch.zeros(9, 10_000, dtype=torch.int64)
    with small_files(), pytest.raises(OSError, match=r"one\.safetensors cannot be written \(.*\); make room"):
        save_codes(tmp_path / "one.safetensors", codes)
    assert list(tmp_path.iterdir()) == []


def test_codes_keep_what_was_odd_about_the_recording(tmp_path, codes):
    codes.remark = "it ends early"
    save_codes(tmp_path / "one.safetensors", codes)
    assert load_codes(tmp_path / "one.safetensors").remark == "it ends early"


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": "x"}, "does not say what codes it holds"),
        ({"codebooks_sha256": None}, "does not say what codes it holds"),
        ({"sampling_rate": "0"}, "got torch.int32, 3000 samples at 0 Hz; encode the recording again"),
        ({"num_samples": "-5"}, "-5 samples at 24000 Hz; encode the recording again"),
    ],
)
def test_load_codes_refuses_what_does_not_describe_its_recording(tmp_path, codes, changes, message):
    metadata = {"format": FORMAT, "num_samples": "3000", "sampling_rate": "24000", "codebooks_sha256": "abc"} | changes
    metadata = {name: value for name, value in metadata.items() if value is not None}
    save_file({"audio_codes": codes.audio_codes.int()}, tmp_path / "one.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"one\.safetensors.*{message}"):
        load_codes(tmp_path / "one.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_load_codes_refuses_what_is_no_whole_number(tmp_path, codes, dtype):
    metadata = {"format": FORMAT, "num_samples": "3000", "sampling_rate": "24000", "codebooks_sha256": "abc"}
    save_file({"audio_codes": codes.audio_codes.to(dtype)}, tmp_path / "one.safetensors", metadata)
    with pytest.raises(ValueError, match=f"must hold integers, .* got {dtype}"):
        load_codes(tmp_path / "one.safetensors")


def test_fingerprint_changes_with_one_entry_of_one_codebook(tiny_model):
    before = fingerprint(tiny_model)
    assert fingerprint(tiny_model) == before
    tiny_model.quantizer.acoustic_residual.layers[-1]._codebook.embed[0, 0, 0] += 1
    assert fingerprint(tiny_model) != before
