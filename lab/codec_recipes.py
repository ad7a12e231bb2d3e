"""Compare recipes of codec training by voicing: python lab/codec_recipes.py --corpus FOLDER --minutes 5

Continues one codec with several recipes for the same CPU time each, and prints pitch, voicing and mel distance of
held-out speakers. The corpus is written by lab/train_codec.py (OUTPUT/corpus). Needs the extras `train` and `eval`.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import MimiModel

from codec_training.corpus import SpeechCorpus
from codec_training.losses import LossWeights
from codec_training.run import CodecTraining, Phase
from mimi_bridge import small_codec
from mimi_bridge.audio.sound import Sound
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance

BATCH_SIZE, CROP_FRAMES, FILTERS = 4, 12, 8
LEARNING_RATE, UNENDING = 4e-4, 10**6


class Recipe(NamedTuple):
    """A recipe: the phase, the weights of the distances and of the pitch target, and what is trained."""

    phase: str
    distances: dict[str, float]
    pitch: float = 0.0
    only_decoder: bool = False


MEL = {"mel": 1.0}
HARMONICS = {"mel": 1.0, "harmonics": 1.0}
RECIPES = {
    "mel distance alone": Recipe("codebooks", MEL),
    "+ harmonics": Recipe("codebooks", HARMONICS),
    "the same, encoder frozen": Recipe("codebooks", HARMONICS, only_decoder=True),
    "+ harmonics + pitch predicted from the latents": Recipe("codebooks", HARMONICS, pitch=0.5),
    "+ harmonics + pitch + discriminator": Recipe("adversarial", HARMONICS, pitch=0.5),
    "+ discriminator, without the others": Recipe("adversarial", MEL),
}


def main() -> None:
    """Train each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="with the folders train and held_out")
    parser.add_argument("--initial", default=str(small_codec()), help="the codec to continue")
    parser.add_argument("--minutes", type=float, default=5.0, help="of CPU time, each")
    parser.add_argument("--recordings", type=int, default=24, help="held-out, to be measured")
    parser.add_argument("--head-start", type=int, default=0, help="steps of the discriminator before its losses count")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held_out = SpeechCorpus(arguments.corpus / "held_out")
    print("| recipe | steps | log F0, correlation | voicing error | voiced share | mel |\n|---|---|---|---|---|---|")
    given = MimiModel.from_pretrained(arguments.initial).eval()
    _print("none", 0, given, held_out, arguments.recordings)
    for name, recipe in RECIPES.items():
        corpus = SpeechCorpus(arguments.corpus / "train")
        training = _train(recipe, corpus, given, 60 * arguments.minutes, arguments.head_start)
        _print(name, training.step, training.model.to_mimi(), held_out, arguments.recordings)


def _train(recipe: Recipe, corpus: SpeechCorpus, given: MimiModel, seconds: float, head_start: int) -> CodecTraining:
    weights = LossWeights(recipe.distances, pitch=recipe.pitch)
    phases = [Phase(recipe.phase, UNENDING, LEARNING_RATE)]
    sizes = (BATCH_SIZE, CROP_FRAMES, FILTERS)
    accelerator = Accelerator(cpu=True)
    training = CodecTraining(given.config, corpus, phases, *sizes, 0, accelerator, initial=given, weights=weights)
    training.head_start_steps = head_start
    if recipe.only_decoder:
        training.model.encoder.requires_grad_(False)
        training.parameters = [parameter for parameter in training.parameters if parameter.requires_grad]
    end = time.process_time() + seconds
    for _ in training.run():
        if time.process_time() > end:
            break
    return training


@torch.inference_mode()
def _print(name: str, steps: int, codec: MimiModel, held_out: SpeechCorpus, count: int) -> None:
    rate, frame_size = held_out.sampling_rate, codec.config.frame_size
    pitches, distances = [], []
    for number in range(0, len(held_out.utterances), max(1, len(held_out.utterances) // count)):
        audio = held_out.audio(number)
        audio = audio[:, : audio.shape[-1] // frame_size * frame_size]
        decoded = codec.decode(codec.encode(audio[None]).audio_codes).audio_values[0]
        distances.append(multi_scale_mel_distance(decoded[None], audio[None], rate))
        pitches.append(torch.stack([Sound(audio, rate).f0_hz, Sound(decoded, rate).f0_hz]))
    original, f0 = torch.cat(pitches, dim=1)
    both = (original > 0) & (f0 > 0)
    likeness = torch.corrcoef(torch.stack([original[both], f0[both]]).log())[0, 1]
    wrong, share = ((original > 0) != (f0 > 0)).float().mean(), both.sum() / (original > 0).sum()
    mel = torch.stack(distances).mean()
    print(f"| {name} | {steps} | {likeness:.2f} | {wrong:.3f} | {share:.2f} | {mel:.3f} |", flush=True)


if __name__ == "__main__":
    main()
