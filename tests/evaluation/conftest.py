"""A report of made speech, and a browser to read it in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation_page import Page
from made_evaluation import write_made_evaluation
from mimi_bridge.evaluation.report import write_report


@pytest.fixture(scope="session")
def spoken(speech):
    """Text -> `(1, samples)` at 24 kHz, about a second each."""
    return {
        "The river carried small boats.": speech[:, :30_000],
        'He said: <b>no</b> & "yes".': speech[:, 150_000:176_000],
        "Bread, honey.": speech[:, 300_000:324_000],
    }


@pytest.fixture(scope="session")
def made(spoken, tmp_path_factory) -> tuple[Path, dict]:
    """A folder with an evaluation and its report, and the evaluation; leave both as they are."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation = write_made_evaluation(folder, spoken)
    write_report(folder)
    return folder, evaluation


@pytest.fixture(scope="session")
def page(made) -> Page:
    """The report of `made`."""
    return Page((made[0] / "report.html").read_text())


@pytest.fixture
def short(spoken, tmp_path) -> Iterator[tuple[Path, dict]]:
    """A folder with an evaluation of a fifth of a second, to change and report; and the evaluation."""
    yield tmp_path, write_made_evaluation(tmp_path, {"one": spoken["Bread, honey."][:, :4_800]})
