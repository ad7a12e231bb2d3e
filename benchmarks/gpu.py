"""What a GPU computes and what it costs, on the day that one is lent: python benchmarks/gpu.py --minutes 2.5

On a bare machine: copy this repository, see that what its `pyproject.toml` asks for is there, in whatever versions
(torch for its GPU, transformers, vector-quantize-pytorch; accelerate and datasets for the training items), then

    PYTHONPATH=src python benchmarks/gpu.py --minutes 2.5 --output gpu.md

No network, no recording, no espeak-ng is needed: the sound is made of sines and noise, the weights are the small
codec's and random ones of kyutai/mimi's size. First come the checks, a GPU against the CPU, then tables of what things
cost. The work is in order of worth; what there is no time for is named, what fails prints its error and the rest goes
on, and the exit code is 1 then. `--device cpu --quick` tries every line where there is no GPU.
"""

# ruff: noqa: E402

import time

START = time.monotonic()  # imports count, too

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers.utils import logging as transformers_logging

from gpu_agreement import check_batches_and_files, check_precisions, check_streams, check_trainer, check_training_step
from gpu_costs import load_peers, table_of_recordings, table_of_streams, table_of_training
from gpu_lab import Lab, tf32
from gpu_waits import count_waits
from mimi_bridge import small_codec
from peers import Peer
from source import read_source
from transplant import transplant


def describe(lab: Lab) -> None:
    """Versions and card."""
    lab.say(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    if lab.is_cuda:
        card = torch.cuda.get_device_properties(lab.device)
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip()
        lab.say(f"{card.name}, {card.total_memory / 2**30:.0f} GiB; CUDA {torch.version.cuda}, driver {driver}")
    lab.say(f"{torch.get_num_threads()} CPU threads; {time.monotonic() - lab.start:.1f} s since the start")


def run_tests(lab: Lab) -> None:
    """The tests that are marked for a GPU."""
    missing = [name for name in ("pytest", "espeakng_loader") if importlib.util.find_spec(name) is None]
    if missing or not lab.is_cuda:
        lab.leave_out("pytest -m gpu", f"no {missing[0]}" if missing else "no CUDA")
        return
    left = max(5.0, lab.deadline - time.monotonic() - 3)
    files = ["tests/runtime/test_stream.py", "tests/runtime/test_steps.py"]
    command = [sys.executable, "-m", "pytest", *files, "-m", "gpu", "-q", "-p", "no:cacheprovider", "--no-header"]
    root = Path(__file__).parents[1]
    try:
        ran = subprocess.run(command, cwd=root, timeout=left, capture_output=True, text=True)
        tail = (ran.stdout + ran.stderr).strip().splitlines()[-12:]
        lab.say(f"\npytest -m gpu, exit code {ran.returncode}:\n\n    " + "\n    ".join(tail))
        lab.expect("pytest -m gpu, exit code", ran.returncode, ran.returncode in (0, 5))
    except subprocess.TimeoutExpired:
        lab.leave_out("pytest -m gpu", f"not done in {left:.0f} s")


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="it ends by then, done or not (default: 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--output", type=Path, help="file that gets the same text")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(arguments, Path(folder), START)
        threading.Thread(target=_end_in_time, args=(lab,), daemon=True).start()
        _run_all(lab)
    _end(lab)


def _run_all(lab: Lab) -> None:
    with lab.record_failure("versions"):
        describe(lab)
    with lab.record_failure("the small codec"), tf32(False):
        model = transplant(read_source(str(small_codec())), qwen_dim=48, wavlm_dim=32).model
        checks = (check_precisions, check_streams, check_batches_and_files, check_training_step, count_waits)
        checks += (check_trainer,)
        for check in checks:
            if lab.has(5, check.__name__):
                with lab.record_failure(check.__name__):
                    check(lab, model)
    lab.say(f"\n({time.monotonic() - lab.start:.0f} s since the start)")
    peers: dict[str, Peer] = {}
    with lab.record_failure("weights of full size"):
        peers = load_peers(lab)
    tables: list[tuple[str, Callable[[], None]]] = [
        ("recordings", lambda: table_of_recordings(lab, peers)),
        ("streams, float32", lambda: table_of_streams(lab, peers, "float32", torch.float32)),
        ("training", lambda: table_of_training(lab)),
        ("streams, bfloat16", lambda: table_of_streams(lab, peers, "bfloat16", torch.bfloat16)),
    ]
    for name, table in tables:
        with lab.record_failure(name), tf32(False):
            table()
    if lab.has(15, "pytest -m gpu"):
        with lab.record_failure("pytest -m gpu"):
            run_tests(lab)


def _end_in_time(lab: Lab) -> None:
    time.sleep(max(0.0, lab.deadline - time.monotonic()))
    lab.failed.append(f"time was up in: {lab.doing}")
    _end(lab)


def _end(lab: Lab) -> None:
    lab.say(f"\nLeft out: {'; '.join(lab.left_out) or 'nothing'}.\nFailed: {'; '.join(lab.failed) or 'nothing'}.")
    lab.say(f"{time.monotonic() - lab.start:.0f} s in all.")
    sys.stdout.flush()
    os._exit(1 if lab.failed else 0)


if __name__ == "__main__":
    main()
