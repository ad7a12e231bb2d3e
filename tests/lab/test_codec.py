"""The Mimi that can be trained from nothing, and the `MimiModel` that it becomes."""

from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from codec_training.codec import FIRST_LOUDNESS, UNQUANTIZED, TrainableMimi
from mimi_bridge.training.codebooks import fill_from_data
from tiny import TINY

NUM_ACOUSTIC, READOUT_DIM, NUM_FRAMES = 4, 7, 10
CONFIG = MimiConfig(**TINY, num_quantizers=1 + NUM_ACOUSTIC)


@pytest.fixture(scope="module")
def _codec(fitting_speech):
    torch.manual_seed(0)
    codec = TrainableMimi(CONFIG, READOUT_DIM).eval()
    nn.init.normal_(codec.semantic.project_out.weight, std=0.3)  # training begins at zero, which would hide the head
    num_samples = fitting_speech.shape[-1] // CONFIG.frame_size * CONFIG.frame_size
    with torch.no_grad():
        latents = codec.encoder(fitting_speech[None, :, :num_samples]).latents[0].T
    for head in (codec.semantic, codec.acoustic):
        fill_from_data(head, latents, len(latents), torch.Generator().manual_seed(0))
    return codec


@pytest.fixture
def codec(_codec) -> TrainableMimi:
    """A tiny codec, its codebooks filled from speech, both heads audible, in eval mode; a copy."""
    return deepcopy(_codec)


@pytest.fixture
def audio(speech) -> Tensor:
    """Two seconds of speech in three voices, `(3, 1, samples)`."""
    num_samples = NUM_FRAMES * CONFIG.frame_size
    return torch.stack([speech[:, start : start + num_samples] for start in (12_000, 150_000, 290_000)])


def all_codebooks(batch_size: int = 3) -> Tensor:
    return torch.full((batch_size,), NUM_ACOUSTIC)


def is_reached(module: nn.Module) -> bool:
    """Whether every parameter got a gradient that is not zero."""
    return all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in module.parameters())


def is_untouched(module: nn.Module) -> bool:
    return all(parameter.grad is None or not parameter.grad.any() for parameter in module.parameters())


def codebooks_of(codec: TrainableMimi) -> list[Tensor]:
    return [codebook.clone() for head in (codec.semantic, codec.acoustic) for codebook in head.codebooks]


def equal(ones: list[Tensor], others: list[Tensor]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(ones, others, strict=True)]


def test_semantic_head_is_silent_when_training_begins(audio):
    codec = TrainableMimi(CONFIG, READOUT_DIM).eval()
    before = codec(audio, all_codebooks())
    codec.semantic.layers[0]._codebook.embed.normal_()
    after = codec(audio, all_codebooks())
    assert not torch.equal(after.codes[:, 0], before.codes[:, 0])
    assert torch.equal(after.audio, before.audio)


def test_decoder_begins_quieter_than_mimis_and_without_an_offset():
    torch.manual_seed(0)
    random = MimiModel(CONFIG).decoder.decoder_seanet.layers[-1].conv
    torch.manual_seed(0)
    ours = TrainableMimi(CONFIG, READOUT_DIM).decoder.decoder_seanet.layers[-1].conv
    torch.testing.assert_close(ours.weight, FIRST_LOUDNESS * random.weight)
    assert random.weight.any() and not ours.bias.any()


def test_sound_is_decoded_from_the_latents_when_codebooks_are_left_out(codec, audio):
    output = codec(audio)
    assert torch.equal(output.audio, codec.decoder(output.latents.transpose(1, 2)).audio_values)


def test_gradient_of_sound_passes_both_heads_by_when_codebooks_are_left_out(codec, audio):
    codec(audio).audio.square().mean().backward()
    assert all(map(is_reached, (codec.encoder, codec.decoder)))
    assert all(map(is_untouched, (codec.semantic, codec.acoustic, codec.readout)))


def test_gradient_of_readout_passes_project_out_by_when_codebooks_are_left_out(codec, audio):
    codec(audio).readout.square().mean().backward()
    assert all(map(is_reached, (codec.encoder, codec.semantic.project_in, codec.readout)))
    assert all(map(is_untouched, (codec.semantic.project_out, codec.acoustic, codec.decoder)))


