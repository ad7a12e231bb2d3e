"""Evaluate a model on recordings, beside the stock Mimi: reconstruction, codes, probes and swaps.

A metric or a part that raises is named under `not_run`, and the others still run. The measurements of a recording are
on disk before the next one begins, so that an interrupted evaluation is resumable. docs/evaluation.md describes the
form of the result.
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
from .recordings import RecordingEvaluator, ResultsLog, as_it_is, run_or_record_failure
from .result import FORMAT, RESULT_FILE, refuse_other_number, set_beside
from .stock_mimi import find_stock_mimi
from .systems import Systems

LOG_FILE = "recordings.jsonl"
RECORDINGS = "recordings"  # under `not_run`: those that could not be read
MAX_NAMED = 20
PARTS = ("codes", "probes", "swaps")
OPTIONAL = {"word_error": "--asr", "speaker_similarity": "--speaker", "mos": "--mos"}
ALIGN_HINT = "pocketsphinx is missing; run pip install 'mimi-bridge[align]'."


def evaluate(
    model: MimiBridgeModel,
    utterances: list[Utterance],
    folder: str | Path,
    *,
    model_name: str | None = None,
    reference: str | None = None,
    before: dict[str, Any] | None = None,
    only: Iterable[str] | None = None,
    listeners: dict[str, Metric] | None = None,
    num_examples: int = 3,
    num_swaps: int = 4,
    max_seconds: float = 30.0,
    min_score: float | None = None,
    seed: int = 0,
    left_out: Sequence[tuple[str, str]] = (),
    command: str = "",
    progress: Callable[[str], None] = lambda message: None,
) -> dict:
    """Measure a model and write what was found, `evaluation.json` and `audio/*.wav`.

    Args:
        model: To be measured; in eval mode meanwhile, so that none of its codebooks changes.
        utterances: Recordings, on speakers it was not trained on.
        folder: For everything that is written.
        model_name: Its name in the result. If it is a folder, its conversion report also names the stock Mimi.
        reference: The stock Mimi's checkpoint, see `find_stock_mimi`.
        before: An earlier evaluation of the same recordings, such as of the model before it was trained, whose figures
            then stand beside; see `read_evaluation`.
        only: Names among `METRICS`, the listeners' and `PARTS`; all, if left out.
        listeners: Further metrics, by name, from `recognizer`, `speaker_encoder`, `dnsmos` and `mos_predictor`.
        num_examples: Recordings whose decoded audio is kept.
        num_swaps: Pairs of recordings whose heads are swapped.
        max_seconds: Of a recording; the rest is ignored.
        min_score: Alignments below it are rejected; by default the aligner's own limit. `-math.inf` accepts all.
        seed: Of the probes.
        left_out: Files that could not be used as recordings, with the reason; they are listed in the result.
        command: The command line, which the result repeats.
        progress: Called with a message when a step begins.

    Returns:
        What `evaluation.json` holds.

    Raises:
        ValueError: If there is no recording, two of one id, `only` names something unknown, `reference` cannot be
            used, or `before` is of other recordings.
    """
    folder = Path(folder)
    if before is not None:
        refuse_other_number(len(utterances), before)
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
        if reference is None:
            stock = run_or_record_failure(not_run, "stock Mimi", lambda: find_stock_mimi(model, model_name))
        else:
            stock = find_stock_mimi(model, model_name, reference)
        metrics = {**METRICS, **(listeners or {})}
        metrics = {name: metric for name, metric in metrics.items() if name in wanted and name not in not_run}
        aligner = _aligner(not_run, min_score) if wanted & {"probes", "swaps"} else None
        with_pitch = "f0_cents" not in missing_packages()
        evaluator = RecordingEvaluator(
            Systems(model, stock), metrics, max_seconds, with_pitch, "probes" in wanted, aligner
        )
        entries = _measured(evaluator, utterances, folder, num_examples, progress)
        result = _result(evaluator, entries, not_run, wanted, seed, progress)
        if "swaps" in wanted:
            coded = result["entries"]
            result |= (
                run_or_record_failure(
                    not_run,
                    "swaps",
                    lambda: swapped_heads(evaluator, listeners or {}, coded, folder, num_swaps, not_run),
                )
                or {}
            )
    finally:
        model.train(was_training)
    result.pop("entries", None)
    names = {"model": model_name or "a model", "reference": stock.name if stock else None, "command": command}
    result["left_out"] = [{"id": name, "reason": reason} for name, reason in left_out] + result["left_out"]
    if before is not None:
        set_beside(result, before)
    result = _finite({"format": FORMAT, **names, **result})
    _write(folder / RESULT_FILE, result)
    return result


def _measured(
    evaluator: RecordingEvaluator,
    utterances: list[Utterance],
    folder: Path,
    num_examples: int,
    progress: Callable[[str], None],
) -> list[dict]:
    examples, aligner = _examples(utterances, num_examples), evaluator.aligner
    settings = {
        "format": FORMAT,
        "model": _sha256(evaluator.systems.model),
        "config": hashlib.sha256(evaluator.systems.model.config.to_json_string().encode()).hexdigest(),
        "stock": None if evaluator.systems.stock is None else _sha256(evaluator.systems.stock.model),
        "metrics": {name: metric.what for name, metric in evaluator.metrics.items()},
        "recordings": hashlib.sha256(repr([as_it_is(utterance) for utterance in utterances]).encode()).hexdigest(),
        "examples": sorted(examples),
        "with": [
            evaluator.max_seconds,
            evaluator.with_pitch,
            evaluator.with_labels,
            None if aligner is None else repr(aligner.min_score),
        ],
    }
    log = ResultsLog(folder / LOG_FILE, settings)
    done = log.open()
    if done:
        progress(f"{done} of {len(utterances)} recordings are measured already")
    for number, utterance in enumerate(utterances, start=1):
        if "seconds" not in log.entries.get(utterance.id, {}):  # one that could not be read is tried again
            progress(f"recording {number} of {len(utterances)}: {utterance.id}")
            log.add(evaluator.measure(utterance, folder / AUDIO_FOLDER if utterance.id in examples else None))
    return [log.entries[utterance.id] for utterance in utterances]


def _result(
    evaluator: RecordingEvaluator,
    entries: list[dict],
    not_run: dict[str, str],
    wanted: set[str],
    seed: int,
    progress: Callable[[str], None],
) -> dict:
    _count_failures(entries, not_run)
    measured = [entry for entry in entries if "seconds" in entry]
    coded = [entry for entry in measured if entry.get("codes") is not None]
    result: dict[str, Any] = {
        "num_recordings": len(measured),
        "num_speakers": len({entry["speaker"] for entry in measured}),
        "seconds": sum(entry["seconds"] for entry in measured),
        "systems": [{"name": name, "label": label} for name, label in evaluator.systems.labels().items()],
        "metrics": {
            name: {"what": metric.what, "higher_is_better": metric.higher_is_better}
            for name, metric in evaluator.metrics.items()
        },
        "reconstruction": reconstruction_tables(measured, evaluator),
        "not_run": not_run,
        "left_out": [
            {"id": entry["id"], "reason": entry["failures"][RECORDINGS]} for entry in entries if entry not in measured
        ],
        "remarks": [{"id": entry["id"], "remark": remark} for entry in measured for remark in entry["remarks"]],
        "codes": {"bridge": [], "bits_per_second": {}, "mimi": [], "overlap_with_mimi": []},
        "probes": {"attributes": {}, "inputs": [], "scores": {}},
        "swaps": [],
        "swap_summary": {},
        "examples": [example(entry) for entry in measured if entry.get("example")],
        "entries": coded,
    }
    if not coded:
        not_run |= {part: "no recording could be encoded." for part in PARTS if part in wanted}
        return result
    codes = [torch.tensor(entry["codes"]) for entry in coded]
    stock_codes = [None if e["stock_codes"] is None else torch.tensor(e["stock_codes"]) for e in coded]
    if "codes" in wanted:
        model = evaluator.systems.model
        phones = [entry["labels"]["phone"] for entry in coded]
        found = run_or_record_failure(not_run, "codes", lambda: code_statistics(model, codes, stock_codes, phones))
        result["codes"] = found or result["codes"]
    if "probes" in wanted:
        found = run_or_record_failure(
            not_run, "probes", lambda: probed_heads(evaluator, coded, codes, stock_codes, not_run, seed, progress)
        )
        result["probes"] = found or result["probes"]
    return result


def _examples(utterances: list[Utterance], count: int) -> set[str]:
    # One recording of each speaker first, the speakers evenly spaced.
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
        named = "; ".join(f"{entry['id']}: {entry['failures'][RECORDINGS]}" for entry in unread[:MAX_NAMED])
        more = f"; and {len(unread) - MAX_NAMED} more" if len(unread) > MAX_NAMED else ""
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


def _aligner(not_run: dict[str, str], min_score: float | None) -> Aligner | None:
    from ..data.alignment.pocketsphinx import PocketsphinxAligner

    try:
        aligner = PocketsphinxAligner()
    except ModuleNotFoundError:
        not_run["words of swaps"] = ALIGN_HINT
        return None
    aligner.min_score = aligner.min_score if min_score is None else min_score
    return aligner


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finite(value: Any) -> Any:
    # Json has neither NaN nor infinity: they become null.
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
