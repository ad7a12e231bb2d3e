"""The processes that share a folder's work under `torchrun` or `accelerate launch`; the first one's progress bar."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tqdm import tqdm

PROCESSES_WAIT = timedelta(days=7)  # for the slowest of them


@dataclass(frozen=True)
class DistributedContext:
    """One process's view of the processes that share the work."""

    index: int = 0
    count: int = 1
    device: str = "cpu"
    wait: Callable[[], None] = lambda: None

    @classmethod
    def of_environment(cls, device: str) -> "DistributedContext":
        """From the variables of `torchrun` or `accelerate launch`; `cuda` becomes each process's own GPU.

        Raises:
            ModuleNotFoundError: If there are several, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=device)
        try:
            from accelerate import PartialState
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "several processes need the package accelerate; run pip install 'mimi-bridge[train]'."
            ) from error
        state = PartialState(cpu=device.startswith("cpu"), timeout=PROCESSES_WAIT)
        return cls(
            state.process_index,
            state.num_processes,
            str(state.device) if device == state.device.type else device,
            state.wait_for_everyone,
        )


def progress_bar(total: int, initial: int, context: DistributedContext) -> Any:
    """A progress bar over files, drawn by the first process only, and only on a terminal."""
    return tqdm(total=total, initial=initial, unit=" files", disable=None if context.index == 0 else True)
