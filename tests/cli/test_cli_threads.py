"""The commands take no more threads than a container's quota has processors."""

from pathlib import Path

import pytest
import torch

from mimi_bridge.cli import threads
from mimi_bridge.cli.main import main


@pytest.fixture
def groups(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


def write(groups: Path, own: str, **files: str) -> None:
    (groups / "own").write_text(own)
    for name, content in files.items():
        file = groups / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu_max": "200000 100000"}, 2.0),
        ("0::/\n", {"cpu_max": "max 100000"}, float("inf")),
        (
            "0::/pod/a\n",
            {"cpu_max": "max 100000", "pod__cpu_max": "150000 100000", "pod__a__cpu_max": "400000 100000"},
            1.5,
        ),
        ("0::/of/the/host\n", {"cpu_max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "300000", "cpu__cpu_cfs_period_us": "100000"}, 3.0),
        ("4:cpu,cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, float("inf")),
        ("4:memory:/\n", {"cpu_max": "50000 100000"}, float("inf")),
    ],
)
def test_quota_is_the_least_of_a_processes_groups(groups, own, files, expected):
    write(groups, own, **files)
    assert threads.quota() == expected


def test_without_groups_there_is_no_quota(groups):
    assert threads.quota() == float("inf")


@pytest.mark.parametrize(
    ("wanted", "quota", "expected"), [(None, "250000", 2), (None, "20000", 1), ("4", "250000", 4)]
)
def test_a_command_takes_the_threads_of_its_quota_unless_the_user_says_how_many(
    groups, monkeypatch, wanted, quota, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    write(groups, "0::/\n", cpu_max=f"{quota} 100000")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert main(["encode", "nothing.wav", "-m", "nothing/at/all", "-o", "x.safetensors"]) == 1
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
