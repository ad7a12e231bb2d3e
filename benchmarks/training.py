"""What a training step costs: python benchmarks/training.py

Steps of `MimiBridgeTrainer` on a model of kyutai/mimi's full size with random weights: on cached latents, without the
codec; through encoder and heads; and with the decoder and the mel distance, too. The three alternate; printed are the
medians, in frames a CPU second, and each kind's peak memory in a process of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments

KINDS = ("cached latents", "audio, encoder and heads", "audio, decoder too")
SECONDS = 4.0
BATCH = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind, alternating")
    parser.add_argument("--only", choices=KINDS, help="of one kind, and print its peak memory as json")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.only:
        _steps([arguments.only], rounds=2)
        print(json.dumps(_peak_memory()))
        return
    timings = _steps(list(KINDS), arguments.rounds)
    print(f"{BATCH} recordings of {SECONDS:g} s a step, one thread, median of {arguments.rounds}:\n")
    print("| step | wall s | CPU s | frames / CPU s | against audio with decoder | peak memory, GiB |")
    print("|---|---|---|---|---|---|")
    medians = {kind: [statistics.median(values) for values in zip(*timings[kind], strict=True)] for kind in KINDS}
    frames = BATCH * SECONDS * 12.5
    for kind in KINDS:
        wall, cpu = medians[kind]
        command = [sys.executable, __file__, "--only", kind]
        peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[-2])
        ratio = medians[KINDS[-1]][1] / cpu
        print(f"| {kind} | {wall:.3f} | {cpu:.3f} | {frames / cpu:.0f} | {ratio:.1f} x | {peak:.2f} |")


def _peak_memory() -> float:
    """GiB, of this process; `ru_maxrss` would be that of the process that started it, if that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024**2


def _steps(kinds: list[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each step, by kind, the first of each left out."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, folder) for kind in kinds}
        timings: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind, trainer in trainers.items():
                wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
                step(trainer)
                after = resource.getrusage(resource.RUSAGE_SELF)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                if number:
                    timings[kind].append((time.perf_counter() - wall, cpu))
        return timings


def step(trainer: MimiBridgeTrainer) -> None:
    """One optimizer step on the batch of `trainer_of`."""
    batch = trainer.prepared_batch
    _, totals = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.training_step(trainer.model, batch, totals)
    trainer.optimizer.step()
    trainer.callback_handler.optimizer = trainer.optimizer
    trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
    trainer.model.zero_grad()


def trainer_of(
    kind: str, folder: str, config: MimiBridgeConfig | None = None, batch: int = BATCH, **changes: object
) -> MimiBridgeTrainer:
    """A trainer of one of the `KINDS`, ready to `step`; `changes` are arguments of its own, such as `use_cpu`."""
    torch.manual_seed(0)
    model = MimiBridgeModel(config or MimiBridgeConfig(qwen_dim=1536, wavlm_dim=1024))
    torch.nn.init.zeros_(model.quantizer.head_content.project_out.weight)
    num_frames, hidden_size = round(SECONDS * model.config.frame_rate), model.config.hidden_size
    rows = []
    for _ in range(batch):
        row = {
            "qwen_hidden": torch.randn(14, model.config.qwen_dim),
            "token_spans": torch.stack([torch.arange(14) / 4, torch.arange(14) / 4 + 0.2], dim=1),
            "wavlm_features": torch.randn(num_frames, model.config.wavlm_dim),
        }
        if kind == KINDS[0]:
            latents = torch.randn(2, num_frames, hidden_size)
            row |= {"latents": latents[0], "target_latents": latents[1]}
        else:
            row["input_values"] = 0.1 * torch.randn(num_frames * model.config.frame_size)
        rows.append(row)
    settings = {
        "use_cpu": True,
        "report_to": [],
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": 100,
        "mel_weight": 1.0 if kind == KINDS[-1] else 0.0,
        "revive_every": 0,
    }
    args = MimiBridgeTrainingArguments(output_dir=folder, **settings | changes)
    trainer = MimiBridgeTrainer(model, args, train_dataset=rows)
    trainer.create_optimizer()
    trainer.prepared_batch = MimiBridgeCollator.for_model(model.config)(rows)
    return trainer


if __name__ == "__main__":
    main()
