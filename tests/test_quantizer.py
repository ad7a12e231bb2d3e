from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mimi_bridge import CausalBridgeQuantizer, distillation
from mimi_bridge.alignment_targets import pool_to_frames
from mimi_bridge.codebook import CodebookLearner
from mimi_bridge.frames import mask_from_lengths

CODEC_DIM, QWEN_DIM, WAVLM_DIM, CODEBOOK_SIZE = 16, 12, 10, 32
HEADS = ("head_content", "head_prosody", "acoustic_residual")
LOSSES = ("commitment_content", "commitment_prosody", "commitment_acoustic", "qwen", "wavlm")

BOTH_MODES = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


@torch.no_grad()
def small_quantizer(num_acoustic_codebooks: int = 3, **options) -> CausalBridgeQuantizer:
    """A quantizer in inference mode whose entries are spread as wide as the latents, so that many are used."""
    torch.manual_seed(0)
    quantizer = CausalBridgeQuantizer(
        CODEC_DIM,
        QWEN_DIM,
        WAVLM_DIM,
        num_acoustic_codebooks=num_acoustic_codebooks,
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=8,
        **options,
    )
    for name in HEADS:
        for level, layer in enumerate(getattr(quantizer, name).layers):
            layer._codebook.embed.normal_(std=0.5 * 0.8**level)  # each level quantizes what the one before it left
            layer._codebook.embed_avg.copy_(layer._codebook.embed)
    return quantizer.eval()


def specification_quantizer(**options) -> CausalBridgeQuantizer:
    """The specification's sizes; entries so short that direction decides which is nearest, and many are used."""
    torch.manual_seed(0)
    quantizer = CausalBridgeQuantizer(**options)
    for name in HEADS:
        for layer in getattr(quantizer, name).layers:
            layer._codebook.embed.normal_(std=0.1)
            layer._codebook.embed_avg.copy_(layer._codebook.embed)
    return quantizer.eval()


@pytest.fixture
def quantizer() -> CausalBridgeQuantizer:
    """Five codebooks: content, prosody, three acoustic."""
    return small_quantizer()


