"""What is taken out of transcripts, and what stays."""

import pytest

from mimi_bridge.data.tags import without_tags


@pytest.mark.parametrize(
    "text, words, tags",
    [
        ("hello <unk> world", "hello world", ["<unk>"]),
        ("[laughter] yes", "yes", ["[laughter]"]),
        ("yeah[laughter], ok", "yeah, ok", ["[laughter]"]),
        ("so [noise] [NOISE] you", "so you", ["[noise]", "[NOISE]"]),
        ("<laugh>hello</laugh>, you", "hello, you", ["<laugh>", "</laugh>"]),
        ("<|en|><|0.00|>hello<|endoftext|>", "hello", ["<|en|>", "<|0.00|>", "<|endoftext|>"]),
        ("a[[laughter]] b", "a b", ["[[laughter]]"]),
        ("(laughs) hi (background noise).", "hi.", ["(laughs)", "(background noise)"]),
        ("*coughs* hi {breath}", "hi", ["*coughs*", "{breath}"]),
        ("((unintelligible)) ok", "ok", ["((unintelligible))"]),
        ("one <unk>.", "one.", ["<unk>"]),
    ],
)
def test_tags_are_taken_out_and_named(text, words, tags):
    assert without_tags(text) == (words, tuple(tags))


@pytest.mark.parametrize(
    "text, words, labels",
    [
        ("Speaker 1: hello", "hello", ["Speaker 1:"]),
        ("SPEAKER_00: hi. SPEAKER_01: no", "hi. no", ["SPEAKER_00:", "SPEAKER_01:"]),
        ("Speaker A (00:12): hi", "hi", ["Speaker A (00:12):"]),
        ("Interviewer: a\nInterviewee: b", "a\nb", ["Interviewer:", "Interviewee:"]),
        ("[Speaker 1]: hi", "hi", ["[Speaker 1]"]),
        ("[00:01] Narrator: hi", "hi", ["[00:01]", "Narrator:"]),
        ("Ann: hello", "hello", ["Ann:"]),
    ],
)
def test_labels_of_speakers_are_taken_out_and_named(text, words, labels):
    assert without_tags(text, speaker="ann") == (words, tuple(labels))


@pytest.mark.parametrize(
    "text",
    [
        " two  blanks,\tand a line\nbreak ",
        "5 < 6 and 7 > 3, I <3 you",
        "he (my brother) said",
        "colo[u]r, [t]he, wan[t]",
        "the speaker: a man",
        "speakers: many",
        "Remember: never",
        "the laughter and the noise",
    ],
)
def test_what_may_be_said_stays_as_it_is_written(text):
    assert without_tags(text, speaker="ann") == (text, ())
