"""Characters in time: bytes of words, spaces between, crops, and what cannot be read."""

import pytest
import torch

from mimi_bridge.data.characters import characters_by_frame
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.losses.characters import character_loss, constant_character_loss

WORDS = [{"word": "Ah", "start": 0.0, "end": 0.4}, {"word": "né", "start": 0.48, "end": 0.96}]


def text(labels: torch.Tensor) -> str:
    return bytes(label - 1 for label in labels.tolist() if label > 0).decode(errors="replace")


def test_bytes_of_lower_case_words_lie_evenly_in_their_time_with_spaces_between():
    found = characters_by_frame(WORDS, 20, 12.5, "row 1")
    assert text(found[:, 0]) == "ah né"
    middles = [0.1, 0.3, 0.48, 0.56, 0.72, 0.88]  # the two bytes of é among them
    assert found[:, 1].tolist() == [int(middle * 12.5 + 1e-6) for middle in middles]


def test_words_turned_around_are_the_same_and_empty_ones_are_none():
    around = {"word": ["Ah", " ", "né"], "start": [0.0, 0.4, 0.48], "end": [0.4, 0.48, 0.96]}
    assert torch.equal(characters_by_frame(around, 20, 12.5, "r"), characters_by_frame(WORDS, 20, 12.5, "r"))
    assert characters_by_frame([], 20, 12.5, "r").shape == (0, 2)


def test_character_after_the_last_frame_is_in_it():
    assert characters_by_frame(WORDS, 3, 12.5, "r")[:, 1].max() == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ah"], "words of row 1 must be mappings of word, start and end"),
        ([{"word": "ah", "start": "x", "end": 1}], "words of row 1 must be mappings of word, start and end"),
        ([{"word": "ah", "start": 1.0, "end": 0.5}], "words of row 1 must begin before they end"),
        ([{"word": "ah", "start": -1.0, "end": 0.5}], "words of row 1 must begin before they end"),
    ],
)
def test_words_that_cannot_be_read_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        characters_by_frame(words, 20, 12.5, "row 1")


def test_crops_keep_what_is_written_inside_and_rows_without_words_say_so():
    collate = MimiBridgeCollator(24_000, 1_920, crop_seconds=0.4).with_frame_targets(["characters"])
    rows = [{"latents": torch.randn(15, 4), "words": WORDS}, {"latents": torch.randn(4, 4)}]
    whole = MimiBridgeCollator(24_000, 1_920).with_frame_targets(["characters"])(rows)
    assert whole["character_mask"].tolist() == [True, False]
    assert text(whole["character_labels"][0]) == "ah né" and not text(whole["character_labels"][1])
    firsts = set()
    for epoch in range(6):
        collate.set_epoch(epoch)
        batch = collate(rows)
        first = next(n for n in range(11) if torch.equal(batch["latents"][0], rows[0]["latents"][n : n + 5]))
        firsts.add(first)
        kept = batch["character_frames"][0][batch["character_labels"][0] > 0]
        assert [frame + first for frame in kept.tolist()] == [
            frame for frame in whole["character_frames"][0].tolist() if first <= frame < first + 5
        ]
    assert len(firsts) > 2


def test_frames_too_few_for_their_characters_add_nothing():
    labels, sizes = torch.tensor([[5, 5, 5, 5, 5]]), torch.tensor([5])
    log_probs = torch.zeros(1, 8, 257).log_softmax(-1)
    assert character_loss(log_probs, torch.tensor([2]), labels, sizes).item() == 0  # eight labels hold four of a kind
    assert constant_character_loss(torch.tensor([2]), labels, sizes).item() == 0