@pytest.fixture
def latents() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 40, CODEC_DIM)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two samples of 9 and 6 frames with both teachers; the last token of the second is padding."""
    torch.manual_seed(2)
    return {
        "x": torch.randn(2, 9, CODEC_DIM),
        "qwen_hidden": torch.randn(2, 4, QWEN_DIM),
        "durations": torch.tensor([[2, 0, 3, 2], [1, 2, 2, 0]]),
        "wavlm_features": torch.randn(2, 9, WAVLM_DIM),
        "frame_mask": mask_from_lengths(torch.tensor([9, 6]), 9),
    }


def spans_of(durations: Tensor) -> Tensor:
    """The same tokens in seconds, at 12.5 frames a second."""
    ends = durations.cumsum(dim=-1) / 12.5
    return torch.stack([ends - durations / 12.5, ends], dim=-1)


def assert_same_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    assert [name for name, value in module.state_dict().items() if not torch.equal(value, state[name])] == []


def test_quantizer_has_the_specification_s_parts_when_made_without_arguments():
    quantizer = CausalBridgeQuantizer()
    sizes = {name: [tuple(book.shape) for book in getattr(quantizer, name).codebooks] for name in HEADS}
    assert sizes == {
        "head_content": [(2048, 256)],
        "head_prosody": [(2048, 256)],
        "acoustic_residual": [(2048, 256)] * 7,
    }
    assert (quantizer.num_quantizers, quantizer.residual_weight, quantizer.frame_rate) == (9, 1.0, 12.5)


@pytest.mark.parametrize("name, teacher_dim", [("proj_qwen", 1536), ("proj_wavlm", 1024)])
def test_bridge_is_a_linear_map_from_512_to_the_teacher(name, teacher_dim):
    bridge = getattr(CausalBridgeQuantizer(), name)
    assert isinstance(bridge, nn.Linear)
    assert (bridge.in_features, bridge.out_features) == (512, teacher_dim)


def test_quantizer_takes_its_sizes_from_a_config(tiny_config):
    quantizer = CausalBridgeQuantizer.from_config(tiny_config)
    assert (quantizer.codec_dim, quantizer.codebook_size, quantizer.num_quantizers) == (64, 64, 9)
    assert (quantizer.proj_qwen.out_features, quantizer.proj_wavlm.out_features) == (24, 20)
    assert {codebook.shape for name in HEADS for codebook in getattr(quantizer, name).codebooks} == {(64, 32)}


def test_quantizer_takes_its_rates_weights_and_distances_from_a_config(tiny_config):
    changed = {
        "residual_weight": 0.5,
        "codebook_decay": 0.9,
        "commitment_weight": 0.125,
        "qwen_weight": 2.0,
        "wavlm_weight": 3.0,
        "wavlm_distance": "cosine",
        "upsampling_ratios": [8, 6, 5, 2],  # 24 kHz / (8 * 6 * 5 * 2 * 2) = 25 frames a second
    }
    for name, value in changed.items():
        setattr(tiny_config, name, value)
    quantizer = CausalBridgeQuantizer.from_config(tiny_config)
    decays = {layer._codebook.decay for name in HEADS for layer in getattr(quantizer, name).layers}
    assert (quantizer.residual_weight, quantizer.frame_rate, decays) == (0.5, 25.0, {0.9})
    assert quantizer.loss_weights == {"commitment": 0.125, "codebook": 1.0, "qwen": 2.0, "wavlm": 3.0}
    assert (quantizer.proj_qwen.distance, quantizer.proj_wavlm.distance) == ("mse", "cosine")


def test_output_begins_with_the_specification_s_triple_while_training(quantizer, batch):
    output = quantizer.train()(**batch)
    triple = (output.quantized, output.codes, output.loss)
    assert all(got is expected for got, expected in zip(output[:3], triple, strict=True))


@pytest.mark.parametrize("given", ["x", "teachers"])
def test_quantizer_gives_the_specification_s_triple_alone_when_no_dictionary_is_wanted(quantizer, batch, given):
    batch = {"x": batch["x"]} if given == "x" else batch
    q, codes, loss = quantizer(**batch, return_dict=False)
    output = quantizer(**batch)
    assert torch.equal(q, output.quantized) and torch.equal(codes, output.codes) and torch.equal(loss, output.loss)


@pytest.mark.parametrize("num_acoustic_codebooks", [1, 7])
def test_codes_are_int64_of_batch_codebooks_and_frames(num_acoustic_codebooks, latents):
    codes = small_quantizer(num_acoustic_codebooks)(latents).codes
    assert (codes.dtype, codes.shape) == (torch.int64, (2, 2 + num_acoustic_codebooks, 40))


def test_codes_are_ordered_content_prosody_acoustic(quantizer, latents):
    output = quantizer(latents)
    assert torch.equal(output.content, quantizer.head_content.decode(output.codes[:, :1]))
    assert torch.equal(output.prosody, quantizer.head_prosody.decode(output.codes[:, 1:2]))
    assert torch.equal(output.acoustic, quantizer.acoustic_residual.decode(output.codes[:, 2:]))


@BOTH_MODES
def test_heads_sum_to_the_quantized_latents(quantizer, batch, training):
    output = quantizer.train(training)(**batch)
    assert torch.equal(output.quantized, output.content + output.prosody + output.acoustic)


def literal_chain(quantizer: CausalBridgeQuantizer, x: Tensor, residual_weight: float) -> tuple[Tensor, Tensor]:
    """The specification's forward on one frame, `(codec_dim,)`: quantized latent and the code of each codebook."""

    def quantize(name: str, vector: Tensor) -> tuple[Tensor, list[int]]:
        head = getattr(quantizer, name)
        residual, total, codes = head.project_in.weight[:, :, 0] @ vector, 0.0, []
        for codebook in head.codebooks:
            code = int((residual - codebook).square().sum(dim=-1).argmin())
            residual, total = residual - codebook[code], total + codebook[code]
            codes.append(code)
        return head.project_out.weight[:, :, 0] @ total, codes

    q_c, idx_c = quantize("head_content", x)
    resid_1 = x - q_c.detach()
    q_p, idx_p = quantize("head_prosody", resid_1)
    resid_2 = x - residual_weight * (q_c + q_p).detach()
    q_a, idx_a = quantize("acoustic_residual", resid_2)
    return q_c + q_p + q_a, torch.tensor(idx_c + idx_p + idx_a)


@pytest.mark.parametrize("residual_weight", [1.0, 0.5, 0.0])
def test_codes_and_quantized_equal_the_specification_s_chain_with_seven_acoustic_codebooks(residual_weight, latents):
    quantizer = small_quantizer(num_acoustic_codebooks=7, residual_weight=residual_weight)
    expected = [[literal_chain(quantizer, frame, residual_weight) for frame in sample] for sample in latents]
    codes = torch.stack([torch.stack([idx for _, idx in sample], dim=-1) for sample in expected])
    assert all(codebook.unique().numel() > CODEBOOK_SIZE // 2 for codebook in codes.unbind(dim=1))

    output = quantizer(latents)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized, torch.stack([torch.stack([q for q, _ in row]) for row in expected]))


@pytest.mark.full_size
@torch.no_grad()
def test_codes_and_quantized_equal_the_specification_s_chain_at_the_specification_s_sizes():
    quantizer, x = specification_quantizer(), torch.randn(1, 40, 512)
    expected = [literal_chain(quantizer, frame, residual_weight=1.0) for frame in x[0]]
    codes = torch.stack([idx for _, idx in expected], dim=-1)
    assert codes.shape == (9, 40)
    assert all(codebook.unique().numel() >= 30 for codebook in codes)

    output = quantizer(x)
    assert torch.equal(output.codes[0], codes)
    torch.testing.assert_close(output.quantized[0], torch.stack([q for q, _ in expected]))


