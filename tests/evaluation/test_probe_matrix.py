"""The matrix says where an attribute is, asks nobody whom a probe was trained on, and knows what it cannot ask."""

import pytest
import torch

from mimi_bridge.evaluation import probe_matrix as module
from mimi_bridge.evaluation.labels import FrameLabels
from mimi_bridge.evaluation.probe_matrix import ProbedRecording, head_features, probe_matrix

PHONES = ("AA", "B", "S", "T", "IY")
SIZE, DIM = 16, 12
INPUTS = {"content": "content", "acoustic": "acoustic", "again": "content, again"}


def recordings_of(speakers: list[str], frames: int = 130, seed: int = 0) -> list[ProbedRecording]:
    """Codes that determine the phone (content), the pitch and the speaker (acoustic), and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    entries = [torch.randn(SIZE, DIM, generator=generator) for _ in range(2)]
    voices = {name: number for number, name in enumerate(dict.fromkeys(speakers))}
    recordings = []
    for speaker in speakers:
        phone = torch.randint(len(PHONES), (frames,), generator=generator)
        high = torch.randint(2, (frames,), generator=generator)
        codes = torch.stack([phone, (2 * voices[speaker] + high) % SIZE])
        labels = FrameLabels(
            phone=[PHONES[number] if number else None for number in phone.tolist()],
            word=[None] * frames,
            pitch=[7.0 + 0.5 * value for value in high.tolist()],
            energy=torch.randn(frames, generator=generator).tolist(),
        )
        features = {
            "content": head_features(codes, entries, [range(0, 1)]),
            "acoustic": head_features(codes, entries, [range(1, 2)]),
        }
        recordings.append(ProbedRecording(speaker, labels, features | {"again": features["content"].clone()}))
    return recordings


@pytest.fixture(scope="module")
def found():
    return probe_matrix(recordings_of([f"speaker {n}" for n in range(6)]), INPUTS, 12.5)


@pytest.fixture
def hardly_trained(monkeypatch):
    """For tests that ask nothing of the probes' answers."""
    monkeypatch.setattr("mimi_bridge.evaluation.probes.MAX_STEPS", 1)


def test_code_that_determines_the_phone_tells_it_and_an_independent_one_is_at_chance(found):
    scores, chance = found[0]["scores"], found[0]["attributes"]["phone"]["chance"]
    for probe in ("linear", "mlp"):
        assert scores["content"]["phone"][probe]["mean"] > 0.97
        guess = scores["acoustic"]["phone"][probe]
        assert guess["low"] - 0.03 <= chance <= guess["high"] + 0.03


def test_speaker_is_predicted_where_it_is_and_nowhere_else(found):
    scores, about = found[0]["scores"], found[0]["attributes"]["speaker"]
    assert scores["acoustic"]["speaker"]["linear"]["mean"] == 1
    assert scores["content"]["speaker"]["linear"]["mean"] < 0.5
    assert about["count"] == 6 * 5  # segments of 2 s
    assert about["chance"] == pytest.approx(1 / 6, abs=0.05)


def test_numbers_are_explained_against_the_mean(found):
    scores = found[0]["scores"]
    assert found[0]["attributes"]["energy"] == {
        "kind": "r2",
        "chance": 0.0,
        "count": 6 * 130,
        "what": module.WHAT["energy"],
    }
    for name in INPUTS:
        assert abs(scores[name]["energy"]["linear"]["mean"]) < 0.06
        score = scores[name]["energy"]["linear"]
        assert score["low"] <= score["mean"] <= score["high"]


def test_silence_is_asked_of_nobody(found):
    recordings = recordings_of([f"speaker {n}" for n in range(6)])
    said = sum(label is not None for recording in recordings for label in recording.labels.phone)
    assert found[0]["attributes"]["phone"]["count"] == said


def test_equal_codes_get_equal_scores(found):
    assert found[0]["scores"]["again"] == found[0]["scores"]["content"]


def test_words_that_nobody_says_are_not_run_with_the_reason(found):
    assert found[1] == {"word": "known of too few frames or speakers: 0 frames."}


def test_groups_divide_speakers_and_never_utterances(monkeypatch, hardly_trained):
    seen = []
    real = module.cross_validate

    def watched(features, recording, groups, attributes, *rest):
        seen.append((recording, groups, set(attributes)))
        return real(features, recording, groups, attributes, *rest)

    monkeypatch.setattr(module, "cross_validate", watched)
    speakers = ["a", "b", "c", "a", "b", "d", "e", "a", "f"]
    probe_matrix(recordings_of(speakers, frames=130), {"content": "content"}, 12.5)
    for recording, groups, attributes in seen:
        by_speaker = {}
        for number, group in zip(recording.tolist(), groups.tolist(), strict=True):
            by_speaker.setdefault(speakers[number], set()).add(group)
        if attributes == {"speaker"}:
            assert all(len(groups - {-1}) == 5 for groups in by_speaker.values())
        else:
            assert all(len(groups) == 1 for groups in by_speaker.values())
            assert len({next(iter(groups)) for groups in by_speaker.values()}) == 5


def test_speaker_with_many_recordings_is_tested_on_whole_ones():
    recordings = recordings_of(["a"] * 5 + ["b"], frames=130)
    questions, _ = module._within_speaker(recordings, 12.5)
    groups = questions.groups.view(6, 130)
    assert all(len(set(row.tolist()) - {-1}) == 1 for row in groups[:5])
    assert len(set(groups[5].tolist()) - {-1}) == 5


def test_two_speakers_are_too_few_for_what_is_asked_by_speaker(hardly_trained):
    matrix, not_run = probe_matrix(recordings_of(["a", "b"]), {"content": "content"}, 12.5)
    assert not_run["phone"] == "probes by speaker need 3 speakers or more, got 2."
    assert set(matrix["attributes"]) == {"speaker"}


def test_short_recordings_cannot_tell_speakers_apart(hardly_trained):
    _, not_run = probe_matrix(recordings_of(["a", "b", "c"], frames=40), {"content": "content"}, 12.5)
    assert "telling speakers apart needs 2 or more with 5 recordings, or 5 times 2 s, got 0." == not_run["speaker"]


def test_common_words_are_those_of_many_speakers():
    recordings = recordings_of(["a", "b", "c", "d"], frames=4)
    for recording in recordings:
        recording.labels.word = ["the", "the", None, recording.speaker]
    assert module._common_words(recordings) == ["the", "the", None, None] * 4


def test_features_are_the_sum_of_a_heads_entries():
    entries = [torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]
    codes = torch.tensor([[0, 1], [1, 0]])
    assert head_features(codes, entries, [range(0, 2)]).tolist() == [[30, 41], [12, 23]]
    assert head_features(codes, entries, [range(0, 1), range(1, 2)]).tolist() == [[0, 1, 30, 40], [2, 3, 10, 20]]
