"""The reader of phones: it reads what codes spell, and its errors are counted as by hand."""

import pytest
import torch

from mimi_bridge.data.frame_targets import PHONES
from phone_reader import LABELS_PER_FRAME, phone_errors, phone_sequence, train_reader


def test_silence_and_what_is_no_phone_is_left_out_of_a_sequence():
    assert phone_sequence(["SIL", "AA1", "noise", "b", "AA0"]) == [
        PHONES.index("AA"),
        PHONES.index("B"),
        PHONES.index("AA"),
    ]


def test_reader_reads_phones_that_entries_spell_and_nothing_from_noise():
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(6, 8, generator=generator)

    def recordings(count, is_noise=False):
        found = []
        for _ in range(count):
            phones = torch.randint(1, 6, (12,), generator=generator)
            said = entries[phones].repeat_interleave(2, dim=0)  # two frames each
            found.append((torch.randn(24, 8, generator=generator) if is_noise else said, phones.tolist()))
        return found

    reader = train_reader(recordings(100), num_steps=60)
    assert reader(entries[:1, None]).shape == (1, LABELS_PER_FRAME, len(PHONES))
    assert phone_errors(reader, recordings(10)) < 0.2
    assert phone_errors(reader, recordings(10, is_noise=True)) > 0.5


class Scripted(torch.nn.Module):
    """Says 1, 1, blank, 1, 2 whatever it sees."""

    def forward(self, entries):
        return torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 1, 2]]), 4).float()


@pytest.mark.parametrize(
    ("said", "errors"), [([1, 1, 2], 0.0), ([1, 2], 0.5), ([3, 1, 2], 1 / 3), ([1, 1, 2, 3], 0.25)]
)
def test_errors_are_substitutions_insertions_and_deletions_over_phones_said(said, errors):
    assert phone_errors(Scripted(), [(torch.zeros(1, 1), said)]) == pytest.approx(errors)
