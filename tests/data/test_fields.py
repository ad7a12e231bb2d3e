"""What rows say of recordings: columns by their usual names, paths, segments."""

import json
from pathlib import Path

import pytest

from mimi_bridge.data.manifest import Listing, list_recordings
from mimi_bridge.data.tags import without_tags
from mimi_bridge.data.utterance import Utterance


def listed(folder: Path, *rows: dict, columns: dict[str, str] | None = None) -> Listing:
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return list_recordings(folder / "list.jsonl", columns)


def one(folder: Path, columns: dict[str, str] | None = None, **row) -> Utterance:
    (utterance,) = listed(folder, {"path": "a.wav", **row}, columns=columns).utterances
    return utterance


@pytest.mark.parametrize("suffix, delimiter", [("csv", ","), ("csv", ", "), ("tsv", "\t"), ("csv", ";")])
@pytest.mark.parametrize("text", ["text", "sentence", "transcription", "transcript", "normalized_text", "Raw Text"])
@pytest.mark.parametrize("speaker", ["speaker", "speaker_id", "client_id", "Speaker-ID"])
def test_usual_columns_are_known_in_a_table(tmp_path, suffix, delimiter, text, speaker):
    rows = (("path", text, speaker), ("a.wav", "Hello.", "7"))
    (tmp_path / f"list.{suffix}").write_text("\n".join(delimiter.join(row) for row in rows))
    (found,) = list_recordings(tmp_path / f"list.{suffix}").utterances
    assert (found.text, found.speaker) == ("Hello.", "7")


@pytest.mark.parametrize("text", ["text", "sentence", "transcription", "transcript", "normalized_text"])
def test_usual_columns_are_known_in_lines_of_json(tmp_path, text):
    assert one(tmp_path, **{text: "hi", "client_id": 5}) == Utterance("a.wav", tmp_path / "a.wav", "5", "hi")


@pytest.mark.parametrize("name", ["path", "audio", "audio_filepath", "file_name", "filename", "wav", "File Name"])
def test_usual_columns_of_paths_are_known(tmp_path, name):
    (found,) = listed(tmp_path, {name: "a.wav"}).utterances
    assert found.path == tmp_path / "a.wav"


def test_columns_may_be_chosen(tmp_path):
    row = {"text": "no", "Said": "yes", "sound": "b.wav", "key": 3, "who": "ann"}
    columns = {"text": "Said", "audio": "sound", "id": "key", "speaker": "who"}
    assert one(tmp_path, columns, **row) == Utterance("3", tmp_path / "b.wav", "ann", "yes")
    with pytest.raises(ValueError, match=r"list\.jsonl must have the column 'spoken' for its text, got path"):
        one(tmp_path, {"text": "spoken"})
    with pytest.raises(ValueError, match="is a folder without a manifest, so it has no columns to choose"):
        (tmp_path / "sound.wav").touch()
        list_recordings(tmp_path, {"text": "said"})


@pytest.mark.parametrize("nothing", [float("nan"), None, ""])
def test_what_says_nothing_is_no_text_no_id_and_no_speaker(tmp_path, nothing):
    assert one(tmp_path, text=nothing, id=nothing, speaker=nothing, offset=nothing) == Utterance(
        "a.wav", tmp_path / "a.wav", tmp_path.name
    )


def test_next_usual_column_is_read_where_the_first_is_empty(tmp_path):
    assert one(tmp_path, text=None, sentence="hi").text == "hi"


def test_numbers_are_ids_and_texts(tmp_path):
    found = one(tmp_path, id=12.0, text=42, speaker=3)
    assert (found.id, found.text, found.speaker) == ("12", "42", "3")


def test_text_that_is_a_list_is_named_and_its_recording_kept(tmp_path):
    found = one(tmp_path, text=["a", "b"])
    assert found.text is None and found.problem == "its text must be a text, got list"


def test_tags_and_labels_are_taken_out_of_texts_and_kept_beside_them(tmp_path):
    found = one(tmp_path, text="Speaker 1: hello <unk> you [laughter]")
    assert (found.text, found.tags) == without_tags("Speaker 1: hello <unk> you [laughter]")
    silent = one(tmp_path, text="[laughter] <noise>.")
    assert silent.text is None and silent.problem == "its transcript is nothing but [laughter] <noise>"


def test_second_row_of_an_id_is_named_and_left_out(tmp_path):
    rows = [{"path": f"{name}.wav", "id": name[0]} for name in ("a1", "b", "a2", "b")]
    listing = listed(tmp_path, *rows)
    assert [utterance.path.name for utterance in listing.utterances] == ["a1.wav", "b.wav"]
    assert listing.left_out == [
        ("list.jsonl, line 3", "its id 'a' is that of list.jsonl, line 1; give it an id of its own"),
        ("list.jsonl, line 4", "it says the same as list.jsonl, line 2"),
    ]


