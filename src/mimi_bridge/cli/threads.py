"""As many threads as this process may use processors at once: torch counts those of the machine.

A container's share of a machine is a quota of processor time. With more threads than that, all of them are stopped for
most of each tenth of a second, and a step waits for the last.

Source: the Linux kernel's `cgroup-v2.rst` (`cpu.max`) and `sched-bwc.rst` (`cpu.cfs_quota_us`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def fit_threads() -> None:
    """Lower torch's threads to the quota, unless `OMP_NUM_THREADS` says how many the user wants."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(min(torch.get_num_threads(), quota()))))


def quota() -> float:
    """Processors that this process may use at once, by the least of its groups' quotas; infinite without one."""
    return min(_quotas(), default=float("inf"))


def _quotas() -> Iterator[float]:
    for line in _read(OWN_GROUPS).splitlines():
        _, controllers, group = line.split(":", 2)
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        own = root / group.lstrip("/")
        for folder in (own, *own.parents):  # within a container, the group's path may be the host's
            if folder.is_relative_to(root):
                given = _read(folder / "cpu.max") if not controllers else _of_version_1(folder)
                time, _, period = given.partition(" ")
                if time.isdecimal() and period.isdecimal() and int(period):
                    yield int(time) / int(period)


def _of_version_1(folder: Path) -> str:
    return " ".join(_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
