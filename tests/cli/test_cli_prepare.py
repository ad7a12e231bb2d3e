"""The command `mimi-bridge prepare`: killed and given again, on a full disk, on all that recordings can be."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import load_from_disk

from commands import start_command
from mimi_bridge.audio.espeak import SENTENCES, synthesize
from mimi_bridge.cli.main import main
from mimi_bridge.cli.prepare import MAX_NAMED
from mimi_bridge.data.settings import Settings
from tiny_teachers import write_tiny_qwen, write_tiny_wavlm

KILLS = 10
MIN_SCORE = -40  # espeak-ng speaks less clearly than people


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory) -> str:
    return write_tiny_wavlm(tmp_path_factory.mktemp("wavlm"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> str:
    return write_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Twelve recordings of a second each, and one that is none."""
    folder = tmp_path_factory.mktemp("tones")
    for number in range(12):
        tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(16_000) / 16_000)
        soundfile.write(folder / f"{number:02d}.wav", tone, 16_000)
    (folder / "bad.wav").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def arguments(tones, wavlm) -> list[str]:
    return ["prepare", str(tones), "--text-teacher", "none", "--speech-teacher", wavlm, "--recordings-per-shard", "1"]


@pytest.fixture(scope="module")
def expected(arguments, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "data"
    assert main([*arguments, "-o", str(output)]) == 0
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("num_proc", [1, 2])
def test_run_that_is_killed_at_random_moments_ends_with_the_same_bytes(arguments, expected, tmp_path, num_proc):
    draw, kills, gone_on, output = random.Random(num_proc), 0, 0, tmp_path / "data0"
    (tmp_path / "scratch").mkdir()
    while kills < KILLS // 2:
        shards = num_shards(output)
        gone_on += shards > 0
        options = {"log": tmp_path / "log", "environment": {"TMPDIR": str(tmp_path / "scratch")}}
        command = start_command(*arguments, "-o", output, "--num-proc", num_proc, **options)
        more = draw.randint(0, 4)
        while command.is_alive() and num_shards(output) < shards + more:
            time.sleep(0.002)
        command.join(draw.uniform(0, 0.1))
        children = children_of(command.pid) if command.is_alive() else []
        if command.is_alive():
            command.kill()
            kills += 1
        command.join()
        while any(map(is_running, children)):  # they end by themselves
            time.sleep(0.01)
        if output.exists():
            assert contents(output) == expected
            output = tmp_path / f"data{kills}"
    left = list((tmp_path / "scratch").rglob("list*"))
    assert gone_on > 0 and (not left or num_proc > 1)  # of several, those that have not started yet leave it
    assert main([*arguments, "-o", str(output)]) == 0
    assert contents(output) == expected
    assert len(load_from_disk(str(output))) == 12


def children_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def num_shards(output: Path) -> int:
    try:
        return len(list(output.parent.glob(f"{output.name}.partial/notes/*.json")))
    except FileNotFoundError:  # it was finished, and renamed, while it was looked at
        return 0


def test_full_disk_is_named_and_the_run_goes_on_when_there_is_room(arguments, tmp_path):
    arguments = [*arguments, "--audio", "samples"]  # which take more room than the list of recordings
    assert main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    expected = contents(tmp_path / "whole")
    shard = max(len(content) for name, content in expected.items() if name.endswith(".arrow"))
    command = start_command(*arguments, "-o", tmp_path / "data", log=tmp_path / "log", largest_file=shard - 1)
    command.join()
    assert command.exitcode == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("mimi-bridge: error: shard ") and "(File too large)" in last
    assert last.endswith("what was written before is kept: make room, and give the same command again.")
    assert not list(tmp_path.glob("data.partial/data/*.growing"))
    assert main([*arguments, "-o", str(tmp_path / "data")]) == 0
    assert contents(tmp_path / "data") == expected


def test_unreadable_recording_is_named_and_the_rest_is_done(arguments, tmp_path, capsys):
    assert main([*arguments, "-o", str(tmp_path / "data")]) == 0
    said = capsys.readouterr()
    assert "left out: bad.wav: " in said.err and "is not audio that libsndfile reads" in said.err
    assert said.out == f"{tmp_path / 'data'}: 12 recordings, 0.00 hours; 1 left out\n"


def test_command_given_again_says_what_there_is_and_changes_nothing(arguments, expected, tmp_path, capsys):
    for _ in range(2):
        assert main([*arguments, "-o", str(tmp_path / "data")]) == 0
        assert "12 recordings, 0.00 hours; 1 left out" in capsys.readouterr().out
    assert contents(tmp_path / "data") == expected
    assert main([*arguments, "-o", str(tmp_path / "data"), "--speech-layer", "1"]) == 1
    assert "exists already (speech_layer None, now 1); choose another --output" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bad_input(tmp_path_factory) -> Path:
    """A manifest of one good recording and of all that can be wrong with one."""
    folder = tmp_path_factory.mktemp("bad")
    good = synthesize(SENTENCES[0])[0].numpy()
    other = synthesize(SENTENCES[3])[0].numpy()
    (folder / "in").mkdir()
    recordings = {
        "good": (good, 24_000),
        "narrowband": (good[::3].copy(), 8_000),
        "blink": (good[:72], 24_000),
        "hour": (np.zeros(3600 * 8_000, np.int16), 8_000),
        "other": (other, 24_000),
        "nan": (np.full(24_000, np.nan, np.float32), 24_000),
    }
    for name, (samples, rate) in recordings.items():
        if name == "nan":
            soundfile.write(folder / "in" / f"{name}.wav", samples, rate, subtype="FLOAT")
        else:
            soundfile.write(folder / "in" / f"{name}.flac", samples, rate)
    whole = (folder / "in/good.flac").read_bytes()
    (folder / "in/corrupt.flac").write_bytes(whole[:3000] + bytes(1000) + whole[4000:])
    (folder / "in/short.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "in/empty.flac").write_bytes(b"")
    (folder / "outside.wav").write_bytes(whole)
    words = [{"word": "the", "start": 0.1, "end": 0.3, "phones": []}, {"word": "river", "start": 0.3, "end": 600}]
    (folder / "in/long.json").write_text(json.dumps({"words": [word | {"phones": []} for word in words]}))
    lines = [
        {"id": "good", "path": "good.flac", "text": SENTENCES[0]},
        {"id": "narrowband", "path": "narrowband.flac", "text": SENTENCES[0]},
        {"id": "blink", "path": "blink.flac", "text": SENTENCES[0]},
        {"id": "hour", "path": "hour.flac", "text": SENTENCES[0]},
        {"id": "nan", "path": "nan.wav", "text": SENTENCES[0]},
        {"id": "corrupt", "path": "corrupt.flac", "text": SENTENCES[0]},
        {"id": "short", "path": "short.flac", "text": SENTENCES[0]},
        {"id": "empty", "path": "empty.flac", "text": SENTENCES[0]},
        {"id": "missing", "path": "missing.flac", "text": SENTENCES[0]},
        {"id": "outside", "path": "../outside.wav", "text": SENTENCES[0]},
        {"id": "no text", "path": "good.flac"},
        {"id": "blank text", "path": "good.flac", "text": " "},
        {"id": "other text", "path": "other.flac", "text": SENTENCES[0]},
        {"id": "no words", "path": "good.flac", "text": "!?"},
        {"id": "long token", "path": "good.flac", "text": "the river", "alignment": "long.json"},
        {"id": "no alignment", "path": "good.flac", "text": "the river", "alignment": "gone.TextGrid"},
    ]
    (folder / "in/list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "in/list.jsonl"


DROPPED = {
    "blink": "it lasts 0.003 s, but min_seconds is 0.08",
    "hour": "it lasts 3600.0 s, but max_seconds is 60",
    "nan": "holds NaN or infinity",
    "corrupt": "corrupt.flac is not audio that libsndfile reads",
    "empty": "empty.flac is not audio that libsndfile reads",
    "missing": "no such recording",
    "outside": "lies outside the manifest's folder",
}
WITHOUT_TOKENS = {
    "short": "is it what is said?",
    "no text": "it has no transcript",
    "blank text": "its transcript is empty",
    "other text": "is it what is said?",
    "no words": "text must hold at least one word that can be said",
    "long token": "its words reach from 0.10 to 600.00 s, but it is",
    "no alignment": "gone.TextGrid",
}


@pytest.mark.parametrize("require_tokens", [False, True])
def test_whatever_is_wrong_with_a_recording_is_named_and_stops_no_other(
    bad_input, qwen, wavlm, tmp_path, capsys, require_tokens
):
    arguments = ["prepare", str(bad_input), "-o", str(tmp_path / "data"), "--min-score", str(MIN_SCORE)]
    arguments += ["--text-teacher", qwen, "--speech-teacher", wavlm, *["--require-tokens"] * require_tokens]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "data/report.json").read_text())
    dropped, remarks = dict(report["dropped"]), dict(report["remarks"])
    expected = DROPPED | (WITHOUT_TOKENS if require_tokens else {})
    assert dropped.keys() == expected.keys()
    assert all(reason in dropped[name] for name, reason in expected.items())
    early = [remark for name, remark in report["remarks"] if name == "short" and "ends early" in remark]
    assert len(early) == (0 if require_tokens else 1)
    assert remarks.pop("narrowband") == "recorded at 8000 Hz, so it holds nothing above 4000 Hz"
    assert remarks.keys() == (set() if require_tokens else WITHOUT_TOKENS.keys())
    assert all(remark.startswith("without tokens: ") for remark in remarks.values())
    rows = load_from_disk(str(tmp_path / "data"))
    with_tokens = [row["id"] for row in rows if row["qwen_hidden"] is not None]
    assert with_tokens == ["good", "narrowband"] and report["num_with_tokens"] == 2
    assert all(len(row["wavlm_features"]) == row["num_frames"] for row in rows)
    said = capsys.readouterr()
    assert "left out: hour: it lasts 3600.0 s, but max_seconds is 60" in said.err
    assert "kept: narrowband: recorded at 8000 Hz" in said.err
    assert f"{len(rows)} recordings, 2 of them with tokens" in said.out


def test_every_row_of_a_manifest_is_in_the_data_set_or_named(qwen, wavlm, tmp_path, capsys):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * 16_000)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    lines = [
        '{"audio_filepath": "a.wav", "offset": 0.2, "duration": 0.7, "sentence": "<unk> Speaker 1: hi [noise]"}',
        '{"audio_filepath": "a.wav", "offset": 0.9, "duration": 0.6, "sentence": "[noise]"}',
        '{"audio_filepath": "a.wav", "offset": 1.9, "duration": 0.6}',
        '{"audio_filepath": "a.wav", "offset": -1, "duration": 0.6}',
        '{"audio_filepath": "a.wav", ',
        '{"audio_filepath": "gone.wav", "duration": 3}',
        '{"audio_filepath": "a.wav", "id": "whole", "text": NaN}',
        '{"audio_filepath": "a.wav", "id": "whole", "text": "other"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    arguments = ["prepare", str(tmp_path / "list.jsonl"), "-o", str(tmp_path / "data"), "--text-teacher", qwen]
    assert main([*arguments, "--speech-teacher", wavlm, "--min-score", "none"]) == 0
    report = json.loads((tmp_path / "data/report.json").read_text())
    rows = load_from_disk(str(tmp_path / "data"))
    assert [row["id"] for row in rows] == ["a.wav#0.2-0.9", "a.wav#0.9-1.5", "whole"]
    assert [row["seconds"] for row in rows] == pytest.approx([0.7, 0.6, 2.0], abs=1e-4)
    assert [len(row["input_values"]) for row in rows] == [16_800, 14_400, 48_000]
    assert [row["text"] for row in rows] == ["hi", None, None]
    assert report["tags"] == {"<unk>": 1, "Speaker 1:": 1, "[noise]": 2}
    assert report["num_read"] == 8 == len(rows) + len(report["dropped"])
    named = dict(report["dropped"])
    assert [*named] == [f"list.jsonl, line {n}" for n in (4, 5, 8)] + ["a.wav#1.9-2.5", "gone.wav"]
    assert "its offset must be seconds from 0 on, got -1" in named["list.jsonl, line 4"]
    assert "does not lie in the recording, which lasts 2.00 s" in named["a.wav#1.9-2.5"]
    assert "taken out of the texts: 4 tags (2 [noise], 1 <unk>, 1 Speaker 1:)" in capsys.readouterr().err


def test_segment_whose_path_alone_would_mean_the_whole_is_named(tones, wavlm, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,start,end\n{tones}/00.wav,0.2,0.9\n{tones}/01.wav,,\n")
    arguments = ["prepare", str(tmp_path / "list.csv"), "-o", str(tmp_path / "data"), "--text-teacher", "none"]
    assert main([*arguments, "--speech-teacher", wavlm, "--audio", "path", "--allow-outside"]) == 0
    ((name, reason),) = json.loads((tmp_path / "data/report.json").read_text())["dropped"]
    assert name.endswith("00.wav#0.2-0.9") and "it is a segment of a file" in reason


def test_columns_of_a_manifest_may_be_chosen(tones, wavlm, tmp_path):
    (tmp_path / "list.tsv").write_text(f"sound\tsaid\n{tones}/00.wav\thello\n")
    arguments = ["prepare", str(tmp_path / "list.tsv"), "-o", str(tmp_path / "data"), "--text-teacher", "none"]
    chosen = ["--audio-column", "sound", "--text-column", "said", "--allow-outside"]
    assert main([*arguments, "--speech-teacher", wavlm, *chosen]) == 0
    assert load_from_disk(str(tmp_path / "data"))["text"][:] == ["hello"]


def test_file_whose_name_or_transcript_is_not_utf_8_is_named_and_the_rest_is_done(tones, wavlm, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.wav", b"good.wav"):
        os.symlink(tones / "00.wav", os.fsencode(folder) + b"/" + name)
    (folder / "good.txt").write_text("hello", encoding="utf-16")
    arguments = ["prepare", str(folder), "-o", str(tmp_path / "data"), "--text-teacher", "none"]
    assert main([*arguments, "--speech-teacher", wavlm]) == 0
    said = capsys.readouterr().err
    assert "left out: caf\\xe9.wav: its name is not UTF-8" in said
    assert "kept: good.wav: without text: " in said and "good.txt must be a transcript in UTF-8" in said
    assert load_from_disk(str(tmp_path / "data"))["id"][:] == ["good.wav"]


def test_screen_names_the_first_that_are_left_out_and_the_report_all(wavlm, tmp_path, capsys):
    for number in range(MAX_NAMED + 3):
        (tmp_path / f"{number:02d}.wav").write_text("no audio")
    soundfile.write(tmp_path / "good.wav", np.full(16_000, 0.1), 16_000)
    arguments = ["prepare", str(tmp_path), "-o", str(tmp_path / "data"), "--text-teacher", "none"]
    assert main([*arguments, "--speech-teacher", wavlm]) == 0
    said = capsys.readouterr().err
    assert said.count("left out: ") == MAX_NAMED and "... and 3 more left out; report.json has all" in said
    assert len(json.loads((tmp_path / "data/report.json").read_text())["dropped"]) == MAX_NAMED + 3


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--aligner", "given", "--realign"], "realign needs an aligner, but aligner is 'given'"),
        (["--speech-teacher", "/nowhere"], "/nowhere"),
        (["--split", "dev"], "is no data set of `datasets`, so it has no splits to choose"),
        (["--text-column", "said"], "is a folder without a manifest, so it has no columns to choose"),
        (["--device", "nonsense"], "device 'nonsense' is not available here"),
        (["--device", "meta"], "device 'meta' holds no numbers to compute with; choose cpu, cuda or another"),
        (["--device", "privateuseone"], "device 'privateuseone' is not available here"),
        (["--latents", "./nothing"], "no such model folder: ./nothing"),
        (
            ["--text-teacher", "{wavlm}"],
            "{wavlm} cannot be loaded for this: ",
        ),  # whose error of transformers has no name
    ],
)
def test_what_cannot_be_is_one_sentence(tones, wavlm, tmp_path, capsys, more, sentence):
    arguments = ["prepare", str(tones), "-o", str(tmp_path / "data"), "--text-teacher", "none"]
    more = [each.format(wavlm=wavlm) for each in more]
    assert main([*arguments, "--speech-teacher", wavlm, *more]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mimi-bridge: error: ") and sentence.format(wavlm=wavlm) in last


def test_a_number_format_that_is_none_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "in", "-o", "out", "--dtype", "float99"])
    assert "invalid choice: 'float99' (choose from" in capsys.readouterr().err
    with pytest.raises(ValueError, match="dtype must be one of auto, float32, bfloat16, float16, float64, got 'int8'"):
        Settings(source="in", dtype="int8")


