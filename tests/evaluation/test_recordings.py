"""One recording measured, and the journal that survives a kill."""

import json
from dataclasses import replace

import pytest
import torch

from mimi_bridge.data.manifest import Utterance
from mimi_bridge.evaluation.metrics import METRICS, Metric
from mimi_bridge.evaluation.parts import reconstruction_tables
from mimi_bridge.evaluation.recordings import Journal, Workbench
from mimi_bridge.evaluation.systems import Systems


def broken(decoded, original):
    raise ZeroDivisionError("nothing to divide")


@pytest.fixture
def bench(tiny_model):
    metrics = {"mel": METRICS["mel"], "broken": Metric(broken, "breaks", True)}
    return Workbench(Systems(tiny_model), metrics, with_labels=False)


def test_metric_that_raises_loses_none_of_the_others(bench, spoken_utterances, tmp_path):
    entry = bench.measure(spoken_utterances[0], tmp_path / "audio")
    assert entry["failures"] == {"broken": "ZeroDivisionError: nothing to divide"}
    assert set(entry["figures"]) == {"original", "bridge_9", "bridge_1", "bridge_2"}
    assert all(set(figures) == {"mel"} for figures in entry["figures"].values())
    assert entry["figures"]["original"]["mel"] == 0 < entry["figures"]["bridge_9"]["mel"]
    assert json.loads(json.dumps(entry)) == entry
    assert entry["band"] == "full_band"
    for system, path in entry["example"]["audio"].items():
        assert (tmp_path / path).is_file()
        assert len(entry["example"]["f0_hz"][system]) == -(-entry["seconds"] * 100 // 1)


def test_an_error_that_only_a_fault_of_ours_raises_is_seen(bench, spoken_utterances):
    def faulty(decoded, original):
        return decoded.no_such_attribute

    bench.metrics["faulty"] = Metric(faulty, "faulty", True)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        bench.measure(spoken_utterances[0])


def test_a_recording_counts_by_its_weight(bench, spoken_utterances):
    first, second = spoken_utterances[0], replace(spoken_utterances[1], text="one two")
    bench.metrics = {
        "error": Metric(
            lambda decoded, original: float(original.text == second.text),  # all of its words, none of the other's
            "error",
            False,
            weight=lambda original: len(original.text.split()),
        )
    }
    entries = [bench.measure(utterance) for utterance in (first, second)]
    table = reconstruction_tables(entries, bench)["all"]["bridge_9"]["error"]
    assert table["mean"] == pytest.approx(2 / (len(first.text.split()) + 2))


def test_a_recording_that_is_cut_short_is_measured_and_remarked(bench, spoken_utterances, tmp_path):
    content = spoken_utterances[0].path.read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) * 3 // 4])
    entry = bench.measure(replace(spoken_utterances[0], path=tmp_path / "cut.wav"))
    assert entry["remarks"][0].startswith("it ends early: its header says")
    assert "codes" in entry


def test_metric_that_is_not_finite_counts_as_one_that_raised(bench, spoken_utterances):
    bench.metrics = {"odd": Metric(lambda decoded, original: float("nan"), "odd", True)}
    entry = bench.measure(spoken_utterances[0])
    assert entry["failures"] == {"odd": "ValueError: the metric gave nan."}
    assert entry["figures"]["bridge_9"] == {}


def test_codes_and_labels_have_an_entry_a_frame(bench, spoken_utterances, tiny_model):
    entry = bench.measure(spoken_utterances[0])
    audio = Systems(tiny_model)
    frames = len(entry["codes"][0])
    assert len(entry["codes"]) == audio.total
    assert all(len(values) == frames for values in entry["labels"].values())
    assert any(value is not None for value in entry["labels"]["pitch"])
    assert "example" not in entry


def test_recording_that_is_not_there_is_named_and_nothing_else_is_said(bench, tmp_path):
    entry = bench.measure(Utterance("lost", tmp_path / "lost.wav", "x"))
    assert "no such recording" in entry["failures"]["recordings"]
    assert entry["figures"] == {} and "codes" not in entry


def test_long_recording_is_cut_and_its_transcript_does_not_count(bench, spoken_utterances):
    bench.most_seconds = 1.0
    bench.with_labels = True
    entry = bench.measure(replace(spoken_utterances[0], alignment=None))
    assert (entry["seconds"], entry["text"], len(entry["codes"][0])) == (1.0, None, 13)
    assert "was cut" in entry["failures"]["phones and words"]


def test_narrow_band_recordings_are_known_by_their_rate(bench, tmp_path, speech):
    import soundfile

    soundfile.write(tmp_path / "narrow.wav", speech[0, :16_000].numpy(), 16_000)
    assert bench.measure(Utterance("n", tmp_path / "narrow.wav", "x"))["band"] == "narrow_band"


def test_broken_decoder_loses_its_system_only(bench, spoken_utterances, monkeypatch):
    decode = bench.systems.decode

    def failing(system, *rest):
        if system == "bridge_1":
            raise RuntimeError("no sound")
        return decode(system, *rest)

    monkeypatch.setattr(bench.systems, "decode", failing)
    entry = bench.measure(spoken_utterances[0])
    assert set(entry["figures"]) == {"original", "bridge_9", "bridge_2"}
    assert entry["failures"]["bridge_1"] == "RuntimeError: no sound"


def test_journal_goes_on_after_the_last_whole_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"model": "a"})
    assert journal.open() == 0
    for name in ("one", "two"):
        journal.add({"id": name, "value": torch.pi})
    with open(path, "a") as file:
        file.write('{"id": "three", "va')
    again = Journal(path, {"model": "a"})
    assert again.open() == 2
    assert again.entries == journal.entries
    again.add({"id": "three"})
    assert Journal(path, {"model": "a"}).open() == 3


def test_journal_of_other_settings_begins_anew(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {"model": "a"})
    journal.open()
    journal.add({"id": "one"})
    assert Journal(tmp_path / "journal.jsonl", {"model": "b"}).open() == 0
    assert Journal(tmp_path / "journal.jsonl", {"model": "a"}).open() == 0
