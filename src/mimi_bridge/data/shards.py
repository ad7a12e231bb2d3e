"""A data set of `datasets` on disk, written shard by shard: each whole or not at all, in any order, by any number of
processes, over any number of starts, and always with the same bytes.

While it grows it lies beside its place, in a folder that ends in `.partial`, with the plan it was begun with. A shard
counts as written once its note lies beside it, which is the last thing that is put there.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from .running_statistics import RunningStatistics

PLAN, NOTES, REPORT, STATISTICS = "plan.json", "notes", "report.json", "statistics.safetensors"


@dataclass
class ShardNote:
    """What became of the recordings of one shard.

    Attributes:
        num_rows: Rows written.
        seconds: Of speech in them.
        dropped: Id and reason of each recording that was left out.
    """

    num_rows: int = 0
    seconds: float = 0.0
    dropped: list[tuple[str, str]] = field(default_factory=list)


class ShardedDataset:
    """A data set that is being written.

    Args:
        output: Its folder; must not exist.
        plan: All that decides about its content, as json.
        num_shards: Shards.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If one was begun there by another plan.
    """

    def __init__(self, output: Path, plan: dict[str, Any], num_shards: int):
        self.output, self.plan, self.num_shards = output, plan, num_shards
        self.partial = output.with_name(f"{output.name}.partial")
        if output.exists():
            raise FileExistsError(f"{output} exists already; choose another --output, or delete it.")

    def begin(self) -> None:
        """Make the folder, or find the one that was begun; any number of processes may."""
        (self.partial / NOTES).mkdir(parents=True, exist_ok=True)
        path = self.partial / PLAN
        if not path.is_file():
            write_whole(path, json.dumps(self.plan, indent=1, sort_keys=True).encode())
        begun = json.loads(path.read_text())
        different = sorted(key for key in {*begun, *self.plan} if begun.get(key) != self.plan.get(key))
        if different:
            was = ", ".join(f"{key} {begun.get(key)!r}, now {self.plan.get(key)!r}" for key in different)
            raise ValueError(
                f"{self.partial} was begun in another way ({was[:300]}); go on with the same command, or delete it."
            )

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [shard for shard in range(self.num_shards) if not self._note(shard).is_file()]

    def write(
        self,
        shard: int,
        rows: Iterable[dict[str, Any]],
        features: Any,
        note: ShardNote,
        statistics: RunningStatistics,
    ) -> None:
        """Write a shard, row by row, and then what is to be known of it.

        Args:
            shard: Its number.
            rows: As the features say.
            features: `datasets.Features`.
            note: What became of its recordings; it and `statistics` may grow while rows are taken.
            statistics: Of its rows.

        Raises:
            OSError: If the disk is full; nothing of the shard is left, and all the others are.
        """
        from datasets.arrow_writer import ArrowWriter

        path = self.partial / self._name(shard)
        growing = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with ArrowWriter(features=features, path=str(growing), writer_batch_size=16) as writer:
                for row in rows:
                    writer.write(row)
                    note.num_rows += 1
                writer.finalize()
            _flush(growing)
            os.replace(growing, path)
            statistics.save(self._note(shard).with_suffix(".safetensors"))
            write_whole(self._note(shard), json.dumps(vars(note)).encode())
        except OSError as error:
            raise OSError(
                f"shard {shard} of {self.partial} could not be written ({error.strerror or error}); what was written "
                "before is kept: make room, and give the same command again."
            ) from error
        finally:
            growing.unlink(missing_ok=True)

    def notes(self) -> list[ShardNote]:
        """What became of all recordings, shard by shard."""
        return [ShardNote(**json.loads(self._note(shard).read_text())) for shard in range(self.num_shards)]

    def statistics(self) -> RunningStatistics:
        """Of all rows."""
        total, *rest = (
            RunningStatistics.load(self._note(shard).with_suffix(".safetensors")) for shard in range(self.num_shards)
        )
        for statistics in rest:
            total.merge(statistics)
        return total

    def finish(self, report: dict[str, Any]) -> None:
        """Make a data set of the shards, with a report and the statistics beside them, and give it its name."""
        from datasets import Dataset, DatasetInfo

        notes = self.notes()
        filled = [self._name(shard) for shard, note in enumerate(notes) if note.num_rows]
        for path in self.partial.glob("*.arrow*"):  # empty ones, and what a killed process was at
            if path.name not in filled:
                path.unlink()
        state = {
            "_data_files": [{"filename": name} for name in filled],
            "_fingerprint": sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        features = Dataset.from_file(str(self.partial / filled[0])).features
        DatasetInfo(features=features).write_to_directory(str(self.partial))
        for name, content in {REPORT: report, "state.json": state}.items():
            write_whole(self.partial / name, json.dumps(content, indent=1).encode())
        statistics = self.statistics()
        if statistics.weight > 0:
            statistics.save(self.partial / STATISTICS)
        os.replace(self.partial, self.output)
        shutil.rmtree(self.output / NOTES)

    def _name(self, shard: int) -> str:
        return f"data-{shard:05d}-of-{self.num_shards:05d}.arrow"

    def _note(self, shard: int) -> Path:
        return self.partial / NOTES / f"{shard:05d}.json"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    growing = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        growing.write_bytes(content)
        _flush(growing)
        os.replace(growing, path)
    finally:
        growing.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