TRANSCRIPTS = {
    "empty": "",
    "blank": " \n",
    "punctuation": "?!... --",
    "another script": "\u4f60\u597d\uff0c\u4e16\u754c",
    "one word": "hello",
}


def test_transcripts_that_say_nothing_or_another_language_are_named_and_the_rest_is_done(qwen, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000)
    for name, text in TRANSCRIPTS.items():
        soundfile.write(tmp_path / f"{name}.wav", noise, 16_000)
        (tmp_path / f"{name}.txt").write_text(text)
    arguments = ["prepare", str(tmp_path), "-o", str(tmp_path / "data"), "--text-teacher", qwen, "--min-score", "none"]
    assert main([*arguments, "--speech-teacher", "none"]) == 0
    dropped = dict(json.loads((tmp_path / "data/report.json").read_text())["dropped"])
    assert dropped["empty.wav"] == dropped["blank.wav"] == "its transcript is empty"
    for name in ("punctuation", "another script"):
        assert "at least one word that can be said in English" in dropped[f"{name}.wav"]
    assert load_from_disk(str(tmp_path / "data"))["id"][:] == ["one word.wav"]


def test_missing_package_is_one_sentence(tones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mimi_bridge.cli.prepare.NEEDED", ("datasets", "accelerate_"))
    assert main(["prepare", str(tones), "-o", str(tmp_path / "data")]) == 1
    assert "needs the package accelerate_; run pip install 'mimi-bridge[train,align]'" in capsys.readouterr().err


def test_without_teachers_rows_hold_tokens_and_phones_in_time_in_less_than_a_megabyte_an_hour(qwen, wavlm, tmp_path):
    for number, text in enumerate(SENTENCES[:4]):
        soundfile.write(tmp_path / f"{number}.flac", synthesize(text)[0].numpy(), 24_000)
        (tmp_path / f"{number}.txt").write_text(text)
    common = ["--text-teacher", qwen, "--min-score", "none"]
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "none"), *common, "--teachers", "none"]) == 0
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "all"), *common, "--speech-teacher", wavlm]) == 0
    bare, full = (load_from_disk(str(tmp_path / name)) for name in ("none", "all"))
    computed = ["qwen_hidden", "wavlm_features"]
    assert bare.to_list() == full.remove_columns(computed).to_list()
    assert bare.column_names == [name for name in full.column_names if name not in computed]
    assert all(len(row["token_ids"]) > 5 and len(row["phones"]) > 5 for row in bare)
    size = sum(path.stat().st_size for path in (tmp_path / "none").glob("*.arrow"))
    hours = sum(bare["seconds"]) / 3600
    assert size - bare.data.schema.serialize().size < 2e6 * hours  # beside what a file costs; few, short recordings


def test_layer_of_a_teacher_whose_states_are_not_stored_is_refused(tones, qwen, tmp_path, capsys):
    arguments = ["prepare", str(tones), "-o", str(tmp_path / "data"), "--text-teacher", qwen, "--teachers", "none"]
    assert main([*arguments, "--text-layer", "1"]) == 1
    assert "teachers is 'none', so no layer of a teacher is stored; give the layers to the training instead" in (
        capsys.readouterr().err
    )
