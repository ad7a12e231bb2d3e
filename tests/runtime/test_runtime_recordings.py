"""When the fast path is taken, that it gives what the reference does, and recordings of any length."""

from copy import deepcopy

import pytest
import torch
from transformers.models.mimi.modeling_mimi import MimiConv1d

from mimi_bridge.runtime import codec as inference
from reference_path import reference_path
from ties import share_equal_but_for_ties

FRAME = 1920


@pytest.fixture
def reference(tiny_model):
    """A copy of the tiny model that never takes the fast path."""
    copy = deepcopy(tiny_model)
    copy.use_fast_path = False
    return copy


@pytest.fixture
def convolutions(monkeypatch):
    """Which of transformers' convolutions run; empty after a call on the fast path."""
    calls, forward = [], MimiConv1d.forward

    def spy(self, *arguments, **options):
        calls.append(self)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(MimiConv1d, "forward", spy)
    return calls


def close(result, expected) -> bool:
    return bool((result - expected).abs().max() <= 3e-6 * max(1.0, float(expected.abs().max())))


# The same numbers


@torch.no_grad()
def test_fast_path_gives_the_reference_s_codes_latents_and_audio(tiny_model, reference, speech):
    audio = speech[None, :, : 130 * FRAME + 700]  # two chunks, and a frame that is not whole
    codes, latents = tiny_model.encode(audio).audio_codes, reference.get_latents(audio)
    assert share_equal_but_for_ties(tiny_model, latents, codes, reference.encode(audio).audio_codes) >= 0.998
    assert close(tiny_model.get_latents(audio), latents)
    assert close(tiny_model.decode(codes).audio_values, reference.decode(codes).audio_values)


@torch.no_grad()
def test_batches_give_what_their_rows_give(tiny_model, speech):
    audio = torch.stack([speech[:, 30_000 * row :][:, : 15 * FRAME] for row in range(5)])
    codes = torch.cat([tiny_model.encode(row[None]).audio_codes for row in audio])
    assert torch.equal(tiny_model.encode(audio).audio_codes, codes)
    sounds = torch.cat([tiny_model.decode(row[None]).audio_values for row in codes])
    assert close(tiny_model.decode(codes).audio_values, sounds)


@torch.no_grad()
def test_recordings_are_run_in_chunks_of_a_bounded_number_of_frames(tiny_model, speech, monkeypatch):
    audio = speech[None, :, : 8 * 24_000]
    expected = tiny_model.encode(audio).audio_codes
    sound = tiny_model.decode(expected).audio_values
    monkeypatch.setattr(inference, "CHUNK_FRAMES", 7)
    assert torch.equal(tiny_model.encode(audio).audio_codes, expected)
    assert close(tiny_model.decode(expected).audio_values, sound)
    half = tiny_model.packed.require("encoder", tiny_model.encoder)
    assert half.chunk_frames(1) == 7 and half.chunk_frames(10_000) == 1
    assert max(chunk.shape[1] for chunk in half.in_chunks(audio)) == 7


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [48_000, 300_000])
def test_inference_mode_changes_nothing(tiny_model, speech, num_samples):
    audio = speech[None, :, :num_samples]
    with torch.inference_mode():
        codes = tiny_model.encode(audio.clone()).audio_codes
        latents, sound = tiny_model.get_latents(audio), tiny_model.decode(codes).audio_values
        with tiny_model.stream() as stream:
            streamed = stream.decode(stream.encode(audio))
    assert torch.equal(codes, tiny_model.encode(audio).audio_codes)
    assert torch.equal(latents, tiny_model.get_latents(audio))
    assert torch.equal(sound, tiny_model.decode(codes).audio_values)
    assert close(streamed, sound[..., : streamed.shape[-1]])


@torch.no_grad()
def test_audio_is_cut_to_its_padding_mask(tiny_model, reference, speech):
    codes, mask = tiny_model.encode(speech[None, :, :5000]).audio_codes, torch.ones(1, 5000).bool()
    audio = tiny_model.decode(codes, mask).audio_values
    assert audio.shape[-1] == 5000 and close(audio, reference.decode(codes, mask).audio_values)


