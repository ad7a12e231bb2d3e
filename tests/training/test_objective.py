"""Each loss is a mean over the frames of the whole step, however the step is divided into batches."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.codebook import CodebookLearner
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.losses.reconstruction import NUM_MELS, log_mel
from mimi_bridge.outputs import MimiBridgeOutput
from mimi_bridge.training.objective import head_terms, latents_term, mel_term, weighted_sum
from mimi_bridge.training.terms import COUNTED, LOSSES, Term, batch_frame_mask, count_frames
from tiny import TINY

DIM, QWEN_DIM, WAVLM_DIM = 16, 6, 5
FRAME, SAMPLING_RATE = 1_920, 24_000
SIZES = {"hidden_size": DIM, "codebook_size": 16, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8}
CONFIG = MimiBridgeConfig(
    **{**TINY, **SIZES, "upsample_groups": DIM}, num_acoustic_codebooks=3, qwen_dim=QWEN_DIM, wavlm_dim=WAVLM_DIM
)
DIVISIONS = pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 4], [3, 1, 2]], ids=str)


@pytest.fixture(scope="module")
def model() -> MimiBridgeModel:
    """A small model in training mode whose codebooks are parameters and wait for the end of the step."""
    torch.manual_seed(0)
    model = MimiBridgeModel(CONFIG)
    for head in model.quantizer.heads.values():
        head.learner = CodebookLearner(head.vq_codebooks, "gradient", decay=0.99)
    return model.train()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Six recordings of 3 to 20 frames; the second has no text, the third no features, the last neither."""
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for number, num_frames in enumerate([20, 3, 11, 8, 16, 5]):
        latents = torch.randn(num_frames, DIM, generator=generator)
        row = {"latents": latents, "target_latents": latents + torch.randn(latents.shape, generator=generator)}
        if number not in (1, 5):
            durations = torch.tensor([1, 0, num_frames // 2, 2])
            states = torch.randn(4, QWEN_DIM, generator=generator)
            mask = torch.tensor([True, True, True, number != 3])
            row |= {"qwen_hidden": states, "durations": durations, "token_mask": mask}
        if number not in (2, 5):
            row["wavlm_features"] = torch.randn(num_frames, WAVLM_DIM, generator=generator)
        rows.append(row)
    return rows


def batches_of(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Tensor]]:
    """Padded batches of so many rows; whatever stands in padding is large."""
    batches, collate = [], MimiBridgeCollator.for_model(CONFIG)
    for size, end in zip(sizes, torch.tensor(sizes).cumsum(0).tolist(), strict=True):
        batch = collate(rows[end - size : end])
        for name in ("latents", "target_latents"):
            batch[name] = batch[name].masked_fill(~batch["frame_mask"][:, :, None], 1e3)
        batches.append(batch)
    return batches


def terms_of(model: MimiBridgeModel, batch: dict[str, Tensor]) -> dict[str, Term]:
    batch = dict(batch)
    target = batch.pop("target_latents")
    outputs = model(**batch, output_audio=False)
    return head_terms(outputs) | {"latents": latents_term(outputs, target)}


# --- frames ---

REAL = torch.tensor([[True, True, True, True], [True, True, False, False]])
LATENTS = {"latents": torch.zeros(2, 4, DIM), "frame_mask": REAL}
STATES = {"qwen_hidden": torch.zeros(2, 2, QWEN_DIM)}
DURATIONS = {**STATES, "durations": torch.tensor([[1, 2], [1, 0]])}
SPANS = {**STATES, "token_spans": torch.tensor([[[0.0, 0.1], [0.2, 0.24]], [[0.08, 0.16], [0.0, 0.0]]])}
FEATURES = {"wavlm_features": torch.zeros(2, 4, WAVLM_DIM)}
AUDIO = {"input_values": torch.zeros(2, 1, 2 * FRAME + 1)}
SAMPLES = torch.arange(2 * FRAME + 1) < torch.tensor([[2 * FRAME + 1], [FRAME]])


def totals_of(*counts: int) -> Tensor:
    """Frames of a step, of the first kinds; none of the others."""
    return torch.tensor([*counts, *[0] * (len(COUNTED) - len(counts))], dtype=torch.float64)


@pytest.mark.parametrize(
    "batch, expected",
    [
        ({"latents": torch.zeros(2, 4, DIM)}, [8, 0, 0]),
        (LATENTS, [6, 0, 0]),
        ({**LATENTS, **DURATIONS}, [6, 4, 0]),
        ({**LATENTS, **DURATIONS, "token_mask": torch.tensor([[True, False], [True, True]])}, [6, 2, 0]),
        ({**LATENTS, **SPANS}, [6, 4, 0]),  # frames 0, 1 and 2 of the first row, frame 1 of the second
        ({**LATENTS, **SPANS, "token_mask": torch.tensor([[True, True], [False, True]])}, [6, 3, 0]),
        ({**LATENTS, **FEATURES}, [6, 0, 6]),
        ({**LATENTS, **FEATURES, "wavlm_mask": torch.tensor([[True] * 4, [False] * 4])}, [6, 0, 4]),
        ({**LATENTS, **FEATURES, "wavlm_mask": torch.ones(2, 4).bool()}, [6, 0, 6]),
        ({**LATENTS, **DURATIONS, **FEATURES}, [6, 4, 6]),
        (AUDIO, [6, 0, 0]),
        ({**AUDIO, "padding_mask": SAMPLES.long()}, [4, 0, 0]),
        ({**AUDIO, "padding_mask": SAMPLES.long(), "wavlm_features": torch.zeros(2, 11, WAVLM_DIM)}, [4, 0, 4]),
    ],
    ids=lambda value: "" if isinstance(value, list) else "+".join(value),
)
def test_frames_are_counted_for_each_kind_of_loss(model, batch, expected):
    counts = count_frames(batch, model)
    of_content = dict(zip(COUNTED, counts.tolist(), strict=True))
    assert [of_content.pop(name) for name in ("frames", "qwen", "wavlm")] == expected
    assert of_content.pop("speech_content") == expected[2] and not any(of_content.values())
    assert counts.dtype == torch.int64  # MPS has no float64


@pytest.mark.parametrize(
    "batch, expected",
    [
        (LATENTS, REAL.tolist()),
        ({"latents": torch.zeros(1, 2, DIM)}, [[True, True]]),
        ({**AUDIO, "padding_mask": SAMPLES.long()}, [[True, True, True], [True, False, False]]),
        (AUDIO, [[True] * 3] * 2),
    ],
    ids=["latents", "latents without a mask", "audio", "audio without a mask"],
)
def test_mask_is_true_on_real_frames(model, batch, expected):
    assert batch_frame_mask(batch, model).tolist() == expected


@DIVISIONS
def test_frames_of_the_batches_sum_to_the_frames_of_the_step(model, rows, sizes):
    total = sum(count_frames(batch, model) for batch in batches_of(rows, sizes))
    with_text = [row for row in rows if "durations" in row]
    num_text = sum(int(row["durations"][row["token_mask"]].sum()) for row in with_text)
    num_features = sum(len(row["wavlm_features"]) for row in rows if "wavlm_features" in row)
    assert total.tolist()[:3] == [sum(len(row["latents"]) for row in rows), num_text, num_features]


@pytest.mark.parametrize(("delay", "num_phones", "num_features"), [(0, 4, 6), (1, 2, 4), (9, 0, 0)])
def test_frames_with_something_to_read_are_counted_as_late_as_content_is(model, delay, num_phones, num_features):
    model = deepcopy(model)
    model.config.content_delay = delay
    phones = torch.tensor([[3, -100, 1, 0], [-100, 5, 7, 7]])
    masks = torch.tensor([[[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]], [[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1]]])
    prosody = {"prosody_targets": torch.zeros(2, 4, 3), "prosody_mask": masks.bool()}
    batch = {**LATENTS, **FEATURES, **prosody, "phone_ids": phones, "speaker_ids": torch.tensor([-100, 1])}
    batch |= {
        "character_labels": torch.tensor([[98, 99], [-100, -100]]),
        "character_mask": torch.tensor([True, False]),
    }
    batch |= {"character_frames": torch.tensor([[0, 3], [-100, -100]])}
    counts = dict(zip(COUNTED, count_frames(batch, model).tolist(), strict=True))
    expected = {
        "phone": num_phones,
        "character": max(0, 4 - delay),
        "speech_content": num_features,
        "pitch": 4,
        "level": 5,
        "speaker": 2,
    }
    assert counts == {"frames": 6, "qwen": 0, "wavlm": 6} | expected


def test_targets_of_other_frames_are_refused(model):
    with pytest.raises(ValueError, match=r"phone_ids must have one entry for each of the \(2, 4\) \(batch, frames\)"):
        count_frames({**LATENTS, "phone_ids": torch.zeros(2, 5).long()}, model)


def test_losses_are_means_over_the_frames_they_are_counted_in(model, rows):
    for batch in batches_of(rows, [2, 4]):
        counts = dict(zip(COUNTED, count_frames(batch, model), strict=True))
        terms = terms_of(model, batch)
        assert {name: int(term.num_frames) for name, term in terms.items()} == {
            name: int(counts[LOSSES[name]]) for name in terms
        }


def test_losses_are_means_over_the_frames_they_are_counted_in_where_content_answers_late(model, rows, monkeypatch):
    monkeypatch.setattr(model.config, "content_delay", 2)
    (batch,) = batches_of(rows, [6])
    counts = dict(zip(COUNTED, count_frames(batch, model), strict=True))
    assert int(terms_of(model, batch)["qwen"].num_frames) == int(counts[LOSSES["qwen"]])


# --- the heads' own losses ---


def test_terms_are_the_losses_that_the_model_gives(model, rows):
    (batch,) = batches_of(rows, [6])
    del batch["target_latents"]
    outputs = model(**batch, output_audio=False)
    heads = ("content", "prosody", "acoustic")
    names = {"qwen", "wavlm", *(f"{loss}_{head}" for loss in ("commitment", "codebook") for head in heads)}
    assert set(outputs.losses) == names
    assert {name: term.value for name, term in head_terms(outputs).items()} == outputs.losses


def test_terms_are_none_where_there_is_nothing_to_learn_from(model, rows):
    latents = rows[0]["latents"][None]
    mask = torch.ones(1, latents.shape[1]).bool()
    assert head_terms(deepcopy(model).eval()(latents=latents, frame_mask=mask, output_audio=False)) == {}


@torch.no_grad()
def slow_teacher_errors(model: MimiBridgeModel, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Row by row and frame by frame: squared errors of the bridges."""
    model = deepcopy(model).eval()
    errors: dict[str, list[float]] = {"qwen": [], "wavlm": []}
    for row in rows:
        outputs = model(latents=row["latents"][None], output_audio=False)
        targets: dict[str, list[Tensor | None]] = {"qwen": [], "wavlm": list(row.get("wavlm_features", []))}
        for state, duration, counts in zip(
            *(row.get(name, []) for name in ("qwen_hidden", "durations", "token_mask")), strict=True
        ):
            targets["qwen"] += [state if counts else None] * int(duration)
        for name, entries in (("qwen", outputs.content[0]), ("wavlm", (outputs.content + outputs.prosody)[0])):
            for frame, target in enumerate(targets[name]):
                if target is not None:
                    bridge = getattr(model.quantizer, f"proj_{name}")
                    errors[name].append((bridge(entries[frame]) - target).square().mean().item())
    return errors


@DIVISIONS
def test_teachers_shares_sum_to_the_mean_over_all_frames_with_a_target(model, rows, sizes):
    batches = batches_of(rows, sizes)
    totals = sum(count_frames(batch, model) for batch in batches)
    for name, errors in slow_teacher_errors(model, rows).items():
        got = sum(weighted_sum(terms_of(model, batch), {name: 3.0}, totals).item() for batch in batches)
        assert got == pytest.approx(3 * sum(errors) / len(errors), rel=1e-5)


@DIVISIONS
def test_shares_of_the_batches_sum_to_the_loss_of_one_large_batch_and_its_gradient(model, rows, sizes):
    weights = {"qwen": 1.0, "wavlm": 0.7, "commitment": 0.25, "codebook": 1.0, "latents": 2.0}
    losses, gradients = [], []
    for division in ([len(rows)], sizes):
        batches = batches_of(rows, division)
        totals = sum(count_frames(batch, model) for batch in batches)
        model.zero_grad()
        parts = [weighted_sum(terms_of(model, batch), weights, totals) for batch in batches]
        sum(parts).backward()
        losses.append(sum(part.item() for part in parts))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys() == {n for n, _ in model.named_parameters() if "quantizer" in n}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-3, msg=name)


# --- latents ---


def output_of(quantized: Tensor, mask: Tensor) -> MimiBridgeOutput:
    return MimiBridgeOutput(quantized=quantized, audio_codes_mask=mask)


def test_latents_term_is_the_mean_of_each_real_frames_relative_square_by_hand():
    target = torch.tensor([[[2.0, 0.0], [3.0, 4.0]], [[0.0, 1.0], [torch.nan, 9.0]]])
    quantized = torch.tensor([[[2.0, 1.0], [3.0, -1.0]], [[0.0, 1.0], [5.0, torch.nan]]])
    term = latents_term(output_of(quantized, torch.tensor([[True, True], [True, False]])), target)
    assert term.value.item() == pytest.approx((1 / 4 + 25 / 25 + 0) / 3)
    assert term.num_frames == 3


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_latents_term_does_not_mind_how_loud_a_frame_is(scale):
    torch.manual_seed(0)
    target, mask = torch.randn(2, 5, DIM), torch.arange(5) < torch.tensor([[5], [3]])
    quantized, factors = target + torch.randn(target.shape), torch.ones(2, 5, 1)
    factors[0, 2] = scale
    value = latents_term(output_of(quantized, mask), target).value
    torch.testing.assert_close(latents_term(output_of(quantized * factors, mask), target * factors).value, value)


def test_latents_term_is_finite_with_its_gradient_where_the_target_is_silent():
    quantized = torch.full((1, 2, DIM), 1e-3, requires_grad=True)
    term = latents_term(output_of(quantized, torch.ones(1, 2).bool()), torch.zeros(1, 2, DIM))
    term.value.backward()
    assert term.value.isfinite() and quantized.grad.isfinite().all() and quantized.grad.any()


def test_latents_term_pulls_real_frames_only():
    torch.manual_seed(0)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    quantized = torch.randn(2, 5, DIM, requires_grad=True)
    latents_term(output_of(quantized, mask), torch.randn(2, 5, DIM)).value.backward()
    assert torch.equal(quantized.grad.ne(0).any(dim=-1), mask)


def test_latents_term_leaves_out_frames_without_a_target():
    target, quantized = torch.ones(1, 3, 1), torch.tensor([[[3.0], [2.0], [9.0]]])
    outputs = output_of(quantized, torch.ones(1, 3).bool())
    term = latents_term(outputs, target, torch.tensor([[True, True, False]]))
    assert (term.value.item(), term.num_frames.item()) == (pytest.approx((4 + 1) / 2), 2)
    nothing = latents_term(outputs, target, torch.zeros(1, 3).bool())
    assert (nothing.value.item(), nothing.num_frames.item()) == (0, 0)


# --- mel ---


@pytest.fixture(scope="module")
def sounds() -> tuple[Tensor, Tensor, Tensor]:
    """Four sounds of 1 to 4 frames, one of them not full, silent in padding, and their padding mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(4 * FRAME) < torch.tensor([[FRAME], [4 * FRAME], [2 * FRAME - 700], [3 * FRAME]])
    loudness = torch.tensor([0.01, 0.3, 0.1, 0.5])[:, None, None]
    audio, decoded = (loudness * torch.randn(4, 1, 4 * FRAME, generator=generator) * mask[:, None] for _ in range(2))
    return audio, decoded * torch.tensor([0.1, 0.9, 0.3, 1.3])[:, None, None], mask


def mel_of(model: MimiBridgeModel, audio: Tensor, decoded: Tensor, mask: Tensor) -> Term:
    frame_mask = batch_frame_mask({"input_values": audio, "padding_mask": mask.long()}, model)
    return mel_term(MimiBridgeOutput(audio_values=decoded, audio_codes_mask=frame_mask), audio, model)


@pytest.mark.parametrize("samples", [4 * FRAME - 1, 3 * FRAME + 1])
def test_mel_term_of_audio_that_is_not_whole_frames_is_that_of_audio_filled_with_silence(model, sounds, samples):
    audio, decoded, mask = (part[..., :samples] for part in sounds)
    filled = (torch.nn.functional.pad(part, (0, 4 * FRAME - samples)) for part in (audio, decoded, mask))
    term, expected = mel_of(model, audio, decoded, mask), mel_of(model, *filled)
    assert term.num_frames == expected.num_frames == 10
    torch.testing.assert_close(term.value, expected.value)


def test_mel_term_does_not_hear_what_the_original_holds_in_its_padding(model, sounds):
    audio, decoded, mask = sounds
    frame_mask = batch_frame_mask({"input_values": audio, "padding_mask": mask}, model)
    outputs = MimiBridgeOutput(audio_values=decoded, audio_codes_mask=frame_mask)
    noisy = torch.where(mask[:, None], audio, torch.ones(()))
    torch.testing.assert_close(mel_term(outputs, noisy, model, mask).value, mel_of(model, audio, decoded, mask).value)


def slow_mel(audio: Tensor, decoded: Tensor) -> float:
    """Of one recording of whole frames: mean over resolutions of the mean over its hops."""
    distances = []
    for window, num_mels in NUM_MELS.items():
        num_hops = -(-audio.shape[-1] // (window // 4))
        original, other = (log_mel(x, SAMPLING_RATE, window, num_mels)[..., :num_hops] for x in (audio, decoded))
        distances.append((original - other).abs().mean().item())
    return sum(distances) / len(distances)


def test_mel_term_weighs_each_recording_by_its_frames(model, sounds):
    audio, decoded, mask = sounds
    frames = [1, 4, 2, 3]
    rows = list(zip(audio[:, None], decoded[:, None], frames, strict=True))
    alone = [slow_mel(original[..., : n * FRAME], other[..., : n * FRAME]) for original, other, n in rows]
    assert max(alone) > 1.2 * min(alone)  # the weights matter
    term = mel_of(model, audio, decoded, mask)
    assert term.num_frames == 10
    assert term.value.item() == pytest.approx(sum(n * v for n, v in zip(frames, alone, strict=True)) / 10, rel=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 4, [2, 2], [3, 1]], ids=str)
def test_mel_shares_of_the_batches_sum_to_the_whole(model, sounds, sizes):
    whole = mel_of(model, *sounds)
    totals = totals_of(10)
    got = 0.0
    for audio, decoded, mask in zip(*(part.split(sizes) for part in sounds), strict=True):
        longest = -(-int(mask.sum(dim=-1).max()) // FRAME) * FRAME
        term = mel_of(model, audio[..., :longest], decoded[..., :longest], mask[:, :longest])
        got += weighted_sum({"mel": term}, {"mel": 2.0}, totals).item()
    assert got == pytest.approx(2 * whole.value.item(), rel=1e-4)


# --- weights ---


def term(value: float, num_frames: int) -> Term:
    return Term(torch.tensor(value), torch.tensor(num_frames))


def test_weighted_sum_by_hand():
    terms = {"qwen": term(2.0, 3), "wavlm": term(5.0, 4), "commitment_content": term(7.0, 8), "mel": term(11.0, 8)}
    weights = {"qwen": 0.5, "wavlm": 3.0, "commitment": 0.25, "mel": 1.0, "latents": 100.0}
    totals = totals_of(16, 6, 40)
    expected = 0.5 * 2 * 3 / 6 + 3 * 5 * 4 / 40 + 0.25 * 7 * 8 / 16 + 11 * 8 / 16
    assert weighted_sum(terms, weights, totals).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "weights, expected",
    [
        ({"commitment": 2.0}, 2.0 * (3 + 5)),
        ({"commitment": 2.0, "commitment_prosody": 0.0}, 2.0 * 3),
        ({"commitment_prosody": 4.0}, 4.0 * 5),
        ({"codebook": 4.0}, 0.0),
    ],
    ids=["of both", "but one", "of one alone", "of another"],
)
def test_weight_is_looked_up_by_the_whole_name_and_then_by_its_beginning(weights, expected):
    terms = {"commitment_content": term(3.0, 2), "commitment_prosody": term(5.0, 2)}
    assert weighted_sum(terms, weights, totals_of(2)).item() == pytest.approx(expected)


def test_loss_of_a_step_in_which_no_frame_has_the_teacher_is_0():
    totals = totals_of(8)
    loss = weighted_sum({"qwen": term(0.0, 0)}, {"qwen": 1.0}, totals)
    assert loss == 0 and loss.dtype == torch.float32