def test_acoustic_head_quantizes_the_latents_themselves_when_residual_weight_is_0(latents):
    quantizer = small_quantizer(residual_weight=0.0)
    alone = quantizer.acoustic_residual(latents)
    output = quantizer(latents)
    assert torch.equal(output.codes[:, 2:], alone.codes)
    assert torch.equal(output.acoustic, alone.quantized)


def test_residual_weight_changes_the_acoustic_codes_alone_when_moved(quantizer, latents):
    chained = quantizer(latents).codes
    quantizer.residual_weight = 0.0
    parallel = quantizer(latents).codes
    assert torch.equal(parallel[:, :2], chained[:, :2])
    assert not torch.equal(parallel[:, 2:], chained[:, 2:])


@BOTH_MODES
def test_encode_gives_the_codes_of_forward(quantizer, batch, training):
    quantizer.train(training)
    encoded = quantizer.encode(batch["x"], batch["frame_mask"])
    assert torch.equal(encoded, quantizer(batch["x"], frame_mask=batch["frame_mask"]).codes)


def test_training_gives_the_codes_and_the_very_bits_of_inference(quantizer, latents):
    evaluated, trained = quantizer.eval()(latents), quantizer.train()(latents)
    assert all(codebook.unique().numel() > CODEBOOK_SIZE // 2 for codebook in evaluated.codes.unbind(dim=1))
    assert torch.equal(trained.codes, evaluated.codes)
    assert torch.equal(trained.quantized, evaluated.quantized)


def test_training_forward_moves_every_codebook(quantizer, latents):
    before = deepcopy(quantizer)
    quantizer.train()(latents)
    moved = [
        not torch.equal(now, then)
        for name in HEADS
        for now, then in zip(getattr(quantizer, name).codebooks, getattr(before, name).codebooks, strict=True)
    ]
    assert moved == [True] * 5


def test_encode_moves_nothing_while_training(quantizer, latents):
    state = deepcopy(quantizer.train().state_dict())
    quantizer.encode(latents)
    assert_same_state(quantizer, state)


@BOTH_MODES
def test_encode_leaves_the_mode_as_it_was(quantizer, latents, training):
    quantizer.train(training)
    quantizer.encode(latents)
    assert {module.training for module in quantizer.modules()} == {training}


def test_encode_leaves_a_frozen_head_frozen(quantizer, latents):
    quantizer.train().acoustic_residual.eval()
    quantizer.encode(latents)
    assert not quantizer.acoustic_residual.training


def test_frozen_head_keeps_its_codebooks_while_the_others_train(quantizer, latents):
    quantizer.train().acoustic_residual.eval()
    frozen, learning = (deepcopy(head.state_dict()) for head in (quantizer.acoustic_residual, quantizer.head_content))
    assert quantizer(latents).loss > 0
    assert_same_state(quantizer.acoustic_residual, frozen)
    assert not torch.equal(quantizer.head_content.vq.codebook, learning["vq._codebook.embed"][0])


def test_inference_moves_nothing_when_teachers_are_given(quantizer, batch):
    state = deepcopy(quantizer.state_dict())
    quantizer(**batch)
    assert_same_state(quantizer, state)


@pytest.mark.parametrize("num_quantizers", [1, 2, 3, 4, 5])
def test_first_codebooks_give_the_first_codes_and_what_they_decode_to(quantizer, latents, num_quantizers):
    first_codes = quantizer(latents).codes[:, :num_quantizers]
    output = quantizer(latents, num_quantizers=num_quantizers)
    assert torch.equal(output.codes, first_codes)
    assert torch.equal(quantizer.encode(latents, num_quantizers=num_quantizers), first_codes)
    assert torch.equal(output.quantized, quantizer.decode(first_codes))


@pytest.mark.parametrize("num_quantizers, left_out", [(1, {"prosody", "acoustic"}), (2, {"acoustic"}), (3, set())])
def test_head_is_none_when_none_of_its_codebooks_is_asked_for(quantizer, latents, num_quantizers, left_out):
    output = quantizer(latents, num_quantizers=num_quantizers)
    assert {name for name in ("content", "prosody", "acoustic") if getattr(output, name) is None} == left_out


@BOTH_MODES
def test_masked_frames_hold_code_0_and_quantized_0(quantizer, batch, training):
    output = quantizer.train(training)(**batch)
    assert not output.codes.transpose(1, 2)[~batch["frame_mask"]].any()
    assert not output.quantized[~batch["frame_mask"]].any()


def test_inference_has_no_loss_when_there_is_no_teacher(quantizer, latents):
    output = quantizer(latents)
    assert output.loss == 0 and output.losses == {}


def test_training_has_commitment_losses_alone_when_there_is_no_teacher(quantizer, latents):
    assert tuple(quantizer.train()(latents).losses) == LOSSES[:3]


def test_inference_without_a_teacher_gives_the_commitments_of_training_when_asked_for_losses(quantizer, batch):
    given = {name: batch[name] for name in ("x", "frame_mask")}
    asked, with_teachers = quantizer(**given, return_loss=True), quantizer(**batch)
    assert {name: value.item() for name, value in asked.losses.items()} == {
        name: with_teachers.losses[name].item() for name in LOSSES[:3]
    }
    assert asked.loss.item() == pytest.approx(sum(asked.losses.values()).item())


@BOTH_MODES
def test_no_loss_is_computed_when_none_is_wanted_though_teachers_are_given(quantizer, batch, training):
    before = deepcopy(quantizer.state_dict())
    output = quantizer.train(training)(**batch, return_loss=False)
    assert (output.loss.item(), output.losses, output.distances) == (0.0, {}, {})
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items()) != training