@pytest.mark.parametrize("has_channels", [False, True])
@torch.no_grad()
def test_decoded_padding_is_silent_by_either_path_as_forward_has_it(tiny_model, reference, speech, has_channels):
    audio, mask = speech[None, :, : 9 * FRAME - 300].repeat(2, 1, 1), torch.ones(2, 9 * FRAME - 300).bool()
    mask[1, 4 * FRAME - 5 :] = False
    given = mask[:, None] if has_channels else mask
    expected = reference(audio, given).audio_values
    for model in (tiny_model, reference):
        codes = model.encode(audio, given).audio_codes
        for decoded in (model.decode(codes, given), model(audio_codes=codes, padding_mask=given)):
            assert decoded.audio_values.shape == audio.shape
            assert decoded.audio_values[1, 0, 4 * FRAME - 5 :].eq(0).all()
            assert close(decoded.audio_values, expected)
        early = model.decode(codes[..., :5], given).audio_values  # of the first frames
        assert early.shape[-1] == 5 * FRAME and early[1, 0, 4 * FRAME - 5 :].eq(0).all()


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_mask_of_other_recordings_is_refused_in_decoding(tiny_model, reference, num_rows):
    codes, mask = torch.zeros(2, 9, 3, dtype=torch.long), torch.ones(num_rows, 3 * FRAME)
    for model in (tiny_model, reference):
        with pytest.raises(ValueError, match="padding_mask must have a row for each of the 2 recordings, got shape"):
            model.decode(codes, mask)


@torch.no_grad()
def test_codes_are_looked_through_once_for_a_recording_of_many_chunks(tiny_model, monkeypatch):
    checked, check = [], tiny_model.quantizer.check_codes
    monkeypatch.setattr(tiny_model.quantizer, "check_codes", lambda codes: checked.append(codes.shape) or check(codes))
    monkeypatch.setattr(inference, "CHUNK_FRAMES", 7)
    tiny_model.decode(torch.zeros(1, 9, 30, dtype=torch.long))
    assert checked == [(1, 9, 30)]


@torch.no_grad()
def test_codes_of_padding_are_0_where_a_batch_is_run_together(tiny_model, speech, monkeypatch):
    audio, mask = speech[None, :, : 9 * FRAME].repeat(2, 1, 1), torch.ones(2, 9 * FRAME).bool()
    mask[1, 4 * FRAME - 5 :] = False
    rows = tiny_model.encode(audio, mask).audio_codes
    half = tiny_model.packed.require("encoder", tiny_model.encoder)
    silent = audio.masked_fill(~mask[:, None], 0.0)
    quantizer = tiny_model.packed.require("quantizer", tiny_model.quantizer)
    together = torch.cat([quantizer.encode(latents, 9) for latents in half.in_chunks(silent)], dim=-1)
    assert torch.equal(together[0], rows[0]) and torch.equal(together[1, :, :4], rows[1, :, :4])
    assert rows[1, :, 4:].eq(0).all()


@pytest.mark.slow
@pytest.mark.full_size
@torch.no_grad()
def test_fast_path_gives_the_reference_s_numbers_at_full_size(full_size_model, best_speech):
    audio = best_speech[None]  # more than two windows of ten seconds
    codes = full_size_model.encode(audio).audio_codes
    sound = full_size_model.decode(codes).audio_values
    with reference_path(full_size_model):
        expected_codes = full_size_model.encode(audio).audio_codes
        expected = full_size_model.decode(codes).audio_values
        latents = full_size_model.get_latents(audio)
    scale = expected.abs().max()
    in_use = min(len(codebook.unique()) for codebook in codes.unbind(dim=1))
    equal = share_equal_but_for_ties(full_size_model, latents, codes, expected_codes)
    difference = ((sound - expected).abs().max() / scale).item()
    print(
        f"fast path against reference: codes equal {equal}, audio {difference:.1e} of its peak, {in_use} codes in use"
    )
    assert equal >= 0.998 and in_use >= 30  # of 2,048: equality means much
    assert difference <= 4e-6  # 1.6e-6 on one processor, 2.5e-6 on another: both paths round


