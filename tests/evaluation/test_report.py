"""The report, read as text."""

import json
import math
import re

import pytest

from evaluation_page import Page
from made_evaluation import NOT_RUN, SYSTEMS, save_evaluation
from mimi_bridge.evaluation.report.page import main, write_report
from mimi_bridge.evaluation.result import FORMAT

NASTY = "</td></script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"' {{ 7 * 7 }} \ud800 é"


def report(folder, evaluation, **options) -> Page:
    save_evaluation(folder, evaluation)
    return Page(write_report(folder, **options).read_text())


def numbers_below(value, at="") -> dict[str, float]:
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, list):
        below = enumerate(value)
    else:
        return {at: value} if isinstance(value, int | float) else {}
    return {place: number for key, part in below for place, number in numbers_below(part, f"{at}/{key}").items()}


def test_every_figure_on_the_page_is_the_jsons_at_the_precision_it_is_printed_in(page, made):
    numbers = numbers_below(made[1])
    figures = page.all("data")
    assert len(figures) > 300
    for attributes, text in figures:
        printed = text.replace("−", "-").replace(",", "")
        mantissa, _, exponent = printed.partition("e")
        step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(printed) - numbers[attributes["data-at"]]) <= step * 0.5000001, attributes


def test_every_figure_of_the_json_is_on_the_page(page, made):
    evaluation = made[1]
    parts = ("reconstruction", "codes", "probes", "swap_summary", "swaps", "num_recordings", "num_speakers", "seconds")
    wanted = numbers_below({part: evaluation[part] for part in parts})
    shown = {attributes["data-at"] for attributes, _ in page.all("data")}
    # A count is printed once for a table, and where it differs.
    missing = {at: number for at, number in wanted.items() if at not in shown}
    assert all(at.endswith("/count") and number == 48 for at, number in missing.items()), missing
    assert sum(at.endswith("bridge_1/voicing_error/count") for at in shown) == 2


def test_figure_stands_in_the_row_and_column_that_its_place_says(page, made):
    """Tables are rows of cells in the json's order of systems and metrics."""
    bands = made[1]["reconstruction"]
    cells = [a["data-at"].split("/")[2:] for a, _ in page.all("data") if a["data-at"].startswith("/reconstruction")]
    means = [(band, system, metric) for band, system, metric, *rest in cells if rest == ["mean"]]
    expected = [
        (band, system, metric)
        for band, rows in bands.items()
        for system in rows
        for metric in made[1]["metrics"]
        if rows[system][metric]
    ]
    assert means == expected
    rows = [text for attributes, text in page.all("th") if attributes.get("scope") == "row"]
    assert [label for label in rows if label in SYSTEMS.values()] == list(SYSTEMS.values()) * len(bands)


def test_nothing_on_the_page_comes_from_elsewhere(page, made):
    addresses = [
        found[key] for _, found, _ in page.elements for key in ("src", "href", "poster", "action") if key in found
    ]
    assert len(addresses) > 20
    assert all(address.startswith(("data:", "#")) for address in addresses)
    style = "".join("".join(text) for name, _, text in page.elements if name == "style")
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]


def test_what_was_not_run_is_said_with_its_reason(page):
    for name, reason in NOT_RUN.items():
        assert f"{name} {reason}" in page.text
    assert page.text.index("no model was named") < page.text.index("Linear probe")


def test_page_has_the_command_and_the_model(page, made):
    for part in ("command", "model", "reference"):
        assert made[1][part] in page.text


def test_score_whose_interval_reaches_chance_has_no_colour(page):
    speaker = "/probes/scores/content/speaker/linear/mean"
    places = [i for i, (_, found, _) in enumerate(page.elements) if found.get("data-at") == speaker]
    before = [found for name, found, _ in page.elements[: places[0]] if name == "td"]
    assert "style" not in before[-1]
    assert sum("--share" in found.get("style", "") for found, _ in page.all("td")) == 49


def test_all_text_of_the_json_is_escaped(short):
    folder, evaluation = short
    evaluation |= {"model": NASTY, "reference": NASTY, "command": NASTY, "not_run": {NASTY: NASTY}}
    evaluation["systems"][1]["label"] = NASTY
    evaluation["examples"][0] |= {"id": NASTY, "speaker": NASTY, "text": NASTY}
    evaluation["swaps"] = [{"content_of": NASTY, "voice_of": NASTY, "audio": None, "numbers": {NASTY: NASTY}}]
    evaluation["swap_summary"] = {NASTY: NASTY}
    evaluation["codes"]["bridge"][0]["head"] = NASTY
    evaluation["probes"]["attributes"][NASTY] = {"kind": NASTY, "chance": NASTY, "count": NASTY, "what": NASTY}
    evaluation["probes"]["inputs"][0]["label"] = NASTY
    evaluation["probes"]["scores"][NASTY] = {NASTY: {NASTY: {"mean": 0.5}}}
    evaluation["reconstruction"][NASTY] = {NASTY: {NASTY: {"mean": 0.5}}}
    page = report(folder, evaluation)
    assert len(page.all("script")) == 1
    assert {found.get("src", "")[:10] for found, _ in page.all("img")} == {"data:image"}
    assert not [found for _, found, _ in page.elements if any(key.startswith("on") for key in found)]
    assert page.text.count(NASTY.replace("\ud800", "?")) > 25
    assert "49" not in re.findall(r"[{ ](49)[ }]", page.text)


