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
import statistics
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import MimiConfig
from transformers.utils import logging as transformers_logging

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel, small_codec
from peers import FRAME, PEERS, RATE, Peer, in_common, write_weights
from source import read_source
from transplant import transplant

SMALL = {  # for --quick
    "hidden_size": 64,
    "num_filters": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "codebook_size": 64,
    "codebook_dim": 32,
    "vector_quantization_hidden_dimension": 32,
    "upsample_groups": 64,
}
FRAME_MS = 80.0
MIN_EQUAL = 0.99  # share of codes that must be the CPU's, in float32: rounding moves ties only
MAX_LOSS_DIFFERENCE = 1e-3
ENOUGH_S = 0.3  # of a measurement, after its warm-up


class Lab:
    """The device, the sizes, the time that is left, and where results go."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.device = torch.device(arguments.device)
        self.is_cuda, self.quick, self.folder = self.device.type == "cuda", arguments.quick, folder
        self.deadline = START + 60 * arguments.minutes
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


def voice(seconds: float, seed: int = 0) -> Tensor:
    """A made-up voice, `(1, 1, samples)`: gliding harmonics under moving formants, pauses, hisses."""
    generator = torch.Generator().manual_seed(seed)
    num_samples = round(seconds * RATE)
    t = torch.arange(num_samples, dtype=torch.float64) / RATE
    points = max(4, round(5 * seconds))

    def curve(low: float, high: float) -> Tensor:
        values = torch.empty(1, 1, points, dtype=torch.float64).uniform_(low, high, generator=generator)
        return torch.nn.functional.interpolate(values, num_samples, mode="linear", align_corners=True)[0, 0]

    pitch, formants = curve(90, 240), [(curve(300, 800), 120), (curve(900, 2300), 200), (curve(2400, 3400), 300)]
    phase, sound = 2 * torch.pi * (pitch / RATE).cumsum(0), torch.zeros_like(t)
    for number in range(1, 31):
        envelope = sum(torch.exp(-(((number * pitch - centre) / (2 * width)) ** 2)) for centre, width in formants)
        sound += (envelope + 0.02) * torch.sin(number * phase) / number**0.5
    noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    sound = sound * curve(-0.3, 1.0).clamp(min=0) + noise * (0.3 * curve(-1.0, 1.0).clamp(min=0) + 0.003)
    return (0.5 * sound / sound.abs().max()).float()[None, None]


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


def equal_share(found: Tensor, expected: Tensor) -> float:
    """Of two tables of codes."""
    return (found.cpu() == expected.cpu()).double().mean().item()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the peak."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def describe(lab: Lab) -> None:
    """Versions and card."""
    lab.say(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    if lab.is_cuda:
        card = torch.cuda.get_device_properties(lab.device)
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip()
        lab.say(f"{card.name}, {card.total_memory / 2**30:.0f} GiB; CUDA {torch.version.cuda}, driver {driver}")
    lab.say(f"{torch.get_num_threads()} CPU threads; {time.monotonic() - START:.1f} s since the start")


# Checks


def check_precisions(lab: Lab, model: MimiBridgeModel) -> None:
    """Codes and audio in several precisions, of the CPU's float32."""
    audio = voice(2 if lab.quick else 20)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        expected = model.decode(codes).audio_values
    lab.head(
        f"{audio.shape[-1] / RATE:g} s against the CPU's float32; audio of the CPU's codes",
        ("", "equal codes", "of the worst codebook", "audio differs by, of the peak"),
    )
    kinds = [("float32", torch.float32, False), ("float32, TF32", torch.float32, True)]
    kinds += [("bfloat16", torch.bfloat16, False), ("float16", torch.float16, False)]
    for name, dtype, rounds in kinds:
        with lab.record_failure(f"precision {name}"), tf32(rounds), torch.no_grad():
            there = deepcopy(model).to(lab.device, dtype)
            found = there.encode(audio.to(lab.device, dtype)).audio_codes
            share = equal_share(found, codes)
            worst = min(equal_share(*pair) for pair in zip(found[0], codes[0], strict=True))
            differs = difference(there.decode(codes.to(lab.device)).audio_values, expected)
            lab.row(name, f"{share:.4f}", f"{worst:.4f}", f"{differs:.1e}")
            lab.expect(f"equal codes, {name}", share, share >= MIN_EQUAL or name != "float32")


