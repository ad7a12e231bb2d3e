"""The command `mimi-bridge`: what a user types, and what a user sees when it goes wrong."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch

from mimi_bridge.audio.files import load_audio
from mimi_bridge.cli.main import main
from mimi_bridge.codes.file import load_codes


@pytest.fixture(scope="module")
def model_folder(_tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    _tiny_model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recording(tmp_path, speech):
    """A stereo flac at 48 kHz that does not end on a frame."""
    mono = speech[0, :40_001].repeat_interleave(2)
    soundfile.write(tmp_path / "speech.flac", torch.stack([mono, mono], dim=1).numpy(), 48_000)
    return str(tmp_path / "speech.flac")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_encode_then_decode_gives_the_models_own_audio(tmp_path, model_folder, recording, tiny_model, capsys):
    assert run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", model_folder) == 0
    assert "9 codebooks, 21 frames, 1.67 s" in capsys.readouterr().out
    assert run("decode", tmp_path / "c.safetensors", "-o", tmp_path / "out.wav", "-m", model_folder) == 0
    with torch.inference_mode():
        audio = load_audio(recording, 24_000)
        expected = tiny_model(audio[None]).audio_values[0].clamp(-1, 1)
    assert audio.shape == expected.shape
    rounding = 1 / 32_767 + 1e-5  # of 16 bits, and of another order of sums at a peak of 8
    torch.testing.assert_close(load_audio(tmp_path / "out.wav", 24_000), expected, atol=rounding, rtol=0)


def test_encode_keeps_the_first_codebooks_when_asked(tmp_path, model_folder, recording):
    assert run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", model_folder, "--num-quantizers", 2) == 0
    assert load_codes(tmp_path / "c.safetensors").audio_codes.shape == (2, 21)


def test_encode_refuses_an_existing_output_and_leaves_it_alone(tmp_path, model_folder, recording, capsys):
    output = tmp_path / "c.safetensors"
    output.write_text("precious")
    assert run("encode", recording, "-o", output, "-m", model_folder) == 1
    assert "exists already; choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert run("encode", recording, "-o", output, "-m", model_folder, "--overwrite") == 0
    assert load_codes(output).audio_codes.shape == (9, 21)


def test_decode_refuses_codes_of_another_model(tmp_path, model_folder, recording, tiny_model, capsys):
    tiny_model.quantizer.head_content.layers[0]._codebook.embed += 1
    tiny_model.save_pretrained(tmp_path / "other")
    run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", tmp_path / "other")
    assert run("decode", tmp_path / "c.safetensors", "-o", tmp_path / "out.wav", "-m", model_folder) == 1
    assert "was made with other codebooks" in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nothing.wav", "-o", "c.safetensors", "-m", "{model}"], "no such recording: nothing.wav"),
        (["encode", "{recording}", "-o", "c.safetensors", "-m", "./nothing"], "no such model folder: ./nothing"),
        (["encode", "{recording}", "-o", "c.safetensors", "-m", "{mimi}"], "a model of type 'mimi'"),
        (["encode", "{recording}", "-o", "c.safetensors", "-m", "{model}", "--device", "cuda:99"], "cuda:99"),
        (["encode", "{recording}", "-o", "c.safetensors", "-m", "{model}", "--num-quantizers", "0"], "must be 1 to 9"),
        (["decode", "nothing.safetensors", "-o", "out.wav", "-m", "{model}"], "no such codes file"),
        (["decode", "{recording}", "-o", "out.wav", "-m", "{model}"], "no whole safetensors file"),
    ],
)
def test_bad_input_gives_one_sentence_and_writes_nothing(
    tmp_path, monkeypatch, capsys, model_folder, recording, tiny_mimi, arguments, message
):
    monkeypatch.chdir(tmp_path)
    tiny_mimi.save_pretrained("mimi")
    before = set(tmp_path.iterdir())
    filled = [argument.format(model=model_folder, recording=recording, mimi="mimi") for argument in arguments]
    assert main(filled) == 1
    error = capsys.readouterr().err
    assert error.startswith("mimi-bridge: error: ") and message in error
    assert len(error.strip().splitlines()) == 1
    assert set(tmp_path.iterdir()) == before


def test_help_names_the_commands():
    result = subprocess.run(
        [sys.executable, "-m", "mimi_bridge.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in result.stdout for command in ("demo", "encode", "decode"))


def test_traceback_is_shown_where_it_is_asked_for(tmp_path, model_folder, capsys):
    arguments = ["encode", str(tmp_path / "nothing.wav"), "-o", str(tmp_path / "c.safetensors"), "-m", model_folder]
    assert main([*arguments, "--traceback"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "no such recording" in error and "audio/files.py" in error


def test_an_error_of_a_library_says_how_to_see_where(tmp_path, model_folder, recording, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr("mimi_bridge.cli.encode.save_codes", fail)
    assert run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", model_folder) == 1
    assert capsys.readouterr().err == "mimi-bridge: error: device-side assert (--traceback shows where)\n"


def test_an_error_that_only_a_fault_of_ours_raises_is_no_sentence(tmp_path, model_folder, recording, monkeypatch):
    def fail(*args):
        raise TypeError("a fault")

    monkeypatch.setattr("mimi_bridge.cli.encode.save_codes", fail)
    with pytest.raises(TypeError, match="a fault"):
        run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", model_folder)


def names_that_are_not_utf8(tmp_path, recording) -> tuple[bytes, list[tuple[bytes, int, str]]]:
    """The recording under such a name, and outputs, each with the exit code and the message."""
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    os.rename(recording, name + b".flac")
    refused = r"caf\xe9.safetensors is not UTF-8, which files of codes must have; rename it"
    return name + b".flac", [
        (os.fsencode(tmp_path) + b"/c.safetensors", 0, "9 codebooks, 21 frames, 1.67 s"),
        (name + b".safetensors", 1, refused),
    ]


def test_a_name_that_is_not_utf8_is_read_and_one_for_codes_is_named(tmp_path, model_folder, recording, capsys):
    source, cases = names_that_are_not_utf8(tmp_path, recording)
    for output, status, message in cases:
        assert main(["encode", os.fsdecode(source), "-o", os.fsdecode(output), "-m", str(model_folder)]) == status
        assert message in "".join(capsys.readouterr())


@pytest.mark.slow  # two processes that import everything
def test_a_name_that_is_not_utf8_is_read_from_the_command_line(tmp_path, model_folder, recording):
    source, cases = names_that_are_not_utf8(tmp_path, recording)
    for output, status, message in cases:
        command = [sys.executable, "-m", "mimi_bridge.cli.main", "encode", source, "-o", output, "-m", model_folder]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == status and message in result.stdout + result.stderr


def test_one_file_is_never_written_over_a_folder_a_device_or_itself(tmp_path, model_folder, recording, capsys):
    (tmp_path / "c.safetensors").mkdir()
    for output in (tmp_path / "c.safetensors", "/dev/null"):
        assert run("encode", recording, "-o", output, "-m", model_folder, "--overwrite") == 1
        assert "is a folder or a device, but one file gives one file" in capsys.readouterr().err
    assert run("encode", recording, "-o", recording, "-m", model_folder, "--overwrite") == 1
    assert "is what is read itself; choose another --output" in capsys.readouterr().err
    assert load_audio(recording, 24_000).shape[-1] > 0


def test_codes_are_not_called_as_recordings_are(tmp_path, model_folder, recording, capsys):
    assert run("encode", recording, "-o", tmp_path / "c.wav", "-m", model_folder) == 1
    assert "the codes file must be called ....safetensors, got" in capsys.readouterr().err


def test_an_output_below_a_file_is_refused_and_so_is_a_file_for_a_folder(tmp_path, model_folder, recording, capsys):
    assert run("encode", recording, "-o", f"{recording}/c.safetensors", "-m", model_folder) == 1
    assert "speech.flac is no folder, so nothing can be written below it" in capsys.readouterr().err
    assert run("encode", tmp_path, "-o", recording, "-m", model_folder) == 1
    assert "is a file, but a folder gives a folder; choose another --output" in capsys.readouterr().err


def test_an_empty_name_is_not_the_folder_one_is_in(model_folder, recording, capsys):
    for source, output in (("", "codes"), (recording, "")):
        assert run("encode", source, "-o", output, "-m", model_folder) == 1
        assert "is empty; is a variable of the shell not set?" in capsys.readouterr().err


def test_what_belongs_to_folders_or_files_alone_is_refused_elsewhere(tmp_path, model_folder, recording, capsys):
    assert run("encode", tmp_path, "-o", tmp_path / "x", "-m", model_folder, "--dataset", "--overwrite") == 1
    assert "--overwrite is not of --dataset; delete" in capsys.readouterr().err
    assert run("decode", "c.safetensors", "-o", tmp_path / "c.wav", "-m", model_folder, "--format", "flac") == 1
    assert "--format is of a folder of codes files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("model.safetensors", lambda whole: whole[: len(whole) // 2], "cannot be read .*; convert the model or fetch"),
        ("model.safetensors", lambda whole: b"", "cannot be read .*; convert the model or fetch"),
        (
            "config.json",
            lambda whole: whole.replace(b'"residual_weight": 1.0', b'"residual_weight": "a"'),
            "not valid",
        ),
        (
            "config.json",
            lambda whole: whole.replace(b'"qwen_dim": 24', b'"qwen_dim": 25'),
            "have other sizes than its",
        ),
    ],
    ids=["half", "empty", "type", "size"],
)
def test_a_model_folder_that_is_damaged_gives_one_sentence(
    tmp_path, model_folder, recording, capsys, name, changed, message
):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(changed((tmp_path / "model" / name).read_bytes()))
    assert run("encode", recording, "-o", tmp_path / "c.safetensors", "-m", tmp_path / "model") == 1
    assert re.search(message, capsys.readouterr().err)
