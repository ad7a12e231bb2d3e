from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mimi_bridge import codebook as codebook_module
from mimi_bridge.heads import HeadOutput, QuantizerHead

CODEC_DIM, CODEBOOK_DIM, CODEBOOK_SIZE, DECAY = 6, 4, 16, 0.9
NUM_FRAMES = 20

SINGLE_AND_CHAIN = pytest.mark.parametrize("head", [None, 3], ids=["one codebook", "three codebooks"], indirect=True)
BOTH_MODES = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
HALF_PRECISION = pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])


def set_codebook(layer: nn.Module, entries: Tensor) -> None:
    layer._codebook.embed.copy_(entries[None])
    layer._codebook.embed_avg.copy_(entries[None])


@pytest.fixture
def head(request) -> QuantizerHead:
    """A head in inference mode whose entries are spread as wide as the latents, so that many are used."""
    torch.manual_seed(0)
    head = QuantizerHead(CODEC_DIM, CODEBOOK_DIM, CODEBOOK_SIZE, getattr(request, "param", None), DECAY)
    for level, layer in enumerate(head.layers):
        set_codebook(layer, torch.randn(CODEBOOK_SIZE, CODEBOOK_DIM) / 2 ** (level + 1))
    return head.eval()


@pytest.fixture
def latents() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, NUM_FRAMES, CODEC_DIM)


def literal_head(*codebooks: list[list[float]]) -> QuantizerHead:
    """A head of two-dimensional codebooks whose projections change nothing."""
    head = QuantizerHead(2, 2, len(codebooks[0]), len(codebooks), DECAY).eval()
    for projection in (head.project_in, head.project_out):
        projection.weight.data = torch.eye(2)[:, :, None]
    for layer, entries in zip(head.layers, codebooks, strict=True):
        set_codebook(layer, torch.tensor(entries))
    return head


