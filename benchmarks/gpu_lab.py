"""Where a GPU is checked and measured: the device, the sizes, the time that is left, and where results go."""

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

ENOUGH_S = 0.3  # of a measurement, after its warm-up


class Lab:
    """The device, the sizes, the time that is left, and where results go."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, start: float):
        self.device = torch.device(arguments.device)
        self.is_cuda, self.quick, self.folder = self.device.type == "cuda", arguments.quick, folder
        self.start, self.deadline = start, start + 60 * arguments.minutes
        self.output = arguments.output.open("w") if arguments.output else None
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.doing = "starting"

    def say(self, text: str = "") -> None:
        """Print at once, and write to the output file."""
        print(text, flush=True)
        if self.output:
            print(text, file=self.output, flush=True)

    def head(self, title: str, columns: Sequence[str]) -> None:
        """Begin a table."""
        self.say(f"\n{title}:\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def row(self, *values: object) -> None:
        """A row of the table."""
        self.say("| " + " | ".join(str(value) for value in values) + " |")

    def leave_out(self, name: str, reason: str) -> None:
        """Name what is not done."""
        if (entry := f"{name} ({reason})") not in self.left_out:
            self.left_out.append(entry)

    @contextmanager
    def record_failure(self, name: str) -> Iterator[None]:
        """Print and record what fails in here, so that the rest can run."""
        self.doing = name
        try:
            yield
        except Exception as error:
            self.failed.append(name)
            lines = "".join(traceback.format_exception(error)).strip().splitlines()
            last = [line[:200] for line in lines if line.strip(" ^~")][-14:]
            self.say(f"\nFAILED: {name}: {type(error).__name__}\n\n    " + "\n    ".join(last) + "\n")
        finally:
            if self.is_cuda:
                torch.cuda.empty_cache()

    def has(self, seconds: float, name: str) -> bool:
        """Whether so much time is left; if not, the item is named as left out."""
        left = self.deadline - time.monotonic()
        if left < (0 if self.quick else seconds):
            self.leave_out(name, f"{left:.0f} s left")
            return False
        return True

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def median_s(self, run: Callable[[], object], warm_up: int = 2, rounds: int = 7) -> float:
        """Seconds of a call, the median of several."""
        for _ in range(warm_up):
            run()
        seconds: list[float] = []
        while not seconds or (len(seconds) < rounds and sum(seconds) < (0.05 if self.quick else ENOUGH_S)):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    @contextmanager
    def peak(self, mib: list[str]) -> Iterator[None]:
        """Appends the device's peak memory meanwhile."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        yield
        mib.append(f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if self.is_cuda else "-")

    def expect(self, what: str, value: float, is_well: bool) -> None:
        """Note a check that did not hold."""
        if not is_well:
            self.failed.append(f"{what}: {value:.4g}")
            self.say(f"\nFAILED: {what}: {value:.4g}\n")


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may round to TF32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = on
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