def test_codes_and_commitment_are_none_when_codebooks_are_left_out(codec, audio):
    output = codec(audio)
    assert (output.codes, output.commitment) == (None, None)


def test_codebooks_do_not_move_when_they_are_left_out(codec, audio):
    before = codebooks_of(codec)
    codec.train()(audio)
    assert all(equal(codebooks_of(codec), before))


def test_readout_is_a_map_of_the_projected_latents_when_codebooks_are_left_out(codec, audio):
    output = codec(audio)
    projected = output.latents @ codec.semantic.project_in.weight[:, :, 0].T
    torch.testing.assert_close(output.readout, codec.readout(projected))


def test_readout_depends_on_the_semantic_code_alone(codec, audio):
    output = codec(audio, all_codebooks())
    torch.testing.assert_close(output.readout, codec.readout(codec.semantic.codebooks[0])[output.codes[:, 0]])


def test_output_has_the_shapes_it_says(codec, audio):
    output = codec(audio, all_codebooks())
    assert output.audio.shape == audio.shape
    assert output.latents.shape == (3, NUM_FRAMES, CONFIG.hidden_size)
    assert output.readout.shape == (3, NUM_FRAMES, READOUT_DIM)
    assert output.codes.shape == (3, 1 + NUM_ACOUSTIC, NUM_FRAMES)
    assert output.commitment.shape == ()


@torch.no_grad()
def slow_codes(codec: TrainableMimi, latents: Tensor) -> Tensor:
    """Codes of both heads, `(batch, codebooks, frames)`: entry by entry."""
    levels = []
    for head in (codec.semantic, codec.acoustic):
        residual = latents @ head.project_in.weight[:, :, 0].T
        for codebook in head.codebooks:
            distances = torch.stack([(residual - entry).square().sum(dim=-1) for entry in codebook])
            levels.append(distances.argmin(dim=0))
            residual = residual - codebook[levels[-1]]
    return torch.stack(levels, dim=1)


def test_codes_equal_a_brute_force_search_with_the_semantic_one_first(codec, audio):
    output = codec(audio, all_codebooks())
    assert all(len(codes.unique()) > 10 for codes in output.codes.unbind(dim=1))
    assert torch.equal(output.codes, slow_codes(codec, output.latents))


@pytest.mark.parametrize("num_acoustic", range(NUM_ACOUSTIC + 1))
def test_audio_is_what_mimi_decodes_from_the_semantic_and_the_first_acoustic_codes(codec, audio, num_acoustic):
    output = codec(audio, torch.full((3,), num_acoustic))
    decoded = codec.to_mimi().decode(output.codes[:, : 1 + num_acoustic]).audio_values
    torch.testing.assert_close(output.audio, decoded)


def test_audio_differs_with_every_acoustic_codebook_that_is_added(codec, audio):
    sounds = [codec(audio, torch.full((3,), num_acoustic)).audio for num_acoustic in range(NUM_ACOUSTIC + 1)]
    scale = sounds[-1].std()
    assert all((more - fewer).std() > 0.01 * scale for fewer, more in pairwise(sounds))


def test_codes_are_all_there_when_a_sequence_is_decoded_from_fewer(codec, audio):
    full, fewer = codec(audio, all_codebooks()), codec(audio, torch.tensor([0, 2, UNQUANTIZED]))
    assert torch.equal(full.codes, fewer.codes)


def test_each_sequence_of_a_batch_has_its_own_number_of_codebooks(codec, audio):
    same = audio[:1].expand(4, -1, -1)
    numbers = torch.tensor([2, UNQUANTIZED, 0, NUM_ACOUSTIC])
    apart = [codec(same, number.expand(4)).audio[place] for place, number in enumerate(numbers)]
    torch.testing.assert_close(codec(same, numbers).audio, torch.stack(apart))