@torch.no_grad()
def slow_head(head: QuantizerHead, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, quantized latents and squared errors of a head: frame by frame, codebook by codebook, entry by entry."""
    project_in, project_out = head.project_in.weight[:, :, 0], head.project_out.weight[:, :, 0]
    num_samples, num_frames, _ = latents.shape
    quantized, errors = torch.zeros_like(latents), torch.zeros(num_samples, len(head.codebooks), num_frames)
    codes = torch.zeros_like(errors, dtype=torch.long)
    for sample, frame in product(range(num_samples), range(num_frames)):
        residual, total = project_in @ latents[sample, frame], torch.zeros(project_in.shape[0])
        for level, codebook in enumerate(head.codebooks):
            distances = [float((residual - entry).square().sum()) for entry in codebook]
            code = distances.index(min(distances))
            residual, total = residual - codebook[code], total + codebook[code]
            codes[sample, level, frame] = code
            errors[sample, level, frame] = residual.square().mean()
        quantized[sample, frame] = project_out @ total
    return codes, quantized, errors


def test_head_gives_code_and_entry_of_a_literal_codebook():
    head = literal_head([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    output = head(torch.tensor([[[0.9, 0.2], [0.1, -0.1], [0.1, 2.0]]]))
    assert output.codes.tolist() == [[[1, 0, 2]]]
    assert output.quantized.tolist() == [[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]


def test_second_codebook_quantizes_what_the_first_left():
    head = literal_head([[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]])
    output = head(torch.tensor([[[5.1, 0.0], [4.2, 0.0], [0.9, 0.0]]]))
    assert output.codes.tolist() == [[[1, 1, 0], [1, 0, 1]]]
    assert output.quantized[0, :, 0].tolist() == [5.0, 4.0, 1.0]


@SINGLE_AND_CHAIN
def test_codes_and_quantized_latents_equal_a_brute_force_search(head, latents):
    codes, quantized, _ = slow_head(head, latents)
    output = head(latents)
    assert all(level.unique().numel() > CODEBOOK_SIZE // 2 for level in codes.unbind(dim=1))
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized, quantized)


@SINGLE_AND_CHAIN
def test_training_gives_the_codes_and_the_very_bits_of_inference(head, latents):
    evaluated, trained = head.eval()(latents), head.train()(latents)
    assert torch.equal(trained.codes, evaluated.codes)
    assert torch.equal(trained.quantized, evaluated.quantized)


@SINGLE_AND_CHAIN
def test_codes_are_int64_of_batch_codebooks_and_frames(head, latents):
    codes = head(latents).codes
    assert (codes.dtype, codes.shape) == (torch.int64, (2, len(head.layers), NUM_FRAMES))


@SINGLE_AND_CHAIN
@BOTH_MODES
def test_gradient_of_quantized_passes_straight_to_the_inputs(head, latents, training):
    latents.requires_grad_()
    head.train(training)(latents).quantized.sum().backward()
    straight = head.project_out.weight[:, :, 0] @ head.project_in.weight[:, :, 0]  # as if nothing were looked up
    torch.testing.assert_close(latents.grad, straight.sum(dim=0).expand_as(latents))


@SINGLE_AND_CHAIN
@BOTH_MODES
def test_gradient_of_quantized_passes_straight_to_project_in(head, latents, training):
    head.train(training)(latents).quantized.sum().backward()
    from_output = head.project_out.weight[:, :, 0].sum(dim=0)
    torch.testing.assert_close(head.project_in.weight.grad[:, :, 0], torch.outer(from_output, latents.sum(dim=(0, 1))))


@SINGLE_AND_CHAIN
def test_gradient_of_quantized_reaches_project_out_through_the_entries(head, latents):
    output = head(latents)
    output.quantized.sum().backward()
    entries = sum(book[level] for book, level in zip(head.codebooks, output.codes.unbind(dim=1), strict=True))
    expected = entries.sum(dim=(0, 1)).expand(CODEC_DIM, -1)
    torch.testing.assert_close(head.project_out.weight.grad[:, :, 0], expected)


@SINGLE_AND_CHAIN
def test_training_forward_moves_every_codebook(head, latents):
    before = [codebook.clone() for codebook in head.codebooks]
    head.train()(latents)
    assert not any(torch.equal(now, then) for now, then in zip(head.codebooks, before, strict=True))


def test_training_forward_moves_an_entry_to_the_running_mean_of_its_frames():
    head = literal_head([[0.0, 0.0], [8.0, 0.0]]).train()
    head(torch.tensor([[[9.0, 1.0], [10.0, 1.0]]]))  # both nearest to entry 1, whose count starts at 1
    expected = (DECAY * torch.tensor([8.0, 0.0]) + (1 - DECAY) * torch.tensor([19.0, 2.0])) / (DECAY + (1 - DECAY) * 2)
    torch.testing.assert_close(head.codebooks[0], torch.stack([torch.zeros(2), expected]), atol=1e-4, rtol=0)


@SINGLE_AND_CHAIN
def test_inference_forward_moves_nothing(head, latents):
    before = deepcopy(head.state_dict())
    head(latents, with_commitment=True)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@SINGLE_AND_CHAIN
def test_decoding_codes_gives_the_quantized_latents(head, latents):
    output = head(latents)
    assert torch.equal(head.decode(output.codes), output.quantized)


@pytest.mark.parametrize("head", [3], indirect=True)
@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_first_codebooks_give_the_first_codes_and_what_they_decode_to(head, latents, num_codebooks):
    first_codes = head(latents).codes[:, :num_codebooks]
    output = head(latents, num_codebooks=num_codebooks)
    assert torch.equal(output.codes, first_codes)
    assert torch.equal(output.quantized, head.decode(first_codes))


def run_in_half_precision(autocast: bool, training: bool) -> HeadOutput:
    """A head given exactly 1.0 in bfloat16, by its weights' type or by autocast."""
    dtype = torch.float32 if autocast else torch.bfloat16
    head = literal_head([[1.003, 0.0], [1.001, 0.0]]).train(training)  # in bfloat16 both entries are 1.0: a tie
    head.project_in.to(dtype)
    head.project_out.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return head(torch.tensor([[[1.0, 0.0]]], dtype=dtype), with_commitment=True)


@BOTH_MODES
@HALF_PRECISION
def test_search_is_in_float32_when_projections_are_in_bfloat16(autocast, training):
    output = run_in_half_precision(autocast, training)
    assert output.codes.tolist() == [[[1]]]
    assert output.quantized.dtype == (torch.float32 if autocast else torch.bfloat16)


@SINGLE_AND_CHAIN
@BOTH_MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32 latents", "bfloat16 latents"])
def test_autocast_changes_no_bit_of_a_head_in_float32(head, latents, training, dtype):
    latents = latents.to(dtype)
    expected = head(latents.float(), with_commitment=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = head.encode(latents)
        decoded = head.decode(codes)
        output = head.train(training)(latents, with_commitment=True)
    assert torch.equal(codes, expected.codes) and torch.equal(output.codes, expected.codes)
    assert torch.equal(decoded, expected.quantized) and torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.commitment, expected.commitment)


@BOTH_MODES
@HALF_PRECISION
def test_commitment_is_in_float32_when_projections_are_in_bfloat16(autocast, training):
    commitment = run_in_half_precision(autocast, training).commitment
    assert commitment.item() == pytest.approx(0.001**2 / 2, rel=1e-3)


@BOTH_MODES
def test_commitment_is_the_mean_squared_distance_by_hand(training):
    head = literal_head([[0.0, 0.0], [4.0, 0.0]]).train(training)
    output = head(torch.tensor([[[1.0, 0.0], [4.0, 2.0]]]), with_commitment=True)
    assert output.commitment.item() == pytest.approx(((1 + 0) / 2 + (0 + 4) / 2) / 2)


@BOTH_MODES
def test_commitment_of_a_chain_is_the_mean_over_its_codebooks_by_hand(training):
    head = literal_head([[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]).train(training)
    output = head(torch.tensor([[[5.5, 0.0]]]), with_commitment=True)  # 1.5 left, then 0.5
    assert output.commitment.item() == pytest.approx((1.5**2 / 2 + 0.5**2 / 2) / 2)


@SINGLE_AND_CHAIN
@BOTH_MODES
def test_commitment_is_the_mean_of_the_slow_search_s_errors(head, latents, training):
    _, _, errors = slow_head(head, latents)
    commitment = head.train(training)(latents, with_commitment=True).commitment
    torch.testing.assert_close(commitment, errors.mean())


@SINGLE_AND_CHAIN
@BOTH_MODES
def test_commitment_pulls_the_projected_latents_and_no_entry(head, latents, training):
    latents.requires_grad_()
    head.train(training)(latents, with_commitment=True).commitment.backward()
    assert latents.grad.any() and head.project_in.weight.grad.any()
    assert head.project_out.weight.grad is None
    assert not any(codebook.requires_grad for codebook in head.codebooks)


def test_commitment_is_left_out_in_inference_unless_asked_for(head, latents):
    assert head(latents).commitment is None


def test_entry_that_training_never_uses_comes_out_as_it_went_in():
    head = literal_head([[0.0, 0.0], [8.0, 0.0]]).train()
    for _ in range(200):  # the count of entry 1 falls to 0.9 ** 200, far below the smoothing's 1e-5
        head(torch.zeros(1, 1, 2))
    torch.testing.assert_close(head.codebooks[0][1], torch.tensor([8.0, 0.0]))


@SINGLE_AND_CHAIN
def test_encode_gives_the_codes_of_forward_and_moves_nothing(head, latents):
    before = deepcopy(head.state_dict())
    assert torch.equal(head.encode(latents), head(latents).codes)
    head.train().encode(latents)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@SINGLE_AND_CHAIN
def test_inference_sees_codebooks_that_training_moved(head, latents):
    head(latents)
    for _ in range(3):
        head.train()(latents)
    for store in head.vq_codebooks:
        store.update_ema()  # the library writes through .data, which no count of writes shows
    codes, quantized, _ = slow_head(head, latents)
    output = head.eval()(latents)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized, quantized)


class LargestTensor(TorchDispatchMode):
    """The numbers in the largest tensor that any operation gives while it is entered."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def forward_and_back(head: QuantizerHead, latents: Tensor) -> None:
    output = head(latents.requires_grad_())
    (output.quantized.square().mean() + output.commitment).backward()


@pytest.mark.parametrize(
    ("training", "run"),
    [
        (False, QuantizerHead.encode),
        (False, lambda head, latents: head.decode(head.encode(latents))),
        (True, forward_and_back),
    ],
    ids=["encode", "encode and decode", "training step"],
)
def test_no_tensor_has_a_row_of_the_codebook_s_size_for_every_frame(training, run, monkeypatch):
    monkeypatch.setattr(codebook_module, "MAX_ROWS", 128)
    size, num_frames = 512, 1024
    head = QuantizerHead(CODEC_DIM, CODEBOOK_DIM, size, 2, DECAY).train(training)
    latents = torch.randn(1, num_frames, CODEC_DIM)
    with LargestTensor() as largest:
        run(head, latents)
    assert 0 < largest.numel <= num_frames * size // 8  # one block of 128 frames

    with LargestTensor() as largest:
        head.vq(head.project_in(latents.transpose(1, 2)).transpose(1, 2))
    assert largest.numel >= num_frames * size  # so the library's would be seen
