#!/usr/bin/env python
"""How many codes does rounding move when clips are encoded in one padded batch instead of alone?

A full-size Mimi with random weights, transformers' own modules, clips of five lengths padded with silence to whole
frames: everything is equal but the shapes of the matrix products. `MimiBridgeModel.encode` runs padded rows one by one
on a CPU so that the answer is none for certain.

    python benchmarks/padded_batch.py
"""

import sys
from pathlib import Path

import torch
from transformers import MimiConfig

from mimi_bridge.frames import num_frames_for

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from mimi_bridge.audio.espeak import SENTENCES, sample_speech, synthesize
from random_mimi import random_mimi

FRAME = 1920
FRAMES = (5, 13, 10, 1, 32)
BATCHES = 14


@torch.inference_mode()
def main() -> None:
    """Print the share of codes that differ, as a markdown table."""
    fitting = torch.cat([synthesize(text, "en-gb-scotland+m4", words_per_minute=190) for text in SENTENCES], dim=-1)
    model, speech = random_mimi(MimiConfig(), fitting), sample_speech(seconds=48)
    available = num_frames_for(speech.shape[-1], FRAME) - max(FRAMES)
    codes = moved = 0
    for batch in range(BATCHES):
        starts = [(batch * 23 + 41 * row) % available * FRAME for row in range(len(FRAMES))]
        clips = [speech[:, s : s + n * FRAME] for s, n in zip(starts, FRAMES, strict=True)]
        padded = torch.zeros(len(clips), 1, max(FRAMES) * FRAME)
        for row, clip in zip(padded, clips, strict=True):
            row[:, : clip.shape[-1]] = clip
        together = model.encode(padded, num_quantizers=8).audio_codes
        for row, clip in zip(together, clips, strict=True):
            alone = model.encode(clip[None], num_quantizers=8).audio_codes[0]
            codes += alone.numel()
            moved += int((alone != row[:, : alone.shape[-1]]).sum())
    print("| codes compared | moved by rounding | share |\n|---|---|---|")
    print(f"| {codes} | {moved} | {moved / codes:.1e} |")


if __name__ == "__main__":
    main()