def check_streams(lab: Lab, model: MimiBridgeModel) -> None:
    """Streams, with and without graphs, a frame a step and in odd chunks, against the whole recording's."""
    there = deepcopy(model).to(lab.device)
    audio = torch.cat([voice(1 if lab.quick else 12, seed) for seed in range(3)]).to(lab.device)
    with torch.no_grad():
        codes = there.encode(audio).audio_codes
        expected = there.decode(codes).audio_values
    lab.head("Three streams against the whole recordings", ("", "equal codes", "audio differs by, of the peak"))
    for graphs in (False, True):
        if graphs and not lab.is_cuda:
            lab.leave_out("streams with CUDA graphs", "no CUDA")
            continue
        for size in (FRAME, 5000):
            name = f"{size} samples a call{', CUDA graphs' if graphs else ''}"
            with lab.record_failure(f"stream, {name}"):
                frames = 1 if size == FRAME else 2
                with there.stream(3, cuda_graphs=graphs) as stream:
                    found = [stream.encode(chunk) for chunk in audio.split(size, dim=-1)]
                    found = torch.cat([*found, stream.flush()], dim=-1)
                    sound = torch.cat([stream.decode(piece) for piece in codes.split(frames, dim=-1)], dim=-1)
                share = equal_share(found[..., : codes.shape[-1]], codes)
                lab.row(name, f"{share:.4f}", f"{difference(sound, expected):.1e}")
                lab.expect(f"equal codes, stream, {name}", share, share >= MIN_EQUAL)
        with lab.record_failure(f"stream with a row that pauses, graphs {graphs}"):
            share = _pausing(there, audio[..., : 40 * FRAME], codes, graphs)
            lab.row(f"a row pauses every other call{', CUDA graphs' if graphs else ''}", f"{share:.4f}", "")
            lab.expect(f"equal codes, pausing row, graphs {graphs}", share, share >= MIN_EQUAL)


def _pausing(model: MimiBridgeModel, audio: Tensor, codes: Tensor, graphs: bool) -> float:
    found: list[list[Tensor]] = [[], [], []]
    places = [0, 0, 0]
    with model.stream(3, cuda_graphs=graphs) as stream:
        for number in range(audio.shape[-1] // FRAME):
            speaks = torch.tensor([True, number % 2 == 0, True])
            chunk = torch.stack([audio[r, :, places[r] * FRAME : (places[r] + 1) * FRAME] for r in range(3)])
            got = stream.encode(chunk, exec_mask=speaks.to(model.device))
            stream.decode(got, exec_mask=speaks)
            for row in speaks.nonzero()[:, 0].tolist():
                found[row].append(got[row])
                places[row] += 1
    rows = [torch.cat(row, dim=-1) for row in found]
    return min(equal_share(row, whole[:, : row.shape[-1]]) for row, whole in zip(rows, codes, strict=True))


def check_batches_and_files(lab: Lab, model: MimiBridgeModel) -> None:
    """A padded batch against its rows alone, and a model that was saved on the device."""
    there = deepcopy(model).to(lab.device)
    lengths = [4000, 30_000, 48_000] if lab.quick else [50_000, 130_000, 239_000, 240_000]
    rows = [voice(10, seed)[0, 0, :length] for seed, length in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, None].to(lab.device)
    mask = torch.arange(padded.shape[-1]) < torch.tensor(lengths)[:, None]
    lab.head("Batches and files", ("", "equal codes", "audio differs by, of the peak"))
    with lab.record_failure("padded batch"), torch.no_grad():
        together = there.encode(padded, mask.to(lab.device))
        shares, differences = [], []
        audio = there.decode(together.audio_codes, mask.to(lab.device)).audio_values
        for row, length in enumerate(lengths):
            alone = there.encode(padded[row : row + 1, :, :length]).audio_codes
            count = alone.shape[-1]
            shares.append(equal_share(together.audio_codes[row : row + 1, :, :count], alone))
            sound = there.decode(together.audio_codes[row : row + 1, :, :count]).audio_values
            differences.append(difference(audio[row : row + 1, :, :length], sound[..., :length]))
        lab.row("padded batch, of each alone", f"{min(shares):.4f}", f"{max(differences):.1e}")
        lab.expect("equal codes, padded batch", min(shares), min(shares) >= MIN_EQUAL)
    with lab.record_failure("saved on the device"), torch.no_grad():
        there.save_pretrained(lab.folder / "saved")
        again = MimiBridgeModel.from_pretrained(lab.folder / "saved").eval().to(lab.device)
        share = equal_share(again.encode(padded).audio_codes, there.encode(padded).audio_codes)
        lab.row("saved and loaded", f"{share:.4f}", "")
        lab.expect("equal codes, saved and loaded", share, share == 1)


def training_batch(model: MimiBridgeModel, device: torch.device) -> dict[str, Tensor]:
    """Two recordings of 2 and 1.4 s with made-up teachers."""
    generator, config = torch.Generator().manual_seed(0), model.config
    starts = torch.arange(6) / 5
    batch = {
        "input_values": torch.cat([voice(2, seed) for seed in (3, 4)]),
        "padding_mask": torch.arange(2 * RATE) < torch.tensor([[2 * RATE], [1.4 * RATE]]),
        "qwen_hidden": torch.randn(2, 6, config.qwen_dim, generator=generator),
        "token_spans": torch.stack([starts, starts + 0.15], dim=-1).expand(2, -1, -1).clone(),
        "token_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        "wavlm_features": torch.randn(2, 25, config.wavlm_dim, generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def check_training_step(lab: Lab, model: MimiBridgeModel) -> None:
    """Loss, gradients and moved codebooks of one forward and backward."""
    lab.head("A training step against the CPU's", ("", "value"))
    results = []
    for device in (torch.device("cpu"), lab.device):
        learner = deepcopy(model).to(device).train()
        batch = training_batch(learner, device)
        output = learner(**batch)
        (output.loss + (output.audio_values - batch["input_values"]).abs().mean()).backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in learner.parameters() if p.grad is not None])
        results.append((output, gradients, {name: value.cpu() for name, value in learner.named_buffers()}))
    (expected, gradients, buffers), (found, found_gradients, found_buffers) = results
    for name, loss in expected.losses.items():
        lab.row(f"{name}, of the CPU's {loss.item():.5g}", f"{found.losses[name].item() - loss.item():+.1e}")
    relative = (found_gradients - gradients).norm() / gradients.norm()
    lab.row("gradient's difference, of its length", f"{relative.item():.1e}")
    lab.row("equal codes", f"{equal_share(found.audio_codes, expected.audio_codes):.4f}")
    moved = max((found_buffers[name].double() - value.double()).abs().max().item() for name, value in buffers.items())
    lab.row("codebooks and other buffers differ by", f"{moved:.1e}")
    off = abs(found.loss.item() / expected.loss.item() - 1)
    moved_codes = equal_share(found.audio_codes, expected.audio_codes) < 1  # a tie may change a loss by more
    lab.expect("training loss, relative difference", off, moved_codes or off <= MAX_LOSS_DIFFERENCE)


