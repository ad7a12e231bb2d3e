"""The small codec on speakers outside its training data: python benchmarks/small_codec.py --speech FOLDER

Prints tables in markdown: reconstruction metrics, pitch and voicing, probes of the latents, codebook usage, and
intelligibility. Needs the extras `eval` and `align`; with the package speechmos DNSMOS is measured, with
`--recognizer` the word error. Without a folder of speech it does nothing.
"""

import argparse
import os
import random
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import mean

import soundfile
import torch
from torch import Tensor
from transformers import MimiModel, pipeline

from mimi_bridge import small_codec
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.audio.sound import WIDEBAND_RATE, Sound  # at or below, recordings have nothing above 8 kHz
from mimi_bridge.audio.spectrogram import save_spectrograms
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.data.manifest import Utterance, read_manifest
from mimi_bridge.data.segments import load_recording
from mimi_bridge.evaluation.intelligibility import best_fitting_transcript, like_sized_transcripts
from mimi_bridge.evaluation.labels import FrameLabels, energy_labels, phone_labels, pitch_labels, spans_of
from mimi_bridge.evaluation.listeners import spoken_words, word_error
from mimi_bridge.evaluation.metrics import codebook_usage, missing_packages, reconstruction_metrics
from mimi_bridge.evaluation.probe_matrix import ProbedRecording, probe_matrix

ALL_CODES = "8 codebooks"
FEWER_CODEBOOKS = (4, 2, 1)
NEVER_TRAINED_ON = ["LJ", "jenny", "libri-*[05]"]  # of its own training corpus; of other corpora, every speaker
QUICK = 6  # recordings
TOKENS_PER_SECOND = 8  # limit of a recognizer's output: on noise it might never stop
PICTURE_SECONDS, PICTURE_HZ = 3, 4000  # so that harmonics can be distinguished
_state: dict = {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--codec", default=str(small_codec()), help="a Mimi checkpoint; default the small codec")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE))
    parser.add_argument("--held-out", nargs="+", metavar="SPEAKER", help="names or patterns of those to measure")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every Nth recording only")
    parser.add_argument("--picture", type=Path, help="also draw the first recording, original above decoded, to here")
    parser.add_argument("--recognizer", help="a Whisper, on the Hub or in a folder, to count word errors")
    parser.add_argument("--transcripts", type=int, default=50, help="to choose the right one from; 0 leaves that out")
    parser.add_argument("--listen", type=int, default=25, metavar="N", help="word errors and DNSMOS of N recordings")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} recordings, and no words")
    arguments = parser.parse_args()
    if arguments.speech is None:
        print(f"The small codec is not measured: no speech is given by --speech or {SPEECH_VARIABLE}.")
        return
    utterances = read_manifest(arguments.speech)
    held_out = _held_out(utterances, arguments.held_out)[:: arguments.every]
    if not held_out:
        sys.exit(f"small_codec: no speaker of {arguments.speech} is named by {' '.join(arguments.held_out)}.")
    if arguments.quick:
        held_out = held_out[:: -(-len(held_out) // QUICK)]
        arguments.transcripts = arguments.listen = 0
    transcripts = [utterance.text for utterance in utterances if utterance.text]
    for name, package in missing_packages().items():
        print(f"not run: {name} (package {package} is missing)", file=sys.stderr)
    with ProcessPoolExecutor(
        arguments.jobs,
        initializer=_start,
        initargs=(arguments.codec, transcripts, arguments.transcripts, arguments.recognizer),
    ) as pool:
        results = list(pool.map(_measure, held_out))
        listened = [utterance for utterance in held_out if utterance.text][: arguments.listen]
        scores = list(pool.map(_listen, listened))
    model = MimiModel.from_pretrained(arguments.codec)
    print(f"{len(held_out)} recordings, {sum(r['seconds'] for r in results) / 60:.1f} minutes, ", end="")
    print(f"{len({u.speaker for u in held_out})} speakers.\n")
    _print_reconstruction(results)
    _print_voice(results, scores)
    _print_probes(results, model.config.frame_rate)
    _print_usage(torch.cat([result["codes"] for result in results], dim=1), model.config.codebook_size)
    if arguments.transcripts:
        _print_understood(results, arguments.transcripts)
    if arguments.picture:
        _draw(arguments.picture, model, held_out[0])


def _held_out(utterances: list[Utterance], patterns: list[str] | None) -> list[Utterance]:
    # Recordings of the speakers named; else of those that the codec was not trained on.
    chosen = [u for u in utterances if any(fnmatch(u.speaker, pattern) for pattern in patterns or NEVER_TRAINED_ON)]
    return chosen if chosen or patterns else utterances


def _start(codec: str, transcripts: list[str], choices: int, recognizer: str | None) -> None:
    torch.set_num_threads(1)
    aligner = PocketsphinxAligner()
    _state.update(
        model=MimiModel.from_pretrained(codec).eval(),
        aligner=aligner,
        choices=choices,
        transcripts=[text for text in transcripts if not aligner.unknown_words(text)],
        recognize=pipeline("automatic-speech-recognition", recognizer) if recognizer else None,
    )


@torch.inference_mode()
def _decode(utterance: Utterance) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    # The recording, its latents, its codes, and the audio decoded from all of them.
    model = _state["model"]
    audio = load_recording(utterance, model.config.sampling_rate)
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % model.config.frame_size))[None]
    codes = model.encode(padded).audio_codes
    latents = model.encoder(padded).latents[0].T
    return audio, latents, codes, {ALL_CODES: model.decode(codes).audio_values[0, :, : audio.shape[-1]]}


