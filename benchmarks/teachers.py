"""What teachers in the training loop and data that streams cost: python benchmarks/teachers.py

The share of a training step that teachers of full size take, with random weights, on this machine's CPU, and the
arithmetic of each part of the step, from which hours of speech a day on one H100 follow; bytes on disk an hour of
speech with features stored and without; and the memory of preparing data and of training on a stream, by the number of
rows, which must not matter.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from datasets import disable_progress_bars, load_from_disk
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2Model, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.utils import logging as transformers_logging

from many_rows import MAKERS, TEXT
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.espeak import SENTENCES, synthesize
from mimi_bridge.data.prepare import run as preparation
from mimi_bridge.data.settings import Settings
from mimi_bridge.data.streaming import open_stream
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments, TrainingTeachers
from prepare import QWEN, WAVLM
from stopwatch import memory_mib

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from tiny import TINY
from tiny_teachers import write_tiny_qwen

PARTS = ("disk", "memory", "step")
STEPS_OF_STREAM = 100
TOKENS = 4000  # so that a common word is one token, as it is one of Qwen's
SPEECH = Path(os.environ.get("MIMI_BRIDGE_SPEECH", "../shared/data")) / "manifest.jsonl"
SECONDS, BATCH, STEPS = 4.0, 2, 1  # of a recording; recordings; steps after the first
H100 = {"bfloat16": 989e12, "tf32": 495e12}  # FLOP/s, dense, as its data sheet says
USED = {"bfloat16": 0.4, "tf32": 0.2}  # of that, assumed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1_000_000])
    parser.add_argument("--of", nargs="+", choices=MAKERS, default=["stream", "jsonl", "dataset"], help="whose memory")
    parser.add_argument(
        "--speech", type=Path, default=SPEECH, help="manifest of real recordings, for their bytes on disk"
    )
    parser.add_argument(
        "--only", nargs=3, metavar=("WHAT", "WHERE", "TEACHER"), help="one measurement of memory, as json"
    )
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(_peak_memory(*options.only)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            {"disk": print_disk, "memory": print_memory, "step": print_step}[part](Path(folder), options)


def print_disk(folder: Path, options: argparse.Namespace) -> None:
    """MB an hour of speech that `mimi-bridge prepare --teachers none` writes beside the audio."""
    if not options.speech.is_file():
        print(f"bytes on disk: skipped, since there is no {options.speech}; --speech names a manifest.\n")
        return
    texts = [json.loads(line)["text"] for line in options.speech.read_text().splitlines()]
    settings = Settings(
        str(options.speech),
        text_teacher=write_tiny_qwen(folder / "tiny", TOKENS, texts),
        teachers="none",
        aligner="pocketsphinx",
    )
    report = preparation.prepare(settings, folder / "data")
    assert report is not None
    size = sum(path.stat().st_size for path in (folder / "data").glob("*.arrow")) / 1e6
    kept = load_from_disk(folder / "data")
    a_second = sum(map(len, kept["token_ids"])) / report.hours / 3600
    print(
        f"--teachers none: {size / report.hours:.2f} MB an hour of speech beside the audio ({report.hours:.3f} h, "
        f"{a_second:.1f} tokens a second)\n"
    )


def print_memory(folder: Path, options: argparse.Namespace) -> None:
    """Peak memory, MiB, of `prepare --teachers none` and of a streaming training run, by the rows that there are."""
    spoken, text_teacher = folder / "spoken.wav", write_tiny_qwen(folder / "qwen")
    soundfile.write(spoken, synthesize(TEXT)[0].numpy(), 24_000)
    print(f"| rows | {' | '.join(options.of)} |\n|---{'|---' * len(options.of)}|")
    for count in options.rows:
        found = []
        for what in options.of:
            place = folder / f"{what}-{count}"
            place.mkdir()
            where = str(MAKERS[what](place, count, spoken))
            command = [sys.executable, __file__, "--only", what, where, text_teacher]
            began = time.perf_counter()
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(f"{what}, {count} rows: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            found.append(f"{json.loads(said.splitlines()[-1]):.0f}")
            shutil.rmtree(place)
        print(f"| {count} | {' | '.join(found)} |", flush=True)
    print()


def _peak_memory(what: str, where: str, text_teacher: str) -> float:
    # MiB of this process.
    if what == "stream":
        _train_on_a_stream(where)
    else:
        _prepare_first_and_last(where, text_teacher)
    return memory_mib("VmHWM")


def _steps_alone(folder: str, **settings: Any) -> MimiBridgeTrainingArguments:
    # Of a run that does nothing but its steps, on the CPU.
    return MimiBridgeTrainingArguments(
        folder,
        gradient_accumulation_steps=1,
        use_cpu=True,
        report_to=[],
        content_init="none",
        save_strategy="no",
        revive_every=0,
        collapse_below=0.0,
        disable_tqdm=True,
        **settings,
    )


def _train_on_a_stream(where: str) -> None:
    weights = dict.fromkeys(("mel_weight", "qwen_weight", "wavlm_weight"), 0.0)
    args = _steps_alone(f"{where}-run", max_steps=STEPS_OF_STREAM, per_device_train_batch_size=8, **weights)
    MimiBridgeTrainer(MimiBridgeModel(MimiBridgeConfig(**TINY)), args, train_dataset=open_stream(where)).train()


def _prepare_first_and_last(where: str, text_teacher: str) -> None:
    # All is as it is with every shard computed, but for the time: those between are the first one again.
    write_shard = preparation._Work.write_shard

    def write_or_repeat(work, shard, *given):
        dataset = work.dataset
        if shard in (0, dataset.num_shards - 1):
            return write_shard(work, shard, *given)
        os.link(dataset._data / dataset._name(0), dataset._data / dataset._name(shard))
        shutil.copy(dataset._note(0), dataset._note(shard))
        return len(work.recordings_of(shard))

    preparation._Work.write_shard = write_or_repeat
    settings = Settings(where, text_teacher=text_teacher, teachers="none", min_score=-1e9, allow_outside=True)
    report = preparation.prepare(settings, Path(f"{where}-data"))
    assert report is not None and not report.dropped and not report.remarks


def print_step(folder: Path, options: argparse.Namespace) -> None:
    """The teachers' share of a step, and the arithmetic of each part."""
    text, speech = write_tiny_qwen(folder / "qwen"), str(folder / "wavlm")
    torch.manual_seed(0)
    Qwen2Model(Qwen2Config(vocab_size=320, **QWEN)).bfloat16().save_pretrained(text)
    WavLMModel(WavLMConfig(**WAVLM)).save_pretrained(speech)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(speech)
    teachers = TrainingTeachers(text, speech)
    assert teachers.text is not None
    said = SENTENCES[0]
    ids = teachers.text.tokenizer.states([said])[0].token_ids[:16]  # four a second, as Qwen's tokenizer has them
    edges = torch.linspace(0, SECONDS, len(ids) + 1)
    spans = torch.stack([edges[:-1], edges[1:]], dim=-1)
    samples = round(SECONDS * 24_000)
    rows = [
        {"id": number, "input_values": 0.1 * torch.randn(samples), "token_ids": ids, "token_spans": spans}
        for number in range(BATCH)
    ]
    model = MimiBridgeModel(MimiBridgeConfig(qwen_dim=1536, wavlm_dim=1024))
    run = str(folder / "run")
    args = _steps_alone(run, max_steps=STEPS + 1, per_device_train_batch_size=BATCH, init_frames=1)
    trainer = MimiBridgeTrainer(model, args, train_dataset=rows, teachers=teachers)
    timed: dict[str, list[float]] = {"teachers": [], "step": []}
    counted: dict[str, float] = {}
    plain_add, plain_samples = teachers.add, trainer.get_batch_samples
    began = [time.perf_counter()]

    def add(batch):
        before = time.perf_counter()
        with FlopCounterMode(display=False) as counter:
            found = plain_add(batch)
        counted["teachers"] = counter.get_total_flops()
        timed["teachers"].append(time.perf_counter() - before)
        return found

    def batch_samples(*given):
        timed["step"].append(time.perf_counter() - began[0])
        began[0] = time.perf_counter()
        return plain_samples(*given)

    plain_step = trainer.training_step

    def training_step(*given, **more):
        with FlopCounterMode(display=False) as counter:
            found = plain_step(*given, **more)
        counted["the rest"] = counter.get_total_flops()
        return found

    teachers.add, trainer.get_batch_samples, trainer.training_step = add, batch_samples, training_step
    trainer.train()
    timed["step"].append(time.perf_counter() - began[0])
    step, of_teachers = min(timed["step"][-STEPS:]), min(timed["teachers"][-STEPS:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    speech_seconds = BATCH * SECONDS
    print(
        f"{BATCH} recordings of {SECONDS:g} s a step, audio with decoder, one thread: {step:.1f} s, of which teachers "
        f"{of_teachers:.1f} s ({of_teachers / step:.0%}); peak memory {peak:.1f} GiB\n"
    )
    print("| part | GFLOP a second of speech | on an H100 at | of it, assumed | microseconds a second of speech |")
    print("|---|---|---|---|---|")
    total = 0.0
    for part, precision in (("teachers", "bfloat16"), ("the rest", "tf32")):
        flops = counted[part] / speech_seconds
        seconds = flops / (H100[precision] * USED[precision])
        total += seconds
        print(
            f"| {part} | {flops / 1e9:.0f} | {H100[precision] / 1e12:.0f} TFLOP/s {precision} | {USED[precision]:.0%} "
            f"| {seconds * 1e6:.0f} |"
        )
    print(f"\nHours of speech a day on one H100, by this arithmetic: {24 / total:,.0f}.")


if __name__ == "__main__":
    main()
