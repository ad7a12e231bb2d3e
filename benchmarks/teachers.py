"""What teachers in the training loop and data that streams cost: python benchmarks/teachers.py

The share of a training step that teachers of full size take, with random weights, on this machine's CPU, and the
arithmetic of each part of the step, from which hours of speech a day on one H100 follow; bytes on disk an hour of
speech with features stored and without; and the memory of a stream and of a list of recordings, few and many of them.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2Model, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.utils import logging as transformers_logging

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.espeak import SENTENCES, VOICES, synthesize
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.prepare.run import prepare
from mimi_bridge.data.prepare.sources import open_source
from mimi_bridge.data.settings import Settings
from mimi_bridge.data.streaming import open_stream
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments, TrainingTeachers
from prepare import QWEN, WAVLM

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from tiny_teachers import write_tiny_qwen

PARTS = ("disk", "memory", "step")
SECONDS, BATCH, STEPS = 4.0, 2, 1  # of a recording; recordings; steps after the first
ROWS_READ = 2_000  # of a stream, for its memory
H100 = {"bfloat16": 989e12, "tf32": 495e12}  # FLOP/s, dense, as its data sheet says
USED = {"bfloat16": 0.4, "tf32": 0.2}  # of that, assumed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1_000_000])
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "FOLDER"), help="one measurement of memory, as json")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(_memory(*options.only)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            {"disk": print_disk, "memory": print_memory, "step": print_step}[part](Path(folder), options)


def print_disk(folder: Path, options: argparse.Namespace) -> None:
    """MB an hour of speech that `mimi-bridge prepare --teachers none` writes beside the audio."""
    recordings = folder / "recordings"
    recordings.mkdir()
    for number, text in enumerate(SENTENCES):
        soundfile.write(
            recordings / f"{number}.flac", synthesize(text, VOICES[number % len(VOICES)])[0].numpy(), 24_000
        )
        (recordings / f"{number}.txt").write_text(text)
    settings = Settings(
        str(recordings),
        text_teacher=write_tiny_qwen(folder / "tiny"),
        teachers="none",
        min_score=-1e9,
        aligner="pocketsphinx",
    )
    report = prepare(settings, folder / "data")
    assert report is not None
    size = sum(path.stat().st_size for path in (folder / "data").glob("*.arrow")) / 1e6
    print(f"--teachers none: {size / report.hours:.2f} MB an hour of speech beside the audio ({report.hours:.3f} h)\n")


def print_memory(folder: Path, options: argparse.Namespace) -> None:
    """Peak memory of a process that reads a stream, and of one that lists a data set for `prepare`, by its rows."""
    print("| rows | a stream, MiB | a list for prepare, MiB |\n|---|---|---|")
    for count in options.rows:
        place = folder / f"rows{count}"
        tone = io.BytesIO()
        soundfile.write(tone, np.zeros(800, np.int16), 16_000, format="FLAC")
        audio = {"bytes": tone.getvalue(), "path": None}
        for shard in range(10):
            numbers = range(shard * count // 10, (shard + 1) * count // 10)
            rows = {
                "id": [f"{n:08d}" for n in numbers],
                "text": ["hello"] * len(numbers),
                "audio": [audio] * len(numbers),
            }
            place.mkdir(exist_ok=True)
            Dataset.from_dict(rows).to_parquet(place / f"{shard}.parquet")
        Dataset.from_parquet([str(path) for path in sorted(place.glob("*.parquet"))]).save_to_disk(
            folder / f"list{count}"
        )
        found = []
        for what, where in (("stream", place), ("list", folder / f"list{count}")):
            command = [sys.executable, __file__, "--only", what, str(where)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
        print(f"| {count} | {found[0]:.0f} | {found[1]:.0f} |", flush=True)
    print()


def _memory(what: str, where: str) -> float:
    # MiB at the peak; without the pages of a mapped file, which the system may take back.
    if what == "stream":
        rows = iter(open_stream(where).read_by(MimiBridgeCollator.for_model(MimiBridgeConfig())))
        for _ in range(ROWS_READ):
            next(rows)
    else:
        source = open_source(where)
        for index in range(min(100, len(source))):
            source.utterance(index)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


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
    args = MimiBridgeTrainingArguments(
        str(folder / "run"),
        max_steps=STEPS + 1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        use_cpu=True,
        report_to=[],
        content_init="none",
        save_strategy="no",
        revive_every=0,
        collapse_below=0.0,
        init_frames=1,
        disable_tqdm=True,
    )
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
