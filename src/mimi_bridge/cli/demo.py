"""The whole way once, with what is at hand: speech, a Mimi checkpoint, conversion, codes, sound, training, a report.

Without a network nobody has Kyutai's weights: the demonstration then takes the small codec of the package.
With `--source kyutai/mimi` it does the same with the real ones.
"""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoFeatureExtractor, AutoModel

from ..audio.espeak import MADE_SPEECH, NATURAL_SPEECH, given_or_made_speech
from ..audio.files import load_audio, save_audio
from ..audio.spectrogram import save_spectrograms
from ..codes.file import Codes, fingerprint, save_codes
from ..weights import SMALL_CODEC
from . import demo_training

SAMPLING_RATE = 24_000
SPEECH_SECONDS = 24.0
CONVERTER = Path(__file__).parents[3] / "conversion" / "convert_kyutai.py"


def run_demo(output: Path, source: str = SMALL_CODEC, speech: str | None = None, training: bool = True) -> None:
    """Convert, load, encode and decode, then train and evaluate; print what happens and where everything lies.

    Args:
        output: Folder for the sounds, codes, picture, and the model.
        source: A Mimi checkpoint for the converter; `"small"` is the one that comes with the package.
        speech: A recording or a folder of them; None takes `$MIMI_BRIDGE_SPEECH`, else makes speech.
        training: Whether to fine-tune, on speech that is made, and to write the report.

    Raises:
        FileNotFoundError: If the converter is not there (the demonstration needs a clone), or the speech.
        ValueError: If the conversion fails.
        RuntimeError: If training or evaluation fails.
    """
    if not CONVERTER.is_file():
        raise FileNotFoundError("the demonstration needs a clone of the repository: conversion/ is not installed.")
    output.mkdir(parents=True, exist_ok=True)
    audio, name = given_or_made_speech(speech, SPEECH_SECONDS, SAMPLING_RATE, natural=True)
    origin = name if name in (MADE_SPEECH, NATURAL_SPEECH) else f"from {name}"
    original = output / "original.wav"
    save_audio(original, audio, SAMPLING_RATE)
    audio = load_audio(original, SAMPLING_RATE)  # what the file holds is what is encoded: 16 bits move some codes
    print(f"speech: {audio.shape[-1] / SAMPLING_RATE:.1f} s, {origin}", flush=True)

    model_folder = output / "model"
    command = [sys.executable, str(CONVERTER), "--source", source, "--output", str(model_folder)]
    teacher = demo_training.text_teacher() if training else None
    if teacher is not None:
        command += ["--qwen-dim", str(demo_training.TEXT_TEACHER_DIM)]
    print(f"$ python conversion/convert_kyutai.py {' '.join(command[2:])}", flush=True)
    if subprocess.run([*command, "--overwrite", "--speech", str(original)], check=False).returncode != 0:
        raise ValueError("the conversion failed, see above.")

    model = AutoModel.from_pretrained(model_folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(model_folder)
    inputs = extractor(audio[0].numpy(), sampling_rate=SAMPLING_RATE, return_tensors="pt")
    with torch.inference_mode():
        audio_codes = model.encode(**inputs).audio_codes
        decoded = model.decode(audio_codes).audio_values[0, :, : audio.shape[-1]]
    save_codes(output / "codes.safetensors", Codes(audio_codes[0], audio.shape[-1], SAMPLING_RATE, fingerprint(model)))
    save_audio(output / "decoded.wav", decoded, SAMPLING_RATE)
    save_spectrograms(output / "spectrogram.png", {"original": audio, "decoded": decoded}, SAMPLING_RATE)
    print(f"codes: {tuple(audio_codes.shape)} (batch, codebooks, frames); frame 10: {audio_codes[0, :, 10].tolist()}")
    for name in (
        "original.wav",
        "decoded.wav",
        "spectrogram.png",
        "codes.safetensors",
        "model/conversion_report.json",
    ):
        print(f"  {output / name}")
    if training and teacher is None:
        print(f"no fine-tuning: it needs the package {demo_training.TEXT_TEACHER.replace('_', '-')}.")
    elif teacher is not None:
        report = demo_training.run_training(output / "training", model_folder, source, teacher)
        print(f"what each head carries, with sounds, to open in a browser:\n  {report}")
