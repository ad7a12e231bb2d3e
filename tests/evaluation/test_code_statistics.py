"""Usage, bits, and what is Mimi's own."""

import pytest
import torch

from mimi_bridge.evaluation.code_statistics import code_statistics, phone_information


def test_figures_are_over_all_recordings_and_by_head(tiny_model):
    even = torch.arange(64)
    codes = torch.stack([torch.zeros(64).long(), even, *[even] * 7])
    figures = code_statistics(tiny_model, [codes[:, :10], codes[:, 10:]], [None, None])
    assert [row["head"] for row in figures["bridge"]] == ["content", "prosody", *["acoustic"] * 7]
    assert figures["bridge"][0] == {
        "head": "content",
        "codebook": 0,
        "used": 1,
        "size": 64,
        "perplexity": pytest.approx(1),
        "bits_per_second": pytest.approx(0),
    }
    assert figures["bridge"][1]["bits_per_second"] == pytest.approx(6 * 12.5)  # 64 codes, evenly
    assert figures["bits_per_second"]["acoustic"] == pytest.approx(7 * 6 * 12.5)
    assert figures["mimi"] == [] and figures["overlap_with_mimi"] == [None] * 9


def test_overlap_is_the_share_of_frames_with_mimis_code_where_mimi_has_one(tiny_model):
    codes = torch.arange(9)[:, None].repeat(1, 4)
    stock = codes[1:].clone()
    stock[0, 0] = 60
    stock[7] = 60
    figures = code_statistics(tiny_model, [codes, codes], [stock, None])
    assert figures["overlap_with_mimi"] == [None, 0.75, 1, 1, 1, 1, 1, 1, 0]
    assert len(figures["mimi"]) == 8


def test_codes_that_are_the_phone_take_all_of_its_entropy_away_and_one_code_takes_none():
    phones = ["AA", "B", "K", "S"] * 100
    information, shuffled = phone_information(torch.arange(4).repeat(100), phones)
    assert information == pytest.approx(1) and shuffled < 0.05
    assert phone_information(torch.zeros(400).long(), phones) == (pytest.approx(0), pytest.approx(0))


def test_shuffled_phones_show_what_few_frames_give_by_chance():
    phones = [["AA", "B"][number] for number in torch.randint(0, 2, (60,)).tolist()]
    information, shuffled = phone_information(
        torch.arange(60), phones
    )  # a code for each frame tells all, of any phones
    assert information == pytest.approx(1) and shuffled == pytest.approx(1)


def test_frames_without_a_phone_are_not_counted_and_one_phone_is_none():
    assert phone_information(torch.tensor([3, 5, 5]), ["AA", None, "AA"]) is None
    information, _ = phone_information(torch.tensor([3, 3, 5, 5]), ["AA", None, "B", "B"])
    assert information == pytest.approx(1)


def test_content_that_is_late_is_compared_with_what_was_said_then(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.config, "content_delay", 1)
    spoken = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(9, 200, dtype=torch.long)
    codes[0, 1:] = spoken[:-1]
    codes[1] = spoken
    phones = [[["AA", "B", "K", "S"][number] for number in spoken.tolist()]]
    content, prosody, *rest = code_statistics(tiny_model, [codes], [codes[1:]], phones)["bridge"]
    assert content["pnmi"] == pytest.approx(1, abs=0.05) and prosody["pnmi"] == pytest.approx(1)
    assert all(row["pnmi"] == pytest.approx(0, abs=1e-6) for row in rest)
