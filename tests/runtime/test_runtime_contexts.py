"""Heads with layers of their own in the fast path, in streams, in exported programs."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import PROGRAM
from test_stream import check_rows_that_live_on_their_own, random_lengths

from head_layers import stir, with_layers
from mimi_bridge import MimiBridgeModel
from mimi_bridge.runtime.export import export_decode_step, export_encode_step
from mimi_bridge.runtime.quantizer import PackedHead
from mimi_bridge.runtime.steps import StepRecorder
from mimi_bridge.runtime.stream import PAD_CODE
from ties import share_equal_but_for_ties

FRAME = 1920
NUM_FRAMES = 60  # more than twice the window, which is 25 frames for the heads' layers


@pytest.fixture(scope="module")
def model(_tiny_model) -> MimiBridgeModel:
    """The tiny model with two layers of content's own and one of prosody's, which count; leave it as it is."""
    model = with_layers(_tiny_model)
    stir(model)
    return model


@pytest.fixture(scope="module")
def sound(speech) -> torch.Tensor:
    """Four different recordings, `(4, 1, samples)`."""
    return torch.stack([speech[:, 110_000 * row :][:, : NUM_FRAMES * FRAME] for row in range(4)])


@pytest.fixture(scope="module")
def expected(model, sound) -> torch.Tensor:
    """Codes of the recordings, each alone and at once, by transformers' modules."""
    model.use_fast_path = False
    codes = torch.cat([model.encode(row[None]).audio_codes for row in sound])
    del model.use_fast_path
    assert min(len(codebook.unique()) for codebook in codes.unbind(dim=1)) >= 20
    return codes


def test_fast_path_gives_the_codes_of_transformers_modules(model, sound, expected):
    assert (model.encode(sound).audio_codes == expected).float().mean() >= 0.998  # elsewhere rounding decides


def test_a_recording_longer_than_a_chunk_gets_the_codes_of_the_whole(model, speech, monkeypatch):
    whole = model.encode(speech[None]).audio_codes
    monkeypatch.setattr("mimi_bridge.runtime.codec.CHUNK_FRAMES", 7)
    assert torch.equal(model.encode(speech[None]).audio_codes, whole)


@pytest.mark.parametrize("num_frames", [1, 5, 25, 60])
def test_chunks_of_whole_frames_give_the_codes_of_the_whole(model, sound, num_frames):
    with model.stream(len(sound)) as stream:
        codes = [stream.encode(chunk) for chunk in sound.split(num_frames * FRAME, dim=-1)]
    assert torch.equal(torch.cat(codes, dim=-1), model.encode(sound).audio_codes)


@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_give_the_codes_of_the_whole(model, sound, seed):
    with model.stream() as stream:
        chunks = sound[:1].split(random_lengths(sound.shape[-1], 12 * FRAME, seed), dim=-1)
        codes = torch.cat([stream.encode(chunk) for chunk in chunks], dim=-1)
    assert torch.equal(codes, model.encode(sound[:1]).audio_codes)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_start_pause_and_end_at_random_get_what_they_get_alone(model, sound, seed):
    check_rows_that_live_on_their_own(model, sound, seed)