@pytest.mark.parametrize(
    "part, sentence",
    [
        ("probes", "No probe was run"),
        ("reconstruction", "No reconstruction was measured"),
        ("codes", "No codes were counted"),
        ("examples", "The evaluation holds no example"),
    ],
)
def test_part_that_is_missing_is_said_to_be(short, part, sentence):
    folder, evaluation = short
    del evaluation[part]
    assert sentence + "." in report(folder, evaluation).text
    evaluation[part] = type(evaluation.get(part, {}))()
    evaluation["not_run"] = {part: "the reason why"}
    assert sentence + ": the reason why" in report(folder, evaluation).text


def test_swaps_that_are_missing_are_said_to_be(short):
    folder, evaluation = short
    evaluation |= {"swaps": [], "swap_summary": {}, "not_run": {"swaps": "only one recording"}}
    assert "Nothing was swapped: only one recording" in report(folder, evaluation).text


def test_evaluation_of_nothing_gives_a_page(tmp_path):
    page = report(tmp_path, {"format": FORMAT})
    assert "Every part of the evaluation was run" in page.text
    assert page.text.count("–") >= 4


def test_table_of_all_recordings_is_left_out_when_they_are_of_one_band(short):
    folder, evaluation = short
    bands = evaluation["reconstruction"]
    evaluation["reconstruction"] = {"full_band": bands["full_band"], "all": bands["full_band"]}
    assert "All recordings" not in report(folder, evaluation).text
    evaluation["reconstruction"] = {"full_band": bands["full_band"], "all": bands["wideband"]}
    assert "All recordings" in report(folder, evaluation).text


def test_example_without_pitch_or_codes_says_so(short):
    folder, evaluation = short
    evaluation["examples"][0] |= {"f0_hz": {}, "codes": None}
    text = report(folder, evaluation).text
    assert "No pitch was measured." in text and "There are no codes." in text
    evaluation["examples"][0]["f0_hz"] = {"original": [None] * 20}
    assert "Nothing is voiced." in report(folder, evaluation).text


def test_values_that_are_none_or_no_numbers_are_dashes(short):
    folder, evaluation = short
    cells = evaluation["reconstruction"]["full_band"]["mimi_8"]
    cells["mel"] = {"mean": math.nan, "low": None, "high": math.inf, "count": None}
    cells["stoi"] = None
    evaluation["probes"]["scores"]["content"]["phone"] = {"linear": None}
    evaluation["probes"]["scores"]["prosody"] = None
    evaluation["codes"]["bridge"][0] |= {"perplexity": math.nan, "used": None, "size": 0}
    evaluation["examples"][0]["f0_hz"] = {"original": [None, math.nan, 0.0], "mimi_8": None}
    text = report(folder, evaluation).text
    assert "nan" not in text.lower() and "None" not in text and "inf " not in text
    row = text[text.index("stock Mimi, 8 codebooks") :]
    assert re.match(r"stock Mimi, 8 codebooks – −?[\d.]+ .*? – ", row)


def test_examples_after_the_limit_are_named_and_not_embedded(short):
    folder, evaluation = short
    evaluation["examples"] = [evaluation["examples"][0] | {"id": f"example <{number}>"} for number in range(50)]
    page = report(folder, evaluation, max_megabytes=0.5)
    embedded = len(page.all("article"))
    assert 1 < embedded < 50
    assert f"{50 - embedded} more examples" in page.text
    assert f"example <{embedded}>, example <{embedded + 1}>" in page.text
    assert (folder / "report.html").stat().st_size < 0.5e6 + 90_000  # the tables


def test_example_that_alone_is_over_the_limit_is_named(short):
    folder, evaluation = short
    page = report(folder, evaluation, max_megabytes=0.001)
    assert not page.all("audio")
    assert "1 more example " in page.text and "made-00" in page.text


def test_report_that_fails_leaves_the_one_before(short):
    folder, evaluation = short
    before = write_report(folder).read_text()
    evaluation["examples"][0]["audio"]["mimi_8"] = "../elsewhere.wav"
    save_evaluation(folder, evaluation)
    with pytest.raises(ValueError, match="must lie inside"):
        write_report(folder)
    assert (folder / "report.html").read_text() == before
    assert not list(folder.glob("*partial*")) and not list(folder.glob(".*"))


def test_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run mimi-bridge evaluate first"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": "mimi_bridge_evaluation/2"})])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match="run mimi-bridge evaluate again"):
        write_report(tmp_path)


def test_page_can_be_drawn_again_from_a_shell(short, capsys):
    folder, _ = short
    assert main([str(folder)]) == 0
    assert re.fullmatch(rf"{re.escape(str(folder))}/report.html: \d\.\d MB\n", capsys.readouterr().out)
    assert main([str(folder / "nothing")]) == 1
    assert "no evaluation at" in capsys.readouterr().err
    assert main([]) == 2


def test_scores_before_stand_beside_those_after(short):
    folder, evaluation = short
    assert "Before: of" not in report(folder, evaluation).text
    cell = evaluation["probes"]["scores"]["content"]["phone"]
    earlier = {"scores": {"content": {"phone": {kind: score | {"mean": 0.123} for kind, score in cell.items()}}}}
    evaluation["before"] = {"model": "the one before", "probes": earlier}
    page = report(folder, evaluation)
    assert "Before: of the one before, on the same recordings." in page.text
    assert page.all("data", **{"data-at": "/before/probes/scores/content/phone/linear/mean"})[0][1] == "0.123"


def test_information_about_phones_is_a_column_where_it_is_known(short):
    folder, evaluation = short
    assert "Phones (shuffled)" not in report(folder, evaluation).text
    for row in evaluation["codes"]["bridge"]:
        row |= {"pnmi": 0.456, "pnmi_shuffled": 0.123}
    page = report(folder, evaluation)
    assert page.text.count("Phones (shuffled)") == 1
    assert page.all("data", **{"data-at": "/codes/bridge/0/pnmi_shuffled"})[0][1] == "0.123"
