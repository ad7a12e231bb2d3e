"""Probe a codec's latents for phones and pitch: python lab/codec_latents.py --corpus FOLDER

A small causal network is trained to predict phone and pitch of a frame from a codec's latents up to that frame, and is
tested on speakers that neither it nor the codec was trained on. The corpus is written by lab/train_codec.py
(OUTPUT/corpus), with `--align` for the phones. Pitch is relative to the mean of crops of 5 s, so that knowing the
speaker does not help.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import MimiModel

from codec_training.corpus import SpeechCorpus
from mimi_bridge import small_codec

CROP_FRAMES = 64
TOGETHER = 8  # crops
WIDTH, LAYERS, KERNEL = 192, 3, 5
STEPS, LEARNING_RATE = 600, 2e-3
PITCH_WEIGHT = 4.0


class CausalNetwork(nn.Module):
    """Convolutions over latents so far: phone scores and log2 F0, `(batch, phones + 1, frames)`."""

    def __init__(self, latent_dim: int, num_phones: int):
        super().__init__()
        sizes = [latent_dim] + [WIDTH] * LAYERS
        layers = []
        for size, next_size in pairwise(sizes):
            layers += [nn.ConstantPad1d((KERNEL - 1, 0), 0.0), nn.Conv1d(size, next_size, KERNEL), nn.ELU()]
            layers += [nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv1d(WIDTH, num_phones + 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """See the class; `(batch, latent_dim, frames)` comes in."""
        return self.layers(latents)


def main() -> None:
    """Encode, train, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="with the folders train and held_out")
    parser.add_argument("--codecs", nargs="+", default=[str(small_codec())], help="Mimi checkpoints")
    parser.add_argument("--minutes", type=float, default=20.0, help="of speech to train on; half as much to test on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| codec | phone accuracy | log F0 within 5 s, r² | frames |\n|---|---|---|---|")
    for name in arguments.codecs:
        codec = MimiModel.from_pretrained(name).eval()
        train, held_out = SpeechCorpus(arguments.corpus / "train"), SpeechCorpus(arguments.corpus / "held_out")
        phones, share, frames = _probe(
            _crops(codec, train, arguments.minutes, 0), _crops(codec, held_out, arguments.minutes / 2, 1)
        )
        print(f"| {name} | {phones:.2f} | {share:.2f} | {frames} |", flush=True)


@torch.inference_mode()
def _crops(codec: MimiModel, corpus: SpeechCorpus, minutes: float, seed: int) -> dict[str, Tensor]:
    # Latents and their labels.
    found: dict[str, list[Tensor]] = {name: [] for name in ("latents", "phones", "labelled", "pitch", "voiced")}
    seconds = TOGETHER * CROP_FRAMES / codec.config.frame_rate
    for number in range(round(60 * minutes / seconds)):
        batch = corpus.crops(TOGETHER, CROP_FRAMES, codec.config.frame_size, (seed, number), augment=False)
        found["latents"].append(codec.encoder(batch.audio).latents)
        found["phones"].append(batch.label_shares.argmax(dim=-1))
        found["labelled"].append(batch.labelled)
        found["pitch"].append(batch.pitch)
        found["voiced"].append(batch.voiced > 0.5)
    return {name: torch.cat(parts).clone() for name, parts in found.items()}


def _probe(train: dict[str, Tensor], held_out: dict[str, Tensor]) -> tuple[float, float, int]:
    mean, std = train["latents"].mean(dim=(0, 2), keepdim=True), train["latents"].std(dim=(0, 2), keepdim=True)
    middle = train["pitch"][train["voiced"]].mean()
    torch.manual_seed(0)
    network = CausalNetwork(mean.shape[1], int(train["phones"].max()) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(train["latents"]), (16,))
        chosen = {name: values[rows] for name, values in train.items()}
        predicted = network((chosen["latents"] - mean) / std).transpose(1, 2)
        phones = nn.functional.cross_entropy(
            predicted[chosen["labelled"]][:, :-1], chosen["phones"][chosen["labelled"]]
        )
        pitch = (predicted[..., -1] - (chosen["pitch"] - middle))[chosen["voiced"]].square().mean()
        (phones + PITCH_WEIGHT * pitch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.inference_mode():
        predicted = network.eval()((held_out["latents"] - mean) / std).transpose(1, 2)
    right = (predicted[..., :-1].argmax(dim=-1) == held_out["phones"])[held_out["labelled"]].float().mean()
    voiced = held_out["voiced"]
    pitch, truth = (_less_own_mean(values, voiced) for values in (predicted[..., -1], held_out["pitch"]))
    missed = (pitch - truth)[voiced].square().sum() / truth[voiced].square().sum()
    return right.item(), 1 - missed.item(), int(voiced.sum())


def _less_own_mean(values: Tensor, voiced: Tensor) -> Tensor:
    # Of each crop, over its voiced frames.
    count = voiced.sum(dim=1, keepdim=True).clamp(min=1)
    return values - (values * voiced).sum(dim=1, keepdim=True) / count


if __name__ == "__main__":
    main()
