"""Recordings of folders, manifests and data sets, and what is refused."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict

from mimi_bridge.data.prepare.sources import DatasetSource, FileSource, open_source

RATE = 16_000


def tone(number: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(RATE // 4) / RATE)).astype(np.float32)


def wav(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(number), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def dataset(**columns: list) -> Dataset:
    audio = [{"bytes": wav(number), "path": None} for number in range(3)]
    return Dataset.from_dict({"audio": audio, **columns}).cast_column("audio", Audio(decode=False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / "ann").mkdir(exist_ok=True)
        (tmp_path / f"ann/{number}.wav").write_bytes(wav(number))
        (tmp_path / f"ann/{number}.txt").write_text(f"text {number}")
    return tmp_path


def test_folder_is_a_source(folder):
    source = open_source(str(folder))
    assert isinstance(source, FileSource)
    assert [source.utterance(n).text for n in range(len(source))] == ["text 0", "text 1", "text 2"]
    samples, rate = source.audio(1, RATE)
    assert torch.equal(samples[0], torch.from_numpy(tone(1))) and rate == RATE


def test_manifest_is_a_source(folder):
    lines = (json.dumps({"audio_filepath": f"ann/{n}.wav", "text": "hi"}) for n in (2, 0))
    (folder / "train.jsonl").write_text("\n".join(lines))
    source = open_source(str(folder / "train.jsonl"))
    assert [source.utterance(n).id for n in range(len(source))] == ["ann/2.wav", "ann/0.wav"]


@pytest.mark.parametrize("text", ["text", "sentence", "transcription"])
def test_saved_data_set_is_a_source_of_what_its_usual_columns_hold(tmp_path, text):
    dataset(**{text: ["a", None, "c"], "speaker_id": [7, 8, 9]}).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert isinstance(source, DatasetSource)
    utterances = [source.utterance(n) for n in range(3)]
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        ("00000000", "a", "7"),
        ("00000001", None, "8"),
        ("00000002", "c", "9"),
    ]
    assert torch.equal(source.audio(2, RATE)[0][0], torch.from_numpy(tone(2)))


def test_columns_of_a_data_set_may_have_any_name(tmp_path):
    named = dataset(said=["a", "b", "c"], text=["x", "y", "z"]).rename_column("audio", "sound")
    source = DatasetSource(named, {"audio": "sound", "text": "said"})
    assert source.utterance(1).text == "b"
    samples, rate = source.audio(1, RATE)
    assert torch.equal(samples[0], torch.from_numpy(tone(1))) and rate == RATE


def test_split_is_chosen(tmp_path):
    DatasetDict({"train": dataset(text=list("abc")), "dev": dataset(text=list("xyz"))}).save_to_disk(tmp_path / "both")
    assert open_source(str(tmp_path / "both")).utterance(0).text == "a"
    assert open_source(str(tmp_path / "both"), split="dev").utterance(0).text == "x"
    with pytest.raises(ValueError, match="must have the split 'test', got train, dev"):
        open_source(str(tmp_path / "both"), split="test")


@pytest.mark.parametrize(
    "rows, unaligned, any_text",
    [
        ([{}, {"alignment": "a.ctm"}], False, False),
        ([{}, {"text": "hi", "alignment": "a.ctm"}], False, True),
        ([{"text": "hi"}, {"text": "hi", "alignment": "a.ctm"}], True, True),
    ],
)
def test_source_knows_whether_there_is_a_text_to_align(tmp_path, rows, unaligned, any_text):
    lines = (json.dumps({"path": f"{n}.wav"} | row) for n, row in enumerate(rows))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "list.jsonl"))
    assert (source.has_text_to_align(False), source.has_text_to_align(True)) == (unaligned, any_text)


def test_fingerprint_changes_with_the_list_alone(folder):
    before = open_source(str(folder)).fingerprint()
    assert open_source(str(folder)).fingerprint() == before
    (folder / "ann/1.txt").write_text("other words")
    assert open_source(str(folder)).fingerprint() != before


def test_manifests_recordings_may_lie_outside_its_folder_only_if_that_is_allowed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "b.wav").symlink_to(folder / "ann/1.wav")
    paths = [str(folder / "ann/0.wav"), "../x/../ann/0.wav", "b.wav"]
    (elsewhere / "list.jsonl").write_text(
        "\n".join(json.dumps({"path": path, "id": str(n)}) for n, path in enumerate(paths))
    )
    source = open_source(str(elsewhere / "list.jsonl"))
    for index in (0, 1):
        with pytest.raises(ValueError, match="lies outside the manifest's folder"):
            source.audio(index, RATE)
    assert torch.equal(source.audio(2, RATE)[0][0], torch.from_numpy(tone(1)))
    anywhere = open_source(str(elsewhere / "list.jsonl"), allow_outside=True)
    assert torch.equal(anywhere.audio(0, RATE)[0][0], torch.from_numpy(tone(0)))


def test_recording_that_is_too_long_is_refused_before_it_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match=r"it lasts 0\.2 s, but max_seconds is 0\.1"):
        open_source(str(folder)).audio(0, RATE, max_seconds=0.1)


def test_id_on_the_hub_may_hold_a_point(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **more: asked.append((given, more)) or dataset())
    open_source("someone/speech-v1.5", config="clean", split="dev")
    assert asked == [(("someone/speech-v1.5", "clean"), {"split": "dev"})]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda p: DatasetSource(Dataset.from_dict({"audio": [[0.1, 0.2]]})),
            ValueError,
            "'audio' must hold audio or",
        ),
        (lambda p: DatasetSource(dataset().select([])), ValueError, "at least one recording, got none"),
        (lambda p: open_source(str(p), config="clean"), ValueError, "is no data set on the Hub"),
        (lambda p: open_source(str(p / "nothing.csv")), FileNotFoundError, "no such folder of recordings, manifest"),
        (lambda p: open_source(str(p), split="train"), ValueError, "so it has no splits to choose"),
        (
            lambda p: DatasetSource(Dataset.from_dict({"x": [1]})),
            ValueError,
            "column of audio",
        ),
        (lambda p: DatasetSource(dataset(), {"text": "said"}), ValueError, "must have the column 'said', got audio"),
        (
            lambda p: DatasetSource(dataset(said=list("abc")), {"audio": "said"}).audio(0, RATE),
            FileNotFoundError,
            "no such recording: a",
        ),
    ],
)
def test_what_is_no_source_is_refused(folder, make, error, message):
    with pytest.raises(error, match=message):
        make(folder)


def test_row_of_a_data_set_whose_id_is_taken_is_named_and_left_out():
    source = DatasetSource(dataset(key=["a", "b", "a"]), {"id": "key"})
    assert [source.utterance(n).id for n in range(len(source))] == ["a", "b"]
    assert source.left_out == [("row 2", "its id 'a' is that of row 0; give it an id of its own")]


def test_column_that_was_not_asked_for_gives_ids_only_where_it_has_one_for_each_row():
    source = DatasetSource(dataset(id=["a", "b", "a"]))
    assert [source.utterance(n).id for n in range(len(source))] == ["00000000", "00000001", "00000002"]


def test_row_of_a_manifest_whose_id_is_taken_is_named_and_left_out(folder):
    (folder / "twice.csv").write_text("path,id\nann/0.wav,one\nann/1.wav,one\n")
    source = open_source(str(folder / "twice.csv"))
    assert len(source) == 1 and source.left_out[0][0] == "twice.csv, line 3"


SAMPLES = {"array": tone(0).tolist(), "sampling_rate": RATE}


@pytest.mark.parametrize(
    "audio, whole, missing",
    [
        ([SAMPLES, None, {"array": None, "sampling_rate": RATE}], 1, 2),
        ([{"array": [tone(0).tolist()] * 2, "sampling_rate": RATE}, None], 1, 1),
        ([{"array": (tone(0) * 2**15).astype(np.int16), "sampling_rate": RATE}, None], 1, 1),
        ([{"bytes": wav(0), "path": None}, None, {"bytes": None, "path": None}], 1, 2),
        ([wav(0), None], 1, 1),
    ],
    ids=["samples", "channels", "16 bits", "files", "bytes"],
)
def test_data_set_may_hold_audio_in_any_form_and_lack_it(audio, whole, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    source = DatasetSource(Dataset.from_dict({"audio": audio, "text": ["a"] * len(audio)}))
    assert [source.utterance(n).text for n in range(len(source))] == ["a"] * (whole + missing)
    samples, rate = source.audio(0, RATE)
    torch.testing.assert_close(samples[0], torch.from_numpy(tone(0)), atol=2**-15, rtol=0)
    assert rate == RATE
    for index in range(whole, whole + missing):
        with pytest.raises(ValueError, match="its audio is empty"):
            source.audio(index, RATE)


def test_data_set_may_hold_paths(folder):
    source = DatasetSource(Dataset.from_dict({"audio": [str(folder / "ann/1.wav"), None]}))
    assert torch.equal(source.audio(0, RATE)[0][0], torch.from_numpy(tone(1)))
    with pytest.raises(ValueError, match="its audio is empty"):
        source.audio(1, RATE)


def test_other_columns_of_audio_are_never_decoded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    noisy = [{"bytes": wav(number), "path": None} for number in range(3)]
    both = dataset(text=list("abc"), noisy=noisy).cast_column("noisy", Audio()).cast_column("audio", Audio())
    source = DatasetSource(both)
    assert source.utterance(2).text == "c" and len(source.audio(2, RATE)[0][0]) == RATE // 4


@pytest.mark.parametrize(
    "audio, message",
    [
        ({"array": [0.1, 0.2], "sampling_rate": 0}, "its sampling_rate must be at least 1 Hz, got 0"),
        ({"array": [], "sampling_rate": RATE}, "recording 0 of the data set holds no audio"),
        ({"array": [float("nan")], "sampling_rate": RATE}, "recording 0 of the data set holds NaN"),
    ],
)
def test_samples_that_are_none_are_refused(audio, message):
    source = DatasetSource(Dataset.from_dict({"audio": [audio, {"array": [0.5], "sampling_rate": RATE}]}))
    with pytest.raises(ValueError, match=message):
        source.audio(0, RATE)


def test_samples_that_last_too_long_are_refused():
    with pytest.raises(ValueError, match=r"it lasts 0\.2 s, but max_seconds is 0\.1"):
        DatasetSource(Dataset.from_dict({"audio": [SAMPLES]})).audio(0, RATE, max_seconds=0.1)


def timed(**columns: list) -> DatasetSource:
    return DatasetSource(dataset(**columns))


def test_segments_of_a_data_set_are_cut_out_of_audio_that_is_longer_than_they_are():
    source = timed(offset=[0.1, 0.2, None], duration=[0.1, None, 0.25])
    assert [len(source.audio(n, RATE)[0][0]) for n in range(3)] == [1600, 800, 4000]
    assert torch.equal(source.audio(0, RATE)[0][0], torch.from_numpy(tone(0)[1600:3200]))
    with pytest.raises(ValueError, match="it is a segment of a file"):
        source.audio(0, RATE, only_whole=True)


def test_audio_of_a_data_set_that_was_cut_out_already_is_taken_whole():
    remarks: list[str] = []
    source = timed(begin_time=[100.0, 0.0, 5.0], end_time=[100.25, 0.25, 7.0])
    assert [len(source.audio(n, RATE, tell=remarks.append)[0][0]) for n in range(3)] == [4000] * 3
    assert remarks == ["its whole audio of 0.25 s is taken, in which no segment from 5 to 7 s lies"]


def test_times_of_a_data_set_that_say_no_segment_leave_the_audio_whole_and_are_named():
    remarks: list[str] = []
    assert len(timed(start=["0:01", "", "2"]).audio(0, RATE, tell=remarks.append)[0][0]) == 4000
    assert remarks == ["its whole audio is taken, since its start must be seconds from 0 on, got '0:01'"]


def test_paths_of_a_data_set_go_by_their_usual_names(folder):
    source = DatasetSource(Dataset.from_dict({"audio_filepath": [str(folder / "ann/1.wav")], "text": ["a [b] c"]}))
    assert source.utterance(0).text == "a c" and source.utterance(0).tags == ("[b]",)
    assert torch.equal(source.audio(0, RATE)[0][0], torch.from_numpy(tone(1)))


def test_samples_of_unknown_full_scale_are_refused():
    samples = (0.1 * 2**31 * tone(0)).astype(np.int32)
    source = DatasetSource(Dataset.from_list([{"audio": {"array": samples, "sampling_rate": RATE}}]))
    with pytest.raises(ValueError, match="must be floats in .* or integers of 16 bits, got int"):
        source.audio(0, RATE)


def test_segment_without_a_start_begins_where_its_recording_does():
    rows = [{"audio": {"array": np.tile(tone(0), 4), "sampling_rate": RATE}, "end": 0.5}]
    audio, _ = DatasetSource(Dataset.from_list(rows)).audio(0, RATE)
    assert audio.shape == (1, RATE // 2)
