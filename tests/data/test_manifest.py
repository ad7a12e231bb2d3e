"""Manifests read and refused, folders without one, and alignments."""

import json
from pathlib import Path

import pytest

from mimi_bridge.data.manifest import Span, Utterance, list_recordings, read_manifest, read_phones


def write_lines(folder: Path, *lines: str) -> Path:
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_manifest_gives_every_field_of_a_line(tmp_path):
    line = {
        "path": "ann/1.flac",
        "id": "first",
        "speaker": "Ann",
        "text": "Grüße",
        "licence": "CC0",
        "alignment": "ann/1.json",
    }
    (utterance,) = read_manifest(write_lines(tmp_path, json.dumps(line, ensure_ascii=False)))
    assert utterance == Utterance(
        id="first",
        path=tmp_path / "ann/1.flac",
        speaker="Ann",
        text="Grüße",
        licence="CC0",
        alignment=tmp_path / "ann/1.json",
    )


def test_manifest_line_needs_nothing_but_a_path(tmp_path):
    (utterance,) = read_manifest(write_lines(tmp_path, '{"path": "ann/1.flac"}'))
    assert utterance == Utterance(id="ann/1.flac", path=tmp_path / "ann/1.flac", speaker="ann")


def test_manifest_keeps_the_order_of_its_lines(tmp_path):
    write_lines(tmp_path, '{"path": "b.wav"}', '{"path": "c.wav"}', '{"path": "a.wav"}')
    assert [utterance.id for utterance in read_manifest(tmp_path)] == ["b.wav", "c.wav", "a.wav"]


def test_manifest_passes_over_blank_lines(tmp_path):
    write_lines(tmp_path, "", '{"path": "a.wav"}', "  ", '{"path": "b.wav"}', "")
    assert [utterance.id for utterance in read_manifest(tmp_path)] == ["a.wav", "b.wav"]


def test_manifest_makes_text_of_numbered_ids_and_speakers(tmp_path):
    (utterance,) = read_manifest(write_lines(tmp_path, '{"path": "a.wav", "id": 7, "speaker": 0}'))
    assert (utterance.id, utterance.speaker) == ("7", "0")


def test_manifest_takes_null_for_nothing(tmp_path):
    (utterance,) = read_manifest(write_lines(tmp_path, '{"path": "ann/a.wav", "id": null, "speaker": null}'))
    assert (utterance.id, utterance.speaker) == ("ann/a.wav", "ann")


def test_manifest_keeps_lines_whole_whose_text_holds_a_line_separator(tmp_path):
    (utterance,) = read_manifest(write_lines(tmp_path, '{"path": "a.wav", "text": "one\u2028two"}'))
    assert utterance.text == "one\u2028two"


def test_manifest_refuses_a_recording_in_place_of_a_folder(tmp_path):
    touch(tmp_path / "a.wav")
    with pytest.raises(
        ValueError,
        match=r"a\.wav must be a folder or a manifest in \.jsonl, \.json, \.csv, \.tsv or \.parquet, not \.wav",
    ):
        read_manifest(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "suffix, delimiter, text",
    [("csv", ",", '"Hi, ""you"""'), ("csv", ";", '"Hi, ""you"""'), ("tsv", "\t", 'Hi, "you"')],
)
def test_table_with_a_header_says_what_a_manifest_says(tmp_path, suffix, delimiter, text):
    rows = [
        ("id", "path", "text", "alignment"),
        ("1", "ann/1.wav", text, "1.TextGrid"),
        ("", "b.wav", "", ""),
    ]
    lines = (delimiter.join(row) for row in rows)
    (tmp_path / f"list.{suffix}").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert read_manifest(tmp_path / f"list.{suffix}") == [
        Utterance("1", tmp_path / "ann/1.wav", "ann", 'Hi, "you"', alignment=tmp_path / "1.TextGrid"),
        Utterance("b.wav", tmp_path / "b.wav", tmp_path.name),
    ]


@pytest.mark.parametrize("column", ["path", "audio", "audio_filepath"])
def test_manifest_may_call_the_path_by_other_names(tmp_path, column):
    (tmp_path / "train.jsonl").write_text(json.dumps({column: "a.wav", "text": "hi", "duration": 1.5}))
    (utterance,) = read_manifest(tmp_path / "train.jsonl")
    assert (utterance.path, utterance.text) == (tmp_path / "a.wav", "hi")


def test_folder_gives_each_recording_the_transcript_and_the_alignment_beside_it(tmp_path):
    for name in ("ann/1.wav", "ann/2.flac", "ann/3.wav", "ann/2.TextGrid"):
        touch(tmp_path / name)
    (tmp_path / "ann/1.txt").write_text("\ufeffFresh  snow\nfell. \n", encoding="utf-8")
    (tmp_path / "ann/2.lab").write_text("grüße", encoding="utf-8")
    texts = [(utterance.text, utterance.alignment) for utterance in read_manifest(tmp_path)]
    assert texts == [("Fresh snow fell.", None), ("grüße", tmp_path / "ann/2.TextGrid"), (None, None)]


