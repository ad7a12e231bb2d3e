"""What benchmarks measure with: rivals that alternate in one process, medians, CPU seconds, peak memory, a table."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Timing:
    """Of one rival, medians over the rounds.

    Attributes:
        cpu: Seconds of the process, all its threads.
        wall: Seconds by the clock; larger than `cpu` where other processes wanted the core.
        peak_mib: How far a run raised the memory of the process, MiB; None where the system does not tell.
    """

    cpu: float
    wall: float
    peak_mib: float | None


def alternate(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Run each rival once to warm up, once more to see its memory, then all in turn, `rounds` times."""
    peaks = {}
    for name, run in rivals.items():
        run()
        peaks[name] = peak_of(run)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {
        name: [statistics.median(values) for values in zip(*each, strict=True)] for name, each in seconds.items()
    }
    return {name: Timing(*medians[name], peaks[name]) for name in rivals}


def peak_of(run: Callable[[], object]) -> float | None:
    """How far a run raises the resident memory of this process above what it is before, MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        run()
        return None
    before = memory_mib("VmRSS")
    run()
    return max(0.0, memory_mib("VmHWM") - before)


def memory_mib(field: str) -> float:
    """A field of this process's /proc/self/status, MiB: `VmRSS`, now, or `VmHWM`, the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def machine() -> str:
    """One line that names what was measured on."""
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
    ]
    processor = models[0] if models else platform.processor() or platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread"
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row) + " |", flush=True)


def mib(value: float | None) -> str:
    """Memory for a table."""
    return "-" if value is None else f"{value:.0f}"