@torch.inference_mode()
def _measure(utterance: Utterance) -> dict:
    model = _state["model"]
    rate, frame_size = model.config.sampling_rate, model.config.frame_size
    audio, latents, codes, all_codes = _decode(utterance)
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % frame_size))[None]
    decoded = {"without quantization": decode_unquantized(model, padded)[0, :, : audio.shape[-1]], **all_codes}
    for count in FEWER_CODEBOOKS:
        decoded[f"first {count}"] = model.decode(codes[:, :count]).audio_values[0, :, : audio.shape[-1]]
    sounds = {"original": audio, **decoded}
    labels = _labels(utterance, audio, rate, len(latents))
    result = {
        "seconds": audio.shape[-1] / rate,
        "band": "16 kHz" if _own_rate(utterance.path) <= WIDEBAND_RATE else "full band",
        "codes": codes[0],
        "f0": {name: Sound(sound, rate).f0_hz for name, sound in sounds.items()},
        "probed": ProbedRecording(utterance.speaker, labels, {"latents": latents}),
        "figures": {name: reconstruction_metrics(sound, audio, rate) for name, sound in sounds.items()},
        "understood": {},
    }
    aligner = _state["aligner"]
    if _state["choices"] and utterance.text and not aligner.unknown_words(utterance.text):
        others = like_sized_transcripts(utterance.text, _state["transcripts"], _state["choices"] - 1)
        choices = [utterance.text, *others]
        random.Random(utterance.id).shuffle(choices)
        right = choices.index(utterance.text)
        for name in ("original", ALL_CODES):
            sound = audio if name == "original" else decoded[name]
            result["understood"][name] = best_fitting_transcript(aligner, sound, rate, choices) == right
    return result


def _labels(utterance: Utterance, audio: Tensor, rate: int, num_frames: int) -> FrameLabels:
    frame_rate = _state["model"].config.frame_rate
    sound = Sound(audio, rate)
    try:
        phones, _ = spans_of(utterance, sound, _state["aligner"])
        phone = phone_labels(phones, num_frames, frame_rate)
    except ValueError:  # no transcript, or one that does not fit
        phone = [None] * num_frames
    energy = energy_labels(audio, num_frames, _state["model"].config.frame_size)
    return FrameLabels(phone, [None] * num_frames, pitch_labels(sound.f0_hz, num_frames, frame_rate), energy)


