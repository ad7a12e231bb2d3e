"""The command: what a result holds, that it is exact, and that nothing half done ever has the output's name."""

import hashlib
import inspect
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, EncodecFeatureExtractor, MimiModel
from transformers.dynamic_module_utils import get_relative_import_files

import convert_kyutai
from convert_kyutai import convert
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.files import SPEECH_VARIABLE, save_audio
from proof import prove
from source import ConversionError

CONVERSION = Path(convert_kyutai.__file__).parent
MODELING_FILE = inspect.getfile(MimiBridgeModel)
HEADS = ["prosody"] + [f"acoustic {number}" for number in range(1, 8)]
SIDES = ("encoder.", "encoder_transformer.", "downsample.", "decoder.", "decoder_transformer.", "upsample.")
HUB_FILES = [MODELING_FILE, *get_relative_import_files(MODELING_FILE)]  # what transformers finds by reading the file
RESULT_FILES = {Path(file).name for file in HUB_FILES} | {
    "README.md",
    "config.json",
    "conversion_report.json",
    "model.safetensors",
    "preprocessor_config.json",
}

# The real command, made to wait in the proof, when everything is on the disk under another name.
COMMAND_THAT_WAITS = """
import sys, time, convert_kyutai
convert_kyutai.prove = lambda *_: time.sleep(600)
sys.exit(convert_kyutai.main(sys.argv[1:]))
"""

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
def output(tmp_path):
    """Where a test lets the command write; its folder holds nothing else."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "bridge"


@pytest.fixture
def old_model(output):
    """A model folder that has the output's name already."""
    output.mkdir()
    (output / "config.json").write_text("{}")
    (output / "notes.txt").write_text("precious")
    return output


@pytest.fixture
def one_code_folder(tiny_mimi, tmp_path):
    """A random Mimi as transformers builds it: its empty codebooks give one code for everything."""
    folder = tmp_path / "empty-mimi"
    MimiModel(tiny_mimi.config).save_pretrained(folder)
    return folder


@pytest.fixture
def damage_transplant(monkeypatch):
    """Let every transplant go wrong in one acoustic codebook."""

    def damaged(*arguments, **options):
        result = real(*arguments, **options)
        codebook = result.model.quantizer.acoustic_residual.layers[3]._codebook
        codebook.embed.copy_(codebook.embed.flip(1))
        return result

    real = convert_kyutai.transplant
    monkeypatch.setattr(convert_kyutai, "transplant", damaged)


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What a result holds


def test_result_holds_exactly_the_files_of_a_model_that_travels(converted):
    assert {file.name for file in converted.folder.iterdir()} == RESULT_FILES


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


# The report


def test_report_on_the_disk_is_the_one_returned(converted):
    assert json.loads((converted.folder / "conversion_report.json").read_text()) == converted.report


def test_report_has_the_digest_of_the_source_file(converted, mimi_folder):
    digest = hashlib.sha256((mimi_folder / "model.safetensors").read_bytes()).hexdigest()
    assert converted.report["source"] == {
        "name": "tiny-mimi",
        "revision": None,
        "layout": "transformers",
        "sha256": {"model.safetensors": digest},
    }


def test_report_has_the_versions_that_made_it(converted):
    packages = ("mimi-bridge", "torch", "transformers", "vector-quantize-pytorch", "safetensors")
    expected = {"python": platform.python_version()} | {name: version(name) for name in packages}
    assert converted.report["versions"] == expected


def test_report_accounts_for_every_tensor_of_the_source(converted, mimi_tensors):
    keys = converted.report["keys"]
    assert len(keys["moved"]) + len(keys["left"]) == len(mimi_tensors)


def test_report_accounts_for_every_tensor_of_the_result(converted):
    keys = converted.report["keys"]
    assert len(keys["moved"]) + len(keys["derived"]) + len(keys["fresh"]) == len(converted.tensors)


def test_report_has_the_config_of_the_result(converted):
    assert converted.report["config"] == {
        "num_quantizers": 9,
        "frame_rate": 12.5,
        "sampling_rate": 24_000,
        "content_layers": 0,
        "prosody_layers": 0,
        "content_delay": 0,
    }


def test_report_names_the_speech_without_its_folder(converted):
    proof = converted.report["proof"]
    assert (proof["speech"], proof["seconds"], proof["frames"]) == ("short-speech.wav", 4.8, 60)


def test_report_of_the_full_residual_proves_what_it_claims(converted_residual):
    proof = converted_residual.report["proof"]
    assert proof["passed"]
    assert proof["residual_weight"] == 1.0
    assert proof["codes_equal"]["prosody"] == 1.0
    assert proof["waveform_max_abs_difference_same_codes"] == 0.0


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