def test_inference_gives_the_losses_of_training_when_teachers_are_given(quantizer, batch):
    evaluated, trained = quantizer.eval()(**batch).losses, quantizer.train()(**batch).losses
    assert tuple(evaluated) == LOSSES
    torch.testing.assert_close(evaluated, trained)


def test_teacher_losses_equal_the_specification_s_mse_on_each_sample_s_frames(quantizer, batch):
    output = quantizer(**batch)
    pairs = {"qwen": [], "wavlm": []}
    for sample, durations in enumerate(batch["durations"]):
        aligned = torch.repeat_interleave(batch["qwen_hidden"][sample], durations, dim=0)
        pairs["qwen"].append((quantizer.proj_qwen(output.content[sample, : len(aligned)]), aligned))
        real = batch["frame_mask"][sample]
        q_cp = (output.content + output.prosody)[sample, real]
        pairs["wavlm"].append((quantizer.proj_wavlm(q_cp), batch["wavlm_features"][sample, real]))
    for name, samples in pairs.items():
        predicted, targets = (torch.cat(side) for side in zip(*samples, strict=True))
        torch.testing.assert_close(output.losses[name], nn.functional.mse_loss(predicted, targets))


def test_loss_is_the_weighted_sum_of_the_losses(batch):
    quantizer = small_quantizer(loss_weights={"commitment": 0.5, "qwen": 3.0})
    output = quantizer(**batch)
    weights = dict(zip(LOSSES, (0.5, 0.5, 0.5, 3.0, 1.0), strict=True))  # a weight left out is 1
    torch.testing.assert_close(output.loss, sum(weights[name] * loss for name, loss in output.losses.items()))


@pytest.mark.parametrize("teacher, features", [("qwen", "qwen_hidden"), ("wavlm", "wavlm_features")])
def test_cosine_distance_ignores_the_teacher_s_scale_when_chosen(teacher, features, batch):
    quantizer = small_quantizer(distances={teacher: "cosine"})
    scaled = {**batch, features: 100 * batch[features]}
    torch.testing.assert_close(quantizer(**scaled).losses[teacher], quantizer(**batch).losses[teacher])


def test_spans_give_the_loss_of_durations_when_they_are_whole_frames(quantizer, batch):
    by_durations = quantizer(**batch).losses["qwen"]
    by_spans = quantizer(**batch | {"durations": None}, token_spans=spans_of(batch["durations"])).losses["qwen"]
    torch.testing.assert_close(by_spans, by_durations)


def test_token_mask_takes_tokens_out_of_the_loss(quantizer, batch):
    token_mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
    changed = batch["qwen_hidden"].clone()
    changed[0, 2] += 100.0
    without = [
        quantizer(**{**batch, "qwen_hidden": hidden}, token_mask=token_mask).losses["qwen"]
        for hidden in (batch["qwen_hidden"], changed)
    ]
    assert torch.equal(*without)


def test_features_at_50_hz_give_the_loss_of_pooled_ones(quantizer, batch):
    constant = torch.randn(2, 1, WAVLM_DIM)  # pooling leaves a constant alone
    pooled, at_50_hz = (
        quantizer(**{**batch, "wavlm_features": constant.expand(-1, length, -1)}).losses["wavlm"] for length in (9, 36)
    )
    torch.testing.assert_close(at_50_hz, pooled)


WAVLM_MASKS = {
    "a row without": [[True] * 9, [False] * 9],
    "frames without": [[True, False, True, True, False, False, True, True, True], [False, True, True] * 3],
    "padding too": [[False] * 9, [True] * 9],  # the second sample's last three frames are padding
}


@pytest.mark.parametrize("wavlm_mask", WAVLM_MASKS.values(), ids=WAVLM_MASKS)
@pytest.mark.parametrize("at_50_hz", [False, True], ids=["12.5 Hz", "50 Hz"])
def test_wavlm_loss_is_the_mean_over_real_frames_that_have_features_alone(quantizer, batch, wavlm_mask, at_50_hz):
    wavlm_mask = torch.tensor(wavlm_mask)
    if at_50_hz:
        batch["wavlm_features"] = torch.randn(2, 35, WAVLM_DIM)
    features = pool_to_frames(batch["wavlm_features"], batch["frame_mask"]) if at_50_hz else batch["wavlm_features"]
    output = quantizer(**batch, wavlm_mask=wavlm_mask)
    errors = [
        (quantizer.proj_wavlm((output.content + output.prosody)[sample, frame]) - features[sample, frame]).square()
        for sample, frame in (wavlm_mask & batch["frame_mask"]).nonzero().tolist()
    ]
    torch.testing.assert_close(output.losses["wavlm"], torch.stack(errors).mean())
    assert int(output.distances["wavlm"].num_frames) == len(errors)


