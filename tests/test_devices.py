"""What a GPU would punish, found without one; see `helpers/on_a_pretended_device.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pretend_device import IS_POSSIBLE

TESTS = Path(__file__).parent / "helpers" / "on_a_pretended_device.py"


@pytest.mark.skipif(not IS_POSSIBLE, reason="torch 2.10 and newer can pretend a device")
def test_all_paths_stay_on_their_device_and_wait_for_it_as_seldom_as_they_should():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_CORE_"))}

    result = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=600)

    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "passed" in result.stdout
