"""The command `mimi-bridge evaluate`."""

import json
import shutil
import sys

import pytest

from mimi_bridge.audio.files import save_audio
from mimi_bridge.cli.evaluate import of_many_speakers
from mimi_bridge.cli.main import main
from mimi_bridge.data.manifest import Utterance


@pytest.fixture(scope="module")
def model_folder(_tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "model"
    _tiny_model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recordings(tmp_path, speech):
    for number, speaker in enumerate(("ann", "ann", "bob")):
        audio = speech[:, number * 100_000 : number * 100_000 + 30_000]
        save_audio(tmp_path / "speech" / speaker / f"{number}.wav", audio, 24_000)
    return str(tmp_path / "speech")


def test_tables_are_printed_and_the_folder_holds_all(tmp_path, model_folder, recordings, capsys):
    output = tmp_path / "out"
    arguments = ["evaluate", model_folder, recordings, "-o", str(output), "--only", "mel", "codes", "--examples", "1"]
    assert main([*arguments, "--max-recordings", "2"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((output / "evaluation.json").read_text())
    assert result["num_recordings"] == result["num_speakers"] == 2
    assert result["command"].startswith("mimi-bridge evaluate ") and "--max-recordings 2" in result["command"]
    assert f"| {result['reconstruction']['all']['bridge_9']['mel']['mean']:.3f} (" in printed
    assert str(output / "evaluation.json") in printed
    assert (output / "report.html").is_file()
    assert len(list((output / "audio").glob("*.wav"))) == 4


def test_earlier_evaluation_stands_beside_this_one(tmp_path, model_folder, recordings, capsys):
    arguments = ["evaluate", model_folder, recordings, "--only", "mel", "codes", "--examples", "0"]
    assert main([*arguments, "-o", str(tmp_path / "one")]) == 0
    assert main([*arguments, "-o", str(tmp_path / "two"), "--before", str(tmp_path / "one")]) == 0
    before, after = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert after["before"]["reconstruction"] == before["reconstruction"]
    assert after["before"]["model"] == model_folder
    capsys.readouterr()
    others = ["-o", str(tmp_path / "three"), "--before", str(tmp_path / "one"), "--speakers", "bob"]
    assert main([*arguments, *others]) == 1
    assert "must be of the same recordings: these are 1, that of" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()  # before anything is measured
    assert main([*arguments, "-o", str(tmp_path / "four"), "--before", str(tmp_path / "none")]) == 1
    assert "no evaluation at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speakers", "nobody"], "--speakers nobody names nobody"),
        (["--max-recordings", "0"], "--max-recordings must not be below 1"),
        (["--mos", "one"], "--mos takes REPOSITORY and ENTRY, or nothing for DNSMOS, got 1: one"),
        (["--min-score", "-30", "--only", "beauty"], "only must name some of"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, model_folder, recordings, capsys, arguments, message):
    assert main(["evaluate", model_folder, recordings, "-o", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("mimi-bridge: error:")


def test_reference_that_is_not_there_is_refused_before_anything_is_measured(
    tmp_path, model_folder, recordings, capsys
):
    arguments = ["-o", str(tmp_path / "out"), "--reference", str(tmp_path / "none")]
    assert main(["evaluate", model_folder, recordings, *arguments]) == 1
    assert "error: the stock Mimi" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_earlier_evaluation_of_as_many_other_recordings_is_refused(tmp_path, model_folder, recordings, capsys):
    arguments = ["evaluate", model_folder, recordings, "--only", "mel", "--examples", "0", "--speakers"]
    assert main([*arguments, "bob", "-o", str(tmp_path / "bob")]) == 0
    earlier = json.loads((tmp_path / "bob" / "evaluation.json").read_text())
    (tmp_path / "bob" / "evaluation.json").write_text(json.dumps(earlier | {"seconds": earlier["seconds"] + 1}))
    assert main([*arguments, "bob", "-o", str(tmp_path / "again"), "--before", str(tmp_path / "bob")]) == 1
    assert "s of speech, that of" in capsys.readouterr().err


def test_recordings_are_taken_of_as_many_speakers_as_can_be(tmp_path):
    utterances = [Utterance(str(n), tmp_path, speaker) for n, speaker in enumerate("aaaabbcd")]

    def chosen(count):
        return "".join(utterance.speaker for utterance in of_many_speakers(utterances, count))

    assert [chosen(count) for count in (2, 4, 6, 50)] == ["ac", "abcd", "aabbcd", "aaaabbcd"]


def test_what_is_left_out_is_named_one_by_one(tmp_path, model_folder, recordings, capsys):
    (tmp_path / "speech" / "ann" / "x.m4a").write_bytes(b"...")
    for name in ("one", "two"):
        (tmp_path / "speech" / "ann" / f"{name}.wav").write_text("no audio")
    arguments = ["evaluate", model_folder, recordings, "-o", str(tmp_path / "out"), "--only", "mel", "--examples", "0"]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert all(f"left out: ann/{name}: " in error for name in ("x.m4a", "one.wav", "two.wav"))
    assert len(json.loads((tmp_path / "out" / "evaluation.json").read_text())["left_out"]) == 3


def test_page_that_cannot_be_written_names_the_package(tmp_path, model_folder, recordings, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mimi_bridge.evaluation.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    output = tmp_path / "out"
    arguments = ["evaluate", model_folder, recordings, "-o", str(output), "--only", "codes", "--examples", "0"]
    assert main([*arguments, "--max-recordings", "1"]) == 0
    assert "no page: it needs the package jinja2; run pip install" in capsys.readouterr().err
    assert (output / "evaluation.json").is_file() and not (output / "report.html").exists()


def test_what_was_decoded_before_is_no_recording(tmp_path, model_folder, recordings, capsys):
    output = f"{recordings}/evaluation"
    arguments = ["evaluate", model_folder, recordings, "-o", output, "--only", "mel", "--examples", "2"]
    for _ in range(2):
        assert main(arguments) == 0
        assert json.loads((tmp_path / "speech/evaluation/evaluation.json").read_text())["num_recordings"] == 3


@pytest.mark.parametrize("change", ["speaker", "audio", "residual_weight"])
def test_what_has_changed_is_measured_again(tmp_path, model_folder, recordings, capsys, change):
    model, manifest = tmp_path / "model", tmp_path / "manifest.jsonl"
    shutil.copytree(model_folder, model)
    lines = [{"path": f"speech/ann/{number}.wav", "speaker": "ann"} for number in range(2)]

    def measured() -> str:
        manifest.write_text("\n".join(map(json.dumps, lines)))
        arguments = [str(model), str(manifest), "-o", str(tmp_path / "out"), "--only", "mel", "--examples", "0"]
        assert main(["evaluate", *arguments]) == 0
        return capsys.readouterr().err + (tmp_path / "out" / "recordings.jsonl").read_text()

    first = measured()
    assert measured().count("are measured already") == 1
    if change == "speaker":
        lines[0]["speaker"] = "bob"
    elif change == "audio":
        shutil.copy(f"{recordings}/bob/2.wav", f"{recordings}/ann/1.wav")
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"residual_weight": 0.123}))
    again = measured()
    assert "are measured already" not in again and again != first


def test_nothing_that_can_be_read_is_an_error(tmp_path, model_folder, capsys):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"no sound")
    arguments = ["evaluate", model_folder, str(tmp_path / "speech"), "-o", str(tmp_path / "out"), "--only", "mel"]
    assert main(arguments) == 1
    assert "none of the recordings of" in capsys.readouterr().err
