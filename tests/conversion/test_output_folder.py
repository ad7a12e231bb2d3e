"""Nothing half done ever has the output's name, and an old model keeps it until the new one is whole."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

import converter
from converter import convert
from mimi_bridge import MimiBridgeModel
from source import ConversionError

CONVERSION = Path(converter.__file__).parent

# The real command, made to wait in the proof, when everything is on the disk under another name.
COMMAND_THAT_WAITS = """
import sys, time, convert_kyutai, converter
converter.prove = lambda *_: time.sleep(600)
sys.exit(convert_kyutai.main(sys.argv[1:]))
"""


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def partial_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def test_command_creates_the_folders_above_the_output(mimi_folder, output, speech_file, result_files):
    convert(str(mimi_folder), output / "below" / "bridge", speech=str(speech_file))
    assert {file.name for file in (output / "below" / "bridge").iterdir()} == result_files


def test_output_below_a_file_is_refused(mimi_folder, output, speech_file):
    output.write_text("a file")
    with pytest.raises(
        ConversionError, match="bridge is no folder, so nothing can be written below it; choose another --output"
    ):
        convert(str(mimi_folder), output / "model", speech=str(speech_file))


def test_an_output_whose_name_is_not_utf8_is_refused(run_command, mimi_folder, output):
    status, printed = run_command("--source", mimi_folder, "--output", f"{output}\udcff")
    assert status == 1
    assert r"bridge\xff is not UTF-8; choose another --output" in printed.err


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


def test_overwrite_replaces_the_output(run_command, mimi_folder, old_model, result_files):
    status, _ = run_command("--source", mimi_folder, "--output", old_model, "--overwrite")
    assert status == 0
    assert {file.name for file in old_model.iterdir()} == result_files
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


def test_overwrite_takes_the_current_folder(run_command, mimi_folder, old_model, monkeypatch, result_files):
    monkeypatch.chdir(old_model)
    status, _ = run_command("--source", mimi_folder, "--output", ".", "--overwrite")
    assert status == 0
    assert {file.name for file in old_model.iterdir()} == result_files


def test_overwrite_refuses_the_source_itself(run_command, source_folder):
    before = content_of(source_folder)
    status, printed = run_command("--source", source_folder, "--output", source_folder, "--overwrite")
    assert status == 1
    assert "error: " in printed.err
    assert content_of(source_folder) == before


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


def test_nothing_that_a_killed_conversion_left_gets_into_a_result(mimi_folder, output, speech_file, result_files):
    partial = partial_of(output)
    partial.mkdir()
    (partial / "module_of_an_older_version.py").touch()
    convert(str(mimi_folder), output, speech=str(speech_file))
    assert {file.name for file in output.iterdir()} == result_files
