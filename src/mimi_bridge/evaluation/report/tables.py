"""What the page's tables ask of an evaluation beyond single figures: rows and columns, colours and bars."""

from collections import Counter
from collections.abc import Iterator
from statistics import median

from markupsafe import Markup

from .values import Key, Values, decimals_of, flat


class Tables:
    """Rows, columns and marks of the page's tables."""

    def __init__(self, values: Values):
        self.values = values

    def probe_inputs(self) -> list[dict[str, str]]:
        """What probes saw, `name` and `label`, in the evaluation's order."""
        inputs = self.values.get("probes", "inputs") or []
        known = [{"name": row["name"], "label": row.get("label") or row["name"]} for row in inputs]
        names = {row["name"] for row in known}
        return known + [
            {"name": name, "label": name} for name in self.values.get("probes", "scores") if name not in names
        ]

    def probe_kinds(self) -> list[str]:
        """The kinds of probes that have a score, linear first."""
        scores = self.values.get("probes", "scores") or {}
        found = {kind for row in scores.values() for cell in (row or {}).values() for kind in (cell or {})}
        return sorted(found, key=lambda kind: (kind != "linear", kind != "mlp", kind))

    def probe_marks(self, *keys: Key) -> dict[str, float | None]:
        """Where a score and its chance stand on an axis from 0 to 100, and how far above chance it is.

        Args:
            keys: Of a cell: `"probes", "scores", input, attribute, kind`.

        Returns:
            `mean`, `low`, `high`, `chance`: from 0 to 100, None where there is none; `share`: of the way from chance
            to 1, from 0 to 1, None if the interval reaches chance.
        """
        mean, low, high = (self.values.number(*keys, name) for name in ("mean", "low", "high"))
        chance = self.values.number("probes", "attributes", flat(keys)[3], "chance")
        marks = {
            name: None if value is None else round(100 * min(max(value, 0.0), 1.0), 2)
            for name, value in (("mean", mean), ("low", low), ("high", high), ("chance", chance))
        }
        share = None
        if mean is not None and chance is not None and chance < 1 and (mean if low is None else low) > chance:
            share = round((mean - chance) / (1 - chance), 3)
        return marks | {"share": share}

    def bands(self) -> list[tuple[str, dict]]:
        """The tables of reconstruction; without that of all recordings, if it is one band's."""
        tables = {band: systems for band, systems in (self.values.get("reconstruction") or {}).items() if systems}
        if len(tables) == 2 and len({str(systems) for systems in tables.values()}) == 1:
            tables.pop("all", None)
        return list(tables.items())

    def name_of_metric(self, metric: str) -> str:
        """What a metric is called at the head of its column: the first words of what the evaluation says it is."""
        name = str(self.values.get("metrics", metric, "what") or metric).partition(",")[0]
        return name[:1].upper() + name[1:]

    def notes_of_metric(self, metric: str) -> list[str]:
        """Its unit, and which way is better, as far as the evaluation says so."""
        unit = str(self.values.get("metrics", metric, "what") or "").partition(",")[2].strip()
        higher = self.values.get("metrics", metric, "higher_is_better")
        better = "" if higher is None else "higher is better" if higher else "lower is better"
        return [note for note in (unit, better) if note]

    def decimals_of_metrics(self, band: str) -> dict[str, int]:
        """The metrics that any system of a band has, in order, and the decimals that suit their middle mean."""
        sizes: dict[str, list[float]] = {metric: [] for metric in self.values.get("metrics") or {}}
        known = set()
        for system, row in self.values.get("reconstruction", band).items():
            for metric in row or {}:
                mean = self.values.number("reconstruction", band, system, metric, "mean")
                sizes.setdefault(metric, []).extend([] if mean is None else [abs(mean)])
                known.add(metric)
        return {name: decimals_of(median(found)) if found else 0 for name, found in sizes.items() if name in known}

    def usual_count(self, band: str) -> tuple[Key, ...] | None:
        """Where the number of recordings that most cells of a band have is found; None if none has one."""
        cells = [
            ("reconstruction", band, system, metric, "count")
            for system, row in self.values.get("reconstruction", band).items()
            for metric in row or {}
        ]
        counts = {keys: self.values.number(*keys) for keys in cells}
        usual = Counter(count for count in counts.values() if count is not None).most_common(1)
        return next((keys for keys, count in counts.items() if usual and count == usual[0][0]), None)

    def label_of(self, system: str) -> str:
        """What a system is called."""
        labels = {row["name"]: row.get("label") for row in self.values.get("systems") or []}
        return labels.get(system) or system

    def bar(self, *keys: Key) -> Markup:
        """A codebook's used entries and perplexity as shares of its size, drawn."""
        size, used, perplexity = (self.values.number(*keys, name) for name in ("size", "used", "perplexity"))
        if not size or used is None:
            return Markup("")
        shares = [("empty", 1.0), ("used", used / size), ("perplexity", (perplexity or 0) / size)]
        rectangles = Markup("").join(
            Markup('<rect class="{}" width="{}" height="8"/>').format(name, round(100 * min(share, 1.0), 2))
            for name, share in shares
        )
        return Markup('<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{}</svg>').format(
            rectangles
        )

    def leaves(self, *keys: Key) -> Iterator[tuple[tuple[Key, ...], str]]:
        """Every figure below the keys, with what to call it; a mean with its interval is one."""
        value = self.values.get(*keys)
        for key, below in value.items() if isinstance(value, dict) else ():
            name = str(key).replace("_", " ")
            if isinstance(below, dict) and "mean" not in below:
                yield from ((path, f"{name}, {rest}") for path, rest in self.leaves(*keys, key))
            else:
                yield (*keys, key), name

    def leaf(self, *keys: Key) -> Markup:
        """A figure of `leaves`, printed, with its interval if it has one."""
        if not isinstance(self.values.get(*keys), dict):
            return self.values.figure(*keys)
        interval = self.values.interval(*keys)
        mean = self.values.figure(*keys, "mean")
        return Markup("{} <small>{}</small>").format(mean, interval) if interval else mean
