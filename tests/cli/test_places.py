"""Where a command writes, and what it is called with, is looked at before any work is done."""

import os
from pathlib import Path

import pytest

from mimi_bridge.cli.main import main
from mimi_bridge.cli.places import folder_to_write, place_to_write

COMMANDS = {
    "encode": ["encode", "{source}", "-m", "{model}", "-o", "{output}"],
    "decode": ["decode", "{source}", "-m", "{model}", "-o", "{output}"],
    "cache": ["cache", "{source}", "-m", "{model}", "-o", "{output}"],
    "evaluate": ["evaluate", "{model}", "{source}", "-o", "{output}"],
    "export": ["export", "-m", "{model}", "-o", "{output}"],
    "prepare": ["prepare", "{source}", "--text-teacher", "none", "-o", "{output}"],
    "demo": ["demo", "--source", "{model}", "--speech", "{source}", "--output", "{output}"],
}


def run(command: str, **names: object) -> int:
    defaults = {"source": "speech", "model": "model", "output": "out"}
    return main([argument.format(**(defaults | names)) for argument in COMMANDS[command]])


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for command, arguments in COMMANDS.items()
        for name in ("source", "model", "output")
        if f"{{{name}}}" in arguments
    ],
)
def test_an_argument_that_is_empty_is_not_the_folder_one_is_in(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)

    assert run(command, **{name: ""}) == 1

    assert "is empty; is a variable of the shell not set?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_made_is_refused_before_any_work(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("speech").mkdir()
    Path("file").touch()
    Path("loop").symlink_to("loop")
    before = {*tmp_path.iterdir()}
    for output, message in {
        "file/out": "file is no folder, so nothing can be written below it; choose another --output",
        "loop": "loop is a link that leads nowhere; remove it, or choose another --output",
        "loop/out": "loop is a link that leads nowhere",
        "file": "file is a file",
    }.items():
        assert run(command, output=output) == 1
        assert message in capsys.readouterr().err
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", ["cache", "evaluate", "prepare"])
def test_what_is_read_is_never_written_over(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("speech").mkdir()

    assert run(command, output="speech") == 1

    assert "speech is what is read itself; choose another --output" in capsys.readouterr().err


def test_a_place_where_this_user_may_not_write_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    with pytest.raises(PermissionError, match=r"nothing may be written to .*out by this user; choose"):
        place_to_write(str(tmp_path / "out"))


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the name of .*caf\\xe9 is not UTF-8; choose another --output"):
        folder_to_write(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_an_error_of_the_system_names_the_file_that_was_asked_for(tmp_path, monkeypatch, capsys):
    def fail(options):
        raise IsADirectoryError(21, "Is a directory", "there")

    monkeypatch.setattr("mimi_bridge.cli.main._cache", fail)

    assert run("cache") == 1

    assert capsys.readouterr().err == "mimi-bridge: error: there cannot be read or written: Is a directory.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encode", "a", "-m", "m", "-o", "c", "--batch-size", "x"],
            "--batch-size: must be a whole number of",
        ),
        (
            ["prepare", "a", "-o", "b", "--num-proc", "1.5"],
            "1, got '1.5'",
        ),
        (["prepare", "a", "-o", "b", "--min-score", "low"], "must be a number or 'none', got 'low'"),
        (
            ["evaluate", "a", "b", "-o", "c", "--min-score", "low"],
            "must be a number or 'none', got 'low'",
        ),
    ],
)
def test_numbers_that_are_none_are_explained(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
