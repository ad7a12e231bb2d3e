"""What a model is worth: reconstruction, codes, probes and swaps, on recordings, beside the stock Mimi.

Every part and every metric runs in its own try: what raises is named under `not_run`, and the rest stands. What is
measured of a recording is on disk before the next one begins, so that an evaluation that was killed goes on. The
form of the result is in docs/evaluation.md.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_files import write_whole
from ..data.alignment.types import Aligner
from ..data.manifest import Utterance
from ..modeling_mimi_bridge import MimiBridgeModel
from .code_statistics import code_statistics
from .metrics import METRICS, Metric, missing_packages
from .parts import AUDIO_FOLDER, example, probed_heads, reconstruction_tables, swapped_heads
from .recordings import Journal, Workbench, attempt
from .stock_mimi import find_stock_mimi
from .systems import Systems

FORMAT = "mimi_bridge_evaluation/1"
RESULT_FILE, JOURNAL_FILE = "evaluation.json", "recordings.jsonl"
RECORDINGS = "recordings"  # under `not_run`: those that could not be read
MOST_NAMED = 20
PARTS = ("codes", "probes", "swaps")
OPTIONAL = {"word_error": "--asr", "opinion": "--mos"}
ALIGN_HINT = "pocketsphinx is missing; run pip install 'mimi-bridge[align]'."


def evaluate(
    model: MimiBridgeModel,
    utterances: list[Utterance],
    folder: str | Path,
    *,
    model_name: str | None = None,
    reference: str | None = None,
    only: Iterable[str] | None = None,
    listeners: dict[str, Metric] | None = None,
    num_examples: int = 3,
    num_swaps: int = 4,
    most_seconds: float = 30.0,
    least_score: float | None = None,
    seed: int = 0,
    left_out: Sequence[tuple[str, str]] = (),
    command: str = "",
    progress: Callable[[str], None] = lambda message: None,
) -> dict:
    """Measure a model and write what was found, `evaluation.json` and `audio/*.wav`.

    Args:
        model: To be measured; put into eval mode meanwhile. No codebook of it moves.
        utterances: Recordings, on speakers it was not trained on.
        folder: For everything that is written.
        model_name: What it is called; a folder's report also names the stock Mimi.
        reference: The stock Mimi's checkpoint, see `find_stock_mimi`.
        only: Names among `METRICS`, the listeners' and `PARTS`; all, if left out.
        listeners: Further metrics, by name: `recognizer`, `judge`.
        num_examples: Recordings whose sounds are kept.
        num_swaps: Pairs of recordings whose heads are swapped.
        most_seconds: Of a recording; the rest is not looked at.
        least_score: Alignments below it count as wrong; the aligner's own, if left out, `-math.inf` believes all.
        seed: Of the probes.
        left_out: What looked like a recording and could not be used, with the reason, for the record.
        command: That was given, for the record.
        progress: Told what is being done.

    Returns:
        What `evaluation.json` holds.

    Raises:
        ValueError: If there is no recording, two of one id, or `only` names something unknown.
    """
    folder = Path(folder)
    wanted = _wanted(only, listeners or {})
    _check_ids(utterances)
    not_run = {name: f"the package {package} is missing." for name, package in missing_packages().items()}
    unwanted = [name for name in _all_names(listeners or {}) if name not in wanted]
    not_run |= {name: "left out by the choice of metrics." for name in unwanted}
    for name, option in OPTIONAL.items():
        if name not in (listeners or {}):
            not_run[name] = f"no model was named; {option} names one."
    was_training = model.training
    model.eval()
    try:
        stock = attempt(not_run, "stock Mimi", lambda: find_stock_mimi(model, model_name, reference))
        metrics = {**METRICS, **(listeners or {})}
        metrics = {name: metric for name, metric in metrics.items() if name in wanted and name not in not_run}
        aligner = _aligner(not_run, least_score) if wanted & {"probes", "swaps"} else None
        with_pitch = "f0_cents" not in missing_packages()
        bench = Workbench(Systems(model, stock), metrics, most_seconds, with_pitch, "probes" in wanted, aligner)
        entries = _measured(bench, utterances, folder, num_examples, progress)
        result = _result(bench, entries, not_run, wanted, seed, progress)
        if "swaps" in wanted:
            coded = result["entries"]
            result |= attempt(not_run, "swaps", lambda: swapped_heads(bench, coded, folder, num_swaps, not_run)) or {}
    finally:
        model.train(was_training)
    result.pop("entries", None)
    names = {"model": model_name or "a model", "reference": stock.name if stock else None, "command": command}
    result["left_out"] = [{"id": name, "reason": reason} for name, reason in left_out] + result["left_out"]
    result = _finite({"format": FORMAT, **names, **result})
    _write(folder / RESULT_FILE, result)
    return result


def _measured(
    bench: Workbench, utterances: list[Utterance], folder: Path, num_examples: int, progress: Callable[[str], None]
) -> list[dict]:
    examples, aligner = _examples(utterances, num_examples), bench.aligner
    settings = {
        "format": FORMAT,
        "model": _sha256(bench.systems.model),
        "stock": None if bench.systems.stock is None else _sha256(bench.systems.stock.model),
        "metrics": {name: metric.what for name, metric in bench.metrics.items()},
        "recordings": hashlib.sha256(
            repr([(u.id, str(u.path), u.text, u.start, u.end) for u in utterances]).encode()
        ).hexdigest(),
        "examples": sorted(examples),
        "with": [
            bench.most_seconds,
            bench.with_pitch,
            bench.with_labels,
            None if aligner is None else repr(aligner.least_score),
        ],
    }
    journal = Journal(folder / JOURNAL_FILE, settings)
    done = journal.open()
    if done:
        progress(f"{done} of {len(utterances)} recordings are measured already")
    for number, utterance in enumerate(utterances, start=1):
        if "seconds" not in journal.entries.get(utterance.id, {}):  # one that could not be read is tried again
            progress(f"recording {number} of {len(utterances)}: {utterance.id}")
            journal.add(bench.measure(utterance, folder / AUDIO_FOLDER if utterance.id in examples else None))
    return [journal.entries[utterance.id] for utterance in utterances]


def _result(
    bench: Workbench,
    entries: list[dict],
    not_run: dict[str, str],
    wanted: set[str],
    seed: int,
    progress: Callable[[str], None],
) -> dict:
    _count_failures(entries, not_run)
    heard = [entry for entry in entries if "seconds" in entry]
    coded = [entry for entry in heard if entry.get("codes") is not None]
    result: dict[str, Any] = {
        "num_recordings": len(heard),
        "num_speakers": len({entry["speaker"] for entry in heard}),
        "seconds": sum(entry["seconds"] for entry in heard),
        "systems": [{"name": name, "label": label} for name, label in bench.systems.labels().items()],
        "metrics": {
            name: {"what": metric.what, "higher_is_better": metric.higher_is_better}
            for name, metric in bench.metrics.items()
        },
        "reconstruction": reconstruction_tables(heard, bench),
        "not_run": not_run,
        "left_out": [
            {"id": entry["id"], "reason": entry["failures"][RECORDINGS]} for entry in entries if entry not in heard
        ],
        "remarks": [{"id": entry["id"], "remark": remark} for entry in heard for remark in entry["remarks"]],
        "codes": {"bridge": [], "bits_per_second": {}, "mimi": [], "overlap_with_mimi": []},
        "probes": {"attributes": {}, "inputs": [], "scores": {}},
        "swaps": [],
        "swap_summary": {},
        "examples": [example(entry) for entry in heard if entry.get("example")],
        "entries": coded,
    }
    if not coded:
        not_run |= {part: "no recording could be encoded." for part in PARTS if part in wanted}
        return result
    codes = [torch.tensor(entry["codes"]) for entry in coded]
    stock_codes = [None if e["stock_codes"] is None else torch.tensor(e["stock_codes"]) for e in coded]
    if "codes" in wanted:
        model = bench.systems.model
        found = attempt(not_run, "codes", lambda: code_statistics(model, codes, stock_codes))
        result["codes"] = found or result["codes"]
    if "probes" in wanted:
        found = attempt(
            not_run, "probes", lambda: probed_heads(bench, coded, codes, stock_codes, not_run, seed, progress)
        )
        result["probes"] = found or result["probes"]
    return result


def _examples(utterances: list[Utterance], count: int) -> set[str]:
    # One a speaker as far as there are so many, evenly among them.
    firsts = list({u.speaker: u.id for u in reversed(utterances)}.values())[::-1]
    rest = [u.id for u in utterances if u.id not in set(firsts)]
    pool = firsts if len(firsts) >= count else firsts + rest
    count = min(count, len(pool))
    return {pool[round(place * (len(pool) - 1) / max(1, count - 1))] for place in range(count)}


def _count_failures(entries: list[dict], not_run: dict[str, str]) -> None:
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        for name, reason in entry["failures"].items():
            reasons.setdefault(name, []).append(reason)
    for name, found in reasons.items():
        not_run[name] = f"{found[0]} ({len(found)} of {len(entries)} recordings)"
    unread = [entry for entry in entries if RECORDINGS in entry["failures"]]
    if unread:
        named = "; ".join(f"{entry['id']}: {entry['failures'][RECORDINGS]}" for entry in unread[:MOST_NAMED])
        more = f"; and {len(unread) - MOST_NAMED} more" if len(unread) > MOST_NAMED else ""
        not_run[RECORDINGS] = f"{named}{more} ({len(unread)} of {len(entries)} recordings)"


def _all_names(listeners: dict[str, Metric]) -> list[str]:
    return [*METRICS, *listeners, *PARTS]


def _wanted(only: Iterable[str] | None, listeners: dict[str, Metric]) -> set[str]:
    names = _all_names(listeners)
    wanted = set(names if only is None else only)
    unknown = sorted(wanted - set(names))
    if unknown:
        raise ValueError(f"only must name some of {', '.join(names)}, got {', '.join(unknown)}.")
    return wanted


def _check_ids(utterances: list[Utterance]) -> None:
    ids = [utterance.id for utterance in utterances]
    if not ids:
        raise ValueError("evaluation needs at least one recording, got none.")
    if len(set(ids)) < len(ids):
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f"ids of recordings must be unique, got {', '.join(repeated[:3])} more than once.")


def _aligner(not_run: dict[str, str], least_score: float | None) -> Aligner | None:
    from ..data.alignment.pocketsphinx import PocketsphinxAligner

    try:
        aligner = PocketsphinxAligner()
    except ModuleNotFoundError:
        not_run["words of swaps"] = ALIGN_HINT
        return None
    aligner.least_score = aligner.least_score if least_score is None else least_score
    return aligner


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    # Json has no NaN and no infinity: null is what cannot be said.
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