def test_unquantized_sequence_passes_the_acoustic_projections_and_the_semantic_codebook(codec, audio):
    output = codec(audio, torch.full((3,), UNQUANTIZED))
    semantic, acoustic = (head.project_out.weight[:, :, 0] for head in (codec.semantic, codec.acoustic))
    entries = codec.semantic.codebooks[0][output.codes[:, 0]]
    passed = output.latents @ codec.acoustic.project_in.weight[:, :, 0].T
    quantized = entries @ semantic.T + passed @ acoustic.T
    torch.testing.assert_close(output.audio, codec.decoder(quantized.transpose(1, 2)).audio_values)


def test_unquantized_sequence_does_not_hear_the_acoustic_codebooks(codec, audio):
    before = codec(audio, torch.full((3,), UNQUANTIZED)).audio
    for layer in codec.acoustic.layers:
        layer._codebook.embed.normal_()
    assert torch.equal(codec(audio, torch.full((3,), UNQUANTIZED)).audio, before)


@pytest.mark.parametrize("number", [0, 2, NUM_ACOUSTIC, UNQUANTIZED])
def test_gradient_passes_straight_through_the_codebooks_to_the_latents(codec, audio, number):
    latents = codec(audio).latents.detach().transpose(1, 2).requires_grad_()
    codec.encoder = Literal(latents=latents)
    codec.decoder = PassOn()
    codec(audio, torch.full((3,), number)).audio.sum().backward()
    paths = [
        head.project_out.weight[:, :, 0] @ head.project_in.weight[:, :, 0] for head in (codec.semantic, codec.acoustic)
    ]
    expected = sum(paths).sum(dim=0)  # as if nothing were looked up
    torch.testing.assert_close(latents.grad, expected[None, :, None].expand_as(latents))


class Literal(nn.Module):
    """Gives the same whatever it gets."""

    def __init__(self, **outputs: Tensor):
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, _audio: Tensor) -> SimpleNamespace:
        return self.outputs


