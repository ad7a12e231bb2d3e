"""How often the host waits for a GPU, and at which lines of the package."""

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path

import torch

from gpu_inputs import training_batch, voice
from gpu_lab import Lab
from mimi_bridge import MimiBridgeModel
from peers import FRAME, RATE


@contextmanager
def waits(lab: Lab) -> Iterator[list[str]]:
    """The package's lines at which the host waited for the device."""
    lines: list[str] = []

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        if "called a synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack()[:-1] if f"{os.sep}mimi_bridge{os.sep}" in f.filename]
        place = (frames[-1].filename, frames[-1].lineno) if frames else (filename, lineno)
        lines.append(f"{Path(place[0]).name}:{place[1]}")

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("always")
        warnings.showwarning = note
        if lab.is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        yield lines


def count_waits(lab: Lab, model: MimiBridgeModel) -> None:
    """How often the host waits, path by path."""
    there = deepcopy(model).to(lab.device)
    learner = deepcopy(there).train()
    batch, audio = training_batch(there, lab.device), voice(2).to(lab.device)
    mask = torch.ones(1, 2 * RATE, dtype=torch.bool, device=lab.device)
    with torch.no_grad():
        codes = there.encode(audio).audio_codes
    paths: dict[str, Callable[[], object]] = {
        "training forward": lambda: learner(**batch),
        "training forward and backward": lambda: learner(**batch).loss.backward(),
        "encode": lambda: there.encode(audio),
        "encode, with a mask": lambda: there.encode(audio, mask),
        "decode": lambda: there.decode(codes),
    }
    with ExitStack() as stack:
        for graphs in (False, True) if lab.is_cuda else (False,):
            stream = stack.enter_context(there.stream(1, cuda_graphs=graphs))
            suffix = ", CUDA graphs" if graphs else ""
            paths[f"one-frame encode{suffix}"] = lambda stream=stream: stream.encode(audio[..., :FRAME])
            paths[f"one-frame decode{suffix}"] = lambda stream=stream: stream.decode(codes[..., :1])
        lab.head("How often the host waits", ("", "times", "where"))
        for name, run in paths.items():
            with lab.record_failure(f"waits of {name}"), torch.set_grad_enabled("training" in name):
                run()  # what is made once is made
                with waits(lab) as lines:
                    run()
                lab.row(name, len(lines), ", ".join(f"{place} x{count}" for place, count in Counter(lines).items()))
