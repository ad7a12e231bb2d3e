"""Before the first step: every frame of the data is looked at once, and the content head begins where it is of use."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.alignment_targets import pool_to_frames
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.teachers.statistics import RunningStatistics
from mimi_bridge.quantizer import CausalBridgeQuantizer
from mimi_bridge.training.content_init import (
    FIRST_SHARE,
    begin_with_k_means,
    begin_with_least_squares,
    set_teacher_statistics,
)
from mimi_bridge.training.init_frames import InitFrameCollector, InitFrames, collect_init_frames
from tiny import TINY

DIM, CODEBOOK_DIM, CODEBOOK_SIZE, QWEN_DIM, WAVLM_DIM = 16, 8, 32, 6, 5
SIZES = {
    "hidden_size": DIM,
    "codebook_size": CODEBOOK_SIZE,
    "codebook_dim": CODEBOOK_DIM,
    "vector_quantization_hidden_dimension": CODEBOOK_DIM,
    "upsample_groups": DIM,
    "num_acoustic_codebooks": 2,
    "qwen_dim": QWEN_DIM,
    "wavlm_dim": WAVLM_DIM,
}
CONFIG = MimiBridgeConfig(**{**TINY, **SIZES})
FRAME, FRAMES_PER_STEP, ROWS_AT_ONCE = 1_920, 100, 8
CPU = torch.device("cpu")
ALL = 10**9

BOTH_BEGINNINGS = pytest.mark.parametrize(
    "begin", [begin_with_k_means, begin_with_least_squares], ids=["k-means", "least squares"]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> MimiBridgeModel:
    """A small model; leave it as it is."""
    torch.manual_seed(0)
    return MimiBridgeModel(CONFIG).eval()


def init_frames_of(
    model: MimiBridgeModel, rows: Any, num_frames: int = ALL, seed: int = 0, **options: Any
) -> InitFrames:
    return collect_init_frames(model, rows, MimiBridgeCollator.for_model(CONFIG, **options), num_frames, seed, CPU)


# --- the init_frames ---


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Tensor]]:
    """Twenty recordings of 3 to 20 frames, some without text or features; a frame's teachers tell what it is.

    Latents begin with the numbers of recording, frame and token (-1: none), which a state repeats, too; features are
    the latents' last numbers, doubled.
    """
    generator, rows = seeded(), []
    for number in range(20):
        durations = torch.randint(0, 4, (4,), generator=generator)
        num_frames = max(3, int(durations.sum()) + number % 3)
        token = torch.arange(4).repeat_interleave(durations)
        token = torch.nn.functional.pad(token, (0, num_frames - len(token)), value=-1)
        latents = torch.randn(num_frames, DIM, generator=generator)
        latents[:, 0], latents[:, 1], latents[:, 2] = number, torch.arange(num_frames), token
        row = {"latents": latents}
        if number % 4 != 1:
            states = 0.1 * torch.randn(4, QWEN_DIM, generator=generator)
            states[:, 0], states[:, 2] = number, torch.arange(4)
            row |= {"qwen_hidden": states, "durations": durations}
        if number % 5 != 2:
            row["wavlm_features"] = 2 * latents[:, -WAVLM_DIM:]
        rows.append(row)
    return rows


def all_latents(rows: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([row["latents"] for row in rows])


def by_number(latents: Tensor) -> Tensor:
    """Frames in the order of recordings and frames."""
    return latents[(latents[:, 0] * 1000 + latents[:, 1]).argsort()]


@pytest.mark.parametrize("seed", [0, 1])
def test_init_frames_holds_every_frame_of_every_recording_once(model, rows, seed):
    init_frames = init_frames_of(model, rows, seed=seed)
    assert torch.equal(by_number(init_frames.latents), all_latents(rows))
    assert init_frames.frames_per_row == pytest.approx(len(init_frames.latents) / len(rows))


def test_init_frames_puts_every_teachers_vector_beside_its_frame(model, rows):
    init_frames = init_frames_of(model, rows)
    states, places = init_frames.teachers["qwen"]
    assert torch.equal(states[:, [0, 2]], init_frames.latents[places][:, [0, 2]])
    features, places = init_frames.teachers["wavlm"]
    assert torch.equal(features, 2 * init_frames.latents[places][:, -WAVLM_DIM:])


def test_init_frames_holds_a_target_for_each_frame_that_has_one(model, rows):
    init_frames = init_frames_of(model, rows)
    with_text = [int(row["durations"].sum()) for row in rows if "durations" in row]
    with_features = [len(row["latents"]) for row in rows if "wavlm_features" in row]
    for name, frames in (("qwen", with_text), ("wavlm", with_features)):
        targets, places = init_frames.teachers[name]
        assert len(targets) == len(places.unique()) == sum(frames)


def test_init_frames_leaves_out_tokens_and_features_that_are_masked():
    taker = InitFrameCollector(frame_rate=12.5)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    states = torch.arange(1.0, 5.0).reshape(2, 2, 1)
    durations, token_mask = torch.tensor([[1, 2], [1, 1]]), torch.tensor([[True, False], [False, True]])
    has_features = torch.tensor([[False, True, True], [True, False, True]])
    batch = {"qwen_hidden": states, "durations": durations, "token_mask": token_mask}
    batch |= {"wavlm_features": torch.arange(10.0, 16.0).reshape(2, 3, 1), "wavlm_mask": has_features}
    for _ in range(2):
        taker.add(torch.zeros(2, 3, DIM), mask, batch)
    teachers = {name: (t[:, 0].tolist(), p.tolist()) for name, (t, p) in taker.collected().teachers.items()}
    assert teachers == {
        "qwen": ([1.0, 4.0] * 2, [0, 4, 5, 9]),
        "wavlm": ([11.0, 12.0, 13.0] * 2, [1, 2, 3, 6, 7, 8]),
    }
    assert (taker.num_frames, taker.collected().frames_per_row) == (10, 2.5)


def test_init_frames_moves_tokens_by_the_content_head_s_delay_and_features_not():
    taker, mask = (
        InitFrameCollector(frame_rate=12.5, content_delay=1),
        torch.tensor([[True] * 3, [True] * 2 + [False]]),
    )
    batch = {"qwen_hidden": torch.arange(1.0, 5.0).reshape(2, 2, 1), "durations": torch.tensor([[1, 2], [1, 1]])}
    batch |= {"wavlm_features": torch.arange(10.0, 16.0).reshape(2, 3, 1)}
    taker.add(torch.zeros(2, 3, DIM), mask, batch)
    teachers = {name: (t[:, 0].tolist(), p.tolist()) for name, (t, p) in taker.collected().teachers.items()}
    assert teachers == {
        "qwen": ([1.0, 2.0, 3.0], [1, 2, 4]),
        "wavlm": ([10.0, 11.0, 12.0, 13.0, 14.0], [0, 1, 2, 3, 4]),
    }


def test_init_frames_pools_features_of_50_hz():
    taker, mask = InitFrameCollector(frame_rate=12.5), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    features = torch.randn(2, 15, WAVLM_DIM, generator=seeded())
    taker.add(torch.zeros(2, 4, DIM), mask, {"wavlm_features": features})
    assert torch.equal(taker.collected().teachers["wavlm"][0], pool_to_frames(features, mask)[mask])


def test_teachers_statistics_are_numpys_over_all_frames_with_a_target(model, rows):
    quantizer = deepcopy(model.quantizer)
    set_teacher_statistics(quantizer, init_frames_of(model, rows))
    with_text = [(row["qwen_hidden"].numpy(), row["durations"].numpy()) for row in rows if "durations" in row]
    of_frames = {
        "proj_qwen": [np.repeat(states, durations, axis=0) for states, durations in with_text],
        "proj_wavlm": [row["wavlm_features"].numpy() for row in rows if "wavlm_features" in row],
    }
    for name, values in of_frames.items():
        bridge, targets = getattr(quantizer, name), np.concatenate(values).astype(np.float64)
        np.testing.assert_allclose(bridge.mean.numpy(), targets.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            bridge.std.numpy(), targets.std(axis=0, ddof=1).clip(min=1e-4), rtol=1e-5, atol=1e-6
        )


def test_stored_statistics_of_a_teacher_stand_in_for_those_of_init_frames(model, rows):
    quantizer, stored = deepcopy(model.quantizer), RunningStatistics(QWEN_DIM)
    stored.add(torch.randn(50, QWEN_DIM, generator=seeded()) * 3 + 1)
    set_teacher_statistics(quantizer, init_frames_of(model, rows), {"qwen": stored})
    assert torch.equal(quantizer.proj_qwen.mean, stored.mean.float())
    assert torch.equal(quantizer.proj_qwen.std, stored.std.float())
    of_init_frames = deepcopy(model.quantizer)
    set_teacher_statistics(of_init_frames, init_frames_of(model, rows))
    assert torch.equal(quantizer.proj_wavlm.mean, of_init_frames.proj_wavlm.mean) and quantizer.proj_wavlm.mean.any()


@pytest.mark.parametrize("learned", [True, False], ids=["its content head speaks", "it has statistics"])
def test_bridge_that_has_learned_says_the_same_in_the_teachers_space_with_stored_statistics(model, rows, learned):
    quantizer, stored = deepcopy(model.quantizer), RunningStatistics(QWEN_DIM)
    stored.add(torch.randn(50, QWEN_DIM, generator=seeded()) * 3 + 7)
    if not learned:
        torch.nn.init.zeros_(quantizer.head_content.project_out.weight)
        quantizer.proj_qwen.set_statistics(torch.arange(QWEN_DIM).float(), 1 + torch.arange(QWEN_DIM).float())
    latents = torch.randn(2, 5, DIM, generator=seeded(1))
    before = quantizer.proj_qwen.to_teacher(latents)
    set_teacher_statistics(quantizer, None, {"qwen": stored})
    assert torch.equal(quantizer.proj_qwen.mean, stored.mean.float())
    torch.testing.assert_close(quantizer.proj_qwen.to_teacher(latents), before, atol=1e-4, rtol=1e-4)


def test_statistics_of_init_frames_do_not_replace_those_that_a_bridge_has(model, rows):
    quantizer = deepcopy(model.quantizer)
    quantizer.proj_qwen.set_statistics(torch.ones(QWEN_DIM), torch.full((QWEN_DIM,), 2.0))
    set_teacher_statistics(quantizer, init_frames_of(model, rows))
    assert torch.equal(quantizer.proj_qwen.mean, torch.ones(QWEN_DIM))


def test_teacher_that_was_never_seen_keeps_its_statistics(model, rows):
    quantizer = deepcopy(model.quantizer)
    set_teacher_statistics(quantizer, init_frames_of(model, [{"latents": row["latents"]} for row in rows]))
    assert not quantizer.proj_qwen.mean.any() and torch.equal(quantizer.proj_wavlm.std, torch.ones(WAVLM_DIM))


def test_init_frames_stops_after_the_batch_that_gives_it_enough_frames(model, rows):
    whole = init_frames_of(model, rows)
    init_frames = init_frames_of(model, rows, num_frames=CODEBOOK_SIZE)
    assert len(init_frames.latents[:, 0].unique()) == ROWS_AT_ONCE
    assert CODEBOOK_SIZE <= len(init_frames.latents) < len(whole.latents)
    assert torch.equal(init_frames.latents, whole.latents[: len(init_frames.latents)])


def test_init_frames_looks_at_recordings_in_an_order_of_its_seed(model, rows):
    one, again, other = (init_frames_of(model, rows, seed=seed).latents for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other) and not torch.equal(one, all_latents(rows))


def test_init_frames_takes_a_data_set_without_a_length_as_it_comes(model, rows):
    assert torch.equal(init_frames_of(model, (row for row in rows)).latents, all_latents(rows))


def test_init_frames_of_crops_passes_over_the_data_until_it_has_seen_enough_other_crops(model, rows):
    few, one_pass = rows[:8], 8 * 2
    init_frames = init_frames_of(model, few, num_frames=3 * one_pass, crop_seconds=0.16)
    assert len(init_frames.latents) == 3 * one_pass
    assert len(by_number(init_frames.latents).unique(dim=0)) > one_pass
    assert init_frames.frames_per_row == 2
    assert len(init_frames_of(model, few, crop_seconds=0.16).latents) == 10 * one_pass


def test_init_frames_takes_what_there_is_where_data_has_fewer_frames_than_entries(model, rows):
    few = [{"latents": rows[0]["latents"][:3]}]
    assert torch.equal(init_frames_of(model, few).latents, few[0]["latents"])


def test_init_frames_refuses_data_without_a_frame(model):
    with pytest.raises(ValueError, match=r"the training data has no frame; give at least one recording"):
        init_frames_of(model, iter([]))


@pytest.mark.parametrize("training", [True, False])
def test_init_frames_leaves_the_model_in_its_mode_and_moves_nothing(model, rows, training):
    model = deepcopy(model).train(training)
    before = deepcopy(model.state_dict())
    init_frames_of(model, rows)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_init_frames_of_audio_holds_the_latents_that_each_recording_has_alone(model):
    sounds = [
        0.1 * torch.randn(FRAME * (number % 4 + 1) - 700 * (number % 2), generator=seeded()) for number in range(14)
    ]
    init_frames = init_frames_of(deepcopy(model).train(), [{"input_values": sound} for sound in sounds])
    order = torch.randperm(len(sounds), generator=seeded(0))
    with torch.no_grad():
        expected = torch.cat([model.get_latents(sounds[index][None, None])[0] for index in order])
    torch.testing.assert_close(init_frames.latents, expected, atol=1e-5, rtol=1e-4)
    assert not init_frames.latents.requires_grad


# --- where the content head begins ---

NOISE = 0.05
Planted = Callable[[int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Frames by seed: latents, and a teacher that depends on two of their quiet directions.

    The other directions are ten times as loud; the teacher's numbers are of very different sizes.
    """
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=seeded(9)))[0]
    to_teacher = torch.randn(2, QWEN_DIM, generator=seeded(10))
    sizes = torch.tensor([1.0, 300.0, 0.01, 5.0, 1.0, 40.0])

    def frames(seed: int) -> tuple[Tensor, Tensor]:
        generator = seeded(seed)
        hidden = torch.randn(1500, DIM, generator=generator)
        noise = NOISE * torch.randn(1500, QWEN_DIM, generator=generator)
        teacher = (hidden[:, :2] @ to_teacher + noise) * sizes + 3 * sizes
        hidden[:, 2:] *= 10
        return hidden @ turn, teacher

    return frames


