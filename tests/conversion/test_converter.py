"""What a result holds, that it is exact, and that what fails leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, EncodecFeatureExtractor, MimiModel

from converter import convert
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.files import save_audio
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from proof import prove
from source import ConversionError

HEADS = ["prosody"] + [f"acoustic {number}" for number in range(1, 8)]
SIDES = ("encoder.", "encoder_transformer.", "downsample.", "decoder.", "decoder_transformer.", "upsample.")

WITHOUT_THE_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mimi_bridge":
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, NotInstalled())
import torch
from transformers import AutoModel

folder, audio, codes = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
torch.save(model.encode(torch.load(audio)).audio_codes, codes)
"""


@pytest.fixture
def one_code_folder(tiny_mimi, tmp_path):
    """A random Mimi as transformers builds it: its empty codebooks give one code for everything."""
    folder = tmp_path / "empty-mimi"
    MimiModel(tiny_mimi.config).save_pretrained(folder)
    return folder


# What a result holds


def test_result_holds_exactly_the_files_of_a_model_that_travels(converted, result_files):
    assert {file.name for file in converted.folder.iterdir()} == result_files


def test_nothing_is_left_beside_a_result(converted):
    assert list(converted.folder.parent.iterdir()) == [converted.folder]


def test_result_loads_by_auto_model(converted):
    assert isinstance(AutoModel.from_pretrained(converted.folder), MimiBridgeModel)


def test_result_loads_by_auto_config(converted):
    assert isinstance(AutoConfig.from_pretrained(converted.folder), MimiBridgeConfig)


def test_result_loads_by_auto_feature_extractor(converted):
    extractor = AutoFeatureExtractor.from_pretrained(converted.folder)
    assert isinstance(extractor, EncodecFeatureExtractor)
    assert (extractor.sampling_rate, extractor.feature_size) == (24_000, 1)


