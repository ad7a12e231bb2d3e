"""The report: an evaluation as one self-contained HTML page, sounds included, that needs no network.

The page opens from disk, on a phone too, and works without its script. Every figure on it is looked up in
evaluation.json and names its place there. `python -m mimi_bridge.evaluation.report.page FOLDER` draws it again.
"""

import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...atomic_files import write_whole
from ..result import RESULT_FILE, read_evaluation
from .listening import PITCH_RATE, prepare_listening
from .pictures import HEAD_COLOURS, RANGE_DB
from .tables import Tables
from .values import Values

MAX_MEGABYTES = 16  # a phone opens it
PAGE = PackageLoader("mimi_bridge.evaluation.report", "templates")
PROBE_NAMES = {"linear": "Linear probe", "mlp": "Small network (MLP)"}
SCORE_NAMES = {"accuracy": "accuracy", "r2": "R²"}
BAND_NAMES = {
    "full_band": "Full-band recordings",
    "wideband": "Wideband recordings (16 kHz or less)",
    "all": "All recordings",
}
NUMBER_NAMES = {
    "words kept before": "words kept before the swap",
    "f0 content hz": "F0 of the content, Hz",
    "f0 voice hz": "F0 of the voice, Hz",
    "f0 swapped hz": "F0 swapped, Hz",
    "f0 follows voice": "F0 follows the voice",
    "f0 of same voice": "F0 of another recording of the voice",
    "f0 contour correlation": "F0 contour, correlation with the content’s",
    "timbre follows voice": "timbre follows the voice",
    "timbre of same voice": "timbre of another recording of the voice",
    "same voice like voice": "another recording of the voice, like the voice",
}


def write_report(folder: str | Path, max_megabytes: float = MAX_MEGABYTES) -> Path:
    """Write the page of an evaluation, `report.html` in its folder, atomically.

    Args:
        folder: Holds `evaluation.json` and the sounds it names.
        max_megabytes: Limit for the examples' sounds and pictures; examples beyond it are counted, not embedded. Swaps
            may take a third of it in addition.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If there is no `evaluation.json`.
        ValueError: If it is not an evaluation of this format, or one of its sounds lies outside the folder.
    """
    folder = Path(folder)
    page = render_report(folder, read_evaluation(folder / RESULT_FILE), max_megabytes)
    path = folder / "report.html"
    write_whole(path, page.encode(errors="replace"))  # a lone surrogate has no bytes
    return path


def render_report(folder: Path, evaluation: dict[str, Any], max_megabytes: float) -> str:
    """The page as text; all that comes from the evaluation is escaped."""
    values = Values(evaluation)
    environment = Environment(
        loader=PAGE, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = PAGE.get_source(environment, "page.js")[0]
    listening = prepare_listening(folder, values, round(max_megabytes * 1e6))
    environment.globals.update(
        get=values.get,
        figure=values.figure,
        number=values.number,
        interval=values.interval,
        tables=Tables(values),
        listening=listening,
        megabytes=f"{sum(figure.num_bytes for figure in listening.examples + listening.swaps) / 1e6:.1f}",
        max_megabytes=f"{max_megabytes:g}",
        script=Markup(script),
        script_hash=Markup("sha256-" + b64encode(sha256(script.encode()).digest()).decode()),
        version=__version__,
        range_db=round(RANGE_DB),
        pitch_rate=PITCH_RATE,
        heads=tuple(HEAD_COLOURS),
        probe_names=PROBE_NAMES,
        score_names=SCORE_NAMES,
        band_names=BAND_NAMES,
        number_names=NUMBER_NAMES,
    )
    return environment.get_template("page.html").render()


def main(arguments: list[str] | None = None) -> int:
    """Draw the page of the folder given; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m mimi_bridge.evaluation.report.page FOLDER", file=sys.stderr)
        return 2
    try:
        path = write_report(arguments[0])
    except (OSError, ValueError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