# The command


def test_command_says_what_it_proved_and_wrote(run_command, mimi_folder, output):
    status, printed = run_command("--source", mimi_folder, "--output", output)
    rows = [line.split() for line in printed.out.splitlines()]
    assert status == 0
    assert [row[-3] for row in rows[1:9]] == ["1.0000"] * 8  # the reference path
    assert rows[0] == "codes equal reference path default path codes in use".split()
    assert any(row[:2] == ["default", "path:"] for row in rows) and sum(row[0] == "float64" for row in rows) == 2
    assert rows[-1] == ["wrote", str(output)]


def test_command_says_each_step_on_standard_error(run_command, mimi_folder, output):
    _, printed = run_command("--source", mimi_folder, "--output", output)
    steps = [line[:5] for line in printed.err.splitlines() if line.startswith("[")]
    assert steps == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]


def test_command_passes_all_its_options_on(run_command, monkeypatch):
    def convert(*arguments, **options):
        passed.append((arguments, options))
        raise ConversionError("stop here")

    passed = []
    monkeypatch.setattr(convert_kyutai, "convert", convert)
    run_command(
        *("--source", "kyutai/mimi", "--revision", "main", "--output", "bridge", "--overwrite", "--speech", "me.wav"),
        *("--residual-weight", "0.5", "--num-acoustic-codebooks", "3", "--seed", "7"),
        *("--qwen-dim", "384", "--wavlm-dim", "64"),
        *("--content-layers", "2", "--prosody-layers", "1", "--content-delay", "4"),
    )
    options = {"revision": "main", "overwrite": True, "speech": "me.wav", "seed": 7}
    options |= {"residual_weight": 0.5, "num_acoustic_codebooks": 3, "qwen_dim": 384, "wavlm_dim": 64}
    options |= {"content_layers": 2, "prosody_layers": 1, "content_delay": 4}
    assert passed == [(("kyutai/mimi", Path("bridge")), options)]


def test_command_makes_its_own_speech_where_none_is_given(mimi_folder, output, monkeypatch):
    monkeypatch.delenv(SPEECH_VARIABLE, raising=False)
    proof = convert(str(mimi_folder), output)["proof"]
    assert (proof["speech"], proof["seconds"]) == ("made by espeak-ng", 24.0)


def test_command_takes_speech_from_the_environment(mimi_folder, output, speech_file, monkeypatch):
    monkeypatch.setenv(SPEECH_VARIABLE, str(speech_file))
    assert convert(str(mimi_folder), output)["proof"]["speech"] == "short-speech.wav"


def test_command_creates_the_folders_above_the_output(mimi_folder, output, speech_file):
    convert(str(mimi_folder), output / "below" / "bridge", speech=str(speech_file))
    assert {file.name for file in (output / "below" / "bridge").iterdir()} == RESULT_FILES


# An output that exists


def test_existing_output_is_refused_and_stays_as_it_is(run_command, mimi_folder, old_model):
    before = content_of(old_model)
    status, printed = run_command("--source", mimi_folder, "--output", old_model)
    assert status == 1
    assert printed.err == (
        f"convert_kyutai: error: {old_model} exists already; choose another --output, or pass --overwrite to replace "
        "it.\n"
    )
    assert content_of(old_model) == before


def test_overwrite_replaces_the_output(run_command, mimi_folder, old_model):
    status, _ = run_command("--source", mimi_folder, "--output", old_model, "--overwrite")
    assert status == 0
    assert {file.name for file in old_model.iterdir()} == RESULT_FILES
    assert list(old_model.parent.iterdir()) == [old_model]


def test_overwrite_refuses_a_folder_that_is_no_model(run_command, mimi_folder, output):
    output.mkdir()
    (output / "thesis.tex").write_text("precious")
    status, printed = run_command("--source", mimi_folder, "--output", output, "--overwrite")
    assert status == 1
    assert f"{output} is no model folder, so --overwrite will not replace it" in printed.err
    assert content_of(output) == {"thesis.tex": b"precious"}


def test_overwrite_keeps_the_old_output_when_the_proof_fails(run_command, mimi_folder, old_model, damage_transplant):
    before = content_of(old_model)
    status, _ = run_command("--source", mimi_folder, "--output", old_model, "--overwrite")
    assert status == 1
    assert content_of(old_model) == before
    assert list(old_model.parent.iterdir()) == [old_model]


@pytest.fixture
def stop_at_the_last_step(monkeypatch):
    """Raise an error where the finished folder is about to get the output's name."""

    def stop(error):
        def rename(path, target):
            if path.name.endswith(".partial"):
                raise error
            return real(path, target)

        real = Path.rename
        monkeypatch.setattr(Path, "rename", rename)

    return stop