def test_result_gives_the_same_codes_where_the_package_is_not_installed(converted, voiced_audio, tmp_path):
    torch.save(voiced_audio, tmp_path / "audio.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [converted.folder, tmp_path / "audio.pt", tmp_path / "codes.pt"]
    subprocess.run([sys.executable, "-c", WITHOUT_THE_PACKAGE, *map(str, arguments)], check=True, env=environment)
    expected = AutoModel.from_pretrained(converted.folder).eval().encode(voiced_audio).audio_codes
    assert torch.equal(torch.load(tmp_path / "codes.pt"), expected)


def test_encoder_and_decoder_lie_on_the_disk_under_the_sources_own_keys(converted, mimi_tensors):
    expected = {key: tensor for key, tensor in mimi_tensors.items() if key.startswith(SIDES)}
    found = {key: tensor for key, tensor in converted.tensors.items() if not key.startswith("quantizer.")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_config_keeps_the_sources_fields(converted, mimi_folder):
    source = json.loads((mimi_folder / "config.json").read_text())
    result = json.loads((converted.folder / "config.json").read_text())
    own = {"model_type", "architectures", "num_quantizers"}
    assert {name: result[name] for name in source.keys() - own} == {name: source[name] for name in source.keys() - own}


def test_config_says_nine_codebooks_in_three_heads_and_no_residual(converted):
    config = json.loads((converted.folder / "config.json").read_text())
    assert config["model_type"] == "mimi_bridge"
    assert config["auto_map"]["AutoModel"] == "modeling_mimi_bridge.MimiBridgeModel"
    assert config["num_quantizers"] == 9
    heads = ("num_content_codebooks", "num_prosody_codebooks", "num_acoustic_codebooks")
    assert tuple(config[name] for name in heads) == (1, 1, 7)
    assert config["residual_weight"] == 0.0


def test_config_holds_declared_fields_only(converted):
    written = json.loads((converted.folder / "config.json").read_text()).keys()
    undeclared = written - {field.name for field in fields(MimiBridgeConfig)}
    assert undeclared == {"auto_map", "model_type", "_frame_rate"}  # the last is MimiConfig's own


def test_config_in_the_form_that_kyutai_published_gives_the_same_proof(converted, source_folder, output, speech_file):
    file = source_folder / "config.json"
    config = json.loads(file.read_text())
    for name in ("rope_parameters", "dtype", "_frame_rate"):
        del config[name]
    published = {"rope_theta": 10_000.0, "torch_dtype": "float32", "frame_rate": 12.5, "normalize": False}
    file.write_text(json.dumps(config | published))
    report = convert(str(source_folder), output, speech=str(speech_file))
    assert report["proof"] == converted.report["proof"]


def test_config_of_the_full_residual_says_so(converted_residual):
    assert json.loads((converted_residual.folder / "config.json").read_text())["residual_weight"] == 1.0


# Options


def test_another_seed_makes_other_new_tensors_and_no_other_moved_ones(converted, mimi_folder, output, speech_file):
    convert(str(mimi_folder), output, seed=1, speech=str(speech_file))
    found, expected = load_file(output / "model.safetensors"), converted.tensors
    different = {key for key, tensor in expected.items() if not torch.equal(found[key], tensor)}
    assert "quantizer.head_content.vq._codebook.embed" in different
    assert different <= set(converted.report["keys"]["fresh"])


def test_fewer_acoustic_codebooks_are_proven_and_reported_as_such(mimi_folder, output, speech_file):
    report = convert(str(mimi_folder), output, num_acoustic_codebooks=3, speech=str(speech_file))
    assert report["proof"]["codes_equal"] == dict.fromkeys(["prosody", "acoustic 1", "acoustic 2", "acoustic 3"], 1.0)
    assert report["config"]["num_quantizers"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--residual-weight", "3"], "--residual-weight must lie in [0, 1], got 3.0"),
        (["--seed", str(2**64)], f"--seed must be 0 to {2**64 - 1}, got {2**64}"),
        (["--num-acoustic-codebooks", "0"], "--num-acoustic-codebooks must be 1 to 31, got 0"),
        (["--content-layers", "-1"], "--content-layers must be at least 0, got -1"),
        (["--prosody-layers", "-2"], "--prosody-layers must be at least 0, got -2"),
        (["--content-delay", "-3"], "--content-delay must be at least 0, got -3"),
    ],
)
def test_option_out_of_range_is_refused_before_anything_is_read(run_command, output, options, message):
    status, printed = run_command("--source", "nowhere", "--output", output, *options)
    assert (status, output.exists()) == (1, False)
    assert message in printed.err


def test_command_makes_its_own_speech_where_none_is_given(mimi_folder, output, monkeypatch):
    monkeypatch.delenv(SPEECH_VARIABLE, raising=False)
    proof = convert(str(mimi_folder), output)["proof"]
    assert (proof["speech"], proof["seconds"]) == ("made by espeak-ng", 24.0)


def test_command_takes_speech_from_the_environment(mimi_folder, output, speech_file, monkeypatch):
    monkeypatch.setenv(SPEECH_VARIABLE, str(speech_file))
    assert convert(str(mimi_folder), output)["proof"]["speech"] == "short-speech.wav"


# Exactness at kyutai/mimi's sizes


@pytest.fixture(scope="module")
def full_size_converted(full_size_folder, speech, tmp_path_factory):
    """The full-size Mimi, converted and proven on 10 s of synthetic speech; 361 MB, so removed at the end."""
    folder = tmp_path_factory.mktemp("converted") / "full-size-bridge"
    file = folder.with_name("speech.wav")
    save_audio(file, speech[:, : 10 * 24_000], 24_000)
    yield folder, convert(str(full_size_folder), folder, speech=str(file))
    shutil.rmtree(folder)


@pytest.fixture(params=["synthetic", "real"])
def full_size_proof(request, full_size_mimi, full_size_converted):
    """What the converter found on 10 s of synthetic speech, and what it finds on 24 s of real speech."""
    folder, report = full_size_converted
    if request.param == "synthetic":
        return report["proof"]
    return prove(full_size_mimi, folder, request.getfixturevalue("real_speech"), "real")


@pytest.mark.full_size
def test_full_size_surgery_is_exact(full_size_proof):
    print(f"against transformers' own Mimi: {full_size_proof}")
    assert full_size_proof["codes_equal"] == dict.fromkeys(HEADS, 1.0)
    assert full_size_proof["waveform_max_abs_difference"] == 0.0
    assert min(full_size_proof["codes_in_use"].values()) >= 50  # of 2,048: equality means much
    assert full_size_proof["passed"]  # the default path, too


# A conversion that fails


def test_failing_proof_names_the_head_and_writes_nothing(run_command, mimi_folder, output, damage_transplant):
    status, printed = run_command("--source", mimi_folder, "--output", output)
    assert status == 1
    assert "convert_kyutai: error: the proof failed, so nothing was written: " in printed.err
    assert [head for head in HEADS if f"of the {head} codes equal the source's" in printed.err] == ["acoustic 4"]
    assert list(output.parent.iterdir()) == []


def test_source_with_empty_codebooks_fails_the_proof(run_command, one_code_folder, output):
    status, printed = run_command("--source", one_code_folder, "--output", output)
    assert status == 1
    assert "codebooks of the source use too few codes on this speech to prove anything ({'prosody': 1," in printed.err
    assert list(output.parent.iterdir()) == []


def test_too_short_speech_is_refused(run_command, mimi_folder, output, speech, tmp_path):
    save_audio(tmp_path / "word.wav", speech[:, :24_000], 24_000)
    status, printed = run_command("--source", mimi_folder, "--output", output, "--speech", tmp_path / "word.wav")
    assert status == 1
    assert "error: the proof needs at least 2.0 s of speech, got 1.00 s from word.wav; give --speech a" in printed.err
    assert list(output.parent.iterdir()) == []


def test_speech_that_is_not_there_is_refused(run_command, mimi_folder, output):
    status, printed = run_command("--source", mimi_folder, "--output", output, "--speech", output / "nothing.wav")
    assert status == 1
    assert "error: no speech for the proof: no such recording or folder of recordings: " in printed.err


def test_source_that_is_no_mimi_is_refused_in_one_line(run_command, converted, output):
    status, printed = run_command("--source", converted.folder, "--output", output)
    assert status == 1
    assert printed.err.splitlines()[1:] == [
        "convert_kyutai: error: tiny-bridge is a checkpoint of 'mimi_bridge', expected 'mimi'; only Mimi can be "
        "converted."
    ]


def test_source_out_of_reach_is_refused_in_one_line(run_command, unreachable_hub, output):
    status, printed = run_command("--source", "nobody/mimi", "--output", output)
    assert status == 1
    assert printed.err.splitlines()[-1].startswith(
        "convert_kyutai: error: 'nobody/mimi' is no local path, and the Hub"
    )
    assert "Traceback" not in printed.err


def test_full_disk_is_refused_and_leaves_nothing(mimi_folder, output, speech_file, monkeypatch):
    def save_pretrained(_, folder):
        Path(folder).mkdir()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(MimiBridgeModel, "save_pretrained", save_pretrained)
    with pytest.raises(ConversionError, match=r"bridge could not be written: .*No space left on device"):
        convert(str(mimi_folder), output, speech=str(speech_file))
    assert list(output.parent.iterdir()) == []
