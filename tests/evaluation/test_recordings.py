"""One recording measured, and the log that survives a kill."""

import json
from dataclasses import replace

import pytest
import torch

from mimi_bridge.data.manifest import Utterance
from mimi_bridge.evaluation.metrics import METRICS, Metric
from mimi_bridge.evaluation.parts import reconstruction_tables
from mimi_bridge.evaluation.recordings import RecordingEvaluator, ResultsLog
from mimi_bridge.evaluation.systems import Systems


def broken(decoded, original):
    raise ZeroDivisionError("nothing to divide")


@pytest.fixture
def evaluator(tiny_model):
    metrics = {"mel": METRICS["mel"], "broken": Metric(broken, "breaks", True)}
    return RecordingEvaluator(Systems(tiny_model), metrics, with_labels=False)


def test_metric_that_raises_loses_none_of_the_others(evaluator, spoken_utterances, tmp_path):
    entry = evaluator.measure(spoken_utterances[0], tmp_path / "audio")
    assert entry["failures"] == {"broken": "ZeroDivisionError: nothing to divide"}
    assert set(entry["figures"]) == {"original", "bridge_9", "bridge_1", "bridge_2"}
    assert all(set(figures) == {"mel"} for figures in entry["figures"].values())
    assert entry["figures"]["original"]["mel"] == 0 < entry["figures"]["bridge_9"]["mel"]
    assert json.loads(json.dumps(entry)) == entry
    assert entry["band"] == "full_band"
    for system, path in entry["example"]["audio"].items():
        assert (tmp_path / path).is_file()
        assert len(entry["example"]["f0_hz"][system]) == -(-entry["seconds"] * 100 // 1)


def test_an_error_that_only_a_fault_of_ours_raises_is_seen(evaluator, spoken_utterances):
    def faulty(decoded, original):
        return decoded.no_such_attribute

    evaluator.metrics["faulty"] = Metric(faulty, "faulty", True)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        evaluator.measure(spoken_utterances[0])


def test_a_recording_counts_by_its_weight(evaluator, spoken_utterances):
    first, second = spoken_utterances[0], replace(spoken_utterances[1], text="one two")
    evaluator.metrics = {
        "error": Metric(
            lambda decoded, original: float(original.text == second.text),  # all of its words, none of the other's
            "error",
            False,
            weight=lambda original: len(original.text.split()),
        )
    }
    entries = [evaluator.measure(utterance) for utterance in (first, second)]
    table = reconstruction_tables(entries, evaluator)["all"]["bridge_9"]["error"]
    assert table["mean"] == pytest.approx(2 / (len(first.text.split()) + 2))


def test_a_recording_that_is_cut_short_is_measured_and_remarked(evaluator, spoken_utterances, tmp_path):
    content = spoken_utterances[0].path.read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) * 3 // 4])
    entry = evaluator.measure(replace(spoken_utterances[0], path=tmp_path / "cut.wav"))
    assert entry["remarks"][0].startswith("it ends early: its header says")
    assert "codes" in entry


def test_metric_that_is_not_finite_counts_as_one_that_raised(evaluator, spoken_utterances):
    evaluator.metrics = {"odd": Metric(lambda decoded, original: float("nan"), "odd", True)}
    entry = evaluator.measure(spoken_utterances[0])
    assert entry["failures"] == {"odd": "ValueError: the metric gave nan."}
    assert entry["figures"]["bridge_9"] == {}


def test_codes_and_labels_have_an_entry_a_frame(evaluator, spoken_utterances, tiny_model):
    entry = evaluator.measure(spoken_utterances[0])
    audio = Systems(tiny_model)
    frames = len(entry["codes"][0])
    assert len(entry["codes"]) == audio.total
    assert all(len(values) == frames for values in entry["labels"].values())
    assert any(value is not None for value in entry["labels"]["pitch"])
    assert "example" not in entry


def test_recording_that_is_not_there_is_named_and_nothing_else_is_said(evaluator, tmp_path):
    entry = evaluator.measure(Utterance("lost", tmp_path / "lost.wav", "x"))
    assert "no such recording" in entry["failures"]["recordings"]
    assert entry["figures"] == {} and "codes" not in entry


def test_long_recording_is_cut_and_its_transcript_does_not_count(evaluator, spoken_utterances):
    evaluator.max_seconds = 1.0
    evaluator.with_labels = True
    entry = evaluator.measure(replace(spoken_utterances[0], alignment=None))
    assert (entry["seconds"], entry["text"], len(entry["codes"][0])) == (1.0, None, 13)
    assert "was cut" in entry["failures"]["phones and words"]


def test_wideband_recordings_are_known_by_their_rate(evaluator, tmp_path, speech):
    import soundfile

    soundfile.write(tmp_path / "narrow.wav", speech[0, :16_000].numpy(), 16_000)
    assert evaluator.measure(Utterance("n", tmp_path / "narrow.wav", "x"))["band"] == "wideband"


def test_broken_decoder_loses_its_system_only(evaluator, spoken_utterances, monkeypatch):
    decode = evaluator.systems.decode

    def failing(system, *rest):
        if system == "bridge_1":
            raise RuntimeError("no sound")
        return decode(system, *rest)

    monkeypatch.setattr(evaluator.systems, "decode", failing)
    entry = evaluator.measure(spoken_utterances[0])
    assert set(entry["figures"]) == {"original", "bridge_9", "bridge_2"}
    assert entry["failures"]["bridge_1"] == "RuntimeError: no sound"


def test_journal_goes_on_after_the_last_whole_line(tmp_path):
    path = tmp_path / "log.jsonl"
    log = ResultsLog(path, {"model": "a"})
    assert log.open() == 0
    for name in ("one", "two"):
        log.add({"id": name, "value": torch.pi})
    with open(path, "a") as file:
        file.write('{"id": "three", "va')
    again = ResultsLog(path, {"model": "a"})
    assert again.open() == 2
    assert again.entries == log.entries
    again.add({"id": "three"})
    assert ResultsLog(path, {"model": "a"}).open() == 3


def test_log_of_other_settings_starts_again(tmp_path):
    log = ResultsLog(tmp_path / "log.jsonl", {"model": "a"})
    log.open()
    log.add({"id": "one"})
    assert ResultsLog(tmp_path / "log.jsonl", {"model": "b"}).open() == 0
    assert ResultsLog(tmp_path / "log.jsonl", {"model": "a"}).open() == 0


def test_examples_of_ids_that_are_alike_are_files_of_their_own(evaluator, spoken_utterances, tmp_path):
    names = ("s/1_x.wav", "s_1/x.wav", "é" * 250)
    entries = [evaluator.measure(replace(spoken_utterances[0], id=name), tmp_path / "audio") for name in names]
    paths = [path for entry in entries for path in entry["example"]["audio"].values()]
    assert len(paths) == len({*paths}) and all((tmp_path / path).is_file() for path in paths)