def _listen(utterance: Utterance) -> dict[str, dict[str, float]]:
    # For the original and the decoded audio: word errors, words said, and DNSMOS.
    audio, _, _, decoded = _decode(utterance)
    scores = {}
    for name, sound in {"original": audio, **decoded}.items():
        wideband = Sound(sound, _state["model"].config.sampling_rate).wideband
        scores[name] = {}
        if find_spec("speechmos"):
            from speechmos import dnsmos

            scores[name]["dnsmos"] = dnsmos.run(wideband.clip(-1, 1), sr=WIDEBAND_RATE)["ovrl_mos"]
        if _state["recognize"]:
            tokens = 8 + round(TOKENS_PER_SECOND * len(wideband) / WIDEBAND_RATE)
            recognized = _state["recognize"](
                {"raw": wideband, "sampling_rate": WIDEBAND_RATE},
                generate_kwargs={"max_new_tokens": tokens, "language": "en", "task": "transcribe"},
            )["text"]
            words = len(spoken_words(utterance.text))
            scores[name] |= {"wrong": word_error(recognized, utterance.text) * words, "words": words}
    return scores


@torch.inference_mode()
def decode_unquantized(model: MimiModel, audio: Tensor) -> Tensor:
    """Decode without the acoustic codebooks: `(batch, 1, samples)`.

    The semantic codebook still quantizes, as the decoder was trained with it; acoustic latents are only projected.
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
    sounds = {f"{utterance.id}, original": audio, "decoded from 8 codebooks": decoded}
    save_spectrograms(picture, sounds, rate, PICTURE_HZ)


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
            known = [[figures[metric] for figures in chosen if metric in figures] for metric in metrics]
            cells += [f"{mean(values):.3f}" if values else "-" for values in known]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def _print_voice(results: list[dict], scores: list[dict]) -> None:
    listened = f"{len(scores)} recordings"
    print(f"| | log F0, correlation | voicing error | voiced share | DNSMOS, {listened} | word error, {listened} |")
    print("|---" * 6 + "|")
    original = torch.cat([result["f0"]["original"] for result in results])
    for name in results[0]["f0"]:
        f0 = torch.cat([result["f0"][name] for result in results])
        both = (f0 > 0) & (original > 0)
        likeness = torch.corrcoef(torch.stack([f0[both], original[both]]).log())[0, 1]
        wrong = ((f0 > 0) != (original > 0)).float().mean()
        scored = [by_name[name] for by_name in scores if name in by_name]
        dnsmos, errors = nan, nan
        if scored and "dnsmos" in scored[0]:
            dnsmos = mean(score["dnsmos"] for score in scored)
        if scored and "words" in scored[0]:
            errors = sum(score["wrong"] for score in scored) / sum(score["words"] for score in scored)
        share = both.sum() / (original > 0).sum()
        cells = f"| {dnsmos:.2f} | {100 * errors:.1f} % |".replace("nan %", "-").replace("nan", "-")
        print(f"| {name} | {likeness:.3f} | {wrong:.3f} | {share:.3f} {cells}")
    print()


def _print_probes(results: list[dict], frame_rate: float) -> None:
    matrix, _ = probe_matrix([result["probed"] for result in results], {"latents": "latents"}, frame_rate)
    print("| predicted from the latents, unseen speakers | linear | one hidden layer | chance |\n|---|---|---|---|")
    for name, scores in matrix["scores"]["latents"].items():
        about = matrix["attributes"][name]
        figures = (scores["linear"]["mean"], scores["mlp"]["mean"], about["chance"])
        print(f"| {name}, {about['kind']} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    print()


def _print_usage(codes: Tensor, codebook_size: int) -> None:
    print(f"| codebook | entries used, of {codebook_size} | perplexity |\n|---|---|---|")
    for number, (used, perplexity) in enumerate(codebook_usage(codes, codebook_size)):
        print(f"| {number} | {used} ({100 * used / codebook_size:.0f} %) | {perplexity:.0f} |")
    print(f"\n{codes.shape[1]} frames.\n")


def _print_understood(results: list[dict], choices: int) -> None:
    counts = defaultdict(list)
    for result in results:
        for name, right in result["understood"].items():
            counts[name].append(right)
    print(f"| | right transcript among {choices} |\n|---|---|")
    for name, rights in counts.items():
        print(f"| {name} | {sum(rights)} of {len(rights)} ({100 * mean(rights):.1f} %) |")
    print(f"\n{len(results) - len(counts['original'])} recordings hold a word that the aligner's dictionary lacks.")


if __name__ == "__main__":
    main()
