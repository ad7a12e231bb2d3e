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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))

from codec_training.corpus import LABELS_PER_SECOND, UNKNOWN, SpeechCorpus
from converter import convert
from mimi_bridge import (
    MimiBridgeCollator,
    MimiBridgeConfig,
    MimiBridgeModel,
    MimiBridgeTrainer,
    MimiBridgeTrainingArguments,
)
from mimi_bridge.audio.files import SPEECH_VARIABLE
from mimi_bridge.audio.sound import Sound
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.data.frame_targets import level_by_step
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.data.manifest import read_manifest
from mimi_bridge.data.segments import load_recording
from mimi_bridge.evaluation.code_statistics import phone_information
from mimi_bridge.evaluation.labels import FrameLabels, energy_labels, phone_labels, pitch_labels, spans_of
from mimi_bridge.evaluation.probe_matrix import ProbedRecording, ahead, head_features, probe_matrix
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance
from mimi_bridge.weights import SMALL_CODEC
from phone_reader import phone_errors, phone_sequence, train_reader
from recipes import IN_THE_BACKGROUND, chosen, quiet, run_each, write_between_marks

MARKS = ("<!-- levers -->", "<!-- end of levers -->")
MADE = "voices/"  # before the voices of made_voices.py
HELD_OUT = ("LJ", "jenny", "libri-*[05]")  # as the small codec's
DELAYED = "phones, 2 layers"  # the levers that differ by the delay alone
LAYERS = {"content_layers": 2}
PROSODY = {"prosody_layers": 2}
WITH_ENCODER = {"phone_weight": 1.0, "prosody_weight": 1.0, "mel_weight": 1.0, "residual_weight_warmup_ratio": 0.0}
LEVERS: dict[str, tuple[dict, dict] | None] = {  # by name, changes of the config and of the training
    "converted, untrained": None,
    "no lever, no teacher": ({}, {}),
    "phones": ({}, {"phone_weight": 1.0}),
    "phones, 2 layers": (LAYERS, {"phone_weight": 1.0}),
    **{
        f"phones, 2 layers, delay {delay}": (LAYERS | {"content_delay": delay}, {"phone_weight": 1.0})
        for delay in (1, 2, 4, 8)
    },
    "phones and prosody, 2 + 2 layers, delay 2": (
        LAYERS | PROSODY | {"content_delay": 2},
        {"phone_weight": 1.0, "prosody_weight": 1.0},
    ),
    "phones and prosody, 2 layers of prosody": (PROSODY, {"phone_weight": 1.0, "prosody_weight": 1.0}),
    "the same, speaker reversed": (
        PROSODY,
        {"phone_weight": 1.0, "prosody_weight": 1.0, "speaker_reversal_weight": 0.3},
    ),
    "the same, five times the weight": (PROSODY, {"phone_weight": 5.0, "prosody_weight": 5.0}),
    "the same, then the encoder, too": (
        PROSODY,
        {"head_learning_rates": {"encoder": 1e-4, "acoustic": 5e-5, "decoder": 0.0}} | WITH_ENCODER,
    ),
    "the encoder 1,200 steps more": (
        PROSODY,
        {"head_learning_rates": {"encoder": 3e-4, "acoustic": 1e-4, "decoder": 0.0}, "max_steps": 1200}
        | WITH_ENCODER
        | {"phone_weight": 2.0, "prosody_weight": 2.0},
    ),
}
GOES_ON = {  # with the model of another
    "the same, then the encoder, too": "phones and prosody, 2 layers of prosody",
    "the encoder 1,200 steps more": "the same, then the encoder, too",
}
COLUMNS = {
    "phone": ("content", "prosody", "acoustic"),
    "speaker": ("content", "prosody", "acoustic"),
    "pitch_in_speaker": ("content", "prosody"),
    "energy": ("content", "prosody"),
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
        run_each(run, [name for name in left if name not in GOES_ON], arguments, work, line_of)
        for name in GOES_ON:  # in their order
            if name in left:
                run_each(run, [name], arguments, work, line_of)
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
    if arguments.keep is None and any(chosen(name, arguments.only) for name in GOES_ON):
        sys.exit(f"levers: give a folder by --keep, since {', '.join(GOES_ON)} goes on with the model of another.")
    return arguments


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


def held_out(arguments: argparse.Namespace, original: OriginalLatents, config: MimiBridgeConfig) -> Iterator[dict]:
    """Latents, labels and audio of the recordings to measure on."""
    aligner = PocketsphinxAligner()
    rate, frame_rate = config.sampling_rate, config.frame_rate
    spoken = [u for u in read_manifest(arguments.speech) if any(fnmatch(u.speaker, p) for p in arguments.held_out)]
    for utterance in spoken[:: arguments.every]:
        audio = load_recording(utterance, rate)
        latents, _ = original(audio)
        sound = Sound(audio, rate)
        phones, _ = spans_of(utterance, sound, aligner)
        labels = FrameLabels(
            phone_labels(phones, len(latents), frame_rate),
            [None] * len(latents),
            pitch_labels(sound.f0_hz, len(latents), frame_rate),
            energy_labels(audio, len(latents), config.frame_size),
        )
        recording = ProbedRecording(utterance.speaker, labels)
        said = [{"phone": phone.label} for phone in phones]
        yield {"recording": recording, "latents": latents, "audio": audio, "phones": said}


def write_rows(job: tuple[Path, Path, Path]) -> Path:
    """Rows of a corpus in a file: those to train on, and of made voices that are held out."""
    folder, path, model_folder = job
    quiet()
    original, rows = OriginalLatents(MimiBridgeModel.from_pretrained(model_folder).eval()), {}
    for part in ("train", "held_out"):
        rows[part] = [row_of(*place, original) for place in places_in(folder, part)]
    torch.save(rows, path)
    return path


def places_in(folder: Path, part: str) -> list[tuple[SpeechCorpus, int]]:
    """The utterances of a corpus that are used: all to train on, of those held out made voices' alone."""
    corpus = SpeechCorpus(folder / part)
    used = (n for n, e in enumerate(corpus.utterances) if part == "train" or e["speaker"].startswith(MADE))
    return [(corpus, number) for number in used]


def row_of(corpus: SpeechCorpus, number: int, original: OriginalLatents) -> dict:
    """A row for `MimiBridgeCollator` of an utterance of the corpus."""
    entry, audio = corpus.utterances[number], corpus.audio(number)
    latents, target = original(audio)
    labels, pitch = corpus.labels_and_pitch(number)
    phones, step = [], 0
    for label, group in groupby(labels.tolist()):
        length = len(list(group))
        if label != UNKNOWN:
            start, end = step / LABELS_PER_SECOND, (step + length) / LABELS_PER_SECOND
            phones.append({"phone": corpus.labels[label], "start": start, "end": end})
        step += length
    return {
        "id": entry["id"],
        "speaker": entry["speaker"],
        "latents": latents,
        "target_latents": target,
        "phones": phones or None,
        "f0_hz": torch.from_numpy(np.nan_to_num(pitch.astype(np.float32))),
        "level_db": torch.from_numpy(level_by_step(audio[0].numpy(), corpus.sampling_rate)),
    }


def run(job: tuple[str, argparse.Namespace, Path]) -> dict[str, Any]:
    """Train by one lever, and measure."""
    name, arguments, work = job
    quiet()
    before = time.process_time()
    lever, folder = LEVERS[name], work / f"model-{list(LEVERS).index(name)}"
    config, changes = lever or ({}, {})
    if name in GOES_ON:
        folder = arguments.keep / GOES_ON[name]
    else:
        convert(arguments.source, folder, qwen_dim=16, wavlm_dim=16, **config)
    model = MimiBridgeModel.from_pretrained(folder)
    data = torch.load(arguments.rows, weights_only=False)
    encoder_learns = changes.get("head_learning_rates", {}).get("encoder", 0.0) > 0
    if lever is not None:
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
        args = MimiBridgeTrainingArguments(output_dir=str(work / "run"), **(settings | changes))
        collate = MimiBridgeCollator.for_model(model.config, crop_seconds=4.0)
        rows = RowsWithAudio(data["rows"], arguments.corpus, "train") if encoder_learns else data["rows"]
        trainer = MimiBridgeTrainer(model, args, collate, rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if encoder_learns:
        encode_again(model.eval(), data, arguments.corpus)
    found = measure(model.eval(), data["held_out"]) | {"name": name, "milliseconds": delay_of(model.config)}
    if arguments.reader_steps:
        found["errors"] = read(model, data, arguments.reader_steps)
    if arguments.keep:
        model.save_pretrained(arguments.keep / name)
    found |= {"seconds": time.process_time() - before, "described": arguments.described}
    with open(arguments.found, "a") as file:
        file.write(json.dumps(found) + "\n")
    return found


class RowsWithAudio(Dataset):
    """Rows with their audio in place of latents.

    Args:
        rows: Those of `write_rows`.
        folders: Of the corpora that they are of, in its order.
        part: `"train"` or `"held_out"`.
    """

    def __init__(self, rows: list[dict], folders: list[Path], part: str):
        self._rows = rows
        self._places = [place for folder in folders for place in places_in(folder, part)]
        ids = [corpus.utterances[number]["id"] for corpus, number in self._places]
        if ids != [row["id"] for row in rows]:
            sys.exit(f"levers: --rows holds other recordings than --corpus, {len(rows)} and {len(ids)}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict:
        corpus, number = self._places[place]
        kept = {key: value for key, value in self._rows[place].items() if "latents" not in key}
        return kept | {"input_values": corpus.audio(number)[0]}


@torch.inference_mode()
def encode_again(model: MimiBridgeModel, data: dict, folders: list[Path]) -> None:
    """Put the latents of an encoder that has learned in the place of the original's."""
    for part, name in (("rows", "train"), ("made", "held_out")):
        for row, with_audio in zip(data[part], RowsWithAudio(data[part], folders, name), strict=True):
            row["latents"] = model.get_latents(with_audio["input_values"][None, None])[0]
    for row in data["held_out"]:
        row["latents"] = model.get_latents(row["audio"][None])[0]


def delay_of(config: MimiBridgeConfig) -> float:
    """Milliseconds that content waits, beyond the frame itself."""
    return 1000 * config.content_delay / config.frame_rate


@torch.inference_mode()
def read(model: MimiBridgeModel, data: dict, num_steps: int) -> tuple[float, float]:
    """Phone error rate of a reader of content's codes, on held-out real speakers and made voices."""
    (entries,), delay = model.quantizer.heads["content"].codebooks, model.config.content_delay

    def readable(rows: list[dict]) -> list[tuple[torch.Tensor, list[int]]]:
        codes = [model.quantizer.encode(row["latents"][None].float())[0, 0] for row in rows]
        said = [phone_sequence(phone["phone"] for phone in row["phones"] or ()) for row in rows]
        pairs = [(ahead(entries[own], delay), phones) for own, phones in zip(codes, said, strict=True) if phones]
        return [(own.float().clone(), phones) for own, phones in pairs]

    train, real, made = (readable(data[part]) for part in ("rows", "held_out", "made"))
    with torch.inference_mode(False):
        reader = train_reader([(own.clone(), phones) for own, phones in train], num_steps)
    return phone_errors(reader, real), phone_errors(reader, made) if made else float("nan")


@torch.inference_mode()
def measure(model: MimiBridgeModel, spoken: list[dict]) -> dict:
    """Probes of every head's codes, and the mel distance of the decoded recordings, by their frames."""
    quantizer, config = model.quantizer, model.config
    entries = [codebook for head in quantizer.heads.values() for codebook in head.codebooks]
    levels = {"content": range(1), "prosody": range(1, 2), "acoustic": range(2, len(entries))}
    distance, num_frames, content_codes = 0.0, 0.0, []
    for each in spoken:
        latents, audio = each["latents"][None], each["audio"]
        codes = quantizer.encode(latents)
        features = {name: head_features(codes[0], entries, [levels[name]]) for name in levels}
        features["content"] = ahead(features["content"], config.content_delay)
        content_codes.append(ahead(codes[0, 0], config.content_delay))
        each["recording"].features = features
        decoded = model.decode(codes).audio_values
        padded = torch.nn.functional.pad(audio, (0, decoded.shape[-1] - audio.shape[-1]))
        distance += float(multi_scale_mel_distance(decoded, padded[None], config.sampling_rate)) * codes.shape[-1]
        num_frames += codes.shape[-1]
    with torch.inference_mode(False):
        matrix, _ = probe_matrix([each["recording"] for each in spoken], {n: n for n in levels}, config.frame_rate)
    phones = [phone for each in spoken for phone in each["recording"].labels.phone]
    return {
        "probes": matrix,
        "mel": distance / num_frames,
        "pnmi": phone_information(torch.cat(content_codes), phones),
    }


def table(found: list[dict]) -> str:
    """What each head's codes tell, and the decoded speech."""
    titles = [f"{what}: {head}" for what, heads in COLUMNS.items() for head in heads]
    heads = ["lever", "delay, ms", *titles, "PNMI (shuffled)", "phone errors, real", "made", "mel"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(line_of, found)]
    attributes = found[0]["probes"]["attributes"]
    chances = [
        f"{attributes[what]['chance']:.2f}" if what in attributes else "-"
        for what, heads in COLUMNS.items()
        for _ in heads
    ]
    return "\n".join([*lines, f"| *chance* | | {' | '.join(chances)} | | | | |"]) + "\n"


def draw(found: list[dict], path: Path) -> None:
    """Phones read from content's codes against its delay: by a linear probe, with its interval, and by the reader."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = sorted(found, key=lambda result: result["milliseconds"])
    delays = [result["milliseconds"] for result in found]
    scores = [result["probes"]["scores"]["content"]["phone"]["linear"] for result in found]
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axis.plot(delays, [score["mean"] for score in scores], marker="o", label="phone of a frame, linear probe")
    axis.fill_between(delays, [s["low"] for s in scores], [s["high"] for s in scores], alpha=0.2)
    for place, voices in enumerate(("real speakers", "made voices")):
        right = [1 - result["errors"][place] for result in found]
        axis.plot(delays, right, marker="o", linestyle="--", label=f"1 - phone error rate of a reader, {voices}")
    axis.set(xlabel="content_delay, ms", ylim=(0, 1))
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def line_of(result: dict) -> str:
    """One line of the table: of linear probes, with the interval over speakers."""
    scores = result["probes"]["scores"]
    cells = [_score(scores.get(head, {}).get(what)) for what, heads in COLUMNS.items() for head in heads]
    information, shuffled = result["pnmi"]
    errors = [f"{error:.2f}" for error in result.get("errors", ())] or ["-", "-"]
    cells += [f"{information:.2f} ({shuffled:.2f})", *errors, f"{result['mel']:.3f}"]
    return f"| {result['name']} | {result['milliseconds']:.0f} | {' | '.join(cells)} |"


def _score(score: dict | None) -> str:
    if score is None:
        return "-"
    linear = score["linear"]
    return f"{linear['mean']:.2f} ({linear['low']:.2f}–{linear['high']:.2f})"


if __name__ == "__main__":
    main()