@pytest.fixture
def init_frames(planted) -> InitFrames:
    """Of planted frames; one in three has no teacher."""
    latents, teacher = planted(1)
    places = torch.arange(len(latents))[torch.arange(len(latents)) % 3 > 0]
    return InitFrames(latents, {"qwen": (teacher[places], places)}, frames_per_row=10.0)


@pytest.fixture
def quantizer(model, init_frames) -> CausalBridgeQuantizer:
    """New, its content head silent, the teacher's statistics known."""
    quantizer = deepcopy(model.quantizer)
    torch.nn.init.zeros_(quantizer.head_content.project_out.weight)
    set_teacher_statistics(quantizer, init_frames)
    return quantizer


@BOTH_BEGINNINGS
def test_content_head_begins_with_nearly_all_its_entries_in_use(quantizer, init_frames, planted, begin):
    quantizer.head_content.vq_codebooks[0].embed.zero_()
    begin(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    for latents in (init_frames.latents, planted(2)[0]):
        assert len(quantizer.encode(latents[None])[0, 0].unique()) >= 0.9 * CODEBOOK_SIZE


@BOTH_BEGINNINGS
def test_beginning_gives_the_perplexity_of_the_codes(quantizer, init_frames, begin):
    perplexity = begin(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    shares = quantizer.encode(init_frames.latents[None])[0, 0].bincount().double() / len(init_frames.latents)
    assert perplexity == pytest.approx(torch.distributions.Categorical(shares).entropy().exp().item(), rel=1e-2)
    assert perplexity > CODEBOOK_SIZE / 2


@BOTH_BEGINNINGS
def test_entries_begin_with_the_counts_of_a_training_step(quantizer, init_frames, begin):
    begin(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    (store,) = quantizer.head_content.vq_codebooks
    codes = quantizer.encode(init_frames.latents[None])[0, 0]
    expected = codes.bincount(minlength=CODEBOOK_SIZE) * FRAMES_PER_STEP / len(codes)
    torch.testing.assert_close(store.cluster_size[0], expected, atol=0.2, rtol=0)
    assert store.cluster_size.sum().item() == pytest.approx(FRAMES_PER_STEP)


@pytest.mark.parametrize(
    "begin, moves",
    [
        (begin_with_k_means, ["head_content.vq"]),
        (
            begin_with_least_squares,
            ["head_content.vq", "head_content.project_in", "head_content.project_out", "proj_qwen"],
        ),
    ],
    ids=["k-means", "least squares"],
)
def test_beginning_moves_what_is_its_own_and_nothing_else(quantizer, init_frames, begin, moves):
    before = deepcopy(quantizer.state_dict())
    begin(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    moved = [name for name, value in quantizer.state_dict().items() if not torch.equal(value, before[name])]
    assert {prefix for prefix in moves if any(name.startswith(prefix) for name in moved)} == set(moves)
    assert [name for name in moved if not name.startswith(tuple(moves))] == []


@BOTH_BEGINNINGS
def test_beginning_repeats_itself_to_the_bit_when_the_generator_does(quantizer, init_frames, begin):
    states = []
    for seed in (0, 0, 1):
        copy = deepcopy(quantizer)
        begin(copy, init_frames, FRAMES_PER_STEP, seeded(seed))
        states.append(copy.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


@BOTH_BEGINNINGS
@pytest.mark.parametrize("num_frames", [3, CODEBOOK_SIZE - 1])
def test_content_head_begins_with_what_there_is_where_frames_are_fewer_than_entries(
    quantizer, init_frames, begin, num_frames
):
    targets, places = init_frames.teachers["qwen"]
    inside = places < num_frames
    few = InitFrames(init_frames.latents[:num_frames], {"qwen": (targets[inside], places[inside])}, 10.0)
    begin(quantizer, few, FRAMES_PER_STEP, seeded())
    assert all(bool(value.isfinite().all()) for value in quantizer.state_dict().values())
    assert len(quantizer.encode(few.latents[None])[0, 0].unique()) > num_frames / 2


@torch.no_grad()
def error_of(quantizer: CausalBridgeQuantizer, latents: Tensor, teacher: Tensor) -> float:
    """Squared error of the teacher as predicted from the content codes alone, relative to the best constant's."""
    predicted = quantizer.proj_qwen.to_teacher(quantizer.head_content.decode(quantizer.encode(latents[None])[:, :1]))[
        0
    ]
    relative = (predicted - teacher).square().mean(dim=0) / teacher.var(dim=0, correction=0)
    return relative.mean().item()


@pytest.mark.parametrize("copies", [1, 4], ids=["teacher smaller than entries", "teacher larger than entries"])
@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_start_by_least_squares_tells_the_teacher_on_frames_it_has_not_seen(planted, copies, mean):
    torch.manual_seed(0)
    sizes = {"num_acoustic_codebooks": 2, "codebook_size": CODEBOOK_SIZE, "codebook_dim": CODEBOOK_DIM}
    quantizer = CausalBridgeQuantizer(DIM, copies * QWEN_DIM, WAVLM_DIM, **sizes)
    (latents, teacher), unseen = ((x + mean, y.repeat(1, copies)) for x, y in (planted(1), planted(2)))
    init_frames = InitFrames(latents, {"qwen": (teacher, torch.arange(len(latents)))}, frames_per_row=10.0)
    set_teacher_statistics(quantizer, init_frames)
    begin_with_least_squares(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    assert error_of(quantizer, *unseen) < 0.15


def test_start_by_least_squares_tells_a_teacher_of_some_frames_on_all(quantizer, init_frames, planted):
    begin_with_least_squares(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    assert error_of(quantizer, *planted(1)) < 0.15


def test_start_by_least_squares_promises_nothing_of_a_teacher_that_latents_do_not_tell(
    quantizer, init_frames, planted
):
    latents, teacher = planted(1)
    shuffled = teacher[torch.randperm(len(teacher), generator=seeded(3))]
    unrelated = InitFrames(latents, {"qwen": (shuffled, torch.arange(len(latents)))}, frames_per_row=10.0)
    begin_with_least_squares(quantizer, unrelated, FRAMES_PER_STEP, seeded())
    assert error_of(quantizer, latents, shuffled) == pytest.approx(1.0, abs=0.05)


def test_start_by_least_squares_is_a_small_share_as_loud_as_the_latents(quantizer, init_frames):
    begin_with_least_squares(quantizer, init_frames, FRAMES_PER_STEP, seeded())
    content = quantizer.head_content(init_frames.latents[None]).quantized
    share = content.square().mean().sqrt() / init_frames.latents.square().mean().sqrt()
    assert share.item() == pytest.approx(FIRST_SHARE, rel=0.1)


def test_start_by_least_squares_without_text_is_refused(quantizer, init_frames):
    message = r"needs frames of the training data with different qwen_hidden, and has none; use 'k-means'\."
    with pytest.raises(ValueError, match=message):
        begin_with_least_squares(quantizer, InitFrames(init_frames.latents, {}, 10.0), FRAMES_PER_STEP, seeded())


def test_start_by_k_means_needs_no_teacher(quantizer, init_frames):
    begin_with_k_means(quantizer, InitFrames(init_frames.latents, {}, 10.0), FRAMES_PER_STEP, seeded())
    assert len(quantizer.encode(init_frames.latents[None])[0, 0].unique()) >= 0.9 * CODEBOOK_SIZE


@pytest.mark.parametrize("targets", [torch.zeros(0, 5), torch.ones(100, 5)], ids=["none", "all the same"])
def test_start_by_least_squares_needs_states_that_differ(targets):
    quantizer = CausalBridgeQuantizer(8, 5, 3, num_acoustic_codebooks=2, codebook_size=16, codebook_dim=4)
    init_frames = InitFrames(torch.randn(100, 8), {"qwen": (targets, torch.arange(len(targets)))}, 10.0)
    with pytest.raises(ValueError, match="needs frames of the training data with different qwen_hidden"):
        begin_with_least_squares(quantizer, init_frames, 10, torch.Generator().manual_seed(0))


def test_start_by_least_squares_refuses_codebooks_wider_than_the_latents():
    quantizer = CausalBridgeQuantizer(8, 5, 3, num_acoustic_codebooks=2, codebook_size=16, codebook_dim=12)
    init_frames = InitFrames(torch.randn(100, 8), {"qwen": (torch.randn(100, 5), torch.arange(100))}, 10.0)
    with pytest.raises(ValueError, match="needs a codebook_dim of at most 8, the latents' size, got 12"):
        begin_with_least_squares(quantizer, init_frames, 10, torch.Generator().manual_seed(0))
