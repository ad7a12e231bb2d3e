"""A function of a test module, run by two processes that torchrun starts."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_in_two_processes(function: Callable[[str], None], output: Path) -> None:
    """Call `function(output)` in each; what they left in the folder is there when both have ended well."""
    module = Path(function.__code__.co_filename)
    folders = [str(module.parent), str(Path(__file__).parent)]
    script = output / "run.py"
    script.write_text(
        f"import sys\n\nsys.path[:0] = {folders}\n"
        f"from {module.stem} import {function.__name__}\n\n{function.__name__}(sys.argv[1])\n"
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    process = subprocess.run(
        [sys.executable, *torchrun, str(script), str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
