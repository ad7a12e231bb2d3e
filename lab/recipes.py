"""Compare training recipes: python lab/recipes.py --speech FOLDER --text-teacher FOLDER --output docs/results.md

Converts a codec, trains its heads in several ways on the latents of some speakers, and evaluates on others: distance
to each teacher beside the constant predictor's, reconstruction, and probes of phone, speaker and pitch for each head.
Needs the extras `train` and `eval`, a folder with a manifest.jsonl and alignments, and a text model with a fast
tokenizer; the speech teacher is trained first (`phone_teacher`). With `--output`, the tables replace those between the
lines `<!-- recipes -->` and `<!-- end of recipes -->` of the file.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))

from converter import convert
from mimi_bridge import MimiBridgeModel
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.data.segments import load_recording
from mimi_bridge.data.teachers.speech import WavLMTeacher
from mimi_bridge.data.teachers.text import QwenTeacher
from mimi_bridge.evaluation.evaluator import evaluate
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments
from mimi_bridge.training.recipes import RECIPES, model_with
from mimi_bridge.weights import SMALL_CODEC
from phone_teacher import train_phone_teacher
from recipe_data import Split, ceilings, row_of
from recipe_figures import draw, probe_table, quality_table
from variants import IN_THE_BACKGROUND, quiet, run_each, write_between_marks

LISTENED = 16  # held-out recordings that are decoded during training
MEASURED = 45  # held-out recordings that are evaluated
MARKS = ("<!-- recipes -->", "<!-- end of recipes -->")
UNTRAINED: dict[str, dict] = {
    "converted (λ = 0, exact)": {"residual_weight": 0.0},
    "converted, literal start (λ = 1)": {"residual_weight": 1.0},
}
TRAINED: dict[str, dict] = {  # by name, the differences from the first
    "specification, λ moved": {},
    "content alone (no WavLM)": {"wavlm_weight": 0.0},
    "WavLM alone (no Qwen)": {"qwen_weight": 0.0},
    "no distillation": {"wavlm_weight": 0.0, "qwen_weight": 0.0},
    "λ = 1 from the start": {"residual_weight_warmup_ratio": 0.0},
    "codebooks by gradient": {"codebook_update": "gradient"},
    "content from least squares": {"content_init": "least-squares"},
    "ten times the rates": {"learning_rate": 1e-3},
    "recipe content": RECIPES["content"].arguments,
    "recipe content, no text teacher": RECIPES["content"].arguments | {"qwen_weight": 0.0},
}
CHANGED = {name: RECIPES["content"].config for name in TRAINED if name.startswith("recipe content")}  # of the model


def main() -> None:
    """Measure, print, and write."""
    arguments = parse_arguments()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        described = prepare(arguments, work)
        print(described, flush=True)
        found = run_each(run, {**UNTRAINED, **TRAINED}, arguments, work, lambda result: f"{result['name']}:")
    tables = f"{described}\n{quality_table(found)}\n{probe_table(found)}"
    print(tables)
    if arguments.output:
        write_between_marks(arguments.output, tables, MARKS)
    history = next((result["history"] for result in found if result["name"] == next(iter(TRAINED))), None)
    if arguments.picture and history:
        draw(history, arguments.picture)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default=SMALL_CODEC, help="the codec, as in convert_kyutai.py")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE))
    parser.add_argument("--text-teacher", required=True, help="a text model of transformers, or its folder")
    parser.add_argument("--text-layer", type=int, help="layer of its states; default the last")
    parser.add_argument("--teacher-steps", type=int, default=1200, help="of training the speech teacher")
    parser.add_argument("--held-out", nargs="+", default=["LJ", "jenny", "libri-*[05]"], help="speakers, patterns")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", help="variants, patterns")
    parser.add_argument("--jobs", type=int, default=2, help="variants at once, one thread each")
    parser.add_argument("--output", type=Path, help="a file whose tables are replaced")
    parser.add_argument("--picture", type=Path, help="also draw the first trained variant's curves, to here")
    arguments = parser.parse_args()
    if arguments.speech is None:
        sys.exit(f"recipes: give a folder of speech by --speech or {SPEECH_VARIABLE}.")
    return arguments


def prepare(arguments: argparse.Namespace, work: Path) -> str:
    """Write teachers, the converted codec and all rows to the folder; returns their description in markdown."""
    split = Split.of(arguments.speech, arguments.held_out)
    phone_accuracy = train_phone_teacher(work / "phones", split.train, arguments.teacher_steps)
    text = QwenTeacher(arguments.text_teacher, layer=arguments.text_layer, dtype="float32")
    speech = WavLMTeacher(str(work / "phones"))
    convert(arguments.source, work / "bridge", qwen_dim=text.dim, wavlm_dim=speech.dim)
    model = MimiBridgeModel.from_pretrained(work / "bridge").eval()
    original = OriginalLatents(model)
    rate, frame_rate = model.config.sampling_rate, model.config.frame_rate
    train, held_out = (
        [row_of(utterance, original, text, speech, rate) for utterance in part]
        for part in (split.train, split.held_out)
    )
    torch.save({"train": train, "held_out": held_out, "split": split}, work / "rows.pt")
    minutes = [sum(len(row["latents"]) for row in rows) / frame_rate / 60 for rows in (train, held_out)]
    speakers = [len({utterance.speaker for utterance in part}) for part in (split.train, split.held_out)]
    bounds = ceilings(model, train, held_out, split.train + split.held_out)
    maps = "; ".join(f"from {what} {100 * (e / c - 1):+.2f} %" for what, (e, c) in bounds.items())
    return (
        f"{arguments.steps} steps; trained on {minutes[0]:.0f} minutes of {speakers[0]} speakers, measured on "
        f"{minutes[1]:.0f} minutes of {speakers[1]} others. Text teacher: {text.dim}-d; speech teacher: WavLM's "
        f"architecture, {speech.dim}-d, which recognizes the phone of {100 * phone_accuracy:.0f} % of frames. The "
        f"best linear map of a frame to the text teacher, against the constant predictor: {maps}.\n"
    )


def run(job: tuple[str, argparse.Namespace, Path]) -> dict[str, Any]:
    """Train one variant, unless it is an untrained one, and evaluate it."""
    name, arguments, work = job
    quiet()
    before = time.process_time()
    data = torch.load(work / "rows.pt", weights_only=False)
    model = MimiBridgeModel.from_pretrained(work / "bridge")
    result: dict[str, Any] = {"name": name}
    if name in UNTRAINED:
        model.set_residual_weight(UNTRAINED[name]["residual_weight"])
    else:
        model = model_with(model, CHANGED.get(name, {}))
        result |= train(model, dict(TRAINED[name]), data, arguments, work / f"run-{name}")
    spoken = data["split"].held_out
    spoken = spoken[:: max(1, len(spoken) // MEASURED)][:MEASURED]
    result["evaluation"] = evaluate(
        model,
        spoken,
        work / f"evaluation-{name}",
        model_name=str(work / "bridge"),
        only=["mel", "stoi", "codes", "probes"],
        num_examples=0,
    )
    return result | {"seconds": time.process_time() - before}


def train(model: MimiBridgeModel, changes: dict, data: dict, options: argparse.Namespace, folder: Path) -> dict:
    """Train the heads; returns distances to the teachers, mel distances on the way, and the log."""
    settings = IN_THE_BACKGROUND | {
        "max_steps": options.steps,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": max(1, options.steps // 50),
        "init_frames": 30_000,
        "warmup_steps": 20,
    }
    args = MimiBridgeTrainingArguments(output_dir=str(folder), **(settings | changes))
    collate = MimiBridgeCollator.for_model(model.config, crop_seconds=4.0)
    trainer = MimiBridgeTrainer(model, args, collate, data["train"], eval_dataset=data["held_out"])
    listen = listener(model, data)
    mels: dict[int, float] = {}

    class Listener(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step in (0, options.steps // 4, options.steps // 2):
                mels[state.global_step] = listen()

    trainer.add_callback(Listener())
    trainer.train()
    trainer.data_collator = MimiBridgeCollator.for_model(model.config)
    return {
        "teachers": trainer.evaluate(),
        "mels": [*mels.values(), listen()],
        "history": trainer.state.log_history,
    }


def listener(model: MimiBridgeModel, data: dict) -> Callable[[], float]:
    """A function that gives the mel distance of some decoded held-out recordings, by their frames."""
    rows, spoken = data["held_out"], data["split"].held_out
    chosen = range(0, len(rows), max(1, len(rows) // LISTENED))[:LISTENED]
    rate, frame_size = model.config.sampling_rate, model.config.frame_size
    originals = {n: load_recording(spoken[n], rate) for n in chosen}

    @torch.inference_mode()
    def listen() -> float:
        was_training = model.training
        model.eval()
        total = frames = 0.0
        for n, original in originals.items():
            padded = torch.nn.functional.pad(original, (0, -original.shape[-1] % frame_size))
            quantized = model.quantizer(rows[n]["latents"][None]).quantized
            decoded = model.decoder(quantized.transpose(1, 2)).audio_values
            distance = multi_scale_mel_distance(decoded, padded[None], rate)
            total, frames = total + float(distance) * quantized.shape[1], frames + quantized.shape[1]
        model.train(was_training)
        return total / frames

    return listen


if __name__ == "__main__":
    main()
