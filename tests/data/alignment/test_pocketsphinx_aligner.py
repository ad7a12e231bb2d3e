"""Forced alignment of speech made on the spot."""

import pytest
import torch

from mimi_bridge.audio.espeak import synthesize
from mimi_bridge.data.alignment import pocketsphinx as pocketsphinx_aligner
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner, normalized_words
from spoken_words import speak_words

TEXT = "Please put the blue folder on my desk before the meeting starts."
OTHER = "A cold wind shook the windows while the children told stories about ghosts."


@pytest.fixture(scope="module")
def aligner():
    return PocketsphinxAligner()


@pytest.fixture(scope="module")
def recording():
    return synthesize(TEXT, "en-us")


@pytest.fixture(scope="module")
def alignment(aligner, recording):
    return aligner.align(recording, 24_000, TEXT)


def test_words_are_the_texts_in_order_and_inside_the_recording(alignment, recording):
    assert [word.label for word in alignment.words] == normalized_words(TEXT)
    times = [time for word in alignment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] <= recording.shape[-1] / 24_000
    assert all(word.end > word.start for word in alignment.words)


def test_phones_fill_their_words(alignment):
    assert [phone.label for phone in alignment.phones[:4]] == ["P", "L", "IY", "Z"]
    assert alignment.phones[0].start == alignment.words[0].start
    assert alignment.phones[-1].end == alignment.words[-1].end


def test_words_are_where_they_are_said(aligner, alignment):
    # The same speech after 0.7 s of silence, at another rate: every word moves by as much, to a few frames of 10 ms.
    silence = torch.zeros(1, round(0.7 * 22_050))
    later = aligner.align(torch.cat([silence, synthesize(TEXT, "en-us", 22_050)], dim=-1), 22_050, TEXT)
    shifts = [b.start - a.start for a, b in zip(alignment.words, later.words, strict=True)]
    assert shifts[1:] == pytest.approx([0.7] * (len(shifts) - 1), abs=0.06)


def test_score_tells_the_text_that_was_said_from_another(aligner, alignment, recording):
    other = aligner.align(recording, 24_000, OTHER)
    assert alignment.score > -40
    assert other is None or other.score < alignment.score - 10


def test_text_that_cannot_fit_has_no_alignment(aligner, recording):
    assert aligner.align(recording[:, :12_000], 24_000, TEXT * 4) is None


def test_alignment_is_the_same_to_the_bit_after_other_recordings(aligner, alignment, recording):
    # The decoder's running mean of its input would move times and scores; rows would depend on their order.
    aligner.align(synthesize(OTHER, "en-us+f2") * 3, 24_000, OTHER)
    aligner.align(recording, 24_000, "Quettabyte " + OTHER)
    assert aligner.align(recording, 24_000, TEXT) == alignment
    assert PocketsphinxAligner().align(recording, 24_000, TEXT) == alignment


def test_words_end_where_a_pause_of_digital_silence_begins(aligner, recording):
    _, words = speak_words(TEXT)
    cut = round((words[5].end + 0.01) * 24_000)
    silence = torch.zeros(1, 24_000)
    found = aligner.align(torch.cat([recording[:, :cut], silence, recording[:, cut:]], dim=-1), 24_000, TEXT)
    assert found.words[5].end == pytest.approx(words[5].end, abs=0.08)
    assert found.words[6].start == pytest.approx(words[6].start + 1, abs=0.08)


def test_doctor_is_no_drive(aligner):
    text = "Please ask Dr. Hartley about the new clinic."
    audio, words = speak_words(text)
    found = aligner.align(audio, 24_000, text)
    for word, true in zip(found.words, words, strict=True):
        assert word.start == pytest.approx(true.start, abs=0.06), word.label


def test_aligner_goes_on_after_a_search_that_failed_half_way(aligner, alignment, recording, monkeypatch):
    def fail(decoder, samples):
        raise RuntimeError("Failed to stop utterance processing")

    with monkeypatch.context() as failing:
        failing.setattr(pocketsphinx_aligner, "_decode", fail)
        assert aligner.align(recording, 24_000, TEXT) is None
    again = aligner.align(recording, 24_000, TEXT)
    assert [word.label for word in again.words] == [word.label for word in alignment.words]


@pytest.mark.parametrize("decoder", ["same", "new"])
def test_words_that_the_dictionary_lacks_are_placed_as_written(aligner, monkeypatch, decoder):
    said = "Quettabyte and forty three pounds were sent to mister Xylofrax before noon."
    written = "“Quettabyte” and 43 pounds 😀 were sent to mister Xylofrax, before noon."
    recording = synthesize(said, "en-us")
    assert aligner.unknown_words(written) == ["43", "quettabyte", "xylofrax"]
    if decoder == "new":
        aligner.align(recording, 24_000, written)
        aligner._decoder = aligner._new_decoder()
    found = aligner.align(recording, 24_000, written)
    labels = [word.label for word in found.words]
    assert labels == [
        "Quettabyte",
        "and",
        "43",
        "pounds",
        "were",
        "sent",
        "to",
        "mister",
        "Xylofrax",
        "before",
        "noon",
    ]
    reference = {word.label: word for word in aligner.align(recording, 24_000, said).words}
    for word in found.words:
        if word.label in reference:
            assert word.start == pytest.approx(reference[word.label].start, abs=0.05), word.label
    number = found.words[labels.index("43")]
    assert number.start == pytest.approx(reference["forty"].start, abs=0.05)
    assert number.end == pytest.approx(reference["three"].end, abs=0.05)


def test_what_nobody_says_is_passed_over(aligner, alignment, recording):
    found = aligner.align(recording, 24_000, "😀 " + TEXT.replace("folder", "folder 你好 —"))
    assert [word.label for word in found.words] == [word.label for word in alignment.words]


def test_text_without_a_word_is_refused(aligner, recording):
    with pytest.raises(ValueError, match="at least one word"):
        aligner.align(recording, 24_000, "...")


def test_words_keep_their_apostrophes():
    assert normalized_words("Don’t — 'stop', Mary-Ann's!") == ["don't", "stop", "mary", "ann's"]
