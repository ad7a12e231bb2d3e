"""From recordings and transcripts to a data set that the heads train on, by one process or by many on many machines.

The recordings are divided into shards, the shards among the processes. A shard depends on its recordings and on the
settings alone, so that an interrupted run is resumable and ends with the same bytes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..settings import Settings
from .rows import RowMaker
from .shards import ShardedDataset, ShardNote
from .sources import Source, open_source

PROCESSES_WAIT = timedelta(days=30)  # for the slowest of them
PENDING = 4  # shards that wait, for each process of a pool


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        num_read: Of the source; each of them is in the data set, or among those left out.
        num_recordings: In the data set.
        num_with_tokens: How many of them have tokens with a place in time.
        hours: Of speech in it.
        dropped: Id, or place in a manifest, and reason of each recording that was left out.
        remarks: Id of a recording that is in it, and what is to be said of it.
        tags: What was taken out of texts since nobody says it, such as `[laughter]`, and how often.
    """

    num_read: int
    num_recordings: int
    num_with_tokens: int
    hours: float
    dropped: list[tuple[str, str]]
    remarks: list[tuple[str, str]]
    tags: dict[str, int]


def prepare(settings: Settings, output: Path, num_proc: int = 1, device: str | None = None) -> Report | None:
    """Make a data set that `MimiBridgeCollator` reads; the same call resumes an interrupted run.

    Under `torchrun` or `accelerate launch` each process takes its share of the shards, on its own device. On a CPU
    every process has one thread, so that numbers do not depend on how many there are. What is finished is left as it
    is, and its report returned.

    Args:
        settings: What is wanted.
        output: Folder of the data set.
        num_proc: Processes on this device.
        device: Default: a GPU if there is one, of each process its own.

    Returns:
        None on all processes but the first.

    Raises:
        OSError: If the source is not there, something else is where the output belongs, the disk is full, or a process
            dies.
        ValueError: If a setting fits nothing, or no recording is of use.
    """
    on_cpu = _is_cpu(device) if device is not None else not torch.accelerator.is_available()
    processes = PartialState(cpu=on_cpu, timeout=PROCESSES_WAIT)
    chosen = (settings.config, settings.split, settings.columns, settings.allow_outside)
    with _place_of_list(num_proc) as list_path:
        source = open_source(settings.source, *chosen, list_path=list_path)
        recordings = f"{len(source)}, {source.fingerprint()[:16]}"
        num_shards = -(-len(source) // settings.recordings_per_shard)
        dataset = ShardedDataset(output.absolute(), asdict(settings) | {"recordings": recordings}, num_shards)
        if not dataset.is_finished():
            dataset.begin()
            missing = dataset.missing()
            processes.wait_for_everyone()  # so that all see the same
            ours = missing[processes.process_index :: processes.num_processes]
            work = _Work(settings, source, dataset, device or str(processes.device), list_path)
            with _progress(work, ours, processes.process_index) as progress:
                work.write(ours, num_proc, progress.update)
            processes.wait_for_everyone()
            if processes.is_main_process:
                _finish(work)
        return Report(**dataset.report()) if processes.is_main_process else None


@contextmanager
def _place_of_list(num_proc: int) -> Iterator[str]:
    # A file for a pool to read, in a folder that is gone at the end; one process needs none that has a name.
    if num_proc == 1:
        yield ""
        return
    with TemporaryDirectory(prefix="mimi-bridge-", ignore_cleanup_errors=True) as folder:
        yield f"{folder}/list"


@dataclass(frozen=True)
class _Work:
    """The arguments of each process."""

    settings: Settings
    source: Source
    dataset: ShardedDataset
    device: str
    list_path: str

    def recordings_of(self, shard: int) -> range:
        first = shard * self.settings.recordings_per_shard
        return range(first, min(first + self.settings.recordings_per_shard, len(self.source)))

    def write(self, shards: list[int], num_proc: int, advance: Callable[[int], object]) -> None:
        """Write shards; `advance` is called with the number of further recordings that are finished."""
        if shards and num_proc == 1:
            with _one_thread():
                maker = RowMaker(self.settings, self.source, self.device)
                for shard in shards:
                    self.write_shard(shard, maker, advance)
        elif shards:
            for count in self._counts_of_pool(shards, num_proc):
                advance(count)

    def write_shard(self, shard: int, maker: RowMaker, advance: Callable[[int], object]) -> int:
        note, statistics = ShardNote(), maker.statistics()
        rows = maker.rows(self.recordings_of(shard), note, statistics, advance)
        self.dataset.write(shard, rows, maker.features, note, statistics)
        return len(self.recordings_of(shard))

    def _counts_of_pool(self, shards: list[int], num_proc: int) -> Iterator[int]:
        num_proc = min(num_proc, len(shards))
        pool = ProcessPoolExecutor(num_proc, get_context("spawn"), _start, (self,))
        try:
            rest = iter(shards)
            pending = deque(pool.submit(_write_shard, shard) for shard in islice(rest, PENDING * num_proc))
            while pending:
                yield pending.popleft().result()
                pending += [pool.submit(_write_shard, shard) for shard in islice(rest, 1)]
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process died, perhaps for want of memory; what was written is kept: give the same command again, "
                "with a smaller --num-proc."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_of_process: dict[str, tuple[_Work, RowMaker]] = {}


def _start(work: _Work) -> None:
    Thread(target=_end_with_parent, args=(work.list_path,), daemon=True).start()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    _of_process["it"] = work, RowMaker(work.settings, work.source, work.device)


def _end_with_parent(list_path: str) -> None:
    # A pool's processes would wait for work for ever if the first one was killed, and its list would stay.
    parent = parent_process()
    assert parent is not None
    parent.join()
    with suppress(OSError):
        os.unlink(list_path)
        os.rmdir(os.path.dirname(list_path))
    os._exit(1)


def _write_shard(shard: int) -> int:
    work, maker = _of_process["it"]
    return work.write_shard(shard, maker, lambda count: None)


def _is_cpu(device: str) -> bool:
    if device.partition(":")[0] == "meta":
        raise ValueError(f"device {device!r} holds no numbers to compute with; choose cpu, cuda or another.")
    try:
        return torch.zeros(1, device=device).device.type == "cpu"
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(work: _Work, ours: list[int], process_index: int) -> tqdm:
    num_missing = sum(len(work.recordings_of(shard)) for shard in work.dataset.missing())
    done = len(work.source) - num_missing
    total = done + sum(len(work.recordings_of(shard)) for shard in ours)
    return tqdm(total=total, initial=done, unit="recording", desc="preparing", disable=process_index > 0)


def _finish(work: _Work) -> None:
    settings, source, total = work.settings, work.source, work.dataset.total()
    report = Report(
        num_read=len(source) + len(source.left_out),
        num_recordings=total.num_rows,
        num_with_tokens=total.num_with_tokens,
        hours=total.seconds / 3600,
        dropped=[*source.left_out, *total.dropped],
        remarks=total.remarks,
        tags=dict(sorted(total.tags.items())),
    )
    if not report.num_recordings:
        work.dataset.discard()
        name, reason = report.dropped[0]
        raise ValueError(
            f"none of the {len(report.dropped)} recordings of {settings.source} is of use; the first, {name}, is not "
            f"because: {reason}."
        )
    teachers = {"qwen": settings.text_teacher, "wavlm": settings.speech_teacher}
    stored = [name for name, teacher in teachers.items() if teacher is not None and settings.teachers == "stored"]
    work.dataset.finish(vars(report), stored)  # `asdict` would copy all that is named in it
