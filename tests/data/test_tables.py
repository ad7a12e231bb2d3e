"""Every line of a file that lists recordings is a row, or named with what is wrong with it."""

import pytest

from listings import listed, texts
from mimi_bridge.data.manifest import list_recordings
from mimi_bridge.data.tables import read_rows


@pytest.mark.parametrize(
    "name, content, place, reason",
    [
        ("a.csv", "path,text\na.wav,one, two\n", "line 2", "it has 3 fields, but the header has 2; a text that holds"),
        ("a.tsv", "path\ttext\na.wav\n", "line 2", "it has 1 fields, but the header has 2; no text may hold a tab"),
        ("a.csv", 'path,text,licence\na.wav,"1,2,3,4\n', "line 2", "a quotation mark in it is not closed"),
        ("a.csv", "path,text\n,one\n", "line 2", "expected an object with a path"),
        ("a.jsonl", '{"path": "a.wav", "text": "x", "text": "y"}\n', "line 1", "it names 'text' twice"),
        ("a.jsonl", '{"path": "a.wav", "Text": "x", "text": "y"}\n', "line 1", "it names 'text' twice"),
        ("a.jsonl", b'{"path": "gr\xfcn.wav"}\n', "line 1", "it is not in UTF-8"),
        ("a.tsv", b"path\ttext\na.wav\tgr\xfcn\n", "line 2", "it is not in UTF-8"),
        ("a.csv", b'path,text\na.wav,"one\ngr\xfcn"\n', "lines 2 to 3", "it is not in UTF-8"),
        ("a.jsonl", '{"path": "a\\ud800.wav"}\n', "line 1", "its name is not UTF-8"),
        ("a.jsonl", '{"path": "a.wav", "text": "\\ud800"}\n', "line 1", "its text is not UTF-8"),
        ("a.jsonl", '{"path": 7}\n', "line 1", "expected an object with a path"),
    ],
)
def test_line_that_is_of_no_use_is_named_and_the_others_are_read(tmp_path, name, content, place, reason):
    content = content.encode() if isinstance(content, str) else content
    good = b'{"path": "good.wav"}' if name.endswith("jsonl") else content.split(b"\n")[0].replace(b"path", b"good.wav")
    listing = listed(tmp_path, name, content + good)
    assert [utterance.id for utterance in listing.utterances] == ["good.wav"]
    ((found, why),) = listing.left_out
    assert found == f"{name}, {place}" and why.startswith(reason)


def test_json_may_be_a_list_or_lines(tmp_path):
    entries = '{"audio_filepath": "a.wav", "text": "x"}', '{"audio_filepath": "b.wav"}'
    assert texts(listed(tmp_path, "a.json", "\n".join(entries))) == [("a.wav", "x"), ("b.wav", None)]
    listing = listed(tmp_path, "b.json", f"[{entries[0]},\n 7,\n{entries[1]}]")
    assert texts(listing) == [("a.wav", "x"), ("b.wav", None)]
    assert listing.left_out == [("b.json, entry 2", "expected an object with a path, got '7'")]


def test_parquet_is_a_table(tmp_path):
    pytest.importorskip("pandas").DataFrame(
        {"file_name": ["a.wav", "b.wav"], "sentence": ["x", None], "speaker_id": [7, None]}
    ).to_parquet(tmp_path / "list.parquet")
    found = list_recordings(tmp_path / "list.parquet").utterances
    assert [(one.id, one.text, one.speaker) for one in found] == [
        ("a.wav", "x", "7"),
        ("b.wav", None, tmp_path.name),
    ]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet is no parquet that can be read"):
        next(read_rows(tmp_path / "broken.parquet"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "must list at least one recording, got none"),
        ("a.csv", "path,text\n\n", "must list at least one recording, got none"),
        ("a.jsonl", "\n\n", "must list at least one recording, got none"),
        ("a.csv", "path,text,Text\na.wav,x,y\n", "must name each column once, got 'text' twice"),
        ("a.tsv", "name\ttext\na.wav\tx\n", r"must have a column of paths \(path, audio, .*\), got name, text"),
        ("a.csv", b"path,text,gr\xfcn\n", "line 1: the header must be in UTF-8"),
        ("a.jsonl", "{}\n", "none of the 1 recordings of .*a.jsonl is of use; the first, a.jsonl, line 1, is not"),
        ("a.json", "[7\n", "a.json must hold an object a line, or one list of objects"),
    ],
)
def test_file_that_is_of_no_use_is_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, name, content)
