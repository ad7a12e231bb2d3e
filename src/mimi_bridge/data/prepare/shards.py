"""A data set of `datasets` on disk, written shard by shard: atomically, in any order, by any number of processes, over
any number of starts, and always with the same bytes.

An unfinished data set lies beside its place, in a folder that ends in `.partial`: `data` holds the shards and the
plan, `notes` a note on each shard. A shard counts as written once its note exists, which is written last.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...atomic_files import FULL, growing_file, write_whole
from ..teachers.statistics import STATISTICS_SUFFIX, RunningStatistics

PLAN, REPORT = "plan.json", "report.json"
ROWS_AT_ONCE = 16  # in memory, and in a record batch


@dataclass
class ShardNote:
    """What became of the recordings of one shard.

    Attributes:
        num_rows: Rows written.
        num_with_tokens: How many of them have tokens with a place in time.
        seconds: Of speech in them.
        dropped: Id and reason of each recording that was left out.
        remarks: Id of a recording that is in it, and what is to be said of it.
        tags: What was taken out of their texts, and how often.
    """

    num_rows: int = 0
    num_with_tokens: int = 0
    seconds: float = 0.0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)

    def add(self, other: "ShardNote") -> None:
        """Count in what became of further recordings."""
        self.num_rows += other.num_rows
        self.num_with_tokens += other.num_with_tokens
        self.seconds += other.seconds
        self.dropped += other.dropped
        self.remarks += other.remarks
        for tag, count in other.tags.items():
            self.tags[tag] = self.tags.get(tag, 0) + count


class ShardedDataset:
    """A data set that is being written.

    Args:
        output: Its folder.
        plan: All that decides about its content, as json.
        num_shards: Shards.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any], num_shards: int):
        self.output, self.plan, self.num_shards = output, dict(plan), num_shards
        self.partial = output.with_name(f"{output.name}.partial")
        self._data, self._notes = self.partial / "data", self.partial / "notes"

    def is_finished(self) -> bool:
        """Whether it is there, made by this very plan.

        Raises:
            FileExistsError: If something else is.
        """
        if not self.output.exists():
            return False
        begun = _read_plan(self.output / PLAN)
        differences = "" if begun is None else self._differences(begun)
        if begun is None or differences:
            raise FileExistsError(
                f"{self.output} exists already{_in_brackets(differences)}; choose another --output, or delete it."
            )
        if not self._data.exists():
            shutil.rmtree(self.partial, ignore_errors=True)  # all that a kill in the last moment left
        return True

    def begin(self) -> None:
        """Make the folder, or find the one that was begun; any number of processes may.

        Raises:
            ValueError: If shards were written there by another plan.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        self._notes.mkdir(exist_ok=True)
        path = self._data / PLAN
        if not path.is_file() or not any(self._notes.iterdir()):
            write_whole(path, json.dumps(self.plan, indent=1, sort_keys=True).encode())
        differences = self._differences(_read_plan(path) or {})
        if differences:
            raise ValueError(
                f"{self.partial} was begun in another way{_in_brackets(differences)}; go on with the same command, or "
                "delete it."
            )

    def _differences(self, begun: dict[str, Any]) -> str:
        keys = sorted(key for key in {*begun, *self.plan} if begun.get(key) != self.plan.get(key))
        return ", ".join(f"{key} {begun.get(key)!r}, now {self.plan.get(key)!r}" for key in keys)

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [shard for shard in range(self.num_shards) if not self._note(shard).is_file()]

    def write(
        self,
        shard: int,
        rows: Iterable[dict[str, Any]],
        features: Any,
        note: ShardNote,
        statistics: Mapping[str, RunningStatistics],
    ) -> None:
        """Write a shard, row by row, and then what is to be known of it.

        Args:
            shard: Its number.
            rows: As the features say.
            features: `datasets.Features`.
            note: What became of its recordings; it and `statistics` may grow while rows are taken.
            statistics: Of its rows, by name.

        Raises:
            OSError: If the disk is full; nothing of the shard is left, and all the others are.
        """
        from datasets.arrow_writer import ArrowWriter

        try:
            with growing_file(self._data / self._name(shard)) as growing:
                with ArrowWriter(features=features, path=str(growing), writer_batch_size=ROWS_AT_ONCE) as writer:
                    for row in rows:
                        writer.write(row)
                        note.num_rows += 1
                    writer.finalize()
            for name, counted in statistics.items():
                counted.save(self._statistics(shard, name))
            write_whole(self._note(shard), json.dumps(vars(note)).encode())
        except OSError as error:
            remedy = "make room, and give" if error.errno in FULL else "give"
            raise OSError(
                f"shard {shard} of {self.partial} could not be written ({error.strerror or error}); what was written "
                f"before is kept: {remedy} the same command again."
            ) from error

    def notes(self) -> Iterator[ShardNote]:
        """What became of all recordings, shard by shard."""
        return (ShardNote(**json.loads(self._note(shard).read_text())) for shard in range(self.num_shards))

    def total(self) -> ShardNote:
        """What became of all recordings, as one note."""
        total = ShardNote()
        for note in self.notes():
            total.add(note)
        return total

    def finish(self, report: dict[str, Any], statistics: Iterable[str] = ()) -> None:
        """Make a data set of the shards, with a report and statistics beside them, and give it its name.

        Args:
            report: As json.
            statistics: Names of those that the shards have.
        """
        from datasets import Dataset, DatasetInfo

        filled = [self._name(shard) for shard, note in enumerate(self.notes()) if note.num_rows]
        for path in self._data.iterdir():  # empty shards, and what a killed process was at
            if path.name not in (*filled, PLAN):
                path.unlink()
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in filled],
            "_fingerprint": sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        features = Dataset.from_file(str(self._data / filled[0])).features
        DatasetInfo(features=features).write_to_directory(str(self._data))
        for name, content in {REPORT: report, "state.json": state}.items():
            write_whole(self._data / name, json.dumps(content, indent=1).encode())
        for name in statistics:
            total = self._total(name)
            if total.weight > 0:
                total.save(self._data / f"{name}{STATISTICS_SUFFIX}")
        os.replace(self._data, self.output)
        shutil.rmtree(self.partial)

    def discard(self) -> None:
        """Delete what was begun."""
        shutil.rmtree(self.partial)

    def report(self) -> dict[str, Any]:
        """The report of a data set that is finished."""
        return json.loads((self.output / REPORT).read_text())

    def _total(self, name: str) -> RunningStatistics:
        total, *rest = (RunningStatistics.load(self._statistics(shard, name)) for shard in range(self.num_shards))
        for counted in rest:
            total.merge(counted)
        return total

    def _name(self, shard: int) -> str:
        return f"data-{shard:05d}-of-{self.num_shards:05d}.arrow"

    def _note(self, shard: int) -> Path:
        return self._notes / f"{shard:05d}.json"

    def _statistics(self, shard: int, name: str) -> Path:
        return self._notes / f"{shard:05d}.{name}.safetensors"


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _in_brackets(text: str) -> str:
    return f" ({text[:300]})" if text else ""
