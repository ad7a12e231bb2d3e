"""What fine-tuning does to a codec's heads: python benchmarks/finetuning.py --speech FOLDER --text-teacher FOLDER

Converts a codec, computes teachers and latents of all recordings that have word times, trains the heads in several
ways on some speakers, and measures on the others: distance to each teacher beside the best constant's, use of the
codes, and how near decoded speech comes to the recordings. Prints a table in markdown. Needs the extra `train`, a
folder with a manifest.jsonl and alignments, and a text model with a fast tokenizer; the speech model is WavLM's
architecture with random weights.
"""

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))

from convert_kyutai import convert
from mimi_bridge import MimiBridgeModel
from mimi_bridge.audio import SPEECH_VARIABLE, load_audio
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.manifest import Utterance, read_manifest, read_phones, read_words
from mimi_bridge.data.speech_teacher import WavLMTeacher
from mimi_bridge.data.text_teacher import QwenTeacher
from mimi_bridge.data.tokens import token_spans
from mimi_bridge.embedded import SMALL_CODEC
from mimi_bridge.frames import lay_out_tokens
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments
from mimi_bridge.training.beginning import ridge_regression

WAVLM_DIM = 64
LISTENED = 16  # held-out recordings that are decoded
VARIANTS: dict[str, dict] = {  # by name, what is not as in the first
    "specification, λ moved": {},
    "content alone (no WavLM)": {"wavlm_weight": 0.0},
    "no distillation": {"wavlm_weight": 0.0, "qwen_weight": 0.0},
    "λ = 0 throughout": {"residual_weight_end": 0.0},
    "λ = 1 from the start": {"residual_weight_ratio": 0.0},
    "codebooks by gradient": {"codebook_update": "gradient"},
    "content from least squares": {"content_init": "least-squares"},
    "gradient, least squares": {"codebook_update": "gradient", "content_init": "least-squares"},
    "cosine distances": {"distance": "cosine"},
    "ten times the rates": {"learning_rate": 1e-3},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default=SMALL_CODEC, help="the codec, as in convert_kyutai.py")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE))
    parser.add_argument("--text-teacher", required=True, help="a text model of transformers, or its folder")
    parser.add_argument("--text-layer", type=int, help="whose states are taken; default the last")
    parser.add_argument("--held-out", nargs="+", default=["LJ", "jenny", "libri-*[05]"], help="speakers, patterns")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--only", nargs="+", help="variants, patterns")
    parser.add_argument("--picture", type=Path, help="also draw the first variant's curves, to here")
    arguments = parser.parse_args()
    if arguments.speech is None:
        sys.exit(f"finetuning: give a folder of speech by --speech or {SPEECH_VARIABLE}.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text_teacher = QwenTeacher(arguments.text_teacher, layer=arguments.text_layer, dtype="float32")
        speech_teacher = WavLMTeacher(_random_wavlm(work / "wavlm"))
        convert(arguments.source, work / "bridge", qwen_dim=text_teacher.dim, wavlm_dim=WAVLM_DIM)
        model = MimiBridgeModel.from_pretrained(work / "bridge").eval()
        utterances = [u for u in read_manifest(arguments.speech) if u.alignment is not None]
        rows = {u.id: _row(u, model, text_teacher, speech_teacher) for u in utterances}
        is_held_out = {u.id: any(fnmatch(u.speaker, p) for p in arguments.held_out) for u in utterances}
        train = [row for name, row in rows.items() if not is_held_out[name]]
        held_out = [row for name, row in rows.items() if is_held_out[name]]
        listened = [row for row in held_out][:: max(1, len(held_out) // LISTENED)][:LISTENED]
        minutes = [
            sum(len(row["latents"]) for row in part) / model.config.frame_rate / 60 for part in (train, held_out)
        ]
        speakers = [len({u.speaker for u in utterances if is_held_out[u.id] is side}) for side in (False, True)]
        print(
            f"{arguments.steps} steps at {arguments.learning_rate:g}; trained on {minutes[0]:.0f} minutes of "
            f"{speakers[0]} speakers, measured on {minutes[1]:.0f} minutes of {speakers[1]} others; text teacher "
            f"{text_teacher.dim}-d. Mimi itself: mel distance {_mel(model, listened):.3f}.\n"
        )
        _print_ceilings(train, held_out, {u.id: u for u in utterances}, model.config.frame_rate)
        print("| variant | qwen | constant | wavlm | constant | mel at 0 | 25 % | 50 % | end | usage c/p/a | CPU s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for name, changes in VARIANTS.items():
            if arguments.only and not any(fnmatch(name, pattern) for pattern in arguments.only):
                continue
            history = _run(name, dict(changes), deepcopy(model), train, held_out, listened, work, arguments)
            if arguments.picture and name == next(iter(VARIANTS)):
                _draw(history, arguments.picture)


def _random_wavlm(folder: Path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": WAVLM_DIM, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    layers = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    WavLMModel(WavLMConfig(**sizes, **layers)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)


@torch.inference_mode()
def _row(utterance: Utterance, model: MimiBridgeModel, text: QwenTeacher, speech: WavLMTeacher) -> dict:
    rate, frame_size = model.config.sampling_rate, model.config.frame_size
    audio = load_audio(utterance.path, rate)
    audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame_size))
    latents = model.get_latents(audio[None])
    quantizer = model.quantizer
    target = quantizer.head_prosody(latents).quantized + quantizer.acoustic_residual(latents).quantized
    assert utterance.text is not None and utterance.alignment is not None
    states = text.states([utterance.text])[0]
    spans = token_spans(utterance.text, states.offsets, read_words(utterance.alignment))
    return {
        "id": utterance.id,
        "audio_for_listening": audio,
        "latents": latents[0].clone(),
        "target_latents": target[0].clone(),
        "qwen_hidden": states.hidden,
        "token_spans": spans.clamp(max=latents.shape[1] / model.config.frame_rate),
        "wavlm_features": speech.features([audio], rate)[0],
    }


def _print_ceilings(
    train: list[dict], held_out: list[dict], utterances: dict[str, Utterance], frame_rate: float
) -> None:
    """What a frame can tell of the language model: from its latents, and from the phones that are said in it."""
    phones = {name: read_phones(u.alignment) for name, u in utterances.items() if u.alignment is not None}
    names = sorted({phone.label for spans in phones.values() for phone in spans})

    def phone_shares(row: dict) -> Tensor:
        number = {name: index for index, name in enumerate(names)}
        edges = torch.arange(len(row["latents"]) + 1) / frame_rate
        shares = torch.zeros(len(row["latents"]), len(names))
        for phone in phones[row["id"]]:
            overlap = edges[1:].clamp(max=phone.end) - edges[:-1].clamp(min=phone.start)
            shares[:, number[phone.label]] += overlap.clamp(min=0) * frame_rate
        return shares

    def gathered(rows: list[dict], inputs: Callable[[dict], Tensor]) -> tuple[Tensor, Tensor]:
        pairs = []
        for row in rows:
            frame_mask = torch.ones(1, len(row["latents"]), dtype=torch.bool)
            hidden, spans = row["qwen_hidden"][None], row["token_spans"][None]
            targets, mask = lay_out_tokens(hidden, frame_mask, frame_rate, spans=spans)
            pairs.append((inputs(row)[mask[0]].double(), targets[0, mask[0]].double()))
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return x, y

    for what, inputs in (("latents", lambda row: row["latents"]), ("phones", phone_shares)):
        (x, y), (unseen, wanted) = (gathered(rows, inputs) for rows in (train, held_out))
        mean, std = y.mean(dim=0), y.std(dim=0)
        fit = ridge_regression(x - x.mean(dim=0), (y - mean) / std)
        wanted = (wanted - mean) / std
        error, constant = ((unseen - x.mean(dim=0)) @ fit - wanted).square().mean(), wanted.square().mean()
        print(f"The best linear map from a frame's {what}: {error:.4f}, the constant {constant:.4f}", end="")
        print(f" ({100 * (error / constant - 1):+.2f} %).\n", flush=True)


@torch.inference_mode()
def _mel(model: MimiBridgeModel, rows: list[dict]) -> float:
    """Mel distance of decoded held-out recordings, by their frames."""
    model.eval()
    total = frames = 0.0
    for row in rows:
        quantized = model.quantizer(row["latents"][None]).quantized
        decoded = model.decoder(quantized.transpose(1, 2)).audio_values
        distance = multi_scale_mel_distance(decoded, row["audio_for_listening"][None], model.config.sampling_rate)
        total, frames = total + float(distance) * quantized.shape[1], frames + quantized.shape[1]
    return total / frames


def _run(
    name: str,
    changes: dict,
    model: MimiBridgeModel,
    train: list[dict],
    held_out: list[dict],
    listened: list[dict],
    work: Path,
    options: argparse.Namespace,
) -> list[dict]:
    if distance := changes.pop("distance", None):
        for bridge in (model.quantizer.proj_qwen, model.quantizer.proj_wavlm):
            bridge.distance = distance
        model.config.qwen_distance = model.config.wavlm_distance = distance
    args = MimiBridgeTrainingArguments(
        output_dir=str(work / "run"),
        **(
            {
                "max_steps": options.steps,
                "learning_rate": options.learning_rate,
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 4,
                "logging_steps": max(1, options.steps // 50),
                "save_strategy": "no",
                "report_to": [],
                "use_cpu": True,
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "init_frames": 30_000,
                "warmup_steps": 20,
            }
            | changes
        ),
    )
    trainer = MimiBridgeTrainer(
        model, args, MimiBridgeCollator.for_model(model.config, crop_seconds=4.0), train, eval_dataset=held_out
    )
    mels: dict[int, float] = {}
    quarters = (0, options.steps // 4, options.steps // 2)

    class Listener(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step in quarters:
                mels[state.global_step] = _mel(model, listened)

    trainer.add_callback(Listener())
    before = resource.getrusage(resource.RUSAGE_SELF)
    trainer.train()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    trainer.data_collator = MimiBridgeCollator.for_model(model.config)
    result = trainer.evaluate()

    def shown(teacher: str) -> str:
        loss, constant = result[f"eval_loss_{teacher}"], result[f"eval_constant_{teacher}"]
        return f"{loss:.4f} ({100 * (loss / constant - 1):+.2f} %) | {constant:.4f}"

    distances = " | ".join(shown(teacher) for teacher in ("qwen", "wavlm"))
    listening = " | ".join(f"{mels[step]:.3f}" for step in quarters)
    usage = "/".join(f"{100 * result[f'eval_usage_{head}']:.0f}" for head in ("content", "prosody", "acoustic"))
    print(
        f"| {name} | {distances} | {listening} | {_mel(model, listened):.3f} | {usage} % | {seconds:.0f} |", flush=True
    )
    return trainer.state.log_history


def _draw(history: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [entry for entry in history if "loss_qwen" in entry]
    panels = {
        "language model": ["loss_qwen", "constant_qwen"],
        "speech model": ["loss_wavlm", "constant_wavlm"],
        "usage": ["usage_content", "usage_prosody", "usage_acoustic"],
        "λ and distance from Mimi's latents": ["residual_weight", "loss_latents"],
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.2), layout="constrained")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            axis.plot([line["step"] for line in lines], [line[name] for line in lines], label=name)
        axis.set(title=title, xlabel="step")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