def test_overwrite_keeps_the_old_output_when_the_new_one_cannot_have_its_name(
    mimi_folder, old_model, speech_file, stop_at_the_last_step
):
    before = content_of(old_model)
    stop_at_the_last_step(OSError("Stale file handle"))
    with pytest.raises(ConversionError, match="bridge could not be written: Stale file handle"):
        convert(str(mimi_folder), old_model, speech=str(speech_file), overwrite=True)
    assert content_of(old_model) == before


@pytest.mark.parametrize("stop", [SystemExit(143), KeyboardInterrupt()], ids=["terminated", "interrupted"])
def test_overwrite_keeps_the_old_output_when_it_is_stopped_at_the_last_step(
    stop, mimi_folder, old_model, speech_file, stop_at_the_last_step
):
    before = content_of(old_model)
    stop_at_the_last_step(stop)
    with pytest.raises(type(stop)):
        convert(str(mimi_folder), old_model, speech=str(speech_file), overwrite=True)
    assert content_of(old_model) == before


def test_overwrite_takes_the_current_folder(run_command, mimi_folder, old_model, monkeypatch):
    monkeypatch.chdir(old_model)
    status, _ = run_command("--source", mimi_folder, "--output", ".", "--overwrite")
    assert status == 0
    assert {file.name for file in old_model.iterdir()} == RESULT_FILES


def test_overwrite_refuses_the_source_itself(run_command, source_folder):
    before = content_of(source_folder)
    status, printed = run_command("--source", source_folder, "--output", source_folder, "--overwrite")
    assert status == 1
    assert "error: " in printed.err
    assert content_of(source_folder) == before


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


def test_output_below_a_file_is_refused(mimi_folder, output, speech_file):
    output.write_text("a file")
    with pytest.raises(
        ConversionError, match="bridge is no folder, so nothing can be written below it; choose another --output"
    ):
        convert(str(mimi_folder), output / "model", speech=str(speech_file))


def test_full_disk_is_refused_and_leaves_nothing(mimi_folder, output, speech_file, monkeypatch):
    def save_pretrained(_, folder):
        Path(folder).mkdir()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(MimiBridgeModel, "save_pretrained", save_pretrained)
    with pytest.raises(ConversionError, match=r"bridge could not be written: .*No space left on device"):
        convert(str(mimi_folder), output, speech=str(speech_file))
    assert list(output.parent.iterdir()) == []


# A conversion that is killed


@pytest.fixture
def waiting_command(mimi_folder, output, speech_file):
    """The command in a process of its own, stopped before the proof with everything written."""
    arguments = ["--source", str(mimi_folder), "--output", str(output), "--speech", str(speech_file)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND_THAT_WAITS, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CONVERSION), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("[4/4]"):
            break
    yield process
    process.kill()
    process.communicate()


def test_terminated_conversion_leaves_nothing(waiting_command, output):
    waiting_command.send_signal(signal.SIGTERM)
    assert waiting_command.wait(timeout=60) == 143
    assert list(output.parent.iterdir()) == []


def test_interrupted_conversion_says_so_and_leaves_nothing(run_command, mimi_folder, output, monkeypatch):
    def prove(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_kyutai, "prove", prove)
    status, printed = run_command("--source", mimi_folder, "--output", output)
    assert status == 130
    assert printed.err.splitlines()[-1] == "convert_kyutai: interrupted; nothing was written."
    assert list(output.parent.iterdir()) == []


def test_conversion_after_a_killed_one_succeeds_and_clears_up(waiting_command, output, run_command, mimi_folder):
    waiting_command.kill()
    waiting_command.wait(timeout=60)
    assert not output.exists()
    status, printed = run_command("--source", mimi_folder, "--output", output)
    assert status == 0
    assert f"found {partial_of(output)}, which a killed conversion left unproven; removing it" in printed.err
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("is_named", [False, True], ids=["before", "after"])
def test_a_conversion_killed_while_names_were_changed_is_cleared_up(run_command, mimi_folder, old_model, is_named):
    replaced = old_model.with_name(f".{old_model.name}.replaced")
    shutil.copytree(old_model, replaced)
    if not is_named:  # the old one has lost its name, and the new one has not got it
        shutil.rmtree(old_model)

    status, printed = run_command("--source", mimi_folder, "--output", old_model)

    assert status == 1 and "exists already" in printed.err
    assert f"found {replaced}, the old bridge that a killed conversion was to replace; " in printed.err
    assert ("giving it its name again" in printed.err) != is_named
    assert list(old_model.parent.iterdir()) == [old_model]
    assert (old_model / "notes.txt").read_text() == "precious"


