"""Figures as the page prints them."""

import math

import pytest

from mimi_bridge.evaluation.report.values import Values, printed

NONE = '<span class="none">–</span>'


def test_figure_says_where_it_was_found():
    values = Values({"codes": {"bridge": [{"used": 1204}]}})
    assert values.figure("codes", "bridge", 0, "used") == '<data data-at="/codes/bridge/0/used">1,204</data>'
    assert values.figure(("codes", "bridge"), (0, ("used",))) == values.figure("codes", "bridge", 0, "used")


def test_place_of_a_key_with_slashes_and_marks_is_escaped():
    values = Values({"a/b~<c>": 0.5})
    assert values.figure("a/b~<c>") == '<data data-at="/a~1b~0&lt;c&gt;">0.500</data>'


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, [], {}])
def test_what_is_no_number_is_a_dash(value):
    assert Values({"mel": value}).figure("mel") == NONE


@pytest.mark.parametrize("keys", [("x",), ("mel", "x"), ("list", 3), ("list", -1), ("list", "0"), ("text", 0)])
def test_what_is_not_there_is_a_dash(keys):
    assert Values({"mel": 0.5, "list": [1], "text": "abc"}).figure(*keys) == NONE


def test_text_in_place_of_a_figure_is_escaped():
    assert Values({"mel": "<b>"}).figure("mel") == "&lt;b&gt;"


def test_interval_has_the_decimals_of_its_mean():
    values = Values({"mean": 9.987, "low": 9.1234, "high": 10.4567})
    assert [text.split("<")[0] for text in values.interval().split(">") if text[:1].isdigit()] == ["9.12", "10.46"]


@pytest.mark.parametrize("missing", ["low", "high"])
def test_interval_without_an_end_is_nothing(missing):
    values = Values({"mean": 1.0, "low": 0.5, "high": 1.5} | {missing: None})
    assert values.interval() == ""


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0"),
        (0.0, "0.000"),
        (0.00051, "0.001"),
        (0.0004, "4.0e−04"),
        (-12.345, "−12.3"),
        (99_999.5, "100,000"),
        (1_234.5678, "1,235"),
    ],
)
def test_number_is_printed_for_readers(number, text):
    assert printed(number) == text
