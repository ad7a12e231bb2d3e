"""The result of an evaluation on disk, and one beside an earlier one of the same recordings."""

import json
from pathlib import Path
from typing import Any

FORMAT = "mimi_bridge_evaluation/3"
RESULT_FILE = "evaluation.json"
COMPARED = ("model", "probes", "swap_summary", "reconstruction")


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `evaluation.json` holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not json, or not of this format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation at {path}; run mimi-bridge evaluate first.")
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no json ({error}); run mimi-bridge evaluate again.") from error
    found = evaluation.get("format") if isinstance(evaluation, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} must be of the format {FORMAT!r}, got {found!r}; run mimi-bridge evaluate again.")
    return evaluation


def refuse_other_number(count: int, before: dict[str, Any]) -> None:
    """Refuse an earlier evaluation of more recordings than these, or of fewer even with those it could not read.

    Raises:
        ValueError: If it is one.
    """
    least, most = before["num_recordings"], before["num_recordings"] + len(before["left_out"])
    if not least <= count <= most:
        raise ValueError(
            f"an evaluation before must be of the same recordings: these are {count}, that of {before['model']} is of "
            f"{least}; evaluate both alike."
        )


def set_beside(result: dict[str, Any], before: dict[str, Any]) -> None:
    """Put the figures of an earlier evaluation under `before`.

    Raises:
        ValueError: If it is of other recordings.
    """
    for name, unit in (("num_recordings", "recordings"), ("seconds", "s of speech")):
        if abs(result[name] - before[name]) > 0.01:
            raise ValueError(
                f"an evaluation before must be of the same recordings: this one is of {result[name]:g} {unit}, that "
                f"of {before['model']} of {before[name]:g}; evaluate both alike."
            )
    result["before"] = {name: before[name] for name in COMPARED}
