"""What a GPU is checked and measured on, where there is no recording: a made-up voice, and a batch to train on."""

import torch
from torch import Tensor

from mimi_bridge import MimiBridgeModel
from peers import RATE


def voice(seconds: float, seed: int = 0) -> Tensor:
    """A made-up voice, `(1, 1, samples)`: gliding harmonics under moving formants, pauses, hisses."""
    generator = torch.Generator().manual_seed(seed)
    num_samples = round(seconds * RATE)
    t = torch.arange(num_samples, dtype=torch.float64) / RATE
    points = max(4, round(5 * seconds))

    def curve(low: float, high: float) -> Tensor:
        values = torch.empty(1, 1, points, dtype=torch.float64).uniform_(low, high, generator=generator)
        return torch.nn.functional.interpolate(values, num_samples, mode="linear", align_corners=True)[0, 0]

    pitch, formants = curve(90, 240), [(curve(300, 800), 120), (curve(900, 2300), 200), (curve(2400, 3400), 300)]
    phase, sound = 2 * torch.pi * (pitch / RATE).cumsum(0), torch.zeros_like(t)
    for number in range(1, 31):
        envelope = sum(torch.exp(-(((number * pitch - centre) / (2 * width)) ** 2)) for centre, width in formants)
        sound += (envelope + 0.02) * torch.sin(number * phase) / number**0.5
    noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    sound = sound * curve(-0.3, 1.0).clamp(min=0) + noise * (0.3 * curve(-1.0, 1.0).clamp(min=0) + 0.003)
    return (0.5 * sound / sound.abs().max()).float()[None, None]


def training_batch(model: MimiBridgeModel, device: torch.device) -> dict[str, Tensor]:
    """Two recordings of 2 and 1.4 s with made-up teachers."""
    generator, config = torch.Generator().manual_seed(0), model.config
    starts = torch.arange(6) / 5
    batch = {
        "input_values": torch.cat([voice(2, seed) for seed in (3, 4)]),
        "padding_mask": torch.arange(2 * RATE) < torch.tensor([[2 * RATE], [1.4 * RATE]]),
        "qwen_hidden": torch.randn(2, 6, config.qwen_dim, generator=generator),
        "token_spans": torch.stack([starts, starts + 0.15], dim=-1).expand(2, -1, -1).clone(),
        "token_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        "wavlm_features": torch.randn(2, 25, config.wavlm_dim, generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}
