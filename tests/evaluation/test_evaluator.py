"""An evaluation from recordings to its json: whole, goes on after a kill, and loses nothing to a part that breaks."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mimi_bridge.data.manifest import Utterance
from mimi_bridge.evaluation import evaluator, parts
from mimi_bridge.evaluation.evaluator import evaluate
from mimi_bridge.evaluation.metrics import METRICS, Metric
from mimi_bridge.evaluation.recordings import RecordingEvaluator
from mimi_bridge.evaluation.tables import flat_metrics, markdown_tables

FAST = ["mel", "stoi", "codes", "probes", "swaps"]


@pytest.fixture(scope="module")
def found(_tiny_model, spoken_utterances, tmp_path_factory):
    """A whole evaluation, its folder, and the recordings; leave them as they are."""
    folder = tmp_path_factory.mktemp("evaluated")
    model = _tiny_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimi_bridge.evaluation.probes.MAX_STEPS", 20)
        patch.setattr(evaluator, "_aligner", lambda *arguments: None)  # a random model's noise takes it long
        result = evaluate(model, spoken_utterances, folder, only=FAST, reference="small", num_examples=2, num_swaps=2)
    return result, folder


def test_json_on_disk_is_what_is_returned_and_in_the_contracts_form(found):
    result, folder = found
    assert json.loads((folder / "evaluation.json").read_text()) == result
    assert result["format"] == "mimi_bridge_evaluation/3"
    assert (result["num_recordings"], result["num_speakers"], result["reference"]) == (6, 3, "small")
    names = [system["name"] for system in result["systems"]]
    assert names == ["original", "mimi_8", "bridge_9", "bridge_1", "bridge_2"]
    assert set(result["reconstruction"]) == {"full_band", "all"}
    for table in result["reconstruction"].values():
        assert {name for name, figures in table.items() if set(figures) >= {"mel", "stoi"}} == set(table)
        assert table["bridge_9"]["mel"]["count"] == 6
    assert len(result["codes"]["bridge"]) == 9 and len(result["codes"]["mimi"]) == 8
    assert [entry["name"] for entry in result["probes"]["inputs"]][-3:] == ["mimi_1", "mimi_2_8", "mimi_8"]
    for scores in result["probes"]["scores"].values():
        assert set(scores) >= {"phone", "pitch", "pitch_in_speaker", "energy"}
        assert set(scores["energy"]) == {"linear", "mlp"}


def test_sounds_that_the_json_names_are_there(found):
    result, folder = found
    assert len(result["examples"]) == 2 and len(result["swaps"]) == 2
    paths = [path for example in result["examples"] for path in example["audio"].values()]
    paths += [swap["audio"] for swap in result["swaps"]]
    assert len(paths) == len(set(paths)) == 2 * 5 + 2
    assert all((folder / path).is_file() for path in paths)
    assert all(len(example["codes"]) == 9 for example in result["examples"])


def test_what_was_not_run_is_listed_with_the_reason(found):
    not_run = found[0]["not_run"]
    assert not_run["word_error"] == "no model was named; --asr names one."
    assert not_run["pesq"] == "left out by the choice of metrics."
    assert "telling speakers apart needs" in not_run["probe: speaker"]


def test_printed_tables_hold_the_jsons_numbers(found):
    result, folder = found
    tables = markdown_tables(json.loads((folder / "evaluation.json").read_text()))
    mel = result["reconstruction"]["all"]["bridge_9"]["mel"]
    assert f"| all 9 codebooks | {mel['mean']:.3f} ({mel['low']:.3f} to {mel['high']:.3f}) |" in tables
    scores = result["probes"]["scores"]["content"]
    row = next(line for line in tables.splitlines() if line.startswith("| content | ") and " / " in line)
    cells = [f"{scores[name]['linear']['mean']:.3f} / {scores[name]['mlp']['mean']:.3f}" for name in scores]
    assert sorted(row.strip("| ").split(" | ")[1:]) == sorted(cells)
    assert "not run: word_error" in tables


def test_flat_metrics_are_numbers_by_name(found):
    flat = flat_metrics(found[0])
    assert flat["bridge_9_mel"] == found[0]["reconstruction"]["all"]["bridge_9"]["mel"]["mean"]
    assert flat["probe_content_phone_linear"] == found[0]["probes"]["scores"]["content"]["phone"]["linear"]["mean"]
    assert flat["codes_perplexity_acoustic"] == found[0]["codes"]["bridge"][2]["perplexity"]
    assert all(isinstance(value, float) for value in flat.values())


class Killed(BaseException):
    """As Ctrl-C or the end of the world."""


def test_killed_evaluation_goes_on_and_ends_as_if_nothing_had_happened(
    tiny_model, spoken_utterances, tmp_path, monkeypatch
):
    chosen = {"only": ["mel", "codes"], "num_examples": 1}
    measure, measured = RecordingEvaluator.measure, []

    def counted(self, utterance, folder=None):
        measured.append(utterance.id)
        if len(measured) == 4:
            raise Killed
        return measure(self, utterance, folder)

    monkeypatch.setattr(RecordingEvaluator, "measure", counted)
    with pytest.raises(Killed):
        evaluate(tiny_model, spoken_utterances, tmp_path / "killed", **chosen)
    assert not (tmp_path / "killed" / "evaluation.json").exists()
    result = evaluate(tiny_model, spoken_utterances, tmp_path / "killed", **chosen)
    assert len(measured) == 4 + 3  # three were on disk
    monkeypatch.setattr(RecordingEvaluator, "measure", measure)
    assert result == evaluate(tiny_model, spoken_utterances, tmp_path / "whole", **chosen)


def test_another_model_is_not_taken_for_the_one_that_was_measured(tiny_model, spoken_utterances, tmp_path):
    chosen = {"only": ["codes"], "num_examples": 0}
    first = evaluate(tiny_model, spoken_utterances[:1], tmp_path, **chosen)
    tiny_model.quantizer.head_content.layers[0]._codebook.embed[:] += torch.randn(32)
    assert evaluate(tiny_model, spoken_utterances[:1], tmp_path, **chosen) != first


def test_part_that_breaks_is_named_and_the_rest_stands(tiny_model, spoken_utterances, tmp_path, monkeypatch):
    def breaks(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(parts, "probe_matrix", breaks)
    monkeypatch.setattr(parts, "swap_numbers", breaks)
    monkeypatch.setitem(METRICS, "stoi", Metric(breaks, "breaks", True))
    result = evaluate(tiny_model, spoken_utterances[:3], tmp_path, only=FAST, num_examples=0)
    assert result["not_run"]["probes"] == result["not_run"]["swaps"] == "RuntimeError: no memory"
    assert result["not_run"]["stoi"] == "RuntimeError: no memory (3 of 3 recordings)"
    assert "no stock Mimi is known" in result["not_run"]["stock Mimi"]
    assert result["reference"] is None and result["codes"]["mimi"] == []
    assert result["reconstruction"]["all"]["bridge_9"]["mel"]["count"] == 3
    assert len(result["codes"]["bridge"]) == 9


def test_recording_that_cannot_be_read_is_left_out_and_named(tiny_model, spoken_utterances, tmp_path):
    lost = Utterance("lost", tmp_path / "lost.wav", "nobody")
    result = evaluate(tiny_model, [lost, spoken_utterances[0]], tmp_path, only=["mel", "codes"], num_examples=2)
    assert result["num_recordings"] == 1
    assert "no such recording" in result["not_run"]["recordings"]
    assert result["not_run"]["recordings"].endswith("(1 of 2 recordings)")


def test_every_recording_that_cannot_be_read_is_named(tiny_model, spoken_utterances, tmp_path):
    (tmp_path / "letter.wav").write_text("Dear Sir,")
    bad = [Utterance(name, tmp_path / f"{name}.wav", "nobody") for name in ("lost", "letter", "gone")]
    result = evaluate(
        tiny_model, [*bad, spoken_utterances[0]], tmp_path, only=["mel"], num_examples=0, left_out=[("x.m4a", "why")]
    )
    assert [entry["id"] for entry in result["left_out"]] == ["x.m4a", "lost", "letter", "gone"]
    assert "is not audio" in result["left_out"][2]["reason"]
    assert all(f"{name}: " in result["not_run"]["recordings"] for name in ("lost", "letter", "gone"))


def test_recording_that_could_not_be_read_is_tried_again(tiny_model, spoken_utterances, tmp_path):
    moved = replace(spoken_utterances[0], path=tmp_path / "late.wav")
    chosen = {"only": ["mel"], "num_examples": 0}
    assert evaluate(tiny_model, [moved, spoken_utterances[1]], tmp_path, **chosen)["num_recordings"] == 1
    shutil.copy(spoken_utterances[0].path, moved.path)
    result = evaluate(tiny_model, [moved, spoken_utterances[1]], tmp_path, **chosen)
    assert result["num_recordings"] == 2 and "recordings" not in result["not_run"]


def test_no_readable_recording_at_all_says_so_for_each_part(tiny_model, tmp_path):
    result = evaluate(tiny_model, [Utterance("lost", tmp_path / "lost.wav", "x")], tmp_path, only=["codes", "swaps"])
    assert result["not_run"]["codes"] == "no recording could be encoded."
    assert markdown_tables(result)


def test_model_is_as_it_was_before(tiny_model, spoken_utterances, tmp_path):
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    state = torch.random.get_rng_state()
    evaluate(tiny_model, spoken_utterances[:1], tmp_path, only=["codes"], num_examples=0)
    assert tiny_model.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("utterances", "only", "message"),
    [
        ([], None, "at least one recording"),
        ([1, 1], None, "ids of recordings must be unique"),
        ([1], ["mel", "beauty"], "only must name some of .*, got beauty"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_model, spoken_utterances, tmp_path, utterances, only, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model, [spoken_utterances[0] for _ in utterances], tmp_path, only=only)


def test_examples_are_of_many_speakers(spoken_utterances):
    chosen = evaluator._examples(spoken_utterances, 3)
    assert len({u.speaker for u in spoken_utterances if u.id in chosen}) == 3
    assert len(evaluator._examples(spoken_utterances, 5)) == 5
    assert len(evaluator._examples(spoken_utterances, 50)) == 6
    assert evaluator._examples(spoken_utterances, 0) == set()


def test_alignments_are_accepted_as_far_as_the_user_says():
    assert evaluator._aligner({}, None).min_score == -22
    assert evaluator._aligner({}, -30.0).min_score == -30


def test_listeners_hear_swaps_that_are_all_that_was_chosen(tiny_model, spoken_utterances, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "_aligner", lambda *arguments: None)
    deaf = Metric(lambda decoded, original: 0.25, "words", False)
    result = evaluate(
        tiny_model, spoken_utterances[:3], tmp_path, only=["swaps"], num_swaps=1, listeners={"word_error": deaf}
    )
    (swap,) = result["swaps"]
    assert swap["numbers"]["word_error"] == 0.25
    assert "word_error" in result["not_run"]  # of whole recordings
