"""A small reader of phones from the codes of one head: what a model that hears nothing else makes of them.

Trained by CTC on the codes of training speakers, it sees half a second to either side; it writes four labels a frame,
since twelve and a half frames a second are fewer than fast speech has phones.

Source: Graves et al. 2006 (CTC).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mimi_bridge.data.frame_targets import PHONES, UNKNOWN, phone_number

LABELS_PER_FRAME = 4
WIDTH = 192
KERNEL, DILATIONS = 5, (1, 2)  # frames: 6 to either side
BATCH = 16
LEARNING_RATE = 2e-3
BLANK = 0  # the number of silence, which is no phone here


class PhoneReader(nn.Module):
    """From entries `(batch, frames, dim)` to log probabilities of blank and 39 phones, `(batch, 4 * frames, 40)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.entry = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, WIDTH))
        self.layers = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation)
            for dilation in DILATIONS
        )
        self.dropout = nn.Dropout(0.1)
        self.labels = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LABELS_PER_FRAME * len(PHONES)))

    def forward(self, entries: Tensor) -> Tensor:
        """`(batch, frames, dim)` -> log probabilities."""
        hidden = self.entry(entries).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + self.dropout(nn.functional.gelu(layer(hidden)))
        hidden = hidden.transpose(1, 2)
        return self.labels(hidden).unflatten(-1, (LABELS_PER_FRAME, -1)).flatten(1, 2).log_softmax(dim=-1)


def phone_sequence(labels: Iterable[str]) -> list[int]:
    """Numbers of the phones that are said one after the other, without silence and what is none of ARPAbet."""
    numbers = [phone_number(label) for label in labels]
    return [number for number in numbers if number not in (BLANK, UNKNOWN)]


def train_reader(recordings: Sequence[tuple[Tensor, list[int]]], num_steps: int, seed: int = 0) -> PhoneReader:
    """Train on entries `(frames, dim)` and phones of recordings; in eval mode afterwards."""
    torch.manual_seed(seed)
    reader = PhoneReader(recordings[0][0].shape[-1]).train()
    optimizer = torch.optim.AdamW(reader.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    usable = [pair for pair in recordings if 0 < len(pair[1]) <= LABELS_PER_FRAME * len(pair[0])]
    for _ in range(num_steps):
        chosen = [usable[number] for number in torch.randint(len(usable), (BATCH,)).tolist()]
        entries = nn.utils.rnn.pad_sequence([own for own, _ in chosen], batch_first=True)
        loss = nn.functional.ctc_loss(
            reader(entries).transpose(0, 1),
            torch.tensor([number for _, phones in chosen for number in phones]),
            torch.tensor([LABELS_PER_FRAME * len(own) for own, _ in chosen]),
            torch.tensor([len(phones) for _, phones in chosen]),
            blank=BLANK,
            zero_infinity=True,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return reader.eval()


@torch.inference_mode()
def phone_errors(reader: PhoneReader, recordings: Sequence[tuple[Tensor, list[int]]]) -> float:
    """Substitutions, insertions and deletions of the most probable labels, over the phones of all recordings."""
    from torchaudio.functional import edit_distance

    wrong = said = 0
    for entries, phones in recordings:
        best = reader(entries[None])[0].argmax(dim=-1).unique_consecutive().tolist()
        wrong += edit_distance([number for number in best if number != BLANK], phones)
        said += len(phones)
    return wrong / said
