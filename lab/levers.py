"""Which lever makes a head carry what it is named for: python lab/levers.py --corpus FOLDER --speech FOLDER

Converts the small codec, frozen, trains its heads on the latents of a corpus that lab/train_codec.py wrote (with
`--align`, for the phones) by one lever after another, and measures on the recordings of other speakers what each
head's codes tell, and how near the decoded speech comes to the recordings. No speech or text model is needed. Needs
the extras `train`, `eval` and `align`. With `--output`, the tables take the place of those between `<!-- levers -->`
and `<!-- end of levers -->`.

Speech of made voices (`lab/made_voices.py`) adds hours: a corpus of its own for `--corpus`, whose held-out voices are
measured apart from the real ones.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))

from converter import convert
from lever_figures import delay_of, draw, line_of, measure, read, swapped, table
from lever_rows import RowsWithAudio, encode_again, held_out, write_rows
from mimi_bridge import MimiBridgeCollator, MimiBridgeModel, MimiBridgeTrainer, MimiBridgeTrainingArguments
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.weights import SMALL_CODEC
from variants import IN_THE_BACKGROUND, chosen, quiet, run_each, write_between_marks

MARKS = ("<!-- levers -->", "<!-- end of levers -->")
HELD_OUT = ("LJ", "jenny", "libri-*[05]")  # as the small codec's
DELAYED = "phones, 2 layers"  # the levers that differ by the delay alone
UNTRAINED = "converted, untrained"
HEADS_ALONE = "phones and prosody, 2 layers of prosody"
LONGER = "the same, 3,000 steps"
WITH_DECODER = "3,000 steps, then 700 of the decoder, acoustic shift 0.25"
WITH_ENCODER = "the same, then the encoder, too"


@dataclass(frozen=True)
class Lever:
    """What is done to the converted model.

    Attributes:
        training: Of `MimiBridgeTrainingArguments`.
        config: Of `MimiBridgeConfig`.
        goes_on: The lever with whose model it begins, if not with the converted one.
    """

    training: dict[str, Any] = field(default_factory=dict)
    config: dict[str, int] = field(default_factory=dict)
    goes_on: str | None = None

    @property
    def needs_audio(self) -> bool:
        """Whether the codec learns, too."""
        return any(self.training.get("head_learning_rates", {}).get(half, 0.0) > 0 for half in ("encoder", "decoder"))


PHONES = {"phone_weight": 1.0}
BOTH = {"phone_weight": 1.0, "prosody_weight": 1.0}
LAYERS = {"content_layers": 2}
PROSODY = {"prosody_layers": 2}
SOUND = {"mel_weight": 1.0, "residual_weight_warmup_ratio": 0.0}
DECODER = SOUND | {"head_learning_rates": {"content": 0.0, "prosody": 0.0, "acoustic": 0.0, "decoder": 3e-4}}
ENCODER = {"head_learning_rates": {"encoder": 1e-4, "acoustic": 5e-5, "decoder": 0.0}} | BOTH | SOUND
CODEC = ENCODER | {"head_learning_rates": {"encoder": 1e-4, "acoustic": 5e-5, "decoder": 3e-4}}
LEVERS = {  # by name
    UNTRAINED: Lever(),
    "no lever, no teacher": Lever(),
    "phones": Lever(PHONES),
    DELAYED: Lever(PHONES, LAYERS),
    **{f"{DELAYED}, delay {delay}": Lever(PHONES, LAYERS | {"content_delay": delay}) for delay in (1, 2, 4, 8)},
    "phones and prosody, 2 + 2 layers, delay 2": Lever(BOTH, LAYERS | PROSODY | {"content_delay": 2}),
    HEADS_ALONE: Lever(BOTH, PROSODY),
    LONGER: Lever(BOTH | {"max_steps": 3000}, PROSODY),
    "2 layers of content, too, 3,000 steps, prosody twice": Lever(
        BOTH | {"prosody_weight": 2.0, "max_steps": 3000}, LAYERS | PROSODY
    ),
    "the same, speaker reversed": Lever(BOTH | {"speaker_reversal_weight": 0.3}, PROSODY),
    "the same, five times the weight": Lever({"phone_weight": 5.0, "prosody_weight": 5.0}, PROSODY),
    WITH_ENCODER: Lever(ENCODER, goes_on=HEADS_ALONE),
    "the encoder 1,200 steps more": Lever(
        ENCODER
        | {"head_learning_rates": {"encoder": 3e-4, "acoustic": 1e-4, "decoder": 0.0}, "max_steps": 1200}
        | {"phone_weight": 2.0, "prosody_weight": 2.0},
        goes_on=WITH_ENCODER,
    ),
    "3,000 steps, then the encoder, too": Lever(ENCODER, goes_on=LONGER),
    WITH_DECODER: Lever(DECODER | {"acoustic_shift": 0.25, "max_steps": 700}, goes_on=LONGER),
    "then 270 steps of the decoder, acoustic shift 0.05": Lever(
        DECODER | {"acoustic_shift": 0.05, "max_steps": 270}, goes_on=WITH_DECODER
    ),
    "then 270 steps of the decoder, acoustic shift 0.02": Lever(
        DECODER | {"acoustic_shift": 0.02, "max_steps": 270}, goes_on=WITH_DECODER
    ),
    "then 200 steps of the decoder, acoustic shift 0.15, timbre": Lever(
        DECODER | {"acoustic_shift": 0.15, "timbre_weight": 1.0, "max_steps": 200}, goes_on=WITH_DECODER
    ),
    "then 250 steps of encoder and decoder, acoustic shift 0.1": Lever(
        CODEC | {"acoustic_shift": 0.1, "max_steps": 250}, goes_on=WITH_DECODER
    ),
    "encoder and decoder, too": Lever(CODEC, goes_on=HEADS_ALONE),
    "encoder and decoder, too, acoustic dropout 0.5": Lever(CODEC | {"acoustic_dropout": 0.5}, goes_on=HEADS_ALONE),
    "encoder and decoder, too, acoustic shift 0.5": Lever(CODEC | {"acoustic_shift": 0.5}, goes_on=HEADS_ALONE),
}


def main() -> None:
    """Measure, print, and write."""
    arguments = parse_arguments()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        described = prepare(arguments, work)
        print(described, flush=True)
        arguments.found = arguments.found or work / "found.jsonl"
        arguments.described = described
        known = already_found(arguments)
        left = [name for name in LEVERS if name not in known]
        for names in in_turn(left):
            run_each(run, names, arguments, work, line_of)
        known = already_found(arguments)
    text = f"{described}\n{table([known[name] for name in LEVERS if name in known])}"
    print(text)
    if arguments.output:
        write_between_marks(arguments.output, text, MARKS)
    if arguments.picture:
        draw([known[name] for name in LEVERS if name in known and name.startswith(DELAYED)], arguments.picture)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default=SMALL_CODEC, help="the codec, as in convert_kyutai.py")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="with the folders train and held_out")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE), help="to measure on")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, help="speakers, patterns, of --speech")
    parser.add_argument("--every", type=int, default=1, help="measure every Nth of their recordings")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--reader-steps", type=int, default=800, help="of the reader of phones")
    parser.add_argument("--swaps", type=int, default=20, help="pairs of real speakers whose heads are swapped")
    parser.add_argument("--batch-size", type=int, default=8, help="crops of 4 s")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--only", nargs="+", help="levers, patterns")
    parser.add_argument("--jobs", type=int, default=2, help="levers at once, one thread each")
    parser.add_argument("--keep", type=Path, help="folder for trained models, by name, which others may go on with")
    parser.add_argument("--found", type=Path, help="a file of json lines that keeps what was found, for other calls")
    parser.add_argument("--rows", type=Path, help="file that keeps what is trained and measured on for the next call")
    parser.add_argument("--output", type=Path, help="a file whose table is renewed")
    parser.add_argument("--picture", type=Path, help="also draw what content knows against its delay, to here")
    arguments = parser.parse_args()
    if arguments.speech is None:
        sys.exit(f"levers: give a folder of speech by --speech or {SPEECH_VARIABLE}.")
    going_on = [name for name, lever in LEVERS.items() if lever.goes_on and chosen(name, arguments.only)]
    if arguments.keep is None and going_on:
        sys.exit(f"levers: give a folder by --keep, since {', '.join(going_on)} goes on with the model of another.")
    return arguments


def in_turn(names: list[str]) -> list[list[str]]:
    """The levers in groups that need only earlier ones, in their order."""

    def rank(name: str) -> int:
        before = LEVERS[name].goes_on
        return 0 if before is None else 1 + rank(before)

    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(rank(name), []).append(name)
    return [groups[number] for number in sorted(groups)]


def already_found(arguments: argparse.Namespace) -> dict[str, dict]:
    """What this call and earlier ones on the same data found, by lever."""
    lines = arguments.found.read_text().splitlines() if arguments.found.is_file() else []
    found = map(json.loads, lines)
    return {result["name"]: result for result in found if result["described"] == arguments.described}


def prepare(arguments: argparse.Namespace, work: Path) -> str:
    """What is trained and measured on, in a file; returns what it is."""
    arguments.rows = arguments.rows or work / "rows.pt"
    convert(arguments.source, work / "plain", qwen_dim=16, wavlm_dim=16)
    model = MimiBridgeModel.from_pretrained(work / "plain").eval()
    if not arguments.rows.is_file():
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            jobs = [(folder, work / f"rows-{n}.pt", work / "plain") for n, folder in enumerate(arguments.corpus)]
            found = [torch.load(path, weights_only=False) for path in pool.map(write_rows, jobs)]
        data = {part: [row for parts in found for row in parts[part]] for part in ("train", "held_out")}
        real = list(held_out(arguments, OriginalLatents(model), model.config))
        torch.save({"rows": data["train"], "made": data["held_out"], "held_out": real}, arguments.rows)
    data = torch.load(arguments.rows, weights_only=False)
    minutes = sum(len(row["latents"]) for row in data["rows"]) / model.config.frame_rate / 60
    return (
        f"{arguments.steps} steps of {arguments.batch_size} crops of 4 s; trained on {minutes:.0f} minutes of "
        f"{len({row['speaker'] for row in data['rows']})} voices, measured on {len(data['held_out'])} recordings of "
        f"{len({each['recording'].speaker for each in data['held_out']})} real speakers never trained on, by probes "
        "on the codes alone (linear; one hidden layer), and, for phone errors, on "
        f"{len({row['speaker'] for row in data['made']})} made voices never trained on.\n"
    )


def run(job: tuple[str, argparse.Namespace, Path]) -> dict[str, Any]:
    """Train by one lever, and measure."""
    name, arguments, work = job
    quiet()
    before = time.process_time()
    lever, folder = LEVERS[name], work / f"model-{list(LEVERS).index(name)}"
    if lever.goes_on:
        folder = arguments.keep / lever.goes_on
    else:
        convert(arguments.source, folder, qwen_dim=16, wavlm_dim=16, **lever.config)
    model = MimiBridgeModel.from_pretrained(folder)
    data = torch.load(arguments.rows, weights_only=False)
    if name != UNTRAINED:
        settings = IN_THE_BACKGROUND | {
            "max_steps": arguments.steps,
            "per_device_train_batch_size": arguments.batch_size,
            "gradient_accumulation_steps": 1,
            "learning_rate": arguments.learning_rate,
            "head_learning_rates": {"acoustic": arguments.learning_rate / 10},
            "logging_steps": max(1, arguments.steps // 10),
            "warmup_steps": 50,
            "residual_weight_warmup_ratio": 0.25,
            "qwen_weight": 0.0,
            "wavlm_weight": 0.0,
        }
        args = MimiBridgeTrainingArguments(output_dir=str(work / "run"), **(settings | lever.training))
        collate = MimiBridgeCollator.for_model(model.config, crop_seconds=4.0)
        rows = RowsWithAudio(data["rows"], arguments.corpus, "train") if lever.needs_audio else data["rows"]
        trainer = MimiBridgeTrainer(model, args, collate, rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if arguments.keep:
        model.save_pretrained(arguments.keep / name)  # before it is measured, which takes minutes
    if lever.needs_audio:
        encode_again(model.eval(), data, arguments.corpus, with_corpora=arguments.reader_steps > 0)
    found = measure(model.eval(), data["held_out"]) | {"name": name, "milliseconds": delay_of(model.config)}
    if arguments.swaps:
        found["swaps"] = swapped(model, data["held_out"], arguments.swaps)
    if arguments.reader_steps:
        found["errors"] = read(model, data, arguments.reader_steps)
    found |= {"seconds": time.process_time() - before, "described": arguments.described}
    with open(arguments.found, "a") as file:
        file.write(json.dumps(found) + "\n")
    return found


if __name__ == "__main__":
    main()
