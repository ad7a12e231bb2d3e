"""An evaluation as tables in markdown, and as a flat dictionary of numbers for a training log."""

from collections.abc import Iterator

BANDS = {"full_band": "full band", "wideband": "16 kHz and below", "all": "all recordings"}


def markdown_tables(evaluation: dict) -> str:
    """The tables of an evaluation, and what was not run."""
    return "\n\n".join(block for block in _blocks(evaluation) if block)


def flat_metrics(evaluation: dict) -> dict[str, float]:
    """Numbers by name: `bridge_9_mel`, `codes_perplexity_content`, `probe_content_phone_linear`, `swap_words_kept`...

    Those of reconstruction are over all recordings; a head's perplexity is that of its first codebook.
    """
    flat: dict[str, float] = {}
    for system, figures in evaluation["reconstruction"].get("all", {}).items():
        flat |= {f"{system}_{metric}": figure["mean"] for metric, figure in figures.items() if system != "original"}
    for row in reversed(evaluation["codes"]["bridge"]):
        flat |= {f"codes_{name}_{row['head']}": row[name] for name in ("perplexity", "pnmi") if name in row}
    for name, scores in evaluation["probes"]["scores"].items():
        for attribute, by_probe in scores.items():
            flat |= {f"probe_{name}_{attribute}_{kind}": score["mean"] for kind, score in by_probe.items()}
    return flat | {f"swap_{name}": figure["mean"] for name, figure in evaluation["swap_summary"].items()}


def _blocks(evaluation: dict) -> Iterator[str]:
    yield (
        f"{evaluation['model']} beside {evaluation['reference'] or 'no stock Mimi'}: "
        f"{evaluation['num_recordings']} recordings, {evaluation['num_speakers']} speakers, "
        f"{evaluation['seconds'] / 60:.1f} minutes"
    )
    labels = {system["name"]: system["label"] for system in evaluation["systems"]}
    for band, table in evaluation["reconstruction"].items():
        if band == "all" and len(evaluation["reconstruction"]) == 2:
            continue  # the same as the one band there is
        metrics = [m for m in evaluation["metrics"] if any(m in figures for figures in table.values())]
        if metrics:
            rows = [[labels[s], *(_with_interval(f.get(m)) for m in metrics)] for s, f in table.items()]
            heads = [evaluation["metrics"][m]["what"] + _arrow(evaluation["metrics"][m]) for m in metrics]
            yield f"**Reconstruction, {BANDS[band]}**"
            yield _table(["", *heads], rows)
    if evaluation["codes"]["bridge"]:
        overlap = evaluation["codes"]["overlap_with_mimi"]
        yield "**Codes** (PNMI: the share of the phones' entropy that the codes take away; of shuffled phones)"
        yield _table(
            ["head", "codebook", "entries used", "perplexity", "bits/s", "PNMI", "as Mimi's"],
            [
                [*_usage(row), "" if share is None else f"{share:.3f}"]
                for row, share in zip(evaluation["codes"]["bridge"], overlap, strict=True)
            ]
            + [[*_usage(row), ""] for row in evaluation["codes"]["mimi"]],
        )
    probes = evaluation["probes"]
    if probes["attributes"]:
        yield "**Probes** (linear / small MLP; accuracy, or R² for pitch and energy)"
        attributes = probes["attributes"]
        rows = [
            [entry["label"], *(_pair(probes["scores"][entry["name"]].get(name)) for name in attributes)]
            for entry in probes["inputs"]
        ]
        rows.append(["chance", *(f"{about['chance']:.3f}" for about in attributes.values())])
        yield _table(["", *(f"{name} ({about['count']})" for name, about in attributes.items())], rows)
        if before := evaluation.get("before"):
            yield f"**Before and after** ({before['model']} → {evaluation['model']}; linear probes)"
            yield _table(["", *attributes], [*_moved(probes, before["probes"])])
    if evaluation["swap_summary"]:
        yield f"**Swaps** ({len(evaluation['swaps'])}: acoustic codes of another recording)"
        yield _table(
            ["", "mean"],
            [[name.replace("_", " "), _with_interval(f)] for name, f in evaluation["swap_summary"].items()],
        )
    yield "\n".join(f"not run: {name}: {reason}" for name, reason in evaluation["not_run"].items())


def _moved(after: dict, before: dict) -> Iterator[list[str]]:
    for entry in after["inputs"]:
        sides = [scores.get(entry["name"], {}) for scores in (before["scores"], after["scores"])]
        pairs = [[side.get(name, {}).get("linear") for side in sides] for name in after["attributes"]]
        if any(old != new for old, new in pairs):  # the stock Mimi does not move
            yield [entry["label"], *(" → ".join("-" if s is None else f"{s['mean']:.3f}" for s in p) for p in pairs)]


def _usage(row: dict) -> list[str]:
    share = 100 * row["used"] / row["size"]
    return [
        row["head"],
        str(row["codebook"]),
        f"{row['used']} of {row['size']} ({share:.0f} %)",
        f"{row['perplexity']:.0f}",
        f"{row['bits_per_second']:.1f}",
        f"{row['pnmi']:.3f} ({row['pnmi_shuffled']:.3f})" if "pnmi" in row else "",
    ]


def _arrow(metric: dict) -> str:
    return " ↑" if metric["higher_is_better"] else " ↓"


def _with_interval(figure: dict | None) -> str:
    if figure is None:
        return ""
    if figure["count"] == 1:
        return _number(figure["mean"])  # one has no interval
    return f"{_number(figure['mean'])} ({_number(figure['low'])} to {_number(figure['high'])})"


def _pair(scores: dict | None) -> str:
    return "" if scores is None else " / ".join(f"{score['mean']:.3f}" for score in scores.values())


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
