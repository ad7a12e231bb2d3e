"""What preparing a data set costs: python benchmarks/prepare.py

`mimi-bridge prepare` on clips of made speech, few and many of them, each run in a process of its own: CPU seconds for
each hour of speech, peak memory, and size on disk. Memory must not grow with the data set. The teachers are those
named, or ones with random weights: of the full sizes of Qwen2.5-1.5B and WavLM-large (`--teachers full`), which cost
what the real ones do, or tiny ones (`--teachers tiny`), beside which the cost of all the rest shows.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile
from transformers import Qwen2Config, Qwen2Model, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.utils import logging as transformers_logging

from mimi_bridge.audio.espeak import SENTENCES, VOICES, synthesize

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from tiny_teachers import write_tiny_qwen, write_tiny_wavlm

SIZES = {"tiny": "16-d and 16-d", "full": "1536-d and 1024-d"}
QWEN = {  # Qwen2.5-1.5B
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
WAVLM = {  # WavLM-large
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": False,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[10, 1000], help="how many (default: 10 1000)")
    parser.add_argument("--teachers", choices=[*SIZES], default="tiny", help="with random weights (default: tiny)")
    parser.add_argument("--text-teacher", help="instead: a name or folder")
    parser.add_argument("--speech-teacher", help="instead: a name or folder")
    parser.add_argument("--latents", metavar="MODEL", help="store this model's latents, too")
    parser.add_argument("--audio", default="path", choices=["path", "samples"], help="(default: path)")
    parser.add_argument("--given", action="store_true", help="without aligning: no tokens, features alone")
    parser.add_argument("--num-proc", type=int, default=1)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(
        f"teachers: {options.text_teacher or options.speech_teacher or SIZES[options.teachers]}; audio: "
        f"{options.audio}; processes: {options.num_proc}\n\n"
        "| clips | speech, hours | CPU seconds | hours of speech per hour of CPU | peak memory, GiB | on disk, MB | "
        "MB an hour of speech |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        teachers = _teachers(options, Path(folder))
        costs = [_measure(clips, teachers, options, Path(folder)) for clips in options.clips]
    if len(costs) > 1:
        hours, seconds = (costs[-1][place] - costs[0][place] for place in (0, 1))
        print(f"\nEach further hour of speech takes {seconds / hours:.0f} CPU seconds.")


def _teachers(options: argparse.Namespace, folder: Path) -> list[str]:
    text, speech = options.text_teacher, options.speech_teacher
    if text is None:
        text = write_tiny_qwen(folder / "qwen")
        if options.teachers == "full":  # the tokenizer stays the tiny one
            Qwen2Model(Qwen2Config(vocab_size=320, dtype="bfloat16", **QWEN)).bfloat16().save_pretrained(text)
    if speech is None:
        speech = write_tiny_wavlm(folder / "wavlm")
        if options.teachers == "full":
            WavLMModel(WavLMConfig(**WAVLM)).save_pretrained(speech)
            Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(speech)
    return ["--text-teacher", text, "--speech-teacher", speech]


def _measure(clips: int, teachers: list[str], options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Prints a line; returns hours of speech and CPU seconds."""
    source, output = folder / f"clips{clips}", folder / f"data{clips}"
    seconds = _make_clips(source, clips)
    command = [sys.executable, "-m", "mimi_bridge.cli.main", "prepare", str(source), "-o", str(output), *teachers]
    command += ["--audio", options.audio, "--num-proc", str(options.num_proc), "--min-score", "none"]
    command += ["--aligner", "given"] * options.given
    command += ["--latents", options.latents] * (options.latents is not None)
    cpu, peak = _cost(command)
    hours, size = seconds / 3600, sum(path.stat().st_size for path in output.iterdir()) / 1e6
    line = (clips, f"{hours:.3f}", f"{cpu:.1f}", f"{hours / cpu * 3600:.1f}", f"{peak:.2f}", f"{size:.1f}")
    print(f"| {' | '.join(map(str, line))} | {size / hours:.0f} |", flush=True)
    return hours, cpu


def _make_clips(folder: Path, count: int) -> float:
    """The same dozen recordings again and again, with their transcripts; returns their seconds."""
    folder.mkdir()
    made = [synthesize(text, VOICES[number % len(VOICES)])[0].numpy() for number, text in enumerate(SENTENCES)]
    for number in range(count):
        soundfile.write(folder / f"{number:05d}.wav", made[number % len(made)], 24_000)
        (folder / f"{number:05d}.txt").write_text(SENTENCES[number % len(made)])
    return sum(len(made[number % len(made)]) for number in range(count)) / 24_000


def _cost(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a command and all its processes, and GiB of its first one at its peak."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, _peak_memory(process.pid))
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read().decode()[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def _peak_memory(pid: int) -> float:
    # Of the process itself: `ru_maxrss` would be that of the one that started it, if that was larger.
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024**2 if "VmHWM:" in status else 0.0


if __name__ == "__main__":
    main()