def test_sample_without_wavlm_features_gets_no_gradient_from_their_loss_and_changes_no_bit_of_it(quantizer, batch):
    batch |= {"x": batch["x"].requires_grad_(), "wavlm_mask": torch.tensor([[True], [False]]).expand(2, 9)}
    clean = quantizer(**batch).losses["wavlm"]
    clean.backward()
    assert batch["x"].grad[0].any() and not batch["x"].grad[1].any()
    batch["wavlm_features"][1] = torch.nan
    assert torch.equal(quantizer(**batch).losses["wavlm"], clean)


def test_wavlm_loss_is_0_over_0_frames_when_no_sample_has_features(quantizer, batch):
    output = quantizer.train()(**batch, wavlm_mask=torch.zeros(2, 9).bool())
    assert (output.losses["wavlm"].item(), int(output.distances["wavlm"].num_frames)) == (0.0, 0)


def test_all_real_frames_have_wavlm_features_when_no_mask_says_otherwise(quantizer, batch):
    with_mask = quantizer(**batch, wavlm_mask=torch.ones(2, 9).bool()).losses["wavlm"]
    assert torch.equal(with_mask, quantizer(**batch).losses["wavlm"])


@BOTH_MODES
def test_distances_hold_each_teacher_s_loss_frames_and_standardised_targets(quantizer, batch, training):
    for bridge in (quantizer.proj_qwen, quantizer.proj_wavlm):
        bridge.set_statistics(torch.randn(bridge.out_features), torch.rand(bridge.out_features) + 0.5)
    output = quantizer.train(training)(**batch)
    aligned = [
        torch.repeat_interleave(batch["qwen_hidden"][sample], durations, dim=0)
        for sample, durations in enumerate(batch["durations"])
    ]
    rows = {"qwen": torch.cat(aligned), "wavlm": batch["wavlm_features"][batch["frame_mask"]]}
    assert output.distances.keys() == rows.keys()
    for name, distance in output.distances.items():
        bridge = getattr(quantizer, f"proj_{name}")
        standard = ((rows[name] - bridge.mean) / bridge.std).double()
        expected = [*standard.sum(dim=0).tolist(), standard.square().sum().item(), len(standard)]
        assert distance.loss is output.losses[name]
        assert int(distance.num_frames) == len(standard)
        assert distance.target_sums.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("teacher", ["qwen", "wavlm"])
def test_distances_are_of_the_teachers_that_were_given(quantizer, batch, teacher):
    names = ("qwen_hidden", "durations") if teacher == "qwen" else ("wavlm_features",)
    given = {name: batch[name] for name in ("x", "frame_mask", *names)}
    assert quantizer(**given).distances.keys() == {teacher}
    assert not quantizer.train()(batch["x"]).distances


def test_teacher_s_statistics_move_the_loss_to_the_standardised_teacher(quantizer, batch):
    mean, std = torch.randn(QWEN_DIM), torch.rand(QWEN_DIM) + 0.5
    expected = quantizer(**batch | {"qwen_hidden": (batch["qwen_hidden"] - mean) / std}).losses["qwen"]
    quantizer.proj_qwen.set_statistics(mean, std)
    torch.testing.assert_close(quantizer(**batch).losses["qwen"], expected)


@pytest.fixture(scope="module", params=["small", pytest.param("specification", marks=pytest.mark.full_size)])
def learning_curves(request) -> dict[str, list[float]]:
    """Losses over 150 steps of the quantizer alone on one batch with random teachers and ragged durations."""
    quantizer = {"small": small_quantizer, "specification": specification_quantizer}[request.param]().train()
    batch = {
        "x": torch.randn(3, 12, quantizer.codec_dim),
        "qwen_hidden": torch.randn(3, 5, quantizer.proj_qwen.out_features),
        "durations": torch.tensor([[3, 0, 4, 2, 1], [2, 2, 2, 2, 2], [5, 1, 0, 0, 0]]),
        "wavlm_features": torch.randn(3, 48, quantizer.proj_wavlm.out_features),
        "frame_mask": mask_from_lengths(torch.tensor([12, 10, 7]), 12),
    }
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=3e-3, betas=(0.8, 0.99))  # the specification's betas
    curves = {name: [] for name in LOSSES}
    for _ in range(150):
        output = quantizer(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        for name, loss in output.losses.items():
            curves[name].append(loss.item())
    return curves


@pytest.mark.parametrize("name", ["qwen", "wavlm"])
def test_teacher_loss_falls_below_half_of_its_start_when_the_quantizer_trains(learning_curves, name):
    assert learning_curves[name][-1] < learning_curves[name][0] / 2


def reached(quantizer: CausalBridgeQuantizer, value: Tensor) -> set[str]:
    """Names of the weights that get a gradient from a value; none of them may be all zero."""
    names, parameters = zip(*quantizer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {
        name.removesuffix(".weight")
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None and gradient.any()
    }


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("commitment_content", {"head_content.project_in"}),
        ("commitment_prosody", {"head_prosody.project_in"}),
        ("commitment_acoustic", {"acoustic_residual.project_in"}),
        ("qwen", {"head_content.project_in", "head_content.project_out", "proj_qwen", "proj_qwen.bias"}),
        (
            "wavlm",
            {f"head_{head}.project_{side}" for head in ("content", "prosody") for side in ("in", "out")}
            | {"proj_wavlm", "proj_wavlm.bias"},
        ),
    ],
)
@BOTH_MODES
def test_loss_reaches_its_own_weights_alone(quantizer, batch, training, loss, expected):
    assert reached(quantizer, quantizer.train(training)(**batch).losses[loss]) == expected


