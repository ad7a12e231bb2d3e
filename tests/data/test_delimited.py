"""A row of a table is what stands between its delimiters, whatever quotation marks do."""

import pytest

from listings import listed, texts
from mimi_bridge.data.manifest import list_recordings


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


def test_table_without_a_header_is_asked_to_have_one(tmp_path):
    with pytest.raises(
        ValueError, match=r"must have a column of paths .* first line of a table must name its columns"
    ):
        listed(tmp_path, "list.csv", "a.wav,hello\nb.wav,you\n")
