"""Rows, columns and marks of the page's tables."""

import pytest

from mimi_bridge.evaluation.report.tables import Tables
from mimi_bridge.evaluation.report.values import Values

CELL = ("probes", "scores", "content", "phone", "linear")


def probes(score: dict, chance: float | None) -> Tables:
    return Tables(
        Values(
            {
                "probes": {
                    "attributes": {"phone": {"kind": "accuracy", "chance": chance}},
                    "scores": {"content": {"phone": {"linear": score}}},
                }
            }
        )
    )


def test_colour_is_the_share_of_the_way_from_chance_to_one():
    marks = probes({"mean": 0.7, "low": 0.6, "high": 0.8}, 0.4).probe_marks(*CELL)
    assert marks == {"mean": 70, "low": 60, "high": 80, "chance": 40, "share": 0.5}


@pytest.mark.parametrize(
    "score, chance",
    [
        ({"mean": 0.5, "low": 0.39, "high": 0.6}, 0.4),
        ({"mean": 0.5, "low": 0.4, "high": 0.6}, 0.4),
        ({"mean": 0.3}, 0.4),
        ({"mean": None, "low": 0.5}, 0.4),
        ({"mean": 0.5, "low": 0.4, "high": 0.6}, None),
        ({"mean": 1.0, "low": 1.0, "high": 1.0}, 1.0),
        (None, 0.1),
    ],
)
def test_score_that_is_not_above_chance_has_no_colour(score, chance):
    assert probes(score, chance).probe_marks(*CELL)["share"] is None


def test_marks_of_a_negative_score_stay_on_the_axis():
    marks = probes({"mean": -0.5, "low": -0.9, "high": 0.1}, 0.0).probe_marks(*CELL)
    assert (marks["mean"], marks["low"], marks["high"]) == (0, 0, 10)


def test_kinds_of_probes_are_those_that_have_a_score_linear_first():
    scores = {"a": {"phone": {"mlp": {}, "forest": {}}, "word": None}, "b": {"phone": {"linear": {}}}, "c": None}
    assert Tables(Values({"probes": {"scores": scores}})).probe_kinds() == ["linear", "mlp", "forest"]


def test_inputs_that_the_list_lacks_come_last():
    tables = Tables(Values({"probes": {"inputs": [{"name": "b", "label": "B"}], "scores": {"a": {}, "b": {}}}}))
    assert tables.probe_inputs() == [{"name": "b", "label": "B"}, {"name": "a", "label": "a"}]


def test_figures_of_a_column_have_the_decimals_of_the_middle_one():
    systems = {
        "a": {"sdr": {"mean": 186.0}, "mel": {"mean": 0.1}, "wer": {"mean": None}},
        "b": {"sdr": {"mean": -12.0}},
        "c": {"sdr": {"mean": -0.5}},
        "d": None,
    }
    tables = Tables(Values({"reconstruction": {"all": systems}}))
    assert tables.decimals_of_metrics("all") == {"sdr": 1, "mel": 3, "wer": 0}


def test_columns_have_the_order_of_the_metrics_and_only_those_that_a_band_has():
    metrics = {"pesq": {}, "sdr": {}, "mel": {}}
    systems = {"a": {"mel": {"mean": 1.0}, "own": {"mean": 1.0}}, "b": {"sdr": {"mean": 1.0}}}
    tables = Tables(Values({"metrics": metrics, "reconstruction": {"all": systems}}))
    assert list(tables.decimals_of_metrics("all")) == ["sdr", "mel", "own"]


def test_head_of_a_column_is_what_the_evaluation_says_of_the_metric():
    metrics = {"f0": {"what": "pitch error, cents, of voiced frames", "higher_is_better": False}, "x": {}}
    tables = Tables(Values({"metrics": metrics}))
    assert tables.name_of_metric("f0") == "Pitch error"
    assert tables.notes_of_metric("f0") == ["cents, of voiced frames", "lower is better"]
    assert (tables.name_of_metric("x"), tables.notes_of_metric("x")) == ("X", [])
    assert (tables.name_of_metric("y_z"), tables.notes_of_metric("y_z")) == ("Y_z", [])


def test_usual_count_is_the_most_common():
    counts = {"a": {"mel": {"count": 3}}, "b": {"mel": {"count": 5}}, "c": {"mel": {"count": 5}}}
    assert Tables(Values({"reconstruction": {"all": counts}})).usual_count("all") == (
        "reconstruction", "all", "b", "mel", "count"
    )  # fmt: skip
    assert Tables(Values({"reconstruction": {"all": {"a": {"mel": {}}}}})).usual_count("all") is None


def test_leaves_are_figures_and_means_with_their_intervals():
    tables = Tables(Values({"s": {"a_b": 1.0, "c": {"d": 2.0, "e": {"mean": 3.0, "low": 2.5, "high": 3.5}}}}))
    assert list(tables.leaves("s")) == [(("s", "a_b"), "a b"), (("s", "c", "d"), "c, d"), (("s", "c", "e"), "c, e")]
    assert ">2.50</data> to <" in tables.leaf("s", "c", "e")


def test_bar_spans_the_share_in_use():
    tables = Tables(Values({"row": {"size": 200, "used": 50, "perplexity": 20.0}, "empty": {"size": 0, "used": 1}}))
    assert '"used" width="25.0"' in tables.bar("row") and '"perplexity" width="10.0"' in tables.bar("row")
    assert tables.bar("empty") == ""
