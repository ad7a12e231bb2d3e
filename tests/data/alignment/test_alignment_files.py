"""Alignments by Praat, the Montreal Forced Aligner, NIST's CTM and json: read alike, and refused in a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mimi_bridge.data.alignment.files import given_alignment, read_alignment
from mimi_bridge.data.manifest import Span, Utterance

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "say"
        intervals [3]:
            xmin = 0.5
            xmax = 1
            text = "naïve ""words"" "
        intervals [4]:
            xmin = 1
            xmax = 1.5
            text = "<eps>"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "click [2]: 3.5"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "sil"
        intervals [2]:
            xmin = 0.25
            xmax = 0.3
            text = "S"
        intervals [3]:
            xmin = 0.3
            xmax = 1.5
            text = "EY1"
"""
SHORT = """File type = "ooTextFile short"
"TextGrid"

0
1.5
<exists>
3
"IntervalTier"
"words"
0
1.5
4
0
0.25
""
0.25
0.5
"say"
0.5
1
"naïve ""words"" "
1
1.5
"<eps>"
"TextTier"
"clicks"
0
1.5
1
0.7
"click [2]: 3.5"
"IntervalTier"
"phones"
0
1.5
3
0
0.25
"sil"
0.25
0.3
"S"
0.3
1.5
"EY1"
""".replace("ooTextFile short", "ooTextFile")
WORDS = [Span("say", 0.25, 0.5), Span('naïve "words"', 0.5, 1.0)]
PHONES = [Span("S", 0.25, 0.3), Span("EY1", 0.3, 1.5)]


def written(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def grid(*tiers: tuple[str, str], kind: str = "IntervalTier") -> str:
    """A short TextGrid whose tiers have one interval each: name and label."""
    head = f'"ooTextFile" "TextGrid" 0 1 <exists> {len(tiers)}\n'
    return head + "\n".join(f'"{kind}" "{name}" 0 1 1 0 1 "{label}"' for name, label in tiers)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with mark"])
@pytest.mark.parametrize("text", [LONG, SHORT, LONG.replace("\n", "\r\n")], ids=["long", "short", "long, CRLF"])
def test_text_grid_gives_words_and_phones_without_silence(tmp_path, text, encoding):
    if encoding == "utf-16-be with mark":
        text, encoding = "\ufeff" + text, "utf-16-be"
    found = read_alignment(written(tmp_path, "a.TextGrid", text, encoding))
    assert (found.words, found.phones, found.score) == (WORDS, PHONES, None)


def test_text_grid_may_hold_comments(tmp_path):
    text = SHORT.replace("\n1.5\n<exists>", '\n1.5 ! seconds, "really" 7\n<exists>', 1)
    assert read_alignment(written(tmp_path, "a.textgrid", text)).words == WORDS


def test_text_grid_may_name_its_speaker(tmp_path):
    found = read_alignment(written(tmp_path, "a.TextGrid", grid(("Ann - words", "hi"), ("Ann - phones", "AY"))))
    assert (found.words, found.phones) == ([Span("hi", 0, 1)], [Span("AY", 0, 1)])


def test_text_grid_of_one_tier_may_call_it_anything(tmp_path):
    assert read_alignment(written(tmp_path, "a.TextGrid", grid(("Wörter", "hallo")))).words == [Span("hallo", 0, 1)]


def test_text_grid_of_silence_alone_has_no_words(tmp_path):
    assert read_alignment(written(tmp_path, "a.TextGrid", grid(("words", "sil")))).words == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "where the text 'ooTextFile' should be, a text, it has .the file's end"),
        ('"ooTextFile" "Pitch 1"', "a.TextGrid must be a TextGrid in Praat's text form"),
        (SHORT[:100], "should be, a number, it has .the file.s end.; is it cut short"),
        (SHORT.replace("\n0.25\n0.5\n", "\n0.25\n", 1), "where an interval's end should be, a number, it has 'say'"),
        (SHORT.replace("\n0.5\n", "\n0.2\n", 1), "'say' must run forward in seconds, got 0.25 to 0.2"),
        (SHORT.replace("\n3\n", "\n2.5\n", 1), "the number of tiers is 2.5"),
        ('"ooTextFile" "TextGrid" 0 1 <absent>', "named 'words', but its tiers are: none"),
        (grid(("a", "x"), ("b", "y")), "named 'words', but its tiers are: 'a', 'b'; rename one"),
        (grid(("words", "x"), kind="TextTier").replace("0 1 1 0 1", "0 1 1 0"), "its tiers are: 'words'"),
        (
            grid(("Ann - words", "x"), ("Bob - words", "y")),
            "one tier of words, but it has 'Ann - words', 'Bob - words'",
        ),
    ],
    ids=[
        "empty",
        "pitch",
        "cut short",
        "no end",
        "backward",
        "half a tier",
        "absent",
        "names",
        "points",
        "two speakers",
    ],
)
def test_text_grid_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(written(tmp_path, "a.TextGrid", text))


def test_text_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.TextGrid must be a text in UTF-8, or in UTF-16"):
        read_alignment(written(tmp_path, "a.TextGrid", LONG, "latin-1"))


CTM = """;; made by hand
ann_1 1 0.25 0.25 say
ann_1 1 0.50 0.50 <eps>
ann_1 1 1.00 0.50 words 0.97

ann_2 A 0.10 0.20 other
"""


