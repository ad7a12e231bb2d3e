"""Every line of a file that lists recordings is a row, or named with what is wrong with it."""

import gzip
from pathlib import Path

import pytest

from mimi_bridge.data.manifest import Listing, list_recordings
from mimi_bridge.data.tables import read_rows


def listed(folder: Path, name: str, content: str | bytes) -> Listing:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list_recordings(folder / name)


def texts(listing: Listing) -> list[tuple[str, str | None]]:
    return [(utterance.id, utterance.text) for utterance in listing.utterances]


def test_quotation_marks_in_a_tsv_are_characters_like_any_other(tmp_path):
    lines = ["path\ttext\tspeaker", "1.wav\tplain\ta", '2.wav\t"two\tb', '3.wav\t"3" and "4"\tc', "4.wav\tfour\td"]
    listing = listed(tmp_path, "list.tsv", "\n".join(lines))
    assert texts(listing) == [("1.wav", "plain"), ("2.wav", '"two'), ("3.wav", '"3" and "4"'), ("4.wav", "four")]
    assert listing.left_out == []


@pytest.mark.parametrize(
    "line, text",
    [
        ('2.wav,"two,b', '"two'),
        ('2.wav,"two" and,b', "two and"),
        ('2.wav,two "and,b', 'two "and'),
        ('2.wav,two",b', 'two"'),
        ('2.wav,"two, ""and""",b', 'two, "and"'),
        ('2.wav, "two, and", b', "two, and"),
    ],
)
@pytest.mark.parametrize("last", ['4.wav,"four",d', '4.wav,four"', "4.wav,four,d"])
def test_unmatched_quotation_mark_in_a_csv_swallows_no_row(tmp_path, line, text, last):
    listing = listed(tmp_path, "list.csv", "\n".join(["path,text,speaker", "1.wav,one,a", line, "3.wav,3,c", last]))
    accounted = [name for name, _ in texts(listing)] + [name for name, _ in listing.left_out]
    assert texts(listing)[:3] == [("1.wav", "one"), ("2.wav", text), ("3.wav", "3")] and len(accounted) == 4


def test_unmatched_quotation_mark_in_a_large_csv_swallows_no_row(tmp_path):
    rows = [f'{n}.wav,"{n} is a text that is rather long' for n in range(9000)]
    assert len(listed(tmp_path, "list.csv", "\n".join(["path,text", *rows])).utterances) == 9000


def test_quoted_text_may_run_over_lines(tmp_path):
    listing = listed(tmp_path, "list.csv", 'path,text\n1.wav,"one,\nand, two"\n2.wav,two\n')
    assert texts(listing) == [("1.wav", "one,\nand, two"), ("2.wav", "two")]


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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_line_ends_and_byte_order_mark_make_no_difference(tmp_path, suffix, mark, end):
    lines = ['{"path": "a.wav", "text": "Grüße"}', "", '{"path": "b.wav", "text": "b"}']
    if suffix != "jsonl":
        lines = [
            line.replace(",", {"csv": ",", "tsv": "\t"}[suffix]) for line in ("path,text", "a.wav,Grüße", "b.wav,b")
        ]
    listing = listed(tmp_path, f"list.{suffix}", mark + end.join([*lines, "", "", ""]))
    assert texts(listing) == [("a.wav", "Grüße"), ("b.wav", "b")] and listing.left_out == []


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_manifest_in_utf_16_is_refused_in_one_sentence(tmp_path, suffix):
    with pytest.raises(
        ValueError, match=r"must be a manifest in UTF-8, but it seems to be in UTF-16; save it in UTF-8"
    ):
        listed(tmp_path, f"list.{suffix}", "path\ttext\na.wav\thi\n".encode("utf-16"))


def test_comments_and_rows_of_blanks_are_passed_over(tmp_path):
    content = "# made by hand\npath,text\n# a.wav,x\n,,\na.wav,hi,,\n"
    assert texts(listed(tmp_path, "a.csv", content)) == [("a.wav", "hi")]
    assert texts(listed(tmp_path, "a.jsonl", '// by hand\n#x\n{"path": "a.wav"}')) == [("a.wav", None)]


def test_json_may_be_a_list_or_lines(tmp_path):
    entries = '{"audio_filepath": "a.wav", "text": "x"}', '{"audio_filepath": "b.wav"}'
    assert texts(listed(tmp_path, "a.json", "\n".join(entries))) == [("a.wav", "x"), ("b.wav", None)]
    listing = listed(tmp_path, "b.json", f"[{entries[0]},\n 7,\n{entries[1]}]")
    assert texts(listing) == [("a.wav", "x"), ("b.wav", None)]
    assert listing.left_out == [("b.json, entry 2", "expected an object with a path, got '7'")]


@pytest.mark.parametrize("name", ["list.jsonl.gz", "list.json.gz", "list.csv.gz", "list.tsv.gz"])
def test_compressed_list_is_read_as_the_plain_one(tmp_path, name):
    plain = {"json": '{"audio_filepath": "a.wav", "text": "x"}\n', "csv": "path,text\na.wav,x\n"}
    plain |= {"jsonl": plain["json"], "tsv": plain["csv"].replace(",", "\t")}
    content = gzip.compress(plain[name.split(".")[1]].encode())
    assert texts(listed(tmp_path, name, content)) == [("a.wav", "x")]
    for broken in (content[:-9], b"x" + content, content[:20] + b"x" + content[21:]):
        with pytest.raises(ValueError, match=r"cannot be decompressed \(.*\); fetch or write it again"):
            listed(tmp_path, name, broken)


LJSPEECH = ['A-1|Dr. "A, he|Doctor "A, he', "A-2|one; two|one; two", "A-3|three|three"]


@pytest.fixture
def ljspeech(tmp_path):
    """A folder as LJSpeech's, of three recordings without sound."""
    (tmp_path / "wavs").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "wavs" / f"A-{number}.wav").touch()
    return tmp_path


def test_table_of_ljspeech_needs_no_header_and_has_no_quoting(ljspeech):
    listing = listed(ljspeech, "metadata.csv", "\n".join(LJSPEECH))
    assert texts(listing) == [("A-1", 'Doctor "A, he'), ("A-2", "one; two"), ("A-3", "three")]
    assert [one.path for one in listing.utterances] == [ljspeech / "wavs" / f"A-{number}.wav" for number in (1, 2, 3)]
    assert {one.speaker for one in listing.utterances} == {ljspeech.name} and listing.left_out == []
    assert list_recordings(ljspeech).utterances == listing.utterances
    two_columns = listed(ljspeech, "train.csv", "A-1|one\nA-2|two")
    assert texts(two_columns) == [("A-1", "one"), ("A-2", "two")]


def test_line_of_ljspeech_that_is_of_no_use_is_named(ljspeech):
    listing = listed(ljspeech, "metadata.csv", "\n".join([*LJSPEECH[:2], "A-3|three"]))
    assert [one.id for one in listing.utterances] == ["A-1", "A-2"]
    assert listing.left_out[0][0] == "metadata.csv, line 3" and "it has 2 fields" in listing.left_out[0][1]


def test_table_without_a_header_is_told_to_have_one(tmp_path):
    with pytest.raises(
        ValueError, match=r"must have a column of paths .* first line of a table must name its columns"
    ):
        listed(tmp_path, "list.csv", "a.wav,hello\nb.wav,you\n")


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