def test_transcript_that_is_no_utf_8_is_named_and_the_others_are_read(tmp_path):
    for name in ("1", "2"):
        touch(tmp_path / f"{name}.wav")
    (tmp_path / "1.txt").write_bytes(b"gr\xfc\xdfe")
    (tmp_path / "2.txt").write_text("grüße", encoding="utf-8")
    first, second = read_manifest(tmp_path)
    assert first.text is None and "1.txt must be a transcript in UTF-8" in first.problem
    assert second.text == "grüße" and second.problem is None


def test_manifest_refuses_an_alignment_that_is_no_path(tmp_path):
    with pytest.raises(ValueError, match="line 1, is not because: its alignment must be a path, got 5"):
        read_manifest(write_lines(tmp_path, '{"path": "a.wav", "alignment": 5}'))


def test_alignment_names_its_file_when_a_time_is_no_number(tmp_path):
    (tmp_path / "a.json").write_text('{"words": [{"phones": [{"phone": "AA", "start": "x", "end": 1}]}]}')
    with pytest.raises(ValueError, match="a.json must be a json with words"):
        read_phones(tmp_path / "a.json")


def test_manifest_leaves_an_absolute_path_where_it_is(tmp_path):
    (utterance,) = read_manifest(write_lines(tmp_path, '{"path": "/elsewhere/a.wav"}'))
    assert utterance.path == Path("/elsewhere/a.wav")


def test_manifest_decides_what_is_listed_when_there_are_other_recordings(tmp_path):
    touch(tmp_path / "unlisted.wav")
    assert [utterance.id for utterance in read_manifest(write_lines(tmp_path, '{"path": "a.wav"}'))] == ["a.wav"]


def test_manifest_is_found_when_the_folder_is_a_string(tmp_path):
    (utterance,) = read_manifest(str(write_lines(tmp_path, '{"path": "a.wav"}')))
    assert utterance.path == tmp_path / "a.wav"


@pytest.mark.parametrize(
    "line",
    ["a.wav", '{"path": "a.wav"', '{"speaker": "Ann"}', '["a.wav"]', '"a.wav"', "7", "null", '{"path": null}'],
    ids=["bare", "cut off", "no path", "list", "string", "number", "null", "null path"],
)
def test_manifest_names_the_line_that_is_no_object_with_a_path_and_reads_the_others(tmp_path, line):
    listing = list_recordings(write_lines(tmp_path, '{"path": "a.wav"}', "", line, '{"path": "b.wav"}'))
    assert [utterance.id for utterance in listing.utterances] == ["a.wav", "b.wav"]
    assert listing.left_out == [("manifest.jsonl, line 3", f"expected an object with a path, got {line!r}")]


def test_manifest_quotes_no_more_than_60_characters_of_a_bad_line(tmp_path):
    with pytest.raises(ValueError, match=f"got '{'x' * 60}'\\.$"):
        read_manifest(write_lines(tmp_path, "x" * 1000))


def test_folder_without_a_manifest_lists_every_recording_below_it_sorted_by_path(tmp_path):
    for name in ("bob/2.wav", "ann/b/3.flac", "bob/1.wav", "ann/notes.txt"):
        touch(tmp_path / name)
    assert read_manifest(tmp_path) == [
        Utterance(id="ann/b/3.flac", path=tmp_path / "ann/b/3.flac", speaker="b"),
        Utterance(id="bob/1.wav", path=tmp_path / "bob/1.wav", speaker="bob"),
        Utterance(id="bob/2.wav", path=tmp_path / "bob/2.wav", speaker="bob"),
    ]


def test_folder_with_neither_a_manifest_nor_a_recording_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recording"):
        read_manifest(tmp_path)


def test_phones_are_those_of_all_words_in_order(tmp_path):
    words = [
        {
            "word": "hi",
            "start": 0.1,
            "end": 0.4,
            "phones": [{"phone": "HH", "start": 0.1, "end": 0.2}, {"phone": "AY", "start": 0.2, "end": 0.4}],
        },
        {"word": "", "start": 0.4, "end": 1, "phones": []},
        {"word": "a", "start": 1, "end": 2, "phones": [{"phone": "AH", "start": 1, "end": 2}]},
    ]
    (tmp_path / "hi.json").write_text(json.dumps({"words": words}))
    assert read_phones(tmp_path / "hi.json") == [
        Span("HH", 0.1, 0.2),
        Span("AY", 0.2, 0.4),
        Span("AH", 1.0, 2.0),
    ]


@pytest.mark.parametrize(
    "content, cause",
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError.'words'"),
        ('{"words": [{"word": "hi"}]}', "KeyError.'phones'"),
        ('{"words": [{"phones": [{"phone": "HH", "start": 0}]}]}', "KeyError.'end'"),
        ('{"words": [{"phones": [{"phone": "HH", "start": 0, "end": null}]}]}', "TypeError"),
    ],
    ids=["cut off", "list", "no words", "no phones", "no end", "null end"],
)
def test_phones_name_the_file_that_is_no_alignment(tmp_path, content, cause):
    (tmp_path / "hi.json").write_text(content)
    message = r"hi\.json must be a json with words, each with word, start, end and phones, each with phone, "
    message += rf"start and end \({cause}"
    with pytest.raises(ValueError, match=message):
        read_phones(tmp_path / "hi.json")