@pytest.mark.parametrize(
    "share, head",
    [("content", "head_content"), ("prosody", "head_prosody"), ("acoustic", "acoustic_residual")],
)
@BOTH_MODES
def test_head_s_output_reaches_its_own_weights_alone_because_residuals_are_detached(
    quantizer, batch, training, share, head
):
    output = getattr(quantizer.train(training)(**batch), share)
    assert reached(quantizer, output.sum()) == {f"{head}.project_in", f"{head}.project_out"}


@pytest.mark.parametrize("name", ["content", "prosody", "acoustic", "quantized"])
@BOTH_MODES
def test_gradient_of_a_head_s_output_reaches_the_latents_of_exactly_the_real_frames(quantizer, batch, training, name):
    latents = batch["x"].requires_grad_()
    getattr(quantizer.train(training)(**batch), name).sum().backward()
    assert torch.equal(latents.grad.abs().sum(dim=-1) > 0, batch["frame_mask"])


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_every_loss_reaches_the_latents(quantizer, batch, name):
    latents = batch["x"].requires_grad_()
    quantizer.train()(**batch).losses[name].backward()
    assert latents.grad.any()


@pytest.mark.parametrize("features", ["qwen_hidden", "wavlm_features"])
def test_teacher_gets_no_gradient(quantizer, batch, features):
    batch[features].requires_grad_()
    quantizer.train()(**batch).loss.backward()
    assert batch[features].grad is None


def poisoned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with NaN in every masked frame, at either rate, and in the state of the padding token."""
    hole = ~batch["frame_mask"][:, :, None]
    features = batch["wavlm_features"]
    feature_hole = hole.repeat_interleave(features.shape[1] // hole.shape[1], dim=1)
    hidden = batch["qwen_hidden"].clone()
    hidden[1, 3] = torch.nan
    return batch | {
        "x": batch["x"].masked_fill(hole, torch.nan),
        "qwen_hidden": hidden,
        "wavlm_features": features.masked_fill(feature_hole, torch.nan),
    }


def training_step(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that one training step of a fresh quantizer makes: outputs, losses, gradients, buffers."""
    quantizer = small_quantizer().train()
    x = batch["x"].clone().requires_grad_()
    output = quantizer(**batch | {"x": x})
    (output.loss + output.quantized.square().sum()).backward()
    return {
        "quantized": output.quantized,
        "codes": output.codes,
        "loss": output.loss,
        **output.losses,
        "gradient of the latents": x.grad,
        **{f"gradient of {name}": parameter.grad for name, parameter in quantizer.named_parameters()},
        **dict(quantizer.named_buffers()),
    }


def with_spans(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"durations": None, "token_spans": spans_of(batch["durations"])}


def with_50_hz(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"wavlm_features": batch["wavlm_features"].repeat_interleave(4, dim=1)}


@pytest.mark.parametrize("change", [dict, with_spans, with_50_hz], ids=["durations", "spans", "50 Hz"])
def test_nan_in_masked_frames_changes_no_bit_of_a_training_step(batch, change):
    batch = change(batch)
    clean, bad = training_step(batch), training_step(poisoned(batch))
    assert [name for name, value in clean.items() if not torch.equal(bad[name], value)] == []


def test_nan_in_masked_frames_changes_no_code_of_encode(quantizer, batch):
    clean, bad = (quantizer.encode(each["x"], each["frame_mask"]) for each in (batch, poisoned(batch)))
    assert torch.equal(bad, clean)


