"""Segments of recordings: read alone, and refused where they do not lie in the recording."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mimi_bridge.data.manifest import Listing
from mimi_bridge.data.prepare.sources import FileSource, open_source
from mimi_bridge.data.segments import load_recording, read_segment, spans_in_segment
from mimi_bridge.data.utterance import Span, Utterance

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)  # two seconds


@pytest.fixture(params=["wav", "flac", "ogg"])
def recording(request, tmp_path: Path) -> Path:
    path = tmp_path / f"noise.{request.param}"
    soundfile.write(path, NOISE, RATE)
    return path


def utterance(path: Path, start: float | None = None, end: float | None = None) -> Utterance:
    return Utterance("it", path, "ann", start=start, end=end)


@pytest.mark.parametrize(
    "start, end, first, last",
    [(0.2, 0.9, 0.2, 0.9), (0.5, None, 0.5, 2), (None, 0.5, 0, 0.5), (0, 0.5, 0, 0.5), (1, 2.05, 1, 2)],
)
def test_segment_is_that_part_of_the_whole(recording, start, end, first, last):
    whole = soundfile.read(recording, dtype="float32")[0]
    samples, rate, is_whole = read_segment(utterance(recording, start, end))
    assert rate == RATE and not is_whole
    np.testing.assert_array_equal(samples, whole[round(first * RATE) : round(last * RATE)])


@pytest.mark.parametrize("end", [1.95, 2.0, 2.05])
def test_duration_that_is_rounded_means_the_whole(recording, end):
    samples, _, is_whole = read_segment(utterance(recording, end=end))
    assert is_whole and len(samples) == len(soundfile.read(recording)[0])


@pytest.mark.parametrize("start, end", [(1.5, 2.5), (2.5, 3), (2.5, None), (None, 2.5)])
def test_segment_that_does_not_lie_in_the_recording_is_refused(recording, start, end):
    with pytest.raises(
        ValueError, match=r"its segment, from .* s, does not lie in the recording, which lasts 2\.00 s"
    ):
        read_segment(utterance(recording, start, end))


def test_length_of_the_segment_counts_and_not_that_of_the_file(recording):
    assert len(read_segment(utterance(recording, 0.5, 1), max_seconds=1)[0]) == RATE // 2
    with pytest.raises(ValueError, match=r"it lasts 1\.5 s, but max_seconds is 1"):
        read_segment(utterance(recording, 0.5), max_seconds=1)


def test_segment_of_what_is_no_audio_or_not_there_is_refused(tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"bad\.wav is not audio that libsndfile reads"):
        read_segment(utterance(tmp_path / "bad.wav", 0, 1))
    with pytest.raises(FileNotFoundError, match="no such recording"):
        read_segment(utterance(tmp_path / "gone.wav", 0, 1))


def test_recording_is_loaded_whole_or_by_its_segment_at_any_rate(recording):
    assert load_recording(utterance(recording), RATE).shape == (1, 2 * RATE)
    assert load_recording(utterance(recording, 0.5, 1), 24_000).shape == (1, 12_000)


def test_source_gives_segments_and_stores_their_samples(recording):
    listing = Listing()
    listing.add("line 1", lambda: utterance(recording, 0.5, 1))
    source = FileSource(listing)
    assert source.stored_audio == "samples"
    samples, _ = source.audio(0, RATE)
    whole = soundfile.read(recording, dtype="float32")[0]
    assert torch.equal(samples[0], torch.from_numpy(whole[RATE // 2 : RATE]))
    with pytest.raises(ValueError, match="it is a segment of a file, whose path alone would mean the whole"):
        source.audio(0, RATE, only_whole=True)
    assert source.audio(0, RATE)[1] == RATE


def test_duration_of_the_whole_lets_its_path_be_stored(recording):
    (recording.parent / "list.jsonl").write_text(json.dumps({"audio_filepath": recording.name, "duration": 2.0}))
    source = open_source(str(recording.parent / "list.jsonl"))
    assert source.utterance(0).id == recording.name
    assert source.audio(0, RATE, only_whole=True)[0].shape == (1, 2 * RATE)


def test_words_of_the_whole_are_those_within_the_segment():
    words = [Span("a", 0.1, 0.4), Span("b", 0.45, 0.9), Span("c", 0.9, 1.05), Span("d", 1.1, 1.5)]
    assert spans_in_segment(words, utterance(Path("x"), 0.5, 1.0)) == [Span("b", 0.0, 0.4), Span("c", 0.4, 0.5)]
    assert spans_in_segment(words, utterance(Path("x"))) == words
