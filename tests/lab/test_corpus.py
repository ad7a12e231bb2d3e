"""Corpora written and read back, and random crops: of which sound, with which labels, how often.

Most recordings here are ramps: the value of a sample says where it was in its recording.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from codec_training import corpus as corpus_module
from codec_training.corpus import SpeechCorpus, write_corpus
from mimi_bridge.data.manifest import Utterance

RATE = 1000  # Hz, so that a label lasts 10 samples
FRAME_SIZE = 40  # samples, four labels
PHONES = [("AA", 0.03, 0.05), ("B", 0.05, 0.06), ("SIL", 0.06, 0.08), ("AA", 0.08, 0.11)]


def ramp(num_samples: int, first: int = 1) -> Tensor:
    """Samples that are stored as `first`, `first + 1` and so on."""
    return (torch.arange(first, first + num_samples)[None] + 0.5) / 32_767


def stored(audio: Tensor) -> Tensor:
    """Samples as they are in the file."""
    return (audio * 32_767).round().long()


def align(path: Path, phones: list[tuple[str, float, float]]) -> Path:
    spans = [{"phone": label, "start": start, "end": end} for label, start, end in phones]
    path.write_text(json.dumps({"words": [{"word": "", "phones": spans}]}))
    return path


@pytest.fixture
def make_corpus(tmp_path):
    """Write a corpus of recordings by `speaker/name`, some of them with phones, and open it."""

    def make(recordings: dict[str, Tensor], phones: dict[str, list] | None = None) -> SpeechCorpus:
        alignments = {
            name: align(tmp_path / f"{number}.json", spans)
            for number, (name, spans) in enumerate((phones or {}).items())
        }
        utterances = [
            Utterance(id=name, path=Path(name), speaker=name.split("/")[0], alignment=alignments.get(name))
            for name in recordings
        ]
        write_corpus(tmp_path / "corpus", utterances, RATE, load=lambda utterance, _: recordings[utterance.id])
        return SpeechCorpus(tmp_path / "corpus")

    return make


@pytest.fixture
def only_speed(monkeypatch):
    """Augmented crops keep their loudness, and half of them are played at the speed given."""

    def set_speed(speed: float) -> None:
        monkeypatch.setattr(corpus_module, "SPEEDS", (speed, speed))
        monkeypatch.setattr(corpus_module, "GAINS_DB", (0.0, 0.0))

    return set_speed


@pytest.fixture
def only_gain(monkeypatch):
    """Augmented crops keep their speed."""
    monkeypatch.setattr(corpus_module, "SPEEDS", (1.0, 1.0))


def random_phones(num_labels: int, seed: int) -> tuple[list[tuple[str, float, float]], list[str]]:
    """Phones of 10 to 70 ms with gaps between some, and the label of every 10 ms."""
    random = np.random.default_rng(seed)
    spans, in_time = [], ["SIL"] * num_labels
    place = 0
    while place < num_labels - 7:
        length, label = int(random.integers(1, 8)), str(random.choice(["AA", "B", "gap"]))
        if label != "gap":
            spans.append((label, place / 100, (place + length) / 100))
            in_time[place : place + length] = [label] * length
        place += length
    return spans, in_time


def literal_shares(in_time: list[str], places: list[int], names: list[str]) -> list[list[float]]:
    """Share of each label in each frame, for a crop whose every 10 ms was at a place in the recording."""
    given = [in_time[place] for place in places]
    frames = [given[start : start + 4] for start in range(0, len(given), 4)]
    return [[frame.count(name) / 4 for name in names] for frame in frames]


def test_corpus_gives_back_every_recording(make_corpus):
    torch.manual_seed(0)
    recordings = {name: torch.rand(1, length) * 2 - 1 for name, length in (("b/2", 305), ("a/1", 17), ("b/1", 100))}
    corpus = make_corpus(recordings)
    assert corpus.sampling_rate == RATE
    assert [(entry["id"], entry["speaker"]) for entry in corpus.utterances] == [
        ("b/2", "b"),
        ("a/1", "a"),
        ("b/1", "b"),
    ]
    for number, recording in enumerate(recordings.values()):
        torch.testing.assert_close(corpus.audio(number), recording, atol=1.01 / 32_767, rtol=0)


def test_corpus_clips_what_is_over_full_scale(make_corpus):
    corpus = make_corpus({"a/1": torch.tensor([[1.5, -1.5, 1.0, -1.0]])})
    assert corpus.audio(0).tolist() == [[1.0, -1.0, 1.0, -1.0]]


def test_corpus_reads_recordings_at_its_rate_when_there_is_no_loader(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(np.arange(4000) * 2 * np.pi * 50 / 4000), 4000)
    write_corpus(tmp_path / "corpus", [Utterance("a", tmp_path / "a.wav", "a")], RATE)
    given = SpeechCorpus(tmp_path / "corpus").audio(0)
    expected = 0.5 * torch.sin(torch.arange(1000) * 2 * torch.pi * 50 / 1000)[None]
    torch.testing.assert_close(given[:, 50:-50], expected[:, 50:-50], atol=1e-3, rtol=0)


def test_corpus_asks_the_loader_for_its_own_rate(tmp_path):
    rates = []

    def load(_utterance, sampling_rate):
        rates.append(sampling_rate)
        return torch.zeros(1, 10)

    write_corpus(tmp_path / "corpus", [Utterance("a", Path("a"), "a")], 16_000, load=load)
    assert rates == [16_000]


def test_corpus_that_was_stopped_half_way_is_no_corpus(tmp_path):
    def load(utterance, _rate):
        if utterance.id == "2":
            raise RuntimeError("stopped")
        return torch.zeros(1, 100)

    utterances = [Utterance(name, Path(name), "a") for name in "123"]
    with pytest.raises(RuntimeError, match="stopped"):
        write_corpus(tmp_path / "corpus", utterances, RATE, load=load)
    assert (tmp_path / "corpus" / "samples.i16").is_file()
    with pytest.raises(FileNotFoundError, match=r"no corpus in .*corpus; write_corpus makes one"):
        SpeechCorpus(tmp_path / "corpus")


def test_corpus_that_was_stopped_can_be_written_again(tmp_path, make_corpus):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "samples.i16").write_bytes(b"left over" * 1000)
    (tmp_path / "corpus" / "labels.i8").write_bytes(b"left over" * 1000)
    corpus = make_corpus({"a/1": ramp(125)}, {"a/1": PHONES})
    assert stored(corpus.audio(0)).tolist() == [list(range(1, 126))]
    labels = corpus.crops(1, 12, 10, seed=(0,), augment=False).label_shares[0].argmax(dim=-1)
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 0, 0, 1, 1, 1, 0]


def test_corpus_that_was_written_over_half_way_is_no_corpus(make_corpus, tmp_path):
    make_corpus({"ann/1": ramp(400), "ann/2": ramp(400)})

    def load(utterance, _):
        if utterance.id == "ann/2":
            raise ValueError("stopped")
        return ramp(100)

    utterances = [Utterance(id=name, path=Path(name), speaker="ann") for name in ("ann/1", "ann/2")]
    with pytest.raises(ValueError, match="stopped"):
        write_corpus(tmp_path / "corpus", utterances, RATE, load=load)
    with pytest.raises(FileNotFoundError, match="no corpus"):
        SpeechCorpus(tmp_path / "corpus")


def test_corpus_refuses_two_utterances_of_one_id(tmp_path):
    twice = [Utterance(id="a", path=Path("a.wav"), speaker="ann")] * 2
    with pytest.raises(ValueError, match="must be unique, got a more than once"):
        write_corpus(tmp_path, twice, RATE, load=lambda *_: ramp(100))


def test_corpus_refuses_no_utterances(tmp_path):
    with pytest.raises(ValueError, match="at least one utterance"):
        write_corpus(tmp_path, [], RATE)


def test_corpus_refuses_a_rate_whose_labels_are_no_whole_samples(tmp_path):
    with pytest.raises(ValueError, match="multiple of 100 Hz, got 22050"):
        write_corpus(tmp_path, [Utterance(id="a", path=Path("a.wav"), speaker="ann")], 22_050)


def test_frame_of_padding_alone_is_not_labelled(make_corpus):
    corpus = make_corpus({"ann/1": ramp(80)}, {"ann/1": [("AA", 0.0, 0.08)]})
    batch = corpus.crops(1, 4, 40, seed=(0,), augment=False)
    assert batch.labelled.tolist() == [[True, True, False, False]]


def test_phone_that_begins_before_the_recording_is_not_lost(make_corpus):
    corpus = make_corpus({"ann/1": ramp(80)}, {"ann/1": [("AA", -0.02, 0.04)]})
    batch = corpus.crops(1, 2, 40, seed=(0,), augment=False)
    assert batch.label_shares[0, 0].tolist() == [0.0, 1.0]


def test_corpus_whose_index_was_not_finished_is_no_corpus(make_corpus, tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr(corpus_module.os, "replace", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        make_corpus({"a/1": ramp(100)})
    with pytest.raises(FileNotFoundError, match="no corpus in"):
        SpeechCorpus(tmp_path / "corpus")


def test_folder_that_is_not_there_is_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus in .*nowhere"):
        SpeechCorpus(tmp_path / "nowhere")


def test_corpus_counts_minutes_by_speaker(make_corpus):
    corpus = make_corpus({"a/1": torch.zeros(1, 3000), "b/1": torch.zeros(1, 600), "a/2": torch.zeros(1, 9000)})
    assert corpus.minutes_by_speaker == pytest.approx({"a": 0.2, "b": 0.01})


def test_labels_are_silence_and_then_the_phones_sorted(make_corpus):
    corpus = make_corpus(
        {"a/1": ramp(200), "a/2": ramp(200)}, {"a/1": PHONES, "a/2": [("C", 0.0, 0.1), ("A", 0.1, 0.2)]}
    )
    assert corpus.labels == ["SIL", "A", "AA", "B", "C"]


def test_crops_have_a_value_for_each_sample_and_each_label_of_each_frame(make_corpus):
    corpus = make_corpus({"a/1": ramp(500)}, {"a/1": PHONES})
    batch = corpus.crops(5, 3, FRAME_SIZE, seed=(0,))
    assert (batch.audio.shape, batch.audio.dtype) == ((5, 1, 3 * FRAME_SIZE), torch.float32)
    assert (batch.label_shares.shape, batch.label_shares.dtype) == ((5, 3, 3), torch.float32)
    assert (batch.labelled.shape, batch.labelled.dtype) == ((5, 3), torch.bool)


def test_crop_is_a_stretch_of_one_recording(make_corpus):
    recordings = {f"a/{number}": ramp(length, 1000 * number) for number, length in ((1, 305), (2, 417), (3, 188))}
    crops = stored(make_corpus(recordings).crops(200, 3, FRAME_SIZE, seed=(0,), augment=False).audio[:, 0])
    assert set((crops[:, 0] // 1000).tolist()) == {1, 2, 3}
    assert (crops.diff(dim=1) == 1).all()
    assert torch.equal(crops[:, 0] // 1000, crops[:, -1] // 1000)


def test_crops_begin_at_every_label_from_the_first_to_the_last_that_fits(make_corpus):
    corpus = make_corpus({"b/1": ramp(333, 5000), "a/1": ramp(158)})
    first = stored(corpus.crops(400, 3, FRAME_SIZE, seed=(0,), augment=False).audio[:, 0, 0])
    assert set(first[first < 5000].tolist()) == {1, 11, 21, 31}
    assert first[first >= 5000].max() == 5000 + 210


def test_crop_reaches_the_last_sample_when_whole_labels_are_left(make_corpus):
    corpus = make_corpus({"a/1": ramp(160)})
    crops = stored(corpus.crops(100, 3, FRAME_SIZE, seed=(0,), augment=False).audio[:, 0])
    assert crops.max() == 160


def test_shares_are_the_time_of_each_label_in_each_frame(make_corpus):
    corpus = make_corpus({"a/1": ramp(125)}, {"a/1": PHONES})
    batch = corpus.crops(1, 3, FRAME_SIZE, seed=(0,), augment=False)  # only one start fits
    assert corpus.labels == ["SIL", "AA", "B"]
    assert batch.label_shares[0].tolist() == [[0.75, 0.25, 0.0], [0.5, 0.25, 0.25], [0.25, 0.75, 0.0]]
    assert batch.labelled.all()


def test_phones_begin_and_end_at_the_nearest_label(make_corpus):
    phones = [("AA", 0.014, 0.036), ("B", 0.036, 0.0449)]
    shares = make_corpus({"a/1": ramp(45)}, {"a/1": phones}).crops(1, 4, 10, seed=(0,), augment=False).label_shares
    assert shares[0].argmax(dim=-1).tolist() == [0, 1, 1, 1]


def test_labels_are_those_of_the_sound_in_every_crop(make_corpus):
    recordings, phones, in_time = {}, {}, {}
    for number, length in ((1, 1005), (2, 617), (3, 788)):
        recordings[f"a/{number}"] = ramp(length, 2000 * number)
        phones[f"a/{number}"], in_time[number] = random_phones(length // 10 + 1, seed=number)
    corpus = make_corpus(recordings, phones)
    batch = corpus.crops(100, 5, FRAME_SIZE, seed=(0,), augment=False)
    for start, shares in zip(stored(batch.audio[:, 0, 0]).tolist(), batch.label_shares.tolist(), strict=True):
        places = [(start % 2000) // 10 + number for number in range(20)]
        assert shares == literal_shares(in_time[start // 2000], places, corpus.labels)
    assert batch.labelled.all()


@pytest.mark.parametrize("speed", [0.75, 1.25])
def test_labels_move_with_the_sound_when_speed_changes(make_corpus, only_speed, speed):
    phones, in_time = random_phones(801, seed=0)
    corpus = make_corpus({"a/1": ramp(8000)}, {"a/1": phones})
    only_speed(speed)
    batch = corpus.crops(40, 50, FRAME_SIZE, seed=(0,))
    inner = slice(15, 35)  # the resampler's filter rings at the ends of a ramp
    changed = 0
    for audio, shares in zip(stored(batch.audio[:, 0]), batch.label_shares, strict=True):
        places = (audio[::10] // 10).tolist()  # values begin at 1: a sample's grace for what falls on an edge
        changed += (audio[1000] - audio[600]).item() != 400
        assert shares[inner].tolist() == literal_shares(in_time, places, corpus.labels)[inner]
    assert 10 < changed < 30


@pytest.mark.parametrize("speed", [0.75, 1.25])
def test_half_of_the_crops_are_played_at_another_speed(make_corpus, only_speed, speed):
    corpus = make_corpus({"a/1": ramp(4000)})
    only_speed(speed)
    audio = corpus.crops(200, 20, FRAME_SIZE, seed=(0,)).audio[:, 0]
    given = stored(audio[:, 600] - audio[:, 200]) / 400
    assert ((given - 1).abs() < 0.01).sum() + ((given - speed).abs() < 0.01).sum() == 200
    assert 70 < ((given - speed).abs() < 0.01).sum() < 130


def test_speeds_lie_on_both_sides_of_1_and_between_the_bounds(make_corpus, monkeypatch):
    monkeypatch.setattr(corpus_module, "GAINS_DB", (0.0, 0.0))
    audio = make_corpus({"a/1": ramp(4000)}).crops(200, 20, FRAME_SIZE, seed=(0,)).audio[:, 0]
    given = stored(audio[:, 600] - audio[:, 200]) / 400
    assert 0.84 < given.min() < 0.88 and 1.15 < given.max() < 1.19


def test_crops_reach_the_end_of_a_recording_at_every_speed(make_corpus, only_speed):
    corpus = make_corpus({"a/1": torch.cat([torch.zeros(1, 900), torch.full((1, 100), 0.5)], dim=1)})
    only_speed(1.25)
    audio = corpus.crops(200, 10, FRAME_SIZE, seed=(0,)).audio[:, 0]
    assert (audio[:, -5:].mean(dim=-1) > 0.3).sum() > 10
    assert (audio[:, -5:].abs().mean(dim=-1) < 0.01).sum() > 10


def test_gain_lies_between_the_bounds_when_crops_are_augmented(make_corpus, only_gain):
    batch = make_corpus({"a/1": torch.full((1, 500), 0.25)}).crops(200, 3, FRAME_SIZE, seed=(0,))
    assert (batch.audio == batch.audio[:, :, :1]).all()
    gains_db = 20 * (batch.audio[:, 0, 0] / 0.25).log10()
    assert -15.01 < gains_db.min() < -14 and 2 < gains_db.max() < 3.01


def test_crops_stay_within_full_scale_when_they_are_made_louder(make_corpus):
    batch = make_corpus({"a/1": torch.tensor([[0.99, -0.99]]).repeat(1, 250)}).crops(100, 3, FRAME_SIZE, seed=(0,))
    assert (batch.audio.min().item(), batch.audio.max().item()) == (-1.0, 1.0)


def test_recording_shorter_than_a_crop_is_followed_by_zeros(make_corpus):
    corpus = make_corpus({"a/1": ramp(55), "a/2": ramp(55)})
    audio = stored(corpus.crops(4, 3, FRAME_SIZE, seed=(0,), augment=False).audio)
    assert audio.tolist() == [[[*range(1, 56), *[0] * 65]]] * 4


def test_labels_are_unknown_after_the_end_of_a_recording(make_corpus):
    corpus = make_corpus({"a/1": ramp(75), "a/2": ramp(75)}, {"a/1": [("AA", 0.0, 9.0)], "a/2": [("B", 0.0, 9.0)]})
    batch = corpus.crops(20, 4, FRAME_SIZE, seed=(0,), augment=False)
    assert batch.labelled.tolist() == [[True, True, False, False]] * 20
    assert not batch.label_shares[:, 2:].any()


def test_recording_lasts_longer_when_it_is_played_slower(make_corpus, only_speed):
    corpus = make_corpus({"a/1": torch.full((1, 95), 0.5)}, {"a/1": PHONES})
    only_speed(0.5)
    batch = corpus.crops(20, 6, FRAME_SIZE, seed=(0,))
    slow = batch.audio[:, 0, 150] != 0
    assert slow.any() and not slow.all()
    assert (batch.audio[:, 0, 191:] == 0).all() and (batch.audio[slow, 0, 20:170] > 0.4).all()
    assert (batch.audio[~slow, 0, :95] > 0.4).all() and (batch.audio[~slow, 0, 95:] == 0).all()
    assert batch.labelled.sum(dim=1).tolist() == torch.where(slow, 5, 2).tolist()


def test_frame_is_labelled_only_when_all_of_it_is_known(make_corpus):
    corpus = make_corpus({"a/1": ramp(55)}, {"a/1": PHONES})  # six labels: a frame and a half
    assert corpus.crops(1, 3, FRAME_SIZE, seed=(0,), augment=False).labelled.tolist() == [[True, False, False]]


def test_labels_are_unknown_when_a_recording_has_no_alignment(make_corpus):
    corpus = make_corpus({"a/1": ramp(300), "a/2": ramp(300, 1000), "a/3": ramp(300, 2000)}, {"a/2": PHONES})
    batch = corpus.crops(60, 3, FRAME_SIZE, seed=(0,), augment=False)
    aligned = stored(batch.audio[:, 0, 0]) // 1000 == 1
    assert aligned.any() and not aligned.all()
    assert torch.equal(batch.labelled, aligned[:, None].expand(-1, 3))
    assert not batch.label_shares[~aligned].any()
    assert (batch.label_shares[aligned].sum(dim=-1) == 1).all()


def test_phones_beyond_the_end_change_no_other_recording(make_corpus):
    corpus = make_corpus({"a/1": ramp(105), "a/2": ramp(105)}, {"a/1": [("AA", 0.0, 9.0)], "a/2": []})
    shares = corpus.crops(20, 2, FRAME_SIZE, seed=(0,), augment=False).label_shares
    assert sorted({tuple(crop) for crop in shares[:, 0].tolist()}) == [(0.0, 1.0), (1.0, 0.0)]


@pytest.fixture
def long_corpus(make_corpus):
    return make_corpus({"a/1": ramp(3000), "b/1": ramp(3000, 5000)}, {"a/1": random_phones(301, seed=0)[0]})


def test_same_seed_gives_the_same_crops(long_corpus):
    first, again = (long_corpus.crops(4, 5, FRAME_SIZE, seed=(3, 1, 4)) for _ in range(2))
    assert torch.equal(first.audio, again.audio)
    assert torch.equal(first.label_shares, again.label_shares)
    assert torch.equal(first.labelled, again.labelled)


@pytest.mark.parametrize(
    "other", [(0, 1, 4), (3, 0, 4), (3, 1, 0), (4, 1, 3)], ids=["run", "step", "process", "order"]
)
def test_another_seed_gives_other_crops(long_corpus, other):
    audio = long_corpus.crops(4, 5, FRAME_SIZE, seed=(3, 1, 4)).audio
    assert not torch.equal(long_corpus.crops(4, 5, FRAME_SIZE, seed=other).audio, audio)


def test_crops_depend_on_no_global_state(long_corpus):
    torch.manual_seed(0)
    np.random.seed(0)
    audio = long_corpus.crops(4, 5, FRAME_SIZE, seed=(3,)).audio
    long_corpus.crops(4, 5, FRAME_SIZE, seed=(8,))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(long_corpus.crops(4, 5, FRAME_SIZE, seed=(3,)).audio, audio)


def test_crops_of_one_batch_differ(long_corpus):
    audio = long_corpus.crops(20, 5, FRAME_SIZE, seed=(0,)).audio
    assert len({tuple(crop) for crop in audio[:, 0].tolist()}) > 15


def test_longer_recording_of_a_speaker_is_drawn_in_proportion(make_corpus):
    corpus = make_corpus({"a/short": torch.full((1, 1000), 0.1), "a/long": torch.full((1, 3000), 0.2)})
    audio = corpus.crops(2000, 1, FRAME_SIZE, seed=(0,), augment=False).audio
    assert (audio[:, 0, 0] > 0.15).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_speaker_with_little_speech_is_drawn_more_often_than_its_minutes(make_corpus):
    much = {f"much/{number}": torch.full((1, 1000), 0.1) for number in range(8)}
    corpus = make_corpus({"little/1": torch.full((1, 1000), 0.2), **much})
    audio = corpus.crops(4000, 1, FRAME_SIZE, seed=(0,), augment=False).audio
    share = (audio[:, 0, 0] > 0.15).float().mean().item()
    assert share == pytest.approx(1 / (1 + 8**0.5), abs=0.015)  # 0.26: by minutes it would be 0.11, all alike 0.5


@pytest.fixture
def make_taught(tmp_path):
    """Write a corpus of one ramp whose F0 in Hz is 100 plus the number of its hundredth of a second."""

    def make(num_labels: int, **options) -> SpeechCorpus:
        f0 = 100.0 + np.arange(num_labels)
        write_corpus(
            tmp_path / "taught",
            [Utterance("a", Path("a"), "a")],
            RATE,
            load=lambda *_: ramp(10 * num_labels),
            find_pitch=lambda *_: np.where(np.arange(num_labels) % 8 < 4, f0, 0.0),
            **options,
        )
        return SpeechCorpus(tmp_path / "taught")

    return make


def test_pitch_is_the_mean_octave_of_what_is_voiced(make_taught):
    batch = make_taught(12).crops(1, 3, FRAME_SIZE, seed=(0,), augment=False)
    octaves = np.log2(100.0 + np.arange(12)).reshape(3, 4).mean(axis=1)
    assert batch.voiced.tolist() == [[1.0, 0.0, 1.0]]
    assert batch.pitch[0].tolist() == pytest.approx([octaves[0], 0.0, octaves[2]], abs=1e-3)


def test_pitch_rises_with_the_speed(make_taught, only_speed):
    only_speed(1.25)
    corpus = make_taught(800)
    slow, fast = 0, 0
    for number in range(10):
        batch = corpus.crops(1, 20, FRAME_SIZE, seed=(number,))
        given = stored(batch.audio[0, 0])
        speed = (given[600] - given[200]).item() / 400
        slow, fast = slow + (speed < 1.1), fast + (speed > 1.1)
        sure = batch.voiced[0, 5:15] > 0.5
        expected = torch.log2((100 + given[200:600].reshape(10, 40).float().mean(dim=1) / 10) * speed)
        torch.testing.assert_close(batch.pitch[0, 5:15][sure], expected[sure], atol=0.02, rtol=0)
    assert slow and fast


def test_pitch_is_not_known_unless_it_was_found(make_corpus):
    batch = make_corpus({"a/1": ramp(200)}).crops(2, 3, FRAME_SIZE, seed=(0,))
    assert batch.voiced.isnan().all()
    assert batch.pitch.isfinite().all()


def test_nothing_is_voiced_after_the_end(make_taught):
    batch = make_taught(4).crops(1, 3, FRAME_SIZE, seed=(0,), augment=False)
    assert batch.voiced.tolist() == [[1.0, 0.0, 0.0]]


class Counter:
    """A teacher whose features are the number of the frame, and a hundred times the recording's."""

    def features(self, recordings: Sequence[Tensor], sampling_rate: int) -> list[Tensor]:
        assert sampling_rate == RATE
        return [
            torch.stack([torch.arange(len(r) // 40).float(), torch.full((len(r) // 40,), 100.0 * number)], dim=-1)
            for number, r in enumerate(recordings)
        ]


def test_teachers_features_lie_where_they_were_computed(make_taught):
    corpus = make_taught(400, teacher=Counter())
    assert corpus.feature_dim == 2
    numbers = np.arange(100)
    for number in range(5):
        batch = corpus.crops(1, 3, FRAME_SIZE, seed=(number,), augment=False)
        given = (stored(batch.audio[0, 0])[FRAME_SIZE // 2 :: FRAME_SIZE] // FRAME_SIZE).numpy()
        expected = (given - numbers.mean()) / numbers.std()
        assert batch.features[0, :, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-2)


def test_each_recording_keeps_its_own_features_when_several_are_taught_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "TAUGHT_TOGETHER", 2)
    utterances = [Utterance(str(number), Path("a"), "a") for number in range(3)]
    write_corpus(
        tmp_path, utterances, RATE, load=lambda u, _: ramp(80 * (1 + int(u.id)), 1000 * int(u.id)), teacher=Counter()
    )
    corpus = SpeechCorpus(tmp_path)
    assert [(entry["feature_start"], entry["num_features"]) for entry in corpus.utterances] == [(0, 2), (2, 4), (6, 6)]


def test_corpus_without_a_teacher_has_no_features(make_corpus):
    corpus = make_corpus({"a/1": ramp(200)})
    assert corpus.feature_dim == 0
    assert corpus.crops(1, 2, FRAME_SIZE, seed=(0,)).features is None


def test_the_labels_of_a_whole_utterance_are_those_that_were_written(make_corpus):
    corpus = make_corpus({"ann/1": ramp(120), "bob/1": ramp(80)}, {"ann/1": PHONES})

    labels, pitch = corpus.labels_and_pitch(0)

    silence, phone = corpus.labels.index("SIL"), corpus.labels.index("AA")
    assert (labels[0], labels[3], labels[6], labels[9]) == (silence, phone, silence, phone)
    assert (len(labels), len(pitch), len(corpus.labels_and_pitch(1)[0])) == (12, 12, 8)
    assert (corpus.labels_and_pitch(1)[0] == corpus_module.UNKNOWN).all()