@pytest.mark.parametrize("utterance_id", ["ann_1", "ann_1.wav", "ann/ann_1.flac"])
def test_ctm_gives_the_recording_that_is_asked_for(tmp_path, utterance_id):
    found = read_alignment(written(tmp_path, "all.ctm", CTM), utterance_id)
    assert found.words == [Span("say", 0.25, 0.5), Span("words", 1.0, 1.5)]
    assert (found.phones, found.score) == ([], None)


def test_ctm_gives_the_recording_of_its_own_name_when_none_is_asked_for(tmp_path):
    assert read_alignment(written(tmp_path, "ann_2.ctm", CTM)).words[0].label == "other"


def test_ctm_of_one_recording_may_call_it_anything(tmp_path):
    assert read_alignment(written(tmp_path, "a.ctm", "x 1 0 1 hi\n"), "a").words == [Span("hi", 0, 1)]


def test_ctm_that_changed_is_read_again(tmp_path):
    read_alignment(written(tmp_path, "a.ctm", "x 1 0 1 hi\n"))
    assert read_alignment(written(tmp_path, "a.ctm", "x 1 0 1 hello\n")).words[0].label == "hello"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must hold lines of recording, channel, start, duration and word, but it has none"),
        ("a 1 0.1 0.2\n", "line 1: expected recording, channel, start, duration, word"),
        (
            ";; \na 1 0.1 long word\n",
            "line 2: expected recording, channel, start, duration, word .* got 'a 1 0.1 long",
        ),
        ("a 1 0.1 -0.05 hi\n", "'hi' must run forward in seconds, got 0.1 to 0.05"),
        ("a 1 nan 0.05 hi\n", "'hi' must run forward in seconds, got nan to nan"),
        ("a 1 0 1 hi\na 2 0 1 ho\n", "must give a one channel, but it has 1 and 2"),
        (CTM, "must hold the recording 'z', but its 2 recordings are ann_1, ann_2"),
    ],
    ids=["empty", "too few", "no number", "backward", "NaN", "two channels", "another recording"],
)
def test_ctm_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(written(tmp_path, "some.ctm", text), "z")


def test_json_gives_words_and_phones(tmp_path):
    phones = [{"phone": "HH", "start": 0.1, "end": 0.2}, {"phone": "AY", "start": 0.2, "end": 0.4}]
    words = [{"word": "hi", "start": 0.1, "end": 0.4, "phones": phones}]
    found = read_alignment(written(tmp_path, "a.json", json.dumps({"words": words})))
    assert found.words == [Span("hi", 0.1, 0.4)]
    assert found.phones == [Span("HH", 0.1, 0.2), Span("AY", 0.2, 0.4)]


def test_json_needs_no_phones(tmp_path):
    found = read_alignment(written(tmp_path, "a.json", '{"words": [{"word": "hi", "start": 0, "end": 1}]}'))
    assert (found.words, found.phones) == ([Span("hi", 0, 1)], [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "must be a json with words"),
        ('{"words": [{"word": "hi", "start": 0}]}', "must be a json with words, .*KeyError..end"),
        ('{"words": [{"word": null, "start": 0, "end": 1}]}', "a label must be a text, got None"),
        ('{"words": [{"word": "hi", "start": 0, "end": NaN}]}', "'hi' must run forward in seconds, got 0 to nan"),
    ],
    ids=["cut short", "no end", "no label", "NaN"],
)
def test_json_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(written(tmp_path, "a.json", text))


@pytest.mark.parametrize("name", ["a.lab", "a"])
def test_other_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"must be an alignment in \.TextGrid, \.ctm or \.json, not"):
        read_alignment(written(tmp_path, name, ""))


def test_file_that_is_not_there_is_named(tmp_path):
    for suffix in ("TextGrid", "ctm", "json"):
        with pytest.raises(FileNotFoundError, match=rf"gone\.{suffix}"):
            read_alignment(tmp_path / f"gone.{suffix}")


def test_sounds_in_an_alignment_are_no_words_but_unknown_words_are(tmp_path):
    words = [{"word": word, "start": n, "end": n + 1} for n, word in enumerate(["hi", "[laughter]", "<unk>", "{LG}"])]
    path = written(tmp_path, "a.json", json.dumps({"words": words}))
    assert [word.label for word in read_alignment(path).words] == ["hi", "<unk>", "{LG}"]


def test_alignment_of_a_segment_is_that_part_of_the_whole_recordings_from_its_own_beginning(tmp_path):
    words = [{"word": word, "start": n / 2, "end": n / 2 + 0.5, "phones": []} for n, word in enumerate("abcd")]
    path = written(tmp_path, "a.json", json.dumps({"words": words}))
    segment = Utterance("a.wav#0.5-1.5", tmp_path / "a.wav", "ann", alignment=path, start=0.5, end=1.5)
    assert given_alignment(segment).words == [Span("b", 0.0, 0.5), Span("c", 0.5, 1.0)]
    assert len(given_alignment(replace(segment, start=None, end=None)).words) == 4
    ctm = written(tmp_path, "all.ctm", "b 1 0.0 0.2 no\na 1 0.6 0.2 yes\n")
    assert given_alignment(replace(segment, alignment=ctm)).words == [
        Span("yes", pytest.approx(0.1), pytest.approx(0.3))
    ]
    with pytest.raises(ValueError, match="it comes without an alignment"):
        given_alignment(replace(segment, alignment=None))
