"""Files that are complete or absent."""

import os
import stat

import pytest

from mimi_bridge.atomic_files import growing_file, write_whole


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"...")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_full_disk_is_named_and_leaves_the_file_as_it_was(tmp_path, small_files):
    write_whole(tmp_path / "file", b"before")
    with (
        small_files(),
        pytest.raises(OSError, match=r"file cannot be written \(File too large\); make room, and give"),
    ):
        write_whole(tmp_path / "file", bytes(100_000))
    assert (tmp_path / "file").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_another_error_leaves_the_file_as_it_was(tmp_path):
    write_whole(tmp_path / "file", b"before")
    with pytest.raises(PermissionError, match="mine"), growing_file(tmp_path / "file") as growing:
        growing.write_bytes(b"half")
        raise PermissionError("mine")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    write_whole(tmp_path / ("é" * 127), b"...")
    assert len(list(tmp_path.iterdir())) == 1
