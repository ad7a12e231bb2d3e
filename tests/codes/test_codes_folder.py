"""Folders to codes and back: as each file alone, interrupted and resumed, with bad files, by two processes."""

import json
import os
import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import load_from_disk

from commands import start_command
from mimi_bridge import MimiBridgeModel
from mimi_bridge.audio.files import load_audio
from mimi_bridge.cli.main import main
from mimi_bridge.codes.dataset import encode_to_dataset
from mimi_bridge.codes.distributed import DistributedContext
from mimi_bridge.codes.extractor import CodeExtractor
from mimi_bridge.codes.file import Codes, load_codes, save_codes
from mimi_bridge.codes.folder import decode_folder, encode_folder

NUM_GOOD = 12


def other_entries(model: MimiBridgeModel) -> None:
    model.quantizer.head_content.vq_codebooks[0].embed += 1


def other_encoder(model: MimiBridgeModel) -> None:
    next(model.encoder.parameters()).data += 1


def other_residual_weight(model: MimiBridgeModel) -> None:
    model.set_residual_weight(0.5)


CHANGES = {"entries": other_entries, "encoder": other_encoder, "residual weight": other_residual_weight}


@pytest.fixture(scope="module")
def model_folder(_tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoding") / "model"
    _tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(speech, tmp_path_factory) -> Path:
    """Good recordings of different lengths in two folders, and three that are none: damaged, empty, not finite."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "inner").mkdir()
    for number in range(NUM_GOOD):
        start, length = 20_000 * number, 12_000 + 1_111 * number
        name = f"inner/{number:02d}.flac" if number % 2 else f"{number:02d}.wav"
        soundfile.write(folder / name, speech[0, start : start + length].numpy(), 24_000)
    (folder / "inner" / "damaged.wav").write_bytes((folder / "00.wav").read_bytes()[:20])
    soundfile.write(folder / "empty.wav", np.zeros(0), 24_000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 24_000, subtype="FLOAT")
    (folder / "._00.wav").write_text("what some systems leave beside a file")
    (folder / "notes.txt").write_text("no recording")
    return folder


@pytest.fixture(scope="module")
def alone_folder(recordings, model_folder, tmp_path_factory) -> Path:
    """What `mimi-bridge encode` makes of each good recording alone."""
    output = tmp_path_factory.mktemp("alone")
    for path in sorted(path for path in recordings.rglob("??.*") if path.suffix in (".wav", ".flac")):
        name = path.relative_to(recordings).with_suffix(".safetensors")
        assert run("encode", path, "-o", output / name, "-m", model_folder) == 0
    return output


@pytest.fixture(scope="module")
def alone(alone_folder) -> dict[str, tuple]:
    """What it holds, by name."""
    found = codes_files(alone_folder)
    assert len(found) == NUM_GOOD
    assert len({str(codes) for *_, codes in found.values()}) == NUM_GOOD
    return found


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def codes_files(folder: Path) -> dict[str, tuple]:
    """What the codes files below a folder hold; their bytes differ, as safetensors writes metadata in any order."""
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*.safetensors"))}


def content(path: Path) -> tuple:
    codes = load_codes(path)
    return codes.num_samples, codes.sampling_rate, codes.codebooks_sha256, codes.audio_codes.tolist()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_gives_the_files_that_each_recording_gives_alone(recordings, model_folder, alone, tmp_path, capsys):
    assert run("encode", recordings, "-o", tmp_path / "codes", "-m", model_folder) == 1  # three are no recordings
    assert codes_files(tmp_path / "codes") == alone
    assert files(tmp_path / "codes") == {*alone, "report.json"}
    assert f"{NUM_GOOD} recordings, 0.00 h" in capsys.readouterr().out


def test_bad_recordings_are_named_on_the_screen_and_in_the_report(recordings, model_folder, tmp_path, capsys):
    run("encode", recordings, "-o", tmp_path, "-m", model_folder)
    error = capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [name for name, _ in report["failed"]] == ["empty.wav", "inner/damaged.wav", "nan.wav"]
    for (name, reason), expected in zip(report["failed"], ("no audio", "not audio", "NaN"), strict=True):
        assert expected in reason
        assert f"left out: {name}: {reason}" in error
    assert "3 of the recordings were left out" in error.splitlines()[-1]
    assert (report["done"], report["kept"]) == (NUM_GOOD, 0)


def test_what_is_there_is_kept_and_only_the_rest_is_encoded(
    recordings, model_folder, alone_folder, alone, tmp_path, capsys
):
    shutil.copytree(alone_folder, tmp_path, dirs_exist_ok=True)
    for name in list(alone)[1::2]:
        (tmp_path / name).unlink()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in list(alone)[::2]}
    run("encode", recordings, "-o", tmp_path, "-m", model_folder)
    assert codes_files(tmp_path) == alone
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert f"{NUM_GOOD} recordings, {NUM_GOOD // 2} of them from before" in capsys.readouterr().out


def test_a_folder_that_was_killed_and_is_given_again_ends_with_the_same_files(
    recordings, model_folder, alone, tmp_path
):
    output, moments = tmp_path / "codes", []
    for kill in range(4):
        command = start_command("encode", recordings, "-o", output, "-m", model_folder, log=tmp_path / "log")
        while len(codes_files(output)) < 3 * kill + 1 and command.is_alive():
            time.sleep(0.002)
        command.kill()
        command.join()
        moments.append(len(codes_files(output)))
        assert all(alone[name] == content for name, content in codes_files(output).items())
    assert 0 < moments[0] < NUM_GOOD
    assert run("encode", recordings, "-o", output, "-m", model_folder) == 1
    assert codes_files(output) == alone
    assert files(output) == {*alone, "report.json"}


@pytest.mark.parametrize("dataset", [False, True], ids=["files", "data set"])
def test_two_processes_of_torchrun_share_a_folder(recordings, model_folder, alone, tmp_path, dataset):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
    arguments = [
        "encode",
        recordings,
        "-o",
        tmp_path / "codes",
        "-m",
        model_folder,
        *(["--dataset"] if dataset else []),
    ]
    commands = [
        start_command(*arguments, log=tmp_path / f"log{rank}", environment=shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for command in commands:
        command.join()
    logs = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert [command.exitcode for command in commands] == [1, 0], logs  # the first speaks for both
    assert f"{NUM_GOOD} recordings" in logs[0] and "recordings" not in logs[1]
    report = json.loads((tmp_path / "codes" / "report.json").read_text())
    assert (report["done"], len(report["failed"])) == (NUM_GOOD, 3)
    if dataset:
        assert load_from_disk(str(tmp_path / "codes")).num_rows == NUM_GOOD
    else:
        assert codes_files(tmp_path / "codes") == alone
        assert files(tmp_path / "codes") == {*alone, "report.json"}


def test_shares_of_processes_are_all_files_and_each_once(tiny_model, recordings, alone, tmp_path):
    extractor = CodeExtractor(tiny_model)
    written = []
    for index in (2, 1, 0):  # the first last: it sums the others up
        before = set(codes_files(tmp_path))
        encode_folder(extractor, recordings, tmp_path, DistributedContext(index, 3))
        written.append(set(codes_files(tmp_path)) - before)
    assert codes_files(tmp_path) == alone
    assert sum(len(names) for names in written) == NUM_GOOD
    assert all(len(names) >= 3 for names in written)


def test_a_data_set_has_the_codes_of_each_recording_and_goes_on_where_it_was(tiny_model, recordings, alone, tmp_path):
    extractor, output = CodeExtractor(tiny_model, num_quantizers=3), tmp_path / "data"
    encode_to_dataset(
        extractor, recordings, output, DistributedContext(1, 2), recordings_per_shard=4
    )  # leaves every other shard
    assert not output.exists()
    report = encode_to_dataset(extractor, recordings, output, DistributedContext(), recordings_per_shard=4)
    assert (report.done, [name for name, _ in report.failed]) == (
        NUM_GOOD,
        ["empty.wav", "inner/damaged.wav", "nan.wav"],
    )
    rows = load_from_disk(str(output))
    assert len(list(output.glob("*.arrow"))) == 4
    assert sorted(str(Path(row["id"]).with_suffix(".safetensors")) for row in rows) == sorted(alone)
    for row in rows:
        num_samples, *_, codes = alone[str(Path(row["id"]).with_suffix(".safetensors"))]
        assert (row["num_samples"], row["audio_codes"]) == (num_samples, codes[:3])


def test_batches_of_recordings_give_the_same_codes_on_a_cpu(tiny_model, recordings, alone, tmp_path):
    encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext(), batch_size=5)
    assert codes_files(tmp_path) == alone


def test_a_batch_that_is_too_much_is_encoded_one_by_one(tiny_model, recordings, alone, tmp_path, monkeypatch):
    extractor = CodeExtractor(tiny_model)
    encode = extractor.encode

    def of_little_memory(audios):
        if len(audios) > 1 or audios[0].shape[-1] == 12_000:
            raise torch.OutOfMemoryError("out of memory")
        return encode(audios)

    monkeypatch.setattr(extractor, "encode", of_little_memory)
    report = encode_folder(extractor, recordings, tmp_path, DistributedContext(), batch_size=4)
    assert codes_files(tmp_path) == {name: content for name, content in alone.items() if name != "00.safetensors"}
    assert ("00.wav", "out of memory") in report.failed


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_codes_of_another_model_or_another_number_of_them_are_refused(
    recordings, model_folder, alone_folder, alone, tiny_model, tmp_path, capsys, change
):
    shutil.copy(alone_folder / "04.safetensors", tmp_path)
    assert run("encode", recordings, "-o", tmp_path, "-m", model_folder, "--num-quantizers", 2) == 1
    assert "with more or fewer codebooks" in capsys.readouterr().err
    change(tiny_model)
    with pytest.raises(ValueError, match=r"04\.safetensors was made by another model.*or pass --overwrite"):
        encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext())
    assert codes_files(tmp_path) == {"04.safetensors": alone["04.safetensors"]}
    encode_folder(CodeExtractor(tiny_model, 2), recordings, tmp_path, DistributedContext(), overwrite=True)
    assert {len(load_codes(path).audio_codes) for path in tmp_path.rglob("*.safetensors")} == {2}


def test_codes_that_do_not_say_their_encoder_are_known_by_their_codebooks(
    recordings, alone_folder, tiny_model, tmp_path
):
    save_codes(tmp_path / "04.safetensors", replace(load_codes(alone_folder / "04.safetensors"), encoder_sha256=None))
    report = encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext())
    assert (report.kept, report.done) == (1, NUM_GOOD - 1)


def test_decoder_that_has_learned_gives_no_other_codes(recordings, alone_folder, tiny_model, tmp_path):
    shutil.copy(alone_folder / "04.safetensors", tmp_path)
    next(tiny_model.decoder.parameters()).data += 1
    assert encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext()).kept == 1


@pytest.mark.parametrize("content", ['{"mine": 1}', "{}", "[1]", "no json"])
def test_report_of_something_else_is_not_replaced(recordings, alone_folder, tiny_model, tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is none of an earlier run and would be replaced"):
        encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext())
    with pytest.raises(ValueError, match=r"report\.json is none of an earlier run and would be replaced"):
        decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav")
    assert (tmp_path / "report.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_of_two_recordings_with_one_name_the_second_is_left_out_and_named(tiny_model, speech, tmp_path):
    for suffix in ("flac", "wav"):
        soundfile.write(tmp_path / f"same.{suffix}", speech[0, :8000].numpy(), 24_000)
    report = encode_folder(CodeExtractor(tiny_model), tmp_path, tmp_path / "codes", DistributedContext())
    reason = "same.safetensors is the result of same.flac; give one of them another name."
    assert (report.done, report.failed) == (1, [("same.wav", reason)])


def test_a_folder_of_codes_gives_the_recordings_that_each_gives_alone(
    model_folder, alone_folder, alone, tmp_path, capsys
):
    shutil.copytree(alone_folder, tmp_path / "codes")
    (tmp_path / "codes" / "broken.safetensors").write_text("broken")
    arguments = ["decode", tmp_path / "codes", "-o", tmp_path / "audio", "-m", model_folder, "--format", "flac"]
    assert run(*arguments) == 1
    assert "left out: broken.safetensors: " in capsys.readouterr().err
    assert files(tmp_path / "audio") == {str(Path(name).with_suffix(".flac")) for name in alone} | {
        "report.json",
        ".decoded_by",
    }
    name = next(iter(alone))
    assert run("decode", tmp_path / "codes" / name, "-o", tmp_path / "one.flac", "-m", model_folder) == 0
    decoded = load_audio((tmp_path / "audio" / name).with_suffix(".flac"), 24_000)
    assert torch.equal(decoded, load_audio(tmp_path / "one.flac", 24_000))

    (tmp_path / "audio" / name).with_suffix(".flac").unlink()
    (tmp_path / "codes" / "broken.safetensors").unlink()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert f"{NUM_GOOD} codes files, {NUM_GOOD - 1} of them from before" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["the same place", "a place that says nothing"])
def test_what_another_model_decoded_is_not_taken_for_this_models(alone_folder, tiny_model, tmp_path, there):
    decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav")
    if there == "the same place":
        next(tiny_model.decoder.parameters()).data += 1
    else:
        (tmp_path / ".decoded_by").unlink()
    with pytest.raises(ValueError, match=r"another model may have decoded .*wav; choose another --output, or pass"):
        decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav")
    report = decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav", overwrite=True)
    assert (report.kept, report.done) == (0, NUM_GOOD)
    assert decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav").kept == NUM_GOOD


def test_interrupted_overwriting_is_not_taken_for_one_models_work(alone_folder, tiny_model, tmp_path, monkeypatch):
    decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav")
    next(tiny_model.decoder.parameters()).data += 1
    monkeypatch.setattr("mimi_bridge.codes.folder.save_audio", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav", overwrite=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another model may have decoded"):
        decode_folder(tiny_model, alone_folder, tmp_path, DistributedContext(), suffix=".wav")


def test_codes_made_again_are_decoded_again(alone_folder, tiny_model, tmp_path):
    shutil.copytree(alone_folder, tmp_path / "codes")
    decode_folder(tiny_model, tmp_path / "codes", tmp_path / "audio", DistributedContext(), suffix=".wav")
    later = (tmp_path / "audio" / "00.wav").stat().st_mtime + 1
    os.utime(tmp_path / "codes" / "00.safetensors", (later, later))
    report = decode_folder(tiny_model, tmp_path / "codes", tmp_path / "audio", DistributedContext(), suffix=".wav")
    assert (report.kept, report.done) == (NUM_GOOD - 1, 1)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_name_too_long_for_its_result_and_a_folder_in_its_place_are_named_and_the_rest_is_done(
    tiny_model, speech, tmp_path
):
    source, output = tmp_path / "in", tmp_path / "out"
    (output / "folder.safetensors").mkdir(parents=True)
    (output / "file").write_text("in the place of a folder")
    (source / "file").mkdir(parents=True)
    long = "a" * 250
    for name in (f"{long}.wav", "folder.wav", "file/inner.wav", "good.wav"):
        soundfile.write(source / name, speech[0, :8000].numpy(), 24_000)
    report = encode_folder(CodeExtractor(tiny_model), source, output, DistributedContext())
    assert report.done == 1 and (output / "good.safetensors").is_file()
    assert dict(map(tuple, report.failed)) == {
        f"{long}.wav": f"{long}.safetensors cannot be written (File name too long); give it another name.",
        "folder.wav": "a folder is in the place of folder.safetensors; move it away.",
        "file/inner.wav": "inner.safetensors cannot be written (Not a directory); give it another name.",
    }


@pytest.mark.parametrize("changes", [{"sampling_rate": 16_000}, {"num_samples": 999_999}])
def test_codes_of_another_rate_or_length_are_named_and_the_rest_is_done(alone_folder, tiny_model, tmp_path, changes):
    shutil.copytree(alone_folder, tmp_path / "codes")
    save_codes(tmp_path / "codes" / "00.safetensors", replace(load_codes(alone_folder / "00.safetensors"), **changes))
    report = decode_folder(tiny_model, tmp_path / "codes", tmp_path / "audio", DistributedContext(), suffix=".wav")
    assert report.done == NUM_GOOD - 1
    ((name, reason),) = report.failed
    assert name == "00.safetensors" and "must be of 24000 Hz and at most" in reason


def test_a_pipe_called_as_a_recording_is_named_as_such(tiny_model, speech, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    soundfile.write(tmp_path / "good.wav", speech[0, :8000].numpy(), 24_000)
    report = encode_folder(CodeExtractor(tiny_model), tmp_path, tmp_path / "codes", DistributedContext())
    assert report.done == 1
    ((name, reason),) = report.failed
    assert name == "pipe.wav" and "a pipe or a device; a recording must be a file" in reason


def test_data_set_of_one_file_is_refused(recordings, model_folder, tmp_path, capsys):
    arguments = ["encode", recordings / "00.wav", "-o", tmp_path / "x", "-m", model_folder, "--dataset"]
    assert run(*arguments) == 1
    assert "--dataset is of a folder of recordings" in capsys.readouterr().err


def test_folder_without_recordings_is_named(model_folder, tmp_path, capsys):
    assert run("encode", tmp_path, "-o", tmp_path / "codes", "-m", model_folder) == 1
    assert "no recording" in capsys.readouterr().err
    assert run("decode", tmp_path, "-o", tmp_path / "audio", "-m", model_folder) == 1
    assert "no codes file (.safetensors)" in capsys.readouterr().err
    assert not (tmp_path / "codes").exists()


def test_what_is_no_recording_that_can_be_read_is_named_and_the_rest_is_done(tiny_model, speech, tmp_path):
    for path in (tmp_path / "in" / "good.wav", tmp_path / "elsewhere" / "linked.wav"):
        path.parent.mkdir()
        soundfile.write(path, speech[0, :8000].numpy(), 24_000)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "voice.m4a").write_bytes(b"...")
    bad = os.fsencode(tmp_path / "in") + b"/caf\xe9.wav"
    shutil.copy(tmp_path / "in" / "good.wav", bad)
    expected = [("caf\\xe9.wav", "its name is not UTF-8"), ("voice.m4a", "libsndfile does not read .m4a files")]
    for report in (
        encode_folder(CodeExtractor(tiny_model), tmp_path / "in", tmp_path / "codes", DistributedContext()),
        encode_to_dataset(CodeExtractor(tiny_model), tmp_path / "in", tmp_path / "data", DistributedContext()),
    ):
        assert report.done == 2
        assert [
            (name, reason[: len(start)]) for (name, reason), (_, start) in zip(report.failed, expected, strict=True)
        ] == expected
    assert set(codes_files(tmp_path / "codes")) == {"good.safetensors", "link/linked.safetensors"}
    assert load_from_disk(str(tmp_path / "data"))["id"][:] == ["good.wav", "link/linked.wav"]


def test_a_recording_that_is_cut_short_is_named_each_time(tiny_model, model_folder, speech, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "cut.wav", speech[0, :48_000].numpy(), 24_000)
    (tmp_path / "in" / "cut.wav").write_bytes((tmp_path / "in" / "cut.wav").read_bytes()[: 44 + 48_000])
    remark = "it ends early: its header says 2.00 s, and 1.00 s are there"
    for _ in range(2):
        assert run("encode", tmp_path / "in", "-o", tmp_path / "codes", "-m", model_folder) == 0
        assert f"kept: cut.wav: {remark}" in capsys.readouterr().err
        assert json.loads((tmp_path / "codes" / "report.json").read_text())["remarks"] == [["cut.wav", remark]]
    report = encode_to_dataset(CodeExtractor(tiny_model), tmp_path / "in", tmp_path / "data", DistributedContext())
    assert [tuple(pair) for pair in report.remarks] == [("cut.wav", remark)]
    assert run("encode", tmp_path / "in" / "cut.wav", "-o", tmp_path / "one.safetensors", "-m", model_folder) == 0
    assert remark in capsys.readouterr().err


def test_a_broken_result_from_before_is_named_and_the_rest_is_done(tiny_model, recordings, alone, tmp_path):
    (tmp_path / "00.safetensors").write_text("broken")
    report = encode_folder(CodeExtractor(tiny_model), recordings, tmp_path, DistributedContext())
    assert report.done == NUM_GOOD - 1
    (reason,) = [reason for name, reason in report.failed if name == "00.wav"]
    assert "no whole safetensors file" in reason and reason.endswith("Delete it, or pass --overwrite.")


@pytest.mark.parametrize("dataset", [False, True], ids=["files", "data set"])
def test_a_full_disk_gives_one_sentence_and_leaves_nothing_half_written(
    recordings, model_folder, tmp_path, small_files, monkeypatch, capsys, dataset
):
    # as if the codes were many
    monkeypatch.setattr(CodeExtractor, "encode", lambda self, audios: [_many_codes(self) for _ in audios])
    with small_files():
        assert run("encode", recordings, "-o", tmp_path / "codes", "-m", model_folder, *["--dataset"] * dataset) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mimi-bridge")]
    assert "File too large" in error and "make room" in error
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.growing"))


def _many_codes(extractor):
    return Codes(torch.zeros(9, 10_000, dtype=torch.int64), 19_200_000, 24_000, extractor.codebooks_sha256)


def test_a_full_disk_in_decode_gives_one_sentence_and_no_recording(
    alone_folder, model_folder, tmp_path, small_files, capsys
):
    for source, output in ((alone_folder, tmp_path), (alone_folder / "00.safetensors", tmp_path / "one.wav")):
        with small_files():
            assert run("decode", source, "-o", output, "-m", model_folder, "--overwrite") == 1
        assert "cannot be written (File too large); make room" in capsys.readouterr().err.splitlines()[-1]
        assert files(tmp_path) == set()


def test_decode_refuses_a_suffix_that_is_not_written_and_names_those_that_are(
    alone_folder, model_folder, tmp_path, capsys
):
    for arguments in (
        [alone_folder / "00.safetensors", "-o", tmp_path / "x.raw"],
        [alone_folder, "-o", tmp_path / "audio", "--format", "raw"],
    ):
        assert run("decode", *arguments, "-m", model_folder) == 1
        assert re.search(
            r"must end in a format that is written \(\.wav, \.flac, .*\), got '\.raw'", capsys.readouterr().err
        )
        assert files(tmp_path) == set()
