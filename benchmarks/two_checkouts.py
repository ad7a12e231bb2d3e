"""Whether a change made anything slower: python benchmarks/two_checkouts.py BEFORE NOW

Two checkouts of the repository, each in a process of its own, take turns call by call, so that what disturbs one
disturbs the other: 10 s encoded, 10 s decoded, and one-frame steps of a stream. One thread, CPU time; the ratio is the
median over the rounds, with its quartiles. Both load the same full-size model with random weights, which NOW writes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stopwatch import machine, print_table

WHAT = ("encode", "decode", "stream")  # which of a stream is so many steps of one frame
SECONDS, FRAMES = 10.0, 12


def main() -> None:
    """Measure and print, or be one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", type=Path, nargs=2, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer(*arguments.checkouts)
        return
    from peers import write_weights

    print(f"{machine()}\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), native=False)
        processes = [_start(checkout.resolve(), Path(folder) / "ours") for checkout in arguments.checkouts]
        for what in WHAT:
            pairs = [_ask_both(processes, what, number % 2 == 1) for number in range(arguments.rounds)]
            ratios = [now / before for before, now in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            medians = [f"{statistics.median(seconds):.3f}" for seconds in zip(*pairs, strict=True)]
            rows.append([what, *medians, f"{middle:.3f} ({low:.3f}-{high:.3f})"])
        for process in processes:
            process.kill()
    print_table(["", "before, CPU s", "now, CPU s", "now / before"], rows)


def answer(checkout: Path, model_folder: Path) -> None:
    """Say how long each thing takes that is asked for by a line of the input."""
    import torch

    import mimi_bridge

    if checkout not in Path(mimi_bridge.__file__).parents:
        sys.exit(f"two_checkouts: {mimi_bridge.__file__} is not of {checkout}.")
    torch.set_num_threads(1)
    model = mimi_bridge.MimiBridgeModel.from_pretrained(model_folder).eval()
    random = torch.Generator().manual_seed(0)
    whole = 0.1 * torch.randn(1, 1, round(SECONDS * model.config.sampling_rate), generator=random)
    frame = whole[..., : model.config.frame_size]
    with torch.inference_mode():
        codes = model.encode(whole).audio_codes

        with model.stream() as live:
            calls = {
                "encode": lambda: model.encode(whole),
                "decode": lambda: model.decode(codes),
                "stream": lambda: [live.decode(live.encode(frame)) for _ in range(FRAMES)],
            }
            for call in calls.values():
                call()
            print("ready", flush=True)
            for line in sys.stdin:
                begun = time.process_time()
                calls[line.strip()]()
                print(time.process_time() - begun, flush=True)


def _start(checkout: Path, model_folder: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--answer", str(checkout), str(model_folder)]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        sys.exit(f"two_checkouts: {checkout} cannot run; its message is above.")
    return process


def _ask_both(processes: list[subprocess.Popen], what: str, now_first: bool) -> tuple[float, float]:
    seconds = [0.0, 0.0]
    for place in (1, 0) if now_first else (0, 1):
        process = processes[place]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        seconds[place] = float(process.stdout.readline())
    return seconds[0], seconds[1]


if __name__ == "__main__":
    main()
