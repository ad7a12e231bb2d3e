"""What encoding and decoding cost, beside the peers: python benchmarks/codec.py

Full-size Mimis with the same random weights: ours (nine codebooks), transformers' `MimiModel`, Kyutai's `moshi` and
`rustymimi` (eight each). They alternate in one process, streams frame by frame; medians of CPU time with one thread,
of time by the clock with more (`--threads`) or beside busy programs (`--busy`). RTF is seconds of audio a second. What
an hour takes of memory, and what importing and loading cost, is measured in processes of their own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from peers import FRAME, PEERS, RATE, Peer, in_common, speech, write_weights
from stopwatch import alternate, machine, memory_mib, mib, peak_of, print_table

LENGTHS = ((10.0, 5), (60.0, 3), (300.0, 1))  # seconds and rounds
FRAMES_A_CALL = (1, 4, 16, 64)
BATCHES = (1, 4, 16, 32)
STREAMED_FRAMES = 320  # of a stream: past the window of 250
MEMORY_MINUTES = {"ours": 60.0, "transformers": 2.0, "moshi": 2.0, "rustymimi": 2.0}  # the others' grows with length
PARTS = ("whole", "streams", "memory", "starts")
STARTS = {
    "import": {"ours": "import mimi_bridge", "transformers": "from transformers import MimiModel"},
    "import and load": {
        "ours": "import mimi_bridge; from transformers import AutoModel; AutoModel.from_pretrained('{folder}/ours')",
        "transformers": "from transformers import MimiModel; MimiModel.from_pretrained('{folder}/transformers')",
    },
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few seconds of audio, one round")
    size.add_argument(
        "--brief", action="store_true", help="a sixth of the work: fewer lengths, calls, streams, minutes"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="(default: all)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of it (default: all)")
    parser.add_argument("--seconds", type=float, help="whole recordings of this length only")
    parser.add_argument("--threads", type=int, default=1, help="of each peer; 0: as many as torch takes (default: 1)")
    parser.add_argument("--busy", type=int, default=0, help="programs that want a core each meanwhile (default: 0)")
    parser.add_argument("--weights", type=Path, help="folder to keep the weights in (default: a temporary one)")
    parser.add_argument("--memory", nargs=2, metavar=("PEER", "MINUTES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    arguments.clock = "cpu" if torch.get_num_threads() == 1 and not arguments.busy else "wall"
    if arguments.memory:
        name, minutes = arguments.memory
        print(json.dumps(_memory(arguments.weights, name, float(minutes))))
        return
    with ExitStack() as stack:
        folder = arguments.weights or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "ours").exists():
            write_weights(folder)
        stack.enter_context(busy_programs(arguments.busy))
        print(f"{machine()}{f', {arguments.busy} busy programs beside' if arguments.busy else ''}\n")
        if {"whole", "streams"} & set(arguments.only):
            compare_speed([PEERS[name](folder) for name in arguments.peers], arguments)
        if "memory" in arguments.only:
            compare_memory(folder, arguments.peers, 1 / 30 if arguments.quick else 1 / 4 if arguments.brief else 1.0)
        if "starts" in arguments.only:
            compare_starts(folder, 1 if arguments.quick else 3 if arguments.brief else 5)


@contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many other programs that would each keep a core busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()


@torch.inference_mode()
def compare_speed(peers: list[Peer], arguments: argparse.Namespace) -> None:
    """Whole recordings and streams, as far as they are asked for."""
    if "whole" in arguments.only:
        lengths = ((2.0, 1),) if arguments.quick else ((10.0, 3), (60.0, 1)) if arguments.brief else LENGTHS
        compare_whole(peers, ((arguments.seconds, 5),) if arguments.seconds else lengths, arguments.clock)
    if "streams" in arguments.only:
        num_frames = 8 if arguments.quick else 96 if arguments.brief else STREAMED_FRAMES
        frames_a_call = FRAMES_A_CALL[:2] if num_frames < STREAMED_FRAMES else FRAMES_A_CALL
        batches = BATCHES[1:3] if arguments.brief else BATCHES[:2] if arguments.quick else BATCHES
        compare_frames_a_call(peers, frames_a_call, num_frames, arguments.clock)
        compare_batches(peers, batches, num_frames // 4, arguments.clock)


def compare_whole(peers: list[Peer], lengths: tuple[tuple[float, int], ...], clock: str) -> None:
    """Whole recordings, and how equal the answers are."""
    rows = []
    for seconds, rounds in lengths:
        audio = speech(seconds)
        codes = {peer.name: peer.encode(audio) for peer in peers}
        audios = {peer.name: peer.decode(codes[peer.name]) for peer in peers}
        first = peers[0]
        encoding = alternate({peer.name: lambda peer=peer, audio=audio: peer.encode(audio) for peer in peers}, rounds)
        decoding = alternate(
            {peer.name: lambda peer=peer, given=codes[peer.name]: peer.decode(given) for peer in peers}, rounds
        )
        for peer in peers:
            equal = in_common(peer, codes[peer.name]) == in_common(first, codes[first.name])
            difference = (audios[peer.name][..., : audio.shape[-1]] - audios[first.name][..., : audio.shape[-1]]).abs()
            row: list[object] = [f"{seconds:g} s", peer.name]
            for timings in (encoding, decoding):
                spent, firsts = (getattr(timings[each.name], clock) for each in (peer, first))
                row += [
                    f"{spent:.3f}",
                    f"{seconds / spent:.1f}",
                    _ratio(spent, firsts, peer is first),
                    mib(timings[peer.name].peak_mib),
                ]
            rows.append([*row, f"{equal.double().mean():.4f}", f"{difference.max():.0e}"])
    print("Whole recordings:\n")
    columns = ["", ""]
    for direction in ("encode", "decode"):
        columns += [
            f"{direction}, {'CPU ' if clock == 'cpu' else ''}s",
            "RTF",
            f"{peers[0].name} is faster",
            "memory, MiB",
        ]
    print_table([*columns, "equal codes", "audio differs by"], rows)


def compare_frames_a_call(peers: list[Peer], frames_a_call: tuple[int, ...], num_frames: int, clock: str) -> None:
    """One stream, more and more frames a call."""
    rows = []
    for count in frames_a_call:
        rows += _stream(peers, 1, count, max(2, num_frames // count), str(count), clock)
    print("\nOne stream, by frames a call (ms a frame):\n")
    print_table(_stream_columns(peers, "frames a call"), rows)


def compare_batches(peers: list[Peer], batches: tuple[int, ...], num_frames: int, clock: str) -> None:
    """Streams side by side, a frame each a call."""
    rows = []
    for batch in batches:
        able = [peer for peer in peers if peer.streams_batches or batch == 1]
        rows += _stream(able, batch, 1, num_frames, str(batch), clock)
    print("\nStreams side by side, a frame each a call (ms a stream and frame; 80 is real time for one):\n")
    print_table(_stream_columns(peers, "streams"), rows)


def _stream_columns(peers: list[Peer], first: str) -> list[str]:
    return [first, "", "encode, ms", f"{peers[0].name} is faster", "decode, ms", f"{peers[0].name} is faster"]


def _stream(peers: list[Peer], batch: int, count: int, num_calls: int, label: str, clock: str) -> list[list[object]]:
    # All peers take the same chunk in turn, so that what disturbs one disturbs all.
    now = time.process_time if clock == "cpu" else time.perf_counter
    audio = speech(num_calls * count * FRAME / RATE).expand(batch, -1, -1).contiguous()
    encoding: dict[str, list[float]] = {peer.name: [] for peer in peers}
    decoding: dict[str, list[float]] = {peer.name: [] for peer in peers}
    with ExitStack() as stack:
        steps = {peer.name: stack.enter_context(peer.stream(batch)) for peer in peers}
        for chunk in audio.split(count * FRAME, dim=-1):
            for name, (encode, decode) in steps.items():
                start = now()
                codes = encode(chunk)
                middle = now()
                decode(codes)
                encoding[name].append(middle - start)
                decoding[name].append(now() - middle)
    rows, first = [], peers[0].name
    for peer in peers:
        row: list[object] = [label, peer.name]
        for seconds in (encoding, decoding):
            medians = {name: statistics.median(each[num_calls // 4 :]) for name, each in seconds.items()}
            each = 1e3 * medians[peer.name] / (count * batch)
            wrong = " (wrong audio)" if seconds is decoding and not peer.decodes_streams else ""
            row += [f"{each:.2f}{wrong}", _ratio(medians[peer.name], medians[first], peer.name == first)]
        rows.append(row)
    return rows


def compare_memory(folder: Path, names: list[str], share: float) -> None:
    """What a long recording takes beside the model, each in a process of its own."""
    rows: list[list[object]] = []
    for name in names:
        minutes = MEMORY_MINUTES[name] * share
        command = [sys.executable, __file__, "--memory", name, str(minutes), "--weights", str(folder)]
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        if answer.returncode:
            last = (answer.stderr.strip().splitlines() or ["killed, for want of memory?"])[-1]
            rows.append([name, f"{minutes:.3g}", f"failed: {last[:60]}", "", ""])
        else:
            rows.append([name, f"{minutes:.3g}", *map(mib, json.loads(answer.stdout.splitlines()[-1]))])
    print("\nMemory of one long recording, above that of the loaded model and of what it is given:\n")
    print_table(["", "minutes", "made at the first call, both ways, MiB", "encode, MiB", "decode, MiB"], rows)


def _memory(folder: Path, name: str, minutes: float) -> list[float | None]:
    peer = PEERS[name](folder)  # outside of inference mode, or ours takes the reference path
    with torch.inference_mode():
        return _memory_of(peer, minutes)


def _memory_of(peer: Peer, minutes: float) -> list[float | None]:
    start = memory_mib("VmRSS")
    codes = peer.encode(speech(4.0))
    peer.decode(codes)  # what is made once is there
    made_once = memory_mib("VmRSS") - start
    audio = speech(60 * minutes)
    encoding = peak_of(lambda: peer.encode(audio))
    codes = codes.repeat(1, 1, -(-audio.shape[-1] // FRAME // codes.shape[-1]))
    return [made_once, encoding, peak_of(lambda: peer.decode(codes))]


def compare_starts(folder: Path, rounds: int) -> None:
    """Importing, and loading a model, against transformers' own Mimi."""
    rows = []
    for what, programs in STARTS.items():
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, program in programs.items():
                whole = f"import time; start = time.process_time(); {program.format(folder=folder)}\n"
                command = [sys.executable, "-c", whole + "print(time.process_time() - start)"]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seconds[name].append(float(output.splitlines()[-1]))
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        ratio = medians["ours"] / medians["transformers"]
        rows.append([what, *(f"{median:.2f}" for median in medians.values()), f"{ratio:.2f} x"])
    print("\nStarting, in a new process (CPU s):\n")
    print_table(["", "ours", "transformers", "ours takes"], rows)
    print(f"\nThis process: {memory_mib('VmHWM'):.0f} MiB at its peak.")


def _ratio(seconds: float, firsts: float, is_first: bool) -> str:
    return "" if is_first else f"{seconds / firsts:.2f} x"


if __name__ == "__main__":
    main()