def check_trainer(lab: Lab, model: MimiBridgeModel) -> None:
    """`MimiBridgeTrainer.train`, and the second half of it again from its checkpoint."""
    from training import KINDS, trainer_of

    folder = str(lab.folder / "run")
    changes = {"use_cpu": not lab.is_cuda, "max_steps": 4, "save_steps": 2, "disable_tqdm": True, "init_frames": 200}
    states = []
    for resume in (None, f"{folder}/checkpoint-2"):
        trainer = trainer_of(KINDS[2], folder, model.config, **changes)
        trainer.train(resume_from_checkpoint=resume)
        states.append({name: value.detach().cpu() for name, value in trainer.model.state_dict().items()})
    whole, resumed = states
    off = max((resumed[name].double() - value.double()).abs().max().item() for name, value in whole.items())
    lab.say(f"\nMimiBridgeTrainer.train() on {trainer.args.device}: 4 steps; resumed after 2, off by {off:.1e}")


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


# Tables


def load_peers(lab: Lab) -> dict[str, Peer]:
    """Ours, transformers' and, where it is installed, moshi's, with the same random weights."""
    names = ["ours", "transformers"]
    if lab.quick or importlib.util.find_spec("moshi") is None:
        lab.leave_out("moshi", "not full size" if lab.quick else "not installed")
    else:
        names.append("moshi")
    folder = lab.folder / "peers"
    folder.mkdir()
    write_weights(
        folder, voice(10 if lab.quick else 48, 9)[0], MimiConfig(**SMALL if lab.quick else {}), "moshi" in names
    )
    peers = {}
    for name in names:
        with lab.record_failure(f"loading {name}"):
            peers[name] = PEERS[name](folder)
            peers[name].model.to(lab.device)
    return peers


@torch.no_grad()
def table_of_recordings(lab: Lab, peers: dict[str, Peer]) -> None:
    """Encode and decode real-time factors by batch."""
    seconds = 0.8 if lab.quick else 10.0  # whole frames: transformers ends others in its own way
    lab.head(
        f"Recordings of {seconds:g} s, seconds of audio a second",
        ("batch", "precision", "", "encode", "decode", "peak memory, MiB", "equal codes, of the first's"),
    )
    kinds = [("float32", torch.float32, False), ("float32, TF32", torch.float32, True)]
    kinds.append(("bfloat16", torch.bfloat16, False))
    for kind, dtype, rounds in kinds:
        firsts: dict[int, Tensor] = {}
        for name, peer in peers.items():
            if _cannot(lab, name, dtype):
                continue
            peer.model.to(dtype)
            for batch in (1, 2) if lab.quick else (32,) if rounds else (1, 8, 32):
                what = f"{name}, {kind}, batch {batch}"
                if not lab.has(3, what):
                    continue
                audio = voice(seconds).expand(batch, -1, -1).contiguous().to(lab.device, dtype)
                with lab.record_failure(what), tf32(rounds):
                    memory: list[str] = []
                    with lab.peak(memory):
                        codes = peer.encode(audio)
                        encoding = lab.median_s(lambda p=peer, a=audio: p.encode(a), 1)
                        decoding = lab.median_s(lambda p=peer, c=codes: p.decode(c))
                    factors = (f"{batch * seconds / each:.0f}" for each in (encoding, decoding))
                    share = equal_share(in_common(peer, codes), firsts.setdefault(batch, in_common(peer, codes)))
                    lab.row(batch, kind, name, *factors, *memory, f"{share:.4f}")
    for peer in peers.values():
        peer.model.float()