def test_a_row_that_is_reset_begins_again_and_the_others_go_on(model, sound):
    first, second = sound[:2].split(NUM_FRAMES // 2 * FRAME, dim=-1)
    with model.stream(2) as stream:
        before = stream.encode(first)
        stream.reset([0])
        after = stream.encode(second)
    assert torch.equal(after[0], model.encode(second[:1]).audio_codes[0])
    assert torch.equal(torch.cat([before[1], after[1]], dim=-1), model.encode(sound[1:2]).audio_codes[0])


def test_a_row_that_pauses_goes_on_where_it_stopped(model, sound):
    pauses = torch.tensor([True, False])
    with model.stream(2) as stream:
        found = []
        for number, chunk in enumerate(sound[:2].split(FRAME, dim=-1)):
            found.append(stream.encode(chunk))
            if number % 3 == 0:
                noise = torch.rand_like(chunk)
                assert stream.encode(noise, pauses)[1].eq(PAD_CODE).all()
    assert torch.equal(torch.cat(found, dim=-1)[1], model.encode(sound[1:2]).audio_codes[0])


@pytest.mark.parametrize("num_quantizers", [1, 2, 5])
def test_first_codebooks_only_are_encoded(model, sound, num_quantizers):
    whole = model.encode(sound[:1]).audio_codes[:, :num_quantizers]
    assert torch.equal(model.encode(sound[:1], num_quantizers=num_quantizers).audio_codes, whole)
    with model.stream(num_quantizers=num_quantizers) as stream:
        codes = torch.cat([stream.encode(chunk) for chunk in sound[:1].split(3 * FRAME, dim=-1)], dim=-1)
    assert torch.equal(codes, whole)


def test_a_saved_stream_goes_on_with_the_heads_layers_where_it_stood(model, sound, tmp_path):
    first, second = sound.split(NUM_FRAMES // 2 * FRAME, dim=-1)
    with model.stream(4) as stream:
        before = stream.encode(first)
        save_file(stream.state_dict(), tmp_path / "state.safetensors")
    with model.stream(4) as other:
        other.load_state_dict(load_file(tmp_path / "state.safetensors"))
        codes = torch.cat([before, other.encode(second)], dim=-1)
    assert torch.equal(codes, model.encode(sound).audio_codes)


def test_a_state_of_fewer_codebooks_than_a_stream_gives_is_refused(model):
    state = model.stream(num_quantizers=1).state_dict()
    with pytest.raises(ValueError, match=r"\['encoder.prosody_keys_values'\] are missing or too many"):
        model.stream().load_state_dict(state)


def test_recorded_steps_give_the_codes_of_plain_ones_where_rows_pause_and_begin_again(model, sound, monkeypatch):
    def record(run, device):  # a stand-in for a GPU's graphs: a replay runs the step again
        result = run()
        return lambda: result.copy_(run()), result

    monkeypatch.setattr("mimi_bridge.runtime.steps.record", record)
    generator, found = torch.Generator().manual_seed(0), ([], [])
    with model.stream(4) as plain, model.stream(4) as recorded:
        recorded._recorder = StepRecorder()
        for number, chunk in enumerate(sound.split(FRAME, dim=-1)):
            is_active = torch.rand(4, generator=generator) < 0.8
            for codes, stream in zip(found, (plain, recorded), strict=True):
                codes.append(stream.encode(chunk, is_active))
                if number == 30:
                    stream.reset([2])
    assert torch.equal(*(torch.cat(codes, dim=-1) for codes in found))


def test_a_model_without_layers_has_the_state_that_it_had(_tiny_model):
    assert set(_tiny_model.stream().state_dict()) == {
        *(f"{half}.{name}" for half in ("encoder", "decoder") for name in ("tails", "keys_values", "positions")),
        *("waiting", "num_waiting"),
    }


def test_a_stream_goes_on_with_new_weights_of_the_heads_layers(model, sound):
    model = deepcopy(model)
    with model.stream() as stream:
        stream.encode(sound[:1])
        with torch.no_grad():
            model.quantizer.head_content.context.out.weight.zero_()
        stream.reset()
        codes = stream.encode(sound[:1])
    assert torch.equal(codes, model.encode(sound[:1]).audio_codes)


def test_attention_of_the_heads_layers_that_the_fast_path_does_not_know_is_left_to_transformers(model, sound):
    model = deepcopy(model)
    model.quantizer.head_content.context.transformer.config._attn_implementation = "paged|sdpa"
    with pytest.raises(
        ValueError, match="cannot stream, because of its quantizer: its attention is not transformers'"
    ):
        model.stream()


@pytest.mark.slow
def test_exported_steps_give_a_stream_s_codes_in_another_process(model, sound, tmp_path):
    audio = sound[:2, :, : 40 * FRAME]  # beyond the window of the heads' layers
    given = {"audio": audio}
    for name, make in (("encode", export_encode_step), ("decode", export_decode_step)):
        program, state = make(model, batch_size=2)
        torch.export.save(program, tmp_path / f"{name}.pt2")
        given[name] = list(state.values())
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=300)
    with model.stream(2) as stream:
        assert torch.equal(torch.load(tmp_path / "result.pt")["codes"], stream.encode(audio))


def test_differences_of_the_fast_path_are_ties_where_layers_say_nothing(model, _tiny_model, sound):
    codes = _tiny_model.encode(sound[:1]).audio_codes
    silent = deepcopy(model)
    with torch.no_grad():
        for name in ("content", "prosody"):
            silent.quantizer.heads[name].context.out.weight.zero_()
    found = silent.encode(sound[:1]).audio_codes
    assert share_equal_but_for_ties(silent, silent.get_latents(sound[:1]), found, codes) == 1.0


@pytest.mark.parametrize("num_frames", [1, 30])
def test_a_call_that_is_broken_off_behind_the_heads_layers_has_not_happened(model, sound, monkeypatch, num_frames):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    first, second = sound.split(NUM_FRAMES // 2 * FRAME, dim=-1)
    with model.stream(4) as stream:
        before = stream.encode(first)
        with monkeypatch.context() as broken:
            broken.setattr(PackedHead, "decode", interrupted)  # content's layers have run by then
            with pytest.raises(KeyboardInterrupt):
                stream.encode(torch.rand_like(second[..., : num_frames * FRAME]))
        codes = torch.cat([before, stream.encode(second)], dim=-1)
    assert torch.equal(codes, model.encode(sound).audio_codes)
