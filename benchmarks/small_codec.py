"""The small codec on speakers it never heard: python benchmarks/small_codec.py --speech FOLDER

Prints three tables in markdown: how near decoded speech comes to the original, which codes are used, and how many
recordings are still understood. Needs the extras `eval` and `align`, and a folder with a manifest.jsonl.
"""

import argparse
import os
import random
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean

import soundfile
import torch
from torch import Tensor
from transformers import MimiModel

from mimi_bridge import small_codec
from mimi_bridge.audio import SPEECH_VARIABLE
from mimi_bridge.data.manifest import Utterance, read_manifest
from mimi_bridge.data.pocketsphinx_aligner import PocketsphinxAligner
from mimi_bridge.data.segments import load_recording
from mimi_bridge.evaluation.intelligibility import best_fitting_transcript, like_sized_transcripts
from mimi_bridge.evaluation.metrics import codebook_usage, missing_packages, reconstruction_metrics
from mimi_bridge.spectrogram import save_spectrograms

CODEBOOKS = (8, 4, 2, 1)
TRANSCRIPTS = 50
PICTURE_SECONDS = 5
NARROW = 16_000  # Hz: recordings at or below have nothing above 8 kHz
_state: dict = {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--codec", default=str(small_codec()), help="a Mimi checkpoint; default the small codec")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE))
    parser.add_argument("--held-out", nargs="+", default=["LJ", "jenny", "libri-*[05]"], help="speakers, patterns")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every Nth recording only")
    parser.add_argument("--picture", type=Path, help="also draw the first recording, original above decoded, to here")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if arguments.speech is None:
        sys.exit(f"small_codec: give a folder of speech by --speech or {SPEECH_VARIABLE}.")
    utterances = read_manifest(arguments.speech)
    held_out = [u for u in utterances if any(fnmatch(u.speaker, pattern) for pattern in arguments.held_out)]
    if not held_out:
        sys.exit(f"small_codec: no speaker of {arguments.speech} is named by {' '.join(arguments.held_out)}.")
    held_out = held_out[:: arguments.every]
    transcripts = [utterance.text for utterance in utterances if utterance.text]
    for name, package in missing_packages().items():
        print(f"not run: {name} (package {package} is missing)", file=sys.stderr)
    with ProcessPoolExecutor(arguments.jobs, initializer=_start, initargs=(arguments.codec, transcripts)) as pool:
        results = list(pool.map(_measure, held_out))
    model = MimiModel.from_pretrained(arguments.codec)
    print(f"{len(held_out)} recordings, {sum(r['seconds'] for r in results) / 60:.1f} minutes, ", end="")
    print(f"{len({u.speaker for u in held_out})} speakers: {' '.join(arguments.held_out)}\n")
    _print_reconstruction(results)
    _print_usage(torch.cat([result["codes"] for result in results], dim=1), model.config.codebook_size)
    _print_understood(results)
    if arguments.picture:
        _draw(arguments.picture, model, held_out[0])


def _start(codec: str, transcripts: list[str]) -> None:
    torch.set_num_threads(1)
    aligner = PocketsphinxAligner()
    _state.update(
        model=MimiModel.from_pretrained(codec).eval(),
        aligner=aligner,
        transcripts=[text for text in transcripts if not aligner.unknown_words(text)],
    )


@torch.inference_mode()
def _measure(utterance: Utterance) -> dict:
    model = _state["model"]
    rate, frame_size = model.config.sampling_rate, model.config.frame_size
    audio = load_recording(utterance, rate)
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame_size))[None]
    codes = model.encode(padded).audio_codes
    decoded = {"without quantization": decode_unquantized(model, padded)[0, :, : audio.shape[-1]]}
    for count in CODEBOOKS:
        name = f"{count} codebooks" if count == max(CODEBOOKS) else f"first {count}"
        decoded[name] = model.decode(codes[:, :count]).audio_values[0, :, : audio.shape[-1]]
    result = {
        "seconds": audio.shape[-1] / rate,
        "band": "16 kHz" if _own_rate(utterance.path) <= NARROW else "full band",
        "codes": codes[0],
        "figures": {
            name: reconstruction_metrics(sound, audio, rate) for name, sound in {"original": audio, **decoded}.items()
        },
        "understood": {},
    }
    aligner = _state["aligner"]
    if utterance.text and not aligner.unknown_words(utterance.text):
        others = like_sized_transcripts(utterance.text, _state["transcripts"], TRANSCRIPTS - 1)
        choices = [utterance.text, *others]
        random.Random(utterance.id).shuffle(choices)
        right = choices.index(utterance.text)
        for name in ("original", "8 codebooks"):
            sound = audio if name == "original" else decoded[name]
            result["understood"][name] = best_fitting_transcript(aligner, sound, rate, choices) == right
    return result


@torch.inference_mode()
def decode_unquantized(model: MimiModel, audio: Tensor) -> Tensor:
    """What the decoder makes of the latents when acoustic codebooks are left out: `(batch, 1, samples)`.

    The semantic codebook stays, as the decoder knows it; the acoustic latents pass their projections only.
    """
    latents = model.encoder(audio).latents
    acoustic = model.quantizer.acoustic_residual_vector_quantizer
    semantic = model.quantizer.semantic_residual_vector_quantizer
    quantized = semantic.decode(semantic.encode(latents).transpose(0, 1))
    return model.decoder(quantized + acoustic.output_proj(acoustic.input_proj(latents))).audio_values


@torch.inference_mode()
def _draw(picture: Path, model: MimiModel, utterance: Utterance) -> None:
    rate, frame_size = model.config.sampling_rate, model.config.frame_size
    audio = load_recording(utterance, rate)[:, : PICTURE_SECONDS * rate]
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame_size))[None]
    decoded = model.decode(model.encode(padded).audio_codes).audio_values[0, :, : audio.shape[-1]]
    save_spectrograms(picture, {f"{utterance.id}, original": audio, "decoded from 8 codebooks": decoded}, rate)


def _own_rate(path: Path) -> int:
    return soundfile.info(path).samplerate


def _print_reconstruction(results: list[dict]) -> None:
    bands = sorted({result["band"] for result in results}, reverse=True)
    metrics = list(results[0]["figures"]["original"])
    print("| | " + " | ".join(f"{metric}, {band}" for band in bands for metric in metrics) + " |")
    print("|---" * (1 + len(bands) * len(metrics)) + "|")
    for name in results[0]["figures"]:
        cells = []
        for band in bands:
            chosen = [result["figures"][name] for result in results if result["band"] == band]
            cells += [f"{mean(f[metric] for f in chosen if metric in f):.3f}" for metric in metrics]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def _print_usage(codes: Tensor, codebook_size: int) -> None:
    print(f"| codebook | entries used, of {codebook_size} | perplexity |\n|---|---|---|")
    for number, (used, perplexity) in enumerate(codebook_usage(codes, codebook_size)):
        print(f"| {number} | {used} ({100 * used / codebook_size:.0f} %) | {perplexity:.0f} |")
    print(f"\n{codes.shape[1]} frames.\n")


def _print_understood(results: list[dict]) -> None:
    counts = defaultdict(list)
    for result in results:
        for name, right in result["understood"].items():
            counts[name].append(right)
    print(f"| | right transcript among {TRANSCRIPTS} |\n|---|---|")
    for name, rights in counts.items():
        print(f"| {name} | {sum(rights)} of {len(rights)} ({100 * mean(rights):.1f} %) |")
    print(f"\n{len(results) - len(counts['original'])} recordings hold a word that the aligner's dictionary lacks.")


if __name__ == "__main__":
    main()
