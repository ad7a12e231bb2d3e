"""The tables and the picture of recipes.py."""

from pathlib import Path

HEADS = ("content", "prosody", "acoustic")


def quality_table(found: list[dict]) -> str:
    """Distances to the teachers, reconstruction, and codebook usage."""
    lines = [
        "| recipe | text teacher, constant | speech teacher, constant | mel at 0, 25, 50, 100 % | mel | STOI | codes "
        "in use c / p / a |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in found:
        evaluation, teachers = result["evaluation"], result.get("teachers")
        whole = evaluation["reconstruction"]["all"]
        ours = whole[max((name for name in whole if name.startswith("bridge")), key=lambda n: int(n.split("_")[1]))]
        columns = [_distance(teachers, "qwen"), _distance(teachers, "wavlm")]
        columns += [", ".join(f"{mel:.3f}" for mel in result["mels"]) if "mels" in result else "-"]
        columns += [f"{ours[metric]['mean']:.3f}" for metric in ("mel", "stoi")]
        columns += [" / ".join(f"{100 * _usage(evaluation, head):.0f} %" for head in HEADS)]
        lines.append(f"| {result['name']} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def probe_table(found: list[dict]) -> str:
    """Scores of a small network on each head's codes alone."""
    attributes = found[0]["evaluation"]["probes"]["attributes"]
    wanted = [name for name in ("phone", "speaker", "pitch") if name in attributes]
    titles = [f"{name}: {head}" for name in wanted for head in HEADS]
    lines = [f"| recipe | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for result in found:
        probes = result["evaluation"]["probes"]
        cells = [_probe(probes["scores"].get(head, {}).get(name)) for name in wanted for head in HEADS]
        lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    chances = [f"{_probe(None, attributes[name]['chance'])}" for name in wanted for _ in HEADS]
    lines.append(f"| *chance* | {' | '.join(chances)} |")
    return "\n".join(lines) + "\n"


def _probe(score: dict | None, value: float | None = None) -> str:
    if score is not None:
        value = score["mlp"]["mean"]
    return "-" if value is None else f"{value:.3f}"


def _distance(teachers: dict | None, name: str) -> str:
    if teachers is None:
        return "-"
    loss, constant = teachers[f"eval_loss_{name}"], teachers[f"eval_baseline_{name}"]
    return f"{loss:.3f} ({100 * (loss / constant - 1):+.2f} %), {constant:.3f}"


def _usage(evaluation: dict, head: str) -> float:
    rows = [row for row in evaluation["codes"]["bridge"] if row["head"] == head]
    return sum(row["used"] for row in rows) / sum(row["size"] for row in rows)


def draw(history: list[dict], path: Path) -> None:
    """The curves of a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [entry for entry in history if "loss_qwen" in entry]
    panels = {
        "language model": ["loss_qwen", "baseline_qwen"],
        "speech model": ["loss_wavlm", "baseline_wavlm"],
        "usage": ["usage_content", "usage_prosody", "usage_acoustic"],
        "λ and distance from Mimi's latents": ["residual_weight", "loss_latents"],
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.2), layout="constrained")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            axis.plot([line["step"] for line in lines], [line[name] for line in lines], label=name)
        axis.set(title=title, xlabel="step")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
