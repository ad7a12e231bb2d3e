"""From recordings and transcripts to a data set that the heads train on, by one process or by many on many machines.

The recordings are divided into shards, the shards among the processes. What a shard holds depends on its recordings
and on the settings alone: a run that was killed goes on where it was, and ends with the bytes it would have had.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .rows import RowMaker
from .running_statistics import RunningStatistics
from .settings import Settings
from .shards import ShardedDataset, ShardNote
from .sources import open_source

PROCESSES_WAIT = timedelta(days=30)  # for the slowest of them


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        num_recordings: In the data set.
        hours: Of speech in it.
        dropped: Id and reason of each recording that was left out.
    """

    num_recordings: int
    hours: float
    dropped: list[tuple[str, str]]


def prepare(settings: Settings, output: Path, num_proc: int = 1, device: str | None = None) -> Report | None:
    """Make a data set that `MimiBridgeCollator` reads; a run that was killed goes on when it is started again.

    Under `torchrun` or `accelerate launch` each process takes its share of the shards, on its own device. On a CPU
    every process has one thread, so that numbers do not depend on how many there are.

    Args:
        settings: What is wanted.
        output: Folder of the data set; must not exist.
        num_proc: Processes on this device.
        device: Default: a GPU if there is one, of each process its own.

    Returns:
        None on all processes but the first.

    Raises:
        OSError: If the source is not there, the output is, or the disk is full.
        ValueError: If a setting fits nothing, or no recording is left.
        RuntimeError: If a process dies.
    """
    from accelerate import PartialState

    processes = PartialState(timeout=PROCESSES_WAIT)
    source = open_source(settings.source, settings.split, settings.columns)
    num_shards = -(-len(source) // settings.recordings_per_shard)
    dataset = ShardedDataset(output, asdict(settings) | {"recordings": source.fingerprint()}, num_shards)
    dataset.begin()
    shards = [shard for shard in dataset.missing() if shard % processes.num_processes == processes.process_index]
    total = sum(len(_recordings_of(shard, settings, len(source))) for shard in shards)
    with tqdm(total=total, unit="recording", desc="preparing", disable=not processes.is_main_process) as progress:
        for count in _write_shards(shards, settings, dataset, device or str(processes.device), num_proc):
            progress.update(count)
    processes.wait_for_everyone()
    return _finish(settings, dataset) if processes.is_main_process else None


def _write_shards(
    shards: list[int], settings: Settings, dataset: ShardedDataset, device: str, num_proc: int
) -> Iterator[int]:
    # Yields how many recordings are done with, now and then.
    if num_proc == 1:
        if shards:
            torch.set_num_threads(1)
            maker = RowMaker(settings, device)
            for shard in shards:
                yield _write_shard(shard, maker, dataset)
        return
    pool = ProcessPoolExecutor(num_proc, get_context("spawn"), _start, (settings, device, dataset))
    try:
        yield from pool.map(_write_shard_in_process, shards)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process died, perhaps for want of memory; what was written is kept: give the same command again, with "
            "a smaller --num-proc."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shard(shard: int, maker: RowMaker, dataset: ShardedDataset) -> int:
    note, statistics = ShardNote(), RunningStatistics(maker.text_dim or 1)
    recordings = _recordings_of(shard, maker.settings, len(maker.source))
    dataset.write(shard, maker.rows(recordings, note, statistics), maker.features(), note, statistics)
    return len(recordings)


_of_process: dict[str, Any] = {}


def _start(settings: Settings, device: str, dataset: ShardedDataset) -> None:
    torch.set_num_threads(1)
    _of_process.update(maker=RowMaker(settings, device), dataset=dataset)


def _write_shard_in_process(shard: int) -> int:
    return _write_shard(shard, _of_process["maker"], _of_process["dataset"])


def _recordings_of(shard: int, settings: Settings, num_recordings: int) -> range:
    first = shard * settings.recordings_per_shard
    return range(first, min(first + settings.recordings_per_shard, num_recordings))


def _finish(settings: Settings, dataset: ShardedDataset) -> Report:
    notes = dataset.notes()
    report = Report(
        num_recordings=sum(note.num_rows for note in notes),
        hours=sum(note.seconds for note in notes) / 3600,
        dropped=[(name, reason) for note in notes for name, reason in note.dropped],
    )
    if not report.num_recordings:
        name, reason = report.dropped[0]
        raise ValueError(
            f"none of the {len(report.dropped)} recordings of {settings.source} is of use; the first, {name}, is not "
            f"because {reason}. Delete {dataset.partial} before another try."
        )
    dataset.finish(asdict(report))
    return report