class PassOn(nn.Module):
    """Gives latents as audio."""

    def forward(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(audio_values=latents)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_gradient_of_sound_reaches_everything_but_the_readout_through_the_codebooks(codec, audio, training):
    codec.train(training)(audio, all_codebooks()).audio.square().mean().backward()
    assert all(map(is_reached, (codec.encoder, codec.semantic, codec.acoustic, codec.decoder)))
    assert is_untouched(codec.readout)


def test_gradient_of_readout_reaches_the_encoder_through_the_semantic_codebook(codec, audio):
    codec(audio, all_codebooks()).readout.square().mean().backward()
    assert all(map(is_reached, (codec.encoder, codec.semantic.project_in, codec.readout)))
    assert all(map(is_untouched, (codec.semantic.project_out, codec.acoustic, codec.decoder)))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_gradient_of_commitment_reaches_the_encoder_and_no_decoder(codec, audio, training):
    codec.train(training)(audio, all_codebooks()).commitment.backward()
    assert all(map(is_reached, (codec.encoder, codec.semantic.project_in, codec.acoustic.project_in)))
    assert all(map(is_untouched, (codec.semantic.project_out, codec.acoustic.project_out, codec.decoder)))


def test_commitment_is_the_sum_of_both_heads_mean_squared_distances(codec, audio):
    output = codec(audio, all_codebooks())
    expected = 0.0
    for head, codes in ((codec.semantic, output.codes[:, :1]), (codec.acoustic, output.codes[:, 1:])):
        residual, errors = output.latents @ head.project_in.weight[:, :, 0].T, []
        for codebook, indices in zip(head.codebooks, codes.unbind(dim=1), strict=True):
            residual = residual - codebook[indices]
            errors.append(residual.square().mean())
        expected = expected + torch.stack(errors).mean()
    torch.testing.assert_close(output.commitment, expected)


def test_training_forward_moves_every_codebook(codec, audio):
    before = codebooks_of(codec)
    codec.train()(audio, all_codebooks())
    assert not any(equal(codebooks_of(codec), before))


@pytest.mark.parametrize(("options", "decay"), [({}, 0.99), ({"decay": 0.75}, 0.75)], ids=["by default", "as given"])
def test_training_forward_moves_running_counts_by_the_decay(audio, options, decay):
    codec = TrainableMimi(CONFIG, READOUT_DIM, **options).train()
    counts = [layer._codebook.cluster_size for head in (codec.semantic, codec.acoustic) for layer in head.layers]
    before = [count.clone() for count in counts]
    codes = codec(audio, all_codebooks()).codes
    for then, now, level in zip(before, counts, codes.unbind(dim=1), strict=True):
        used = torch.bincount(level.flatten(), minlength=CONFIG.codebook_size)
        torch.testing.assert_close(now[0], decay * then[0] + (1 - decay) * used)


@pytest.mark.parametrize(("training", "may_learn"), [(False, True), (True, False)], ids=["inference", "may not learn"])
def test_codebooks_stay_to_the_bit_when_they_may_not_learn(codec, audio, training, may_learn):
    before = deepcopy(codec.state_dict())
    codec.train(training)(audio, all_codebooks(), may_learn=may_learn)
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


def test_to_mimi_gives_the_same_codes(codec, audio):
    output = codec(audio, all_codebooks())
    assert torch.equal(codec.to_mimi().encode(audio).audio_codes, output.codes)


def test_to_mimi_gives_the_same_audio(codec, audio):
    output = codec(audio, all_codebooks())
    torch.testing.assert_close(codec.to_mimi()(audio).audio_values, output.audio)


def test_to_mimi_gives_the_same_codes_after_training_has_moved_the_codebooks(codec, audio):
    codec.train()(audio, all_codebooks())
    codec.eval()
    assert torch.equal(codec.to_mimi().encode(audio).audio_codes, codec(audio, all_codebooks()).codes)


def test_to_mimi_is_in_eval_mode_when_the_codec_trains(codec):
    assert not codec.train().to_mimi().training


def test_to_mimi_shares_no_weight_with_the_codec(codec, audio):
    mimi = codec.to_mimi()
    before = mimi(audio).audio_values
    with torch.no_grad():
        for value in (*codec.parameters(), *codec.buffers()):
            value.zero_()
    assert torch.equal(mimi(audio).audio_values, before)


def test_to_mimi_can_be_saved_and_loaded_with_the_same_codes(codec, audio, tmp_path):
    mimi = codec.to_mimi()
    mimi.save_pretrained(tmp_path)
    assert torch.equal(MimiModel.from_pretrained(tmp_path).encode(audio).audio_codes, mimi.encode(audio).audio_codes)


@pytest.fixture
def initial(tiny_mimi) -> TrainableMimi:
    """A codec that begins with the weights of `tiny_mimi`, in eval mode."""
    torch.manual_seed(1)
    codec = TrainableMimi(tiny_mimi.config, READOUT_DIM)
    codec.load_mimi(tiny_mimi, frames_per_step=96)
    return codec.eval()


def test_codec_that_begins_with_a_mimi_gives_its_codes_and_audio(initial, tiny_mimi, audio):
    theirs, ours = tiny_mimi(audio), initial(audio, torch.full((3,), 11))
    assert all(len(codes.unique()) > 10 for codes in theirs.audio_codes.unbind(dim=1))
    assert torch.equal(ours.codes, theirs.audio_codes)
    torch.testing.assert_close(ours.audio, theirs.audio_values)


def test_codec_that_begins_with_a_mimi_leaves_it_alone_when_it_trains(initial, tiny_mimi, audio):
    before = deepcopy(tiny_mimi.state_dict())
    initial.train()(audio, torch.full((3,), 11))
    with torch.no_grad():
        for parameter in initial.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in tiny_mimi.state_dict().items())


def test_codebooks_that_begin_with_a_mimi_count_a_training_batch_evenly(initial):
    for head in (initial.semantic, initial.acoustic):
        for codebook in head.vq_codebooks:
            assert codebook.cluster_size[0].tolist() == [96 / TINY["codebook_size"]] * TINY["codebook_size"]
            torch.testing.assert_close(codebook.embed_avg / codebook.cluster_size[..., None], codebook.embed)


def test_codec_becomes_the_mimi_that_it_began_with(initial, tiny_mimi, audio):
    ours, theirs = initial.to_mimi()(audio), tiny_mimi(audio)
    assert torch.equal(ours.audio_codes, theirs.audio_codes)
    torch.testing.assert_close(ours.audio_values, theirs.audio_values)