def test_a_conversion_killed_while_weights_were_written_leaves_nothing_that_loads(
    mimi_folder, output, speech_file, monkeypatch
):
    class Killed(BaseException):
        pass

    def is_cut_off(model, folder):
        save_pretrained(model, folder)
        weights = Path(folder) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        raise Killed

    save_pretrained = MimiBridgeModel.save_pretrained
    monkeypatch.setattr(MimiBridgeModel, "save_pretrained", is_cut_off)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # who is killed clears nothing up
    with pytest.raises(Killed):
        convert(str(mimi_folder), output, speech=str(speech_file))

    assert not output.exists()
    with pytest.raises(ValueError, match="the file is damaged, or was written or fetched in part only"):
        AutoModel.from_pretrained(partial_of(output))


def partial_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def test_traceback_is_shown_where_it_is_asked_for(run_command, mimi_folder, old_model):
    status, printed = run_command("--source", mimi_folder, "--output", old_model, "--traceback")
    assert status == 1
    assert "Traceback" in printed.err and "convert_kyutai.py" in printed.err and "exists already" in printed.err


@pytest.mark.parametrize("name", ["source", "output", "speech", "revision"])
def test_an_argument_that_is_empty_is_refused(run_command, mimi_folder, output, name):
    given = {"--source": mimi_folder, "--output": output} | {f"--{name}": ""}
    status, printed = run_command(*(each for pair in given.items() for each in pair))
    assert status == 1
    sentence = f"the argument for {name} is empty; is a variable of the shell not set?"
    assert printed.err == f"convert_kyutai: error: {sentence}\n"


def test_an_output_whose_name_is_not_utf8_is_refused(run_command, mimi_folder, output):
    status, printed = run_command("--source", mimi_folder, "--output", f"{output}\udcff")
    assert status == 1
    assert r"bridge\xff is not UTF-8; choose another --output" in printed.err


def test_nothing_that_a_killed_conversion_left_gets_into_a_result(mimi_folder, output, speech_file):
    partial = partial_of(output)
    partial.mkdir()
    (partial / "module_of_an_older_version.py").touch()
    convert(str(mimi_folder), output, speech=str(speech_file))
    assert {file.name for file in output.iterdir()} == RESULT_FILES


# The way to the Hub


class RecordingApi:
    """Stands in for `HfApi`: remembers what it is asked for."""

    calls: list

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload_folder", repo_id, {file.name for file in Path(folder_path).iterdir()}))


@pytest.fixture
def hub_calls(monkeypatch):
    """What was asked of the Hub, in order."""
    monkeypatch.setattr(RecordingApi, "calls", [], raising=False)
    monkeypatch.setattr(convert_kyutai, "HfApi", RecordingApi)
    return RecordingApi.calls


def test_push_creates_the_repository_and_uploads_the_proven_folder(run_command, mimi_folder, output, hub_calls):
    status, _ = run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert status == 0
    assert hub_calls == [
        ("create_repo", "me/bridge", {"exist_ok": True}),
        ("upload_folder", "me/bridge", RESULT_FILES),
    ]


def test_nothing_is_pushed_unless_asked_for(run_command, mimi_folder, output, hub_calls):
    run_command("--source", mimi_folder, "--output", output)
    assert hub_calls == []


def test_nothing_is_pushed_when_the_proof_fails(run_command, mimi_folder, output, hub_calls, damage_transplant):
    run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert hub_calls == []


def test_failing_upload_is_named_in_one_line_and_the_folder_stays(
    run_command, mimi_folder, output, hub_calls, monkeypatch
):
    def upload_folder(*_, **__):
        raise OSError("403 Forbidden: you have no write token.")

    monkeypatch.setattr(RecordingApi, "upload_folder", upload_folder)
    status, printed = run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert status == 1
    assert printed.err.splitlines()[-1] == (
        f"convert_kyutai: error: {output} is written and proven, but could not be uploaded to me/bridge: 403 "
        "Forbidden: you have no write token. Log in with `hf auth login` and upload the folder again."
    )
    assert {file.name for file in output.iterdir()} == RESULT_FILES


def test_upload_without_network_is_named_in_one_line(unreachable_hub, converted):
    with pytest.raises(
        ConversionError, match=r"is written and proven, but could not be uploaded to me/bridge: .*refused"
    ):
        convert_kyutai.push(converted.folder, "me/bridge")


def test_interrupted_upload_does_not_say_that_nothing_was_written(
    run_command, mimi_folder, output, hub_calls, monkeypatch
):
    def upload_folder(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordingApi, "upload_folder", upload_folder)
    status, printed = run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert (status, output.exists()) == (130, True)
    assert "nothing was written" not in printed.err
