"""The command `mimi-bridge` in processes of their own, which begin with everything imported, and can be killed."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

IMPORTED = ["mimi_bridge.cli.main", "mimi_bridge.data.prepare.run", "accelerate", "datasets.arrow_writer", "commands"]
IMPORTED += [f"transformers.models.{name}.modeling_{name}" for name in ("qwen2", "wavlm")]


def start_command(
    *arguments: object, log: Path, environment: Mapping[str, str] | None = None, largest_file: int | None = None
) -> multiprocessing.Process:
    """Start it; what it prints goes to `log`, and it can write no file above `largest_file` bytes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    given = ([str(argument) for argument in arguments], str(log), dict(environment or {}), largest_file)
    process = context.Process(target=_run, args=given)
    process.start()
    return process


def _run(arguments: list[str], log: str, environment: dict[str, str], largest_file: int | None) -> None:
    from mimi_bridge.cli.main import main
    from mimi_bridge.data.prepare import run as preparation

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    preparation.get_context = lambda _: multiprocessing.get_context("fork")  # as imported as this one
    sys.exit(main(arguments))