def _cannot(lab: Lab, name: str, dtype: torch.dtype) -> bool:
    cannot = name == "transformers" and dtype != torch.float32
    if cannot:
        lab.leave_out(f"transformers in {dtype}", "its codebooks stay float32, so it does not decode")
    return cannot


@torch.no_grad()
def table_of_streams(lab: Lab, peers: dict[str, Peer], kind: str, dtype: torch.dtype) -> None:
    """One-frame steps of streams side by side."""
    lab.head(
        f"Steps of one frame, {kind} (transformers' decoded streams are wrong at the borders)",
        ("streams", "", "encode, ms", "decode, ms", "streams in real time"),
    )
    for batch in (1, 2) if lab.quick else (1, 16, 64, 256):
        for name in ("ours", "ours, CUDA graphs", "transformers", "moshi"):
            peer = peers.get(name.partition(",")[0])
            graphs, what = name.endswith("graphs"), f"{name}, {batch} streams, {kind}"
            if peer is None or _cannot(lab, name, dtype) or (graphs and not lab.is_cuda) or not lab.has(4, what):
                continue
            with lab.record_failure(what), ExitStack() as stack:
                model = peer.model.to(dtype)
                if graphs:
                    stream = stack.enter_context(model.stream(batch_size=batch, cuda_graphs=True))
                    encode, decode = stream.encode, stream.decode
                else:
                    encode, decode = stack.enter_context(peer.stream(batch))
                chunk = voice(1)[..., :FRAME].expand(batch, -1, -1).contiguous().to(lab.device, dtype)
                codes = encode(chunk)
                encoding = 1e3 * lab.median_s(lambda e=encode, c=chunk: e(c), 3, 30)
                decoding = 1e3 * lab.median_s(lambda d=decode, c=codes: d(c), 3, 30)
                together = f"{batch * FRAME_MS / (encoding + decoding):.0f}"
                lab.row(batch, name, f"{encoding:.2f}", f"{decoding:.2f}", together)
    for peer in peers.values():
        peer.model.float()


def table_of_training(lab: Lab) -> None:
    """Optimizer steps a second, with the trainer's own loss."""
    from training import KINDS, SECONDS, step, trainer_of

    batch, teachers = 2 if lab.quick else 16, {"qwen_dim": 1536, "wavlm_dim": 1024}
    config = MimiBridgeConfig(**SMALL, **teachers) if lab.quick else MimiBridgeConfig(**teachers)
    lab.head(
        f"Training steps on {batch} recordings of {SECONDS:g} s",
        ("step", "precision", "steps a second", "peak memory, MiB"),
    )
    whole = {"head_learning_rates": {"codec": 1e-6}}
    kinds = [(KINDS[0], KINDS[0], {}), (KINDS[1], KINDS[1], {}), (KINDS[2], KINDS[2], {})]
    kinds += [("audio, codec learns, too", KINDS[2], whole)]
    kinds += [(f"{name}", kind, changes | {"bf16": True}) for name, kind, changes in kinds if kind != KINDS[1]]
    for name, kind, changes in kinds:
        precision = "bfloat16 autocast" if "bf16" in changes else "float32"
        if not lab.has(6, f"training, {name}, {precision}"):
            continue
        with lab.record_failure(f"training, {name}, {precision}"):
            memory: list[str] = []
            with lab.peak(memory):
                trainer = trainer_of(kind, str(lab.folder), config, batch, use_cpu=not lab.is_cuda, **changes)
                seconds = lab.median_s(lambda trainer=trainer: step(trainer), 2, 5)
            lab.row(name, precision, f"{1 / seconds:.2f}", *memory)
            del trainer


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
        lab = Lab(arguments, Path(folder))
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
    lab.say(f"\n({time.monotonic() - START:.0f} s since the start)")
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
    lab.say(f"{time.monotonic() - START:.0f} s in all.")
    sys.stdout.flush()
    os._exit(1 if lab.failed else 0)


if __name__ == "__main__":
    main()