def test_sample_gets_the_codes_that_it_gets_alone_when_it_is_padded(quantizer, batch):
    padded = quantizer.encode(batch["x"], batch["frame_mask"])
    assert torch.equal(padded[1:, :, :6], quantizer.encode(batch["x"][1:, :6]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"durations": torch.tensor([[2, 0, 3, 2], [1, 2, 2, 2]])}, "durations of sample 1 sum to 7 .* it has 6"),
        ({"durations": torch.tensor([[9, 0, 1, 0], [1, 2, 2, 0]])}, "durations of sample 0 sum to 10 .* it has 9"),
        ({"durations": torch.tensor([[2, 0, 3, 2], [1, 2, -1, 0]])}, "durations of sample 1 hold a negative number"),
        ({"durations": torch.ones(2, 4)}, "durations must be whole frames as integers, .* got torch.float32"),
        ({"durations": torch.ones(2, 3, dtype=torch.long)}, r"durations .* of the \(2, 4\) .* got \(2, 3\)"),
        ({"token_spans": torch.zeros(2, 4, 2)}, "pass exactly one of durations .* and token_spans"),
        ({"durations": None}, "pass exactly one of durations .* and token_spans"),
        (
            {"durations": None, "token_spans": torch.tensor([[[0.0, 0.5]] * 4] * 2)},
            r"token_spans of sample 1 hold 0.000 to 0.500 s .* inside the recording's 0.48 s",
        ),
        ({"qwen_hidden": torch.zeros(2, 4, 13)}, r"qwen_hidden must be \(batch, length, 12\) .* set .* qwen_dim"),
        ({"wavlm_features": torch.zeros(2, 9, 11)}, r"wavlm_features must be \(batch, length, 10\) .* wavlm_dim"),
        ({"wavlm_features": torch.zeros(9, 10)}, r"wavlm_features must be \(batch, length, 10\) .* got \(9, 10\)"),
        ({"wavlm_features": torch.zeros(2, 8, 10)}, "wavlm_features must have 9 frames .* or 31 to 36 .* got 8"),
        (
            {"wavlm_features": torch.zeros(1, 9, 10)},
            r"wavlm_features must have one row for each of the 2 samples, got 1",
        ),
        (
            {"wavlm_features": torch.zeros(1, 36, 10)},
            "wavlm_features must have one row for each of the 2 samples, got 1",
        ),
        (
            {"wavlm_mask": torch.ones(2, 36, dtype=torch.bool)},
            r"wavlm_mask must have one value for each of the \(2, 9\) \(batch, frames\), got \(2, 36\)",
        ),
        ({"frame_mask": torch.zeros(2, 9, dtype=torch.bool)}, "frame_mask marks no frame as real"),
        ({"qwen_hidden": None}, "durations and token_spans say where qwen_hidden belongs, but it was not given"),
        ({"token_mask": torch.ones(2, 3)}, r"token_mask must have one entry for each of the \(2, 4\)"),
        ({"x": torch.zeros(2, 9, 15)}, r"latents must be \(batch, frames, 16\), got \(2, 9, 15\)"),
        ({"x": torch.zeros(2, 16, 9)}, r"latents must be .* got \(2, 16, 9\); .* want a transpose\(1, 2\)"),
        ({"x": torch.zeros(9, 16)}, r"latents must be \(batch, frames, 16\), got \(9, 16\)"),
        (
            {"frame_mask": torch.ones(2, 8, dtype=torch.bool)},
            r"frame_mask must be bool of shape \(2, 9\), .* \(2, 8\)",
        ),
        ({"frame_mask": torch.ones(2, 9, dtype=torch.long)}, "frame_mask must be bool .* got torch.int64"),
        ({"num_quantizers": 0}, "num_quantizers must be 1 to 5 for this model, got 0"),
        ({"num_quantizers": 6}, "num_quantizers must be 1 to 5 for this model, got 6"),
        ({"num_quantizers": 4}, "num_quantizers must be left out while training, got 4"),
    ],
)
def test_forward_refuses_input_that_does_not_fit(quantizer, batch, wrong, message):
    with pytest.raises(ValueError, match=message):
        quantizer.train()(**batch | wrong)


@pytest.mark.parametrize("num_quantizers", [0, 10])
def test_default_quantizer_refuses_a_number_of_codebooks_that_it_does_not_have(num_quantizers):
    message = f"num_quantizers must be 1 to 9 for this model, got {num_quantizers}"
    with pytest.raises(ValueError, match=message):
        CausalBridgeQuantizer().encode(torch.zeros(1, 1, 512), num_quantizers=num_quantizers)


def test_wavlm_features_need_two_codebooks(quantizer, batch):
    with pytest.raises(ValueError, match="wavlm_features need the content and the prosody head"):
        quantizer(**batch, num_quantizers=1)


@pytest.mark.parametrize(
    "latents, frame_mask, message",
    [
        (torch.zeros(2, 0, 16), None, r"latents must hold at least one frame, got shape \(2, 0, 16\)"),
        (torch.zeros(2, 16, 9), None, r"latents must be \(batch, frames, 16\), got \(2, 16, 9\)"),
        (torch.zeros(2, 9, 16), torch.ones(2, 9), "frame_mask must be bool .* got torch.float32"),
    ],
    ids=["empty", "latents", "frame_mask"],
)
def test_encode_refuses_input_that_does_not_fit(quantizer, latents, frame_mask, message):
    with pytest.raises(ValueError, match=message):
        quantizer.encode(latents, frame_mask)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(1, 5, 2), "audio_codes must be integers, got torch.float32"),
        (torch.zeros(1, 5, 2, dtype=torch.bool), "audio_codes must be integers, got torch.bool"),
        (torch.full((1, 5, 2), CODEBOOK_SIZE), r"audio_codes must lie in \[0, 32\), got 32 to 32"),
        (torch.tensor([[[0, -1]]]), r"audio_codes must lie in \[0, 32\), got -1 to 0"),
        (torch.zeros(1, 6, 2, dtype=torch.long), r"with 1 to 5 codebooks, got \(1, 6, 2\)"),
        (torch.zeros(1, 0, 2, dtype=torch.long), r"with 1 to 5 codebooks, got \(1, 0, 2\)"),
        (torch.zeros(5, 2, dtype=torch.long), r"must be \(batch, codebooks, frames\) .* got \(5, 2\)"),
        (torch.zeros(1, 5, 0, dtype=torch.long), r"at least one frame, got shape \(1, 5, 0\)"),
    ],
    ids=["float", "bool", "too large", "negative", "too many codebooks", "no codebook", "2-D", "no frame"],
)
def test_decode_refuses_codes_that_no_encode_returns(quantizer, codes, message):
    with pytest.raises(ValueError, match=message):
        quantizer.decode(codes)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_decode_takes_codes_that_were_stored_as_a_narrower_integer(quantizer, latents, dtype):
    codes = quantizer.encode(latents)
    assert torch.equal(quantizer.decode(codes.to(dtype)), quantizer.decode(codes))