def test_paths_may_begin_at_home_have_backslashes_or_lie_in_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    for path in ("ann/a.wav", "clips/c.mp3", "odd\\name.wav", "gru\u0308n.wav"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    given = ["~/a.wav", "ann\\a.wav", "c.mp3", "odd\\name.wav", "gone.wav", "/elsewhere/a.wav"]
    given.append("gr\u00fcn.wav")
    paths = [utterance.path for utterance in listed(tmp_path, *({"path": path} for path in given)).utterances]
    wanted = ("/home/ann/a.wav", "ann/a.wav", "clips/c.mp3", "odd\\name.wav", "gone.wav", "/elsewhere/a.wav")
    wanted += ("gru\u0308n.wav",)
    assert paths == [tmp_path / path for path in wanted]


@pytest.mark.parametrize(
    "row, segment",
    [
        ({"offset": 0.2, "duration": 0.7}, (0.2, pytest.approx(0.9))),
        ({"offset": "0.2", "duration": "0.7"}, (0.2, pytest.approx(0.9))),
        ({"start": 1, "end": 2}, (1.0, 2.0)),
        ({"start_time": 1, "end_time": 2, "duration": 1}, (1.0, 2.0)),
        ({"duration": 1.5}, (None, 1.5)),
        ({"offset": 0.5}, (0.5, None)),
        ({"end": 0.5}, (None, 0.5)),
        ({"offset": None, "duration": float("nan")}, (None, None)),
    ],
)
def test_segment_is_read_by_its_usual_names(tmp_path, row, segment):
    found = one(tmp_path, **row)
    assert (found.start, found.end) == segment


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"offset": -0.5, "duration": 1}, "its offset must be seconds from 0 on, got -0.5"),
        ({"offset": 0.5, "duration": -1}, "its duration must be seconds from 0 on, got -1"),
        ({"offset": 0.5, "duration": 0}, "its segment must have a length, but runs from 0.5 to 0.5 s"),
        ({"start": 2, "end": 1}, "its segment must have a length, but runs from 2 to 1 s"),
        ({"start": "0:01", "end": 2}, "its start must be seconds from 0 on, got '0:01'"),
        ({"start": 1, "offset": 0}, "its columns contradict each other: offset 0, start 1"),
        ({"onset": 1, "offset": 2}, "its columns contradict each other: offset 2, onset 1"),
        ({"start": 1, "end": 2, "duration": 3}, "it ends at 2 s, but its beginning and duration give 4 s"),
        ({"offset": True}, "its offset must be seconds from 0 on, got True"),
    ],
)
def test_segment_that_cannot_be_is_named_and_left_out(tmp_path, row, reason):
    listing = listed(tmp_path, {"path": "a.wav", **row}, {"path": "b.wav"})
    assert [utterance.id for utterance in listing.utterances] == ["b.wav"]
    ((place, why),) = listing.left_out
    assert place == "list.jsonl, line 1" and why.startswith(reason)


def test_segments_of_one_file_have_ids_of_their_own(tmp_path):
    rows = [{"path": "a.wav", "offset": offset, "duration": 0.7} for offset in (0, 0.7, 1.4)]
    ids = [utterance.id for utterance in listed(tmp_path, *rows).utterances]
    assert ids == ["a.wav#0.0-0.7", "a.wav#0.7-1.4", "a.wav#1.4-2.1"]


def test_metadata_of_an_audio_folder_is_read_in_the_folder_and_below(tmp_path):
    for path in ("a.wav", "train/b.wav", "train/more/c.wav", "train/more/d.wav"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a.txt").write_text("beside")
    (tmp_path / "train/metadata.csv").write_text("file_name,transcription\nb.wav,in train\nmore/c.wav,below\n")
    listing = list_recordings(tmp_path)
    assert [(found.id, found.text, found.speaker) for found in listing.utterances] == [
        ("train/b.wav", "in train", "train"),
        ("train/more/c.wav", "below", "more"),
        ("a.wav", "beside", tmp_path.name),
    ]
    assert listing.left_out == [("train/more/d.wav", "train/metadata.csv has no line for it that is of use")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_of_an_audio_folder_has_three_forms(tmp_path, suffix):
    table = pytest.importorskip("pandas").DataFrame({"file_name": ["a.wav"], "text": ["hi"]})
    (tmp_path / "a.wav").touch()
    path = tmp_path / f"metadata.{suffix}"
    {
        "csv": lambda: table.to_csv(path, index=False),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
        "parquet": lambda: table.to_parquet(path),
    }[suffix]()
    assert list_recordings(tmp_path).utterances == [Utterance("a.wav", tmp_path / "a.wav", tmp_path.name, "hi")]


def test_other_file_by_the_name_of_metadata_is_named_and_the_folder_is_read(tmp_path):
    (tmp_path / "LJ001.wav").touch()
    (tmp_path / "metadata.csv").write_text("LJ001|Printing, in the only sense|Printing\n")
    listing = list_recordings(tmp_path)
    assert [found.id for found in listing.utterances] == ["LJ001.wav"]
    ((name, reason),) = listing.left_out
    assert name == "metadata.csv" and "must have a column of paths" in reason