@pytest.mark.slow
@pytest.mark.full_size
@torch.no_grad()
def test_in_bfloat16_the_fast_path_s_codes_are_as_near_to_float32_s_as_the_reference_s(full_size_model, best_speech):
    audio = best_speech[None, :, : 12 * 24_000]
    in_float32, model = full_size_model.encode(audio).audio_codes, deepcopy(full_size_model).bfloat16()
    fast = model.encode(audio.bfloat16()).audio_codes
    model.use_fast_path = False
    reference = model.encode(audio.bfloat16()).audio_codes

    def equal(codes, others):
        return (codes == others).double().mean().item()

    print(
        f"bfloat16: codes of the fast path equal the reference's in {equal(fast, reference):.3f}; float32's are those "
        f"of the fast path in {equal(fast, in_float32):.3f}, of the reference in {equal(reference, in_float32):.3f}"
    )
    assert equal(fast, in_float32) >= equal(reference, in_float32) - 0.05


# When it is taken


def test_encode_takes_it_also_where_gradients_are_on_because_codes_have_none(tiny_model, voiced_audio, convolutions):
    tiny_model.encode(voiced_audio)
    assert convolutions == []


@torch.no_grad()
def test_decode_and_latents_take_it_without_gradients(tiny_model, voiced_audio, convolutions):
    tiny_model.decode(tiny_model.encode(voiced_audio).audio_codes)
    tiny_model.get_latents(voiced_audio)
    assert convolutions == []


def test_frozen_model_takes_it(tiny_model, voiced_audio, convolutions):
    tiny_model.requires_grad_(False)
    tiny_model.decode(tiny_model.encode(voiced_audio).audio_codes)
    tiny_model.get_latents(voiced_audio)
    assert convolutions == []


def test_results_that_are_asked_for_gradients_have_them(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio).audio_codes
    tiny_model.get_latents(voiced_audio).square().mean().backward()
    tiny_model.decode(codes).audio_values.square().mean().backward()
    halves = [*tiny_model.encoder.parameters(), *tiny_model.decoder.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in halves)


def test_audio_that_is_asked_for_gradients_has_them(tiny_model, voiced_audio):
    tiny_model.requires_grad_(False)
    audio = voiced_audio.clone().requires_grad_()
    tiny_model.get_latents(audio).square().mean().backward()
    assert audio.grad.abs().sum() > 0


def test_training_takes_the_reference(tiny_model, voiced_audio, convolutions):
    tiny_model.train()(voiced_audio)
    assert convolutions != []


@pytest.mark.parametrize(
    "options", [{"output_hidden_states": True}, {"use_streaming": True}, {"output_attentions": True}], ids=str
)
def test_what_only_the_reference_has_is_taken_from_it(tiny_model, voiced_audio, convolutions, options):
    tiny_model.encode(voiced_audio, **options)
    assert convolutions != []


@torch.no_grad()
def test_it_can_be_switched_off(tiny_model, voiced_audio, convolutions):
    tiny_model.use_fast_path = False
    codes = tiny_model.encode(voiced_audio).audio_codes
    assert convolutions != []
    convolutions.clear()
    tiny_model.decode(codes)
    assert convolutions != []


@torch.no_grad()
def test_autocast_takes_the_reference(tiny_model, voiced_audio, convolutions):
    with torch.autocast("cpu", torch.bfloat16):
        tiny_model.encode(voiced_audio)
    assert convolutions != []


@torch.no_grad()
def test_dropout_in_training_mode_takes_the_reference(tiny_model, voiced_audio, convolutions):
    tiny_model.train().encoder.config.attention_dropout = 0.1
    tiny_model.get_latents(voiced_audio)
    assert convolutions != []


def test_audio_of_another_precision_is_refused_with_its_remedy(tiny_model):
    with pytest.raises(ValueError, match=r"must be torch.float32, .* got torch.float64; pass input_values.to"):
        tiny_model.encode(torch.zeros(1, 1, FRAME, dtype=torch.float64))


def test_model_that_cannot_be_packed_still_encodes(tiny_model, reference, voiced_audio, convolutions):
    seen = []
    tiny_model.encoder.downsample.register_forward_hook(lambda module, given, result: seen.append(result))
    codes = tiny_model.encode(voiced_audio).audio_codes
    assert len(seen) == 1
    assert torch.equal(codes, reference.encode(voiced_audio).audio_codes)


def test_switch_is_not_saved_in_the_config(tiny_model, tmp_path):
    tiny_model.use_fast_path = False
    tiny_model.save_pretrained(tmp_path)
    assert "fast" not in (tmp_path / "config.json").read_text()
