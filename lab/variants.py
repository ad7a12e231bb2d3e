"""Variants of one training, each in a process of its own: which are chosen, how they run, where their tables go."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

IN_THE_BACKGROUND: dict[str, Any] = {  # of a training: no files, no reports, no bar
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def quiet() -> None:
    """No messages of transformers; one thread."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)


def run_each(
    run: Callable[[tuple[str, Namespace, Path]], dict[str, Any]],
    names: Iterable[str],
    arguments: Namespace,
    work: Path,
    describe: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """Run the names that `--only` chooses, `--jobs` at once; says what each gave as soon as it is there."""
    found = []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for result in pool.map(run, [(name, arguments, work) for name in names if chosen(name, arguments.only)]):
            found.append(result)
            print(f"{describe(result)} {result['seconds']:.0f} CPU s", file=sys.stderr, flush=True)
    return found


def chosen(name: str, patterns: list[str] | None) -> bool:
    """Whether one of the patterns, if there are any, fits."""
    return patterns is None or any(fnmatch(name, pattern) for pattern in patterns)


def write_between_marks(path: Path, text: str, marks: tuple[str, str]) -> None:
    """Replace the text between the two marks of a file."""
    before, first, rest = path.read_text(encoding="utf-8").partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not (first and last):
        raise ValueError(f"{path} must hold the lines {marks[0]} and {marks[1]}.")
    path.write_text(f"{before}{first}\n\n{text}\n{last}{after}", encoding="utf-8")