class Waits(TorchDispatchMode):
    """The operations, while it is entered, for which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if by_mask or name in ("nonzero", "_local_scalar_dense", "bincount", "masked_select", "equal", "_unique2"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("update", [None, "ema", "gradient"], ids=["in each forward", "ema", "gradient"])
@pytest.mark.parametrize("by_spans", [False, True], ids=["durations", "spans"])
def test_training_forward_waits_for_a_gpu_twice_at_most(quantizer, batch, update, by_spans):
    if by_spans:
        batch["token_spans"] = spans_of(batch.pop("durations"))
    batch["wavlm_features"] = batch["wavlm_features"].repeat_interleave(4, dim=1)  # at 50 Hz
    for head in quantizer.train().heads.values():
        head.learner = None if update is None else CodebookLearner(head.vq_codebooks, update, 0.9)
    with Waits() as waits:
        loss = quantizer(**batch, wavlm_mask=batch["frame_mask"]).loss
        loss.backward()
    assert len(waits.names) <= 2, waits.names


def test_training_forward_waits_for_a_gpu_once_without_a_teacher_and_never_without_padding(quantizer, batch):
    quantizer.train()
    with Waits() as padded:
        quantizer(batch["x"], frame_mask=batch["frame_mask"])
    with Waits() as whole:
        quantizer(batch["x"])
    assert (padded.names, whole.names) == (["nonzero"], [])


def test_waits_are_counted_where_there_are_some():
    values, mask = torch.zeros(3), torch.tensor([True, False, True])
    with Waits() as waits:
        values[mask] = values[mask] + 1.0
        bool(mask.any())
        mask.nonzero()
    assert len(waits.names) == 4


@BOTH_MODES
def test_padded_batch_gives_the_very_numbers_of_its_real_frames_side_by_side(quantizer, batch, training):
    real = batch["frame_mask"]
    alone = deepcopy(quantizer).train(training)
    output = quantizer.train(training)(batch["x"], frame_mask=real, wavlm_features=batch["wavlm_features"])
    expected = alone(batch["x"][real][None], wavlm_features=batch["wavlm_features"][real][None])
    assert torch.equal(output.codes.transpose(1, 2)[real], expected.codes[0].T)
    assert torch.equal(output.quantized[real], expected.quantized[0])
    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-6, atol=0)
    assert_same_state(quantizer, alone.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"durations": torch.full((2, 4), 9)},
        {"wavlm_features": torch.zeros(2, 3, WAVLM_DIM)},
        {"frame_mask": torch.zeros(2, 9).bool()},
    ],
    ids=["durations", "features", "mask"],
)
def test_training_forward_that_is_refused_has_moved_no_codebook(quantizer, batch, wrong):
    before = deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="durations of sample 0 sum to|wavlm_features must have|marks no frame as"):
        quantizer.train()(**batch | wrong)
    assert_same_state(quantizer, before)


@BOTH_MODES
@pytest.mark.parametrize("by_spans", [False, True], ids=["durations", "spans"])
def test_autocast_changes_no_code_and_no_loss(quantizer, batch, training, by_spans):
    if by_spans:
        durations = batch.pop("durations")
        batch["token_spans"] = spans_of(durations) * 0.9  # boundaries inside frames
    expected = deepcopy(quantizer)(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.encode(batch["x"], batch["frame_mask"])
        output = quantizer.train(training)(**batch)
    assert torch.equal(codes, expected.codes) and torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)
    assert {name: loss.item() for name, loss in output.losses.items()} == {
        name: loss.item() for name, loss in expected.losses.items()
    }


def test_no_float64_is_made_in_a_training_forward_but_of_the_targets_sums(quantizer, batch, monkeypatch):
    monkeypatch.setattr(distillation, "target_sums", lambda *given: torch.zeros(1))
    batch["token_spans"] = spans_of(batch.pop("durations"))
    dtypes = set()

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            dtypes.update(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with Dtypes():
        quantizer.train()(**batch).loss.backward()
    assert torch.float32 in dtypes and torch.float64 not in dtypes
