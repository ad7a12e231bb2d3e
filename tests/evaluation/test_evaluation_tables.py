"""An evaluation as tables: what moved stands before and after."""

from made_evaluation import write_made_evaluation
from mimi_bridge.evaluation.tables import flat_metrics, markdown_tables


def test_heads_that_moved_are_shown_before_and_after_and_the_stock_mimi_is_not(tmp_path, spoken):
    evaluation = write_made_evaluation(tmp_path, spoken)
    before = {name: dict(by_head) for name, by_head in evaluation["probes"]["scores"].items()}
    score = evaluation["probes"]["scores"]["content"]["phone"]["linear"]
    before["content"]["phone"] = {"linear": score | {"mean": 0.111}}
    evaluation["before"] = {"model": "converted", "probes": {"scores": before}}
    table = markdown_tables(evaluation).partition("**Before and after** (converted → mimi-bridge; linear probes)")[2]
    rows = [line for line in table.partition("**Swaps**")[0].splitlines() if "→" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["content"]
    assert f"0.111 → {score['mean']:.3f}" in rows[0]


def test_information_about_phones_is_a_metric_of_its_head(tmp_path, spoken):
    evaluation = write_made_evaluation(tmp_path, spoken)
    evaluation["codes"]["bridge"][0] |= {"pnmi": 0.5, "pnmi_shuffled": 0.2}
    assert flat_metrics(evaluation)["codes_pnmi_content"] == 0.5
    assert "0.500 (0.200)" in markdown_tables(evaluation)
