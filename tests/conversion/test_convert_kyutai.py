"""The command: its steps, options, errors and exit status, and the way to the Hub."""

import json
import os
import shutil
from pathlib import Path

import pytest

import convert_kyutai
import converter
from source import ConversionError


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


def test_interrupted_conversion_says_so_and_leaves_nothing(run_command, mimi_folder, output, monkeypatch):
    def prove(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "prove", prove)
    status, printed = run_command("--source", mimi_folder, "--output", output)
    assert status == 130
    assert printed.err.splitlines()[-1] == "convert_kyutai: interrupted; nothing was written."
    assert list(output.parent.iterdir()) == []


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


def test_recording_whose_name_is_not_utf_8_is_named_in_hexadecimal_digits(
    run_command, mimi_folder, speech_file, output, tmp_path
):
    recording = tmp_path / os.fsdecode(b"speech\xff.wav")
    shutil.copy(speech_file, recording)
    status, printed = run_command("--source", mimi_folder, "--speech", recording, "--output", output)
    assert status == 0, printed.err
    assert json.loads((output / "conversion_report.json").read_text())["proof"]["speech"] == r"speech\xff.wav"


def test_source_whose_name_is_not_utf_8_is_refused(run_command, mimi_folder, output, tmp_path):
    source = tmp_path / os.fsdecode(b"mimi\xff")
    shutil.copytree(mimi_folder, source)
    status, printed = run_command("--source", source, "--output", output)
    assert status == 1 and r"mimi\xff is not UTF-8, which safetensors needs; rename it." in printed.err


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


def test_push_creates_the_repository_and_uploads_the_proven_folder(
    run_command, mimi_folder, output, hub_calls, result_files
):
    status, _ = run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert status == 0
    assert hub_calls == [
        ("create_repo", "me/bridge", {"exist_ok": True}),
        ("upload_folder", "me/bridge", result_files),
    ]


def test_nothing_is_pushed_unless_asked_for(run_command, mimi_folder, output, hub_calls):
    run_command("--source", mimi_folder, "--output", output)
    assert hub_calls == []


def test_nothing_is_pushed_when_the_proof_fails(run_command, mimi_folder, output, hub_calls, damage_transplant):
    run_command("--source", mimi_folder, "--output", output, "--push-to-hub", "me/bridge")
    assert hub_calls == []


def test_failing_upload_is_named_in_one_line_and_the_folder_stays(
    run_command, mimi_folder, output, hub_calls, monkeypatch, result_files
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
    assert {file.name for file in output.iterdir()} == result_files


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
