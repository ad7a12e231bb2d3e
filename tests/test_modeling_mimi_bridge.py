"""`MimiBridgeModel`: transformers' Mimi with three heads, whole recordings, padded batches, gradients, loading."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    DynamicCache,
    EncodecFeatureExtractor,
    MimiModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils.generic import can_return_loss

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel, MimiBridgeOutput
from mimi_bridge.frames import mask_from_lengths
from ties import share_equal_but_for_ties
from tiny import TINY

FRAME = 1920
LENGTHS = (5 * FRAME, 24_000, 9 * FRAME + 1, 700, 60_000)  # samples; the second and later ones end inside a frame


@pytest.fixture
def clips(speech):
    """Five clips of different lengths, from different places of the speech."""
    return [speech[:, 31_000 * number :][:, :length] for number, length in enumerate(LENGTHS)]


@pytest.fixture
def padded(clips):
    """The clips as one right-padded batch, and its mask; the padding holds noise."""
    longest = max(LENGTHS)
    mask = mask_from_lengths(torch.tensor(LENGTHS), longest)
    batch = torch.randn(len(clips), 1, longest)
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[-1]] = clip
    return batch, mask


@pytest.fixture
def saved(tiny_model, tmp_path):
    """The folder of a saved tiny model."""
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# The encoder and decoder are Mimi's


def test_encoder_gives_the_latents_of_transformers_mimi(tiny_model, tiny_mimi, speech):
    tiny_mimi.encoder.load_state_dict(tiny_model.encoder.state_dict())
    expected = tiny_mimi.encoder(speech[None]).latents.transpose(1, 2)
    assert torch.equal(tiny_model.get_latents(speech[None]), expected)


def test_decode_gives_the_audio_of_transformers_decoder(tiny_model, speech):
    codes = tiny_model.encode(speech[None]).audio_codes
    expected = tiny_model.decoder(tiny_model.get_quantized(codes).transpose(1, 2)).audio_values
    assert torch.equal(tiny_model.decode(codes).audio_values, expected)


@pytest.mark.parametrize("num_samples", [1, 5, FRAME, FRAME + 1, 24_000])
def test_encoded_length_counts_the_frames_that_encode_gives(tiny_model, num_samples):
    frames = tiny_model.encode(torch.randn(1, 1, num_samples)).audio_codes.shape[-1]
    assert frames == int(tiny_model.get_encoded_length(torch.tensor(num_samples)))


# Encoding


def test_audio_that_ends_inside_a_frame_is_padded_with_silence(tiny_model, speech):
    clip = speech[:, : 10 * FRAME - 500]
    silent = torch.nn.functional.pad(clip, (0, 500))
    assert torch.equal(tiny_model.encode(clip[None]).audio_codes, tiny_model.encode(silent[None]).audio_codes)


def test_padded_batch_gives_every_clip_the_codes_it_gets_alone(tiny_model, clips, padded):
    output = tiny_model.encode(*padded)
    for codes, mask, clip in zip(output.audio_codes, output.audio_codes_mask, clips, strict=True):
        assert torch.equal(codes[:, mask], tiny_model.encode(clip[None]).audio_codes[0])


@pytest.mark.full_size
def test_padded_batch_gives_every_clip_the_codes_it_gets_alone_at_full_size(full_size_model, clips, padded):
    output = full_size_model.encode(*padded)
    for codes, mask, clip in zip(output.audio_codes, output.audio_codes_mask, clips, strict=True):
        assert torch.equal(codes[:, mask], full_size_model.encode(clip[None]).audio_codes[0])


def test_codes_mask_marks_the_frames_that_hold_real_audio(tiny_model, padded):
    mask = tiny_model.encode(*padded).audio_codes_mask
    assert mask.sum(dim=-1).tolist() == [5, 13, 10, 1, 32]


def test_padding_mask_may_have_a_channel_axis(tiny_model, padded):
    batch, mask = padded
    assert torch.equal(tiny_model.encode(batch, mask[:, None]).audio_codes, tiny_model.encode(batch, mask).audio_codes)


def test_nan_in_padding_changes_nothing(tiny_model, padded):
    batch, mask = padded
    poisoned = batch.masked_fill(~mask[:, None], torch.nan)
    assert torch.equal(tiny_model.encode(poisoned, mask).audio_codes, tiny_model.encode(batch, mask).audio_codes)


def test_feature_extractor_output_can_be_passed_as_it_is(tiny_model, clips, padded):
    extractor = EncodecFeatureExtractor()
    inputs = extractor([clip[0].numpy() for clip in clips], sampling_rate=24_000, return_tensors="pt")
    assert torch.equal(tiny_model.encode(**inputs).audio_codes, tiny_model.encode(*padded).audio_codes)


@pytest.mark.parametrize("num_quantizers", range(1, 10))
def test_first_codebooks_are_the_same_without_the_others(tiny_model, voiced_audio, num_quantizers):
    all_codes = tiny_model.encode(voiced_audio).audio_codes
    assert torch.equal(
        tiny_model.encode(voiced_audio, num_quantizers=num_quantizers).audio_codes, all_codes[:, :num_quantizers]
    )


def test_first_codebooks_can_be_decoded_alone(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio).audio_codes
    lengths = {tiny_model.decode(codes[:, :k]).audio_values.shape[-1] for k in range(1, 10)}
    assert lengths == {voiced_audio.shape[-1]}


@pytest.mark.parametrize("cache_name", ["encoder_cache", "encoder_past_key_values"])
def test_encoding_frame_by_frame_with_transformers_caches_gives_the_codes_of_the_whole(tiny_model, speech, cache_name):
    audio = speech[None, :, : 150 * FRAME]  # 12 s: longer than the attention window
    caches, streamed = (None, None), []
    for frame in audio.split(FRAME, dim=-1):
        output = tiny_model.encode(frame, **{cache_name: caches[0]}, padding_cache=caches[1], use_streaming=True)
        caches = getattr(output, cache_name), output.padding_cache
        streamed.append(output.audio_codes)
    codes, latents = tiny_model.encode(audio).audio_codes, tiny_model.get_latents(audio)
    assert share_equal_but_for_ties(tiny_model, latents, torch.cat(streamed, dim=-1), codes) >= 0.998


def test_encode_returns_a_tuple_when_asked(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio, return_dict=False)[0]
    assert torch.equal(codes, tiny_model.encode(voiced_audio).audio_codes)


# What is asked for is done, or refused


@pytest.mark.parametrize("keyword", ["paddding_mask", "labels", "foo", "num_items_in_batch", "output_router_logits"])
@pytest.mark.parametrize("method", ["encode", "decode", "forward"])
def test_keyword_that_would_have_no_effect_is_refused(tiny_model, voiced_audio, method, keyword):
    given = tiny_model.encode(voiced_audio).audio_codes if method == "decode" else voiced_audio
    with pytest.raises(TypeError, match=rf"^{method}\(\) takes no '{keyword}'.* correct the name or leave it out"):
        getattr(tiny_model, method)(given, **{keyword: torch.ones(1)})


@pytest.mark.parametrize("keyword", ["use_streaming", "padding_cache"])
def test_forward_refuses_what_only_streams_know(tiny_model, voiced_audio, keyword):
    with pytest.raises(TypeError, match=f"takes no '{keyword}'"):
        tiny_model(voiced_audio, **{keyword: True})


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_one_cache_under_both_of_its_names_is_refused(tiny_model, voiced_audio, half):
    method, given = tiny_model.encode, voiced_audio
    if half == "decoder":
        method, given = tiny_model.decode, tiny_model.encode(voiced_audio).audio_codes
    with pytest.raises(ValueError, match=f"{half}_cache and {half}_past_key_values are two names of one cache"):
        method(given, **{f"{half}_cache": DynamicCache(), f"{half}_past_key_values": DynamicCache()})


@pytest.mark.parametrize(
    ("given", "ignored"),
    [
        (
            ("audio_codes",),
            ("qwen_hidden", "wavlm_features", "latents", "frame_mask", "num_quantizers", "output_losses"),
        ),
        (("input_values",), ("frame_mask",)),
        (("latents",), ("padding_mask", "decoder_cache", "output_hidden_states")),
    ],
    ids=str,
)
def test_forward_refuses_arguments_that_the_given_kind_of_input_would_ignore(tiny_model, voiced_audio, given, ignored):
    inputs = {"input_values": voiced_audio, **tiny_model(voiced_audio)}
    for name in ignored:
        with pytest.raises(ValueError, match=f"{name} would have no effect where"):
            tiny_model(**{key: inputs[key] for key in given}, **{name: torch.ones(1)})


def test_forward_of_codes_refuses_to_decode_nothing(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio).audio_codes
    with pytest.raises(ValueError, match="output_audio=False would have no effect where audio_codes are decoded"):
        tiny_model(audio_codes=codes, output_audio=False)


def test_forward_returns_the_hidden_states_of_the_encoder_when_asked(tiny_model, voiced_audio):
    expected = tiny_model.encoder(voiced_audio, output_hidden_states=True).hidden_states
    found = tiny_model(voiced_audio, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_forward_of_latents_returns_the_hidden_states_of_the_decoder_when_asked(tiny_model, voiced_audio):
    latents = tiny_model.get_latents(voiced_audio)
    quantized = tiny_model(latents=latents).quantized.transpose(1, 2)
    expected = tiny_model.decoder(quantized, output_hidden_states=True).hidden_states
    found = tiny_model(latents=latents, output_audio=True, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_decode_returns_hidden_states_when_asked(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio).audio_codes
    assert len(tiny_model.decode(codes, output_hidden_states=True).hidden_states) == 1 + 2


def test_attentions_are_returned_by_the_attention_that_can_give_them(tiny_model, voiced_audio):
    tiny_model.set_attn_implementation("eager")
    assert tiny_model.encode(voiced_audio, output_attentions=True).attentions[0].shape[-2:] == (50, 50)


def test_keyword_that_asks_for_nothing_changes_nothing(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio, output_hidden_states=False, output_attentions=None).audio_codes
    assert torch.equal(codes, tiny_model.encode(voiced_audio).audio_codes)


@pytest.mark.parametrize("name", ["its own", "sdpa", "eager"])
def test_attention_that_a_user_registered_is_used_by_encode_and_decode(tiny_model, voiced_audio, name, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(name)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    AttentionInterface.register(name, counted)
    AttentionMaskInterface.register("its own", sdpa_mask)
    expected = tiny_model.encode(voiced_audio).audio_codes
    tiny_model.set_attn_implementation(name)
    calls.clear()
    assert torch.equal(tiny_model.encode(voiced_audio).audio_codes, expected)
    assert len(calls) == tiny_model.config.num_hidden_layers
    tiny_model.decode(expected)
    assert len(calls) == 2 * tiny_model.config.num_hidden_layers
    with pytest.raises(ValueError, match="cannot stream, because of its encoder: its attention is not"):
        tiny_model.stream()


# Forward


def test_forward_gives_codes_then_audio_as_transformers_mimi(tiny_model, voiced_audio):
    output = tiny_model(voiced_audio)
    assert torch.equal(output[0], output.audio_codes) and torch.equal(output[1], output.audio_values)


def test_forward_computes_losses_in_inference_when_asked(tiny_model, voiced_audio):
    output = tiny_model(voiced_audio, output_losses=True)
    assert set(output.losses) == {"commitment_content", "commitment_prosody", "commitment_acoustic"}


def test_forward_computes_no_loss_when_asked_to_return_none(tiny_model, voiced_audio):
    assert tiny_model(voiced_audio, return_loss=False, **teachers(num_frames=25)).loss is None


def test_processor_would_take_it_for_an_audio_tokenizer(tiny_model):
    assert isinstance(tiny_model, PreTrainedAudioTokenizerBase)


def test_plain_trainer_knows_that_the_model_has_a_loss_without_labels():
    assert can_return_loss(MimiBridgeModel)


def test_forward_is_encode_then_decode(tiny_model, voiced_audio):
    output = tiny_model(voiced_audio)
    assert isinstance(output, MimiBridgeOutput)
    assert torch.equal(output.audio_codes, tiny_model.encode(voiced_audio).audio_codes)
    assert torch.equal(output.audio_values, tiny_model.decode(output.audio_codes).audio_values)


def test_forward_gives_audio_as_long_as_its_input_and_silent_in_padding(tiny_model, padded):
    batch, mask = padded
    audio = tiny_model(batch, mask).audio_values
    assert audio.shape == batch.shape
    assert audio.masked_select(~mask[:, None]).eq(0).all()
    assert audio.masked_select(mask[:, None]).ne(0).any()


def test_forward_decodes_given_codes(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio).audio_codes
    assert torch.equal(tiny_model(audio_codes=codes).audio_values, tiny_model.decode(codes).audio_values)


def test_forward_has_no_loss_in_inference_without_a_teacher(tiny_model, voiced_audio):
    assert tiny_model(voiced_audio).loss is None


def test_forward_weights_its_losses_by_the_config(tiny_model, voiced_audio):
    tiny_model.quantizer.loss_weights = {"commitment": 0.5, "qwen": 2.0, "wavlm": 3.0}
    output = tiny_model(voiced_audio, **teachers(num_frames=25))
    losses = output.losses
    commitments = sum(loss for name, loss in losses.items() if name.startswith("commitment"))
    torch.testing.assert_close(output.loss, 0.5 * commitments + 2.0 * losses["qwen"] + 3.0 * losses["wavlm"])


def test_config_weights_reach_the_quantizer():
    config = MimiBridgeConfig(commitment_weight=0.5, qwen_weight=2.0, wavlm_weight=3.0, wavlm_distance="cosine")
    with torch.device("meta"):
        quantizer = MimiBridgeModel(config).quantizer
    assert quantizer.loss_weights == {"commitment": 0.5, "codebook": 1.0, "qwen": 2.0, "wavlm": 3.0}
    assert (quantizer.proj_qwen.distance, quantizer.proj_wavlm.distance) == ("mse", "cosine")


def test_loss_of_a_padded_batch_ignores_what_stands_in_the_padding(tiny_model, padded):
    batch, mask = padded
    teacher = {"wavlm_features": torch.randn(5, 32, 20)}
    silent = tiny_model(batch.masked_fill(~mask[:, None], 0.0), mask, **teacher).loss
    poisoned = teacher["wavlm_features"].masked_fill(~tiny_model.get_audio_codes_mask(mask)[:, :, None], torch.nan)
    assert torch.equal(tiny_model(batch, mask, wavlm_features=poisoned).loss, silent)


# Latents that were computed before


BATCHES = pytest.mark.parametrize("batch_of", ["one recording", "a padded batch"])
BOTH_MODES = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


@pytest.fixture
def sounds(batch_of, voiced_audio, padded):
    """Audio and its padding mask: whole frames without padding, or five recordings that end inside frames."""
    return {"one recording": (voiced_audio, torch.ones(1, 48_000).bool()), "a padded batch": padded}[batch_of]


def both_ways(model, audio, mask, **options):
    """Forward with audio and, with a model that is as the first was before, with its latents."""
    other = deepcopy(model)
    latents, frame_mask = other.get_latents(audio, mask), other.get_audio_codes_mask(mask)
    return model(audio, mask, **options), other(latents=latents, frame_mask=frame_mask, **options), (model, other)


@BATCHES
@BOTH_MODES
def test_forward_with_latents_gives_what_forward_with_their_audio_does(tiny_model, sounds, training):
    num_frames = tiny_model.get_audio_codes_mask(sounds[1]).shape[1]
    teacher = teachers_of(sounds[1], num_frames)
    with_audio, with_latents, models = both_ways(tiny_model.train(training), *sounds, **teacher)
    names = ("loss", "audio_codes", "audio_codes_mask", "latents", "quantized", "content", "prosody", "acoustic")
    assert [name for name in names if not torch.equal(with_latents[name], with_audio[name])] == []
    assert len(with_audio.losses) == 5
    assert all(torch.equal(with_latents.losses[name], loss) for name, loss in with_audio.losses.items())
    states = [model.quantizer.state_dict() for model in models]  # in training the codebooks have moved, alike
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@BATCHES
def test_audio_decoded_from_latents_is_that_of_forward_with_audio_in_whole_frames(tiny_model, sounds):
    audio, mask = sounds
    with_audio, with_latents, _ = both_ways(tiny_model, audio, mask, output_audio=True)
    num_samples, num_frames = audio.shape[-1], with_latents.audio_codes.shape[-1]
    assert with_latents.audio_values.shape[-1] == num_frames * FRAME
    cut = with_latents.audio_values[..., :num_samples].masked_fill(~mask[:, None], 0.0)
    assert torch.equal(cut, with_audio.audio_values)


def test_all_latents_are_real_when_there_is_no_frame_mask(tiny_model, voiced_audio):
    latents = tiny_model.get_latents(voiced_audio)
    masked = tiny_model(latents=latents, frame_mask=torch.ones(latents.shape[:2]).bool())
    assert torch.equal(tiny_model(latents=latents).audio_codes, masked.audio_codes)


def test_nan_in_padding_of_latents_changes_nothing(tiny_model, padded):
    latents, frame_mask = tiny_model.get_latents(*padded), tiny_model.get_audio_codes_mask(padded[1])
    poisoned = latents.masked_fill(~frame_mask[:, :, None], torch.nan)
    outputs = [tiny_model(latents=each, frame_mask=frame_mask, output_audio=True) for each in (latents, poisoned)]
    assert torch.equal(outputs[0].audio_codes, outputs[1].audio_codes)
    assert torch.equal(outputs[0].audio_values, outputs[1].audio_values)


@pytest.mark.parametrize(
    "given, output_audio, decodes",
    [("audio", None, True), ("latents", None, False), ("audio", False, False), ("latents", True, True)],
)
def test_audio_is_decoded_by_default_from_audio_alone_and_otherwise_when_asked_for(
    tiny_model, voiced_audio, given, output_audio, decodes
):
    sound = {"input_values": voiced_audio} if given == "audio" else {"latents": tiny_model.get_latents(voiced_audio)}
    output = tiny_model(**sound, output_audio=output_audio)
    assert (output.audio_values is not None) == decodes
    assert torch.equal(output.audio_codes, tiny_model.encode(voiced_audio).audio_codes)


def test_audio_asked_of_a_model_without_a_decoder_is_refused(tiny_model, voiced_audio):
    tiny_model.decoder = None
    with pytest.raises(ValueError, match="loaded without its decoder"):
        tiny_model(voiced_audio, output_audio=True)


def test_latents_need_no_encoder(tiny_model, voiced_audio):
    latents, expected = tiny_model.get_latents(voiced_audio), tiny_model(voiced_audio).audio_codes
    tiny_model.encoder = None
    assert torch.equal(tiny_model(latents=latents).audio_codes, expected)


def test_gradient_reaches_latents_that_are_given(tiny_model, voiced_audio):
    latents = tiny_model.get_latents(voiced_audio).detach().requires_grad_()
    tiny_model.train()(latents=latents).loss.backward()
    assert (latents.grad.abs().sum(dim=-1) > 0).all()


def test_latents_together_with_audio_are_refused(tiny_model, voiced_audio):
    with pytest.raises(ValueError, match="exactly one of input_values .* got both audio and latents"):
        tiny_model(voiced_audio, latents=tiny_model.get_latents(voiced_audio))


def test_wavlm_mask_takes_recordings_without_features_out_of_the_model_s_loss(tiny_model, padded):
    features, has_features = torch.randn(5, 32, 20), torch.tensor([True, False, True, False, True])
    wavlm_mask = has_features[:, None].expand(5, 32)
    poisoned = features.masked_fill(~has_features[:, None, None], torch.nan)
    output = tiny_model(*padded, wavlm_features=poisoned, wavlm_mask=wavlm_mask)
    alone = [
        tiny_model(*(part[row : row + 1] for part in padded), wavlm_features=features[row : row + 1]).distances
        for row in (0, 2, 4)
    ]
    total = sum(row["wavlm"].loss * row["wavlm"].num_frames for row in alone)
    assert int(output.distances["wavlm"].num_frames) == 5 + 10 + 32
    torch.testing.assert_close(output.losses["wavlm"], total / (5 + 10 + 32), rtol=1e-4, atol=0)


def test_distances_are_none_without_a_teacher(tiny_model, voiced_audio):
    assert tiny_model.train()(voiced_audio).distances is None


# Gradients


def test_every_parameter_gets_a_gradient_in_training(tiny_model, voiced_audio):
    tiny_model.train()
    output = tiny_model(voiced_audio, **teachers(num_frames=25))
    (output.loss + (output.audio_values - voiced_audio).square().mean()).backward()
    without = [name for name, p in tiny_model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_reconstruction_alone_reaches_the_encoder(tiny_model, voiced_audio):
    tiny_model.train()
    (tiny_model(voiced_audio).audio_values - voiced_audio).square().mean().backward()
    assert tiny_model.encoder.encoder_seanet.layers[0].conv.weight.grad.abs().sum() > 0


def test_transformers_own_mimi_gives_its_encoder_no_gradient(tiny_mimi, voiced_audio):
    tiny_mimi.train()  # what the straight-through lookup is for: this test fails once transformers has one, too
    (tiny_mimi(voiced_audio).audio_values - voiced_audio).square().mean().backward()
    assert all(parameter.grad is None for parameter in tiny_mimi.encoder.parameters())


def test_training_and_inference_give_the_same_codes(tiny_model, speech):
    expected = tiny_model.encode(speech[None]).audio_codes
    assert torch.equal(tiny_model.train()(speech[None]).audio_codes, expected)


# Saving and loading


def test_loading_gives_back_every_tensor_and_the_same_codes(saved, tiny_model, speech):
    loaded = AutoModel.from_pretrained(saved)
    assert isinstance(loaded, MimiBridgeModel)
    expected = tiny_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded.encode(speech[None]).audio_codes, tiny_model.encode(speech[None]).audio_codes)


def fresh_model(config):
    """A model with other weights than any test's."""
    torch.manual_seed(99)
    return MimiBridgeModel(config).eval()


def test_load_state_dict_takes_the_flat_keys_of_a_checkpoint(saved, tiny_model, tiny_config):
    flat, tree = load_file(saved / "model.safetensors"), tiny_model.state_dict()
    halves = ("encoder.layers.", "encoder_transformer.", "downsample.", "decoder.layers.", "decoder_transformer.")
    assert all(any(key.startswith(half) for key in flat.keys() - tree.keys()) for half in (*halves, "upsample."))
    before = set(flat)
    model = fresh_model(tiny_config)
    model.load_state_dict(flat)
    assert all(torch.equal(value, tree[key]) for key, value in model.state_dict().items())
    assert set(flat) == before  # what was given is left as it was


def test_load_state_dict_still_takes_the_model_s_own_keys(tiny_model, tiny_config):
    model = fresh_model(tiny_config)
    model.load_state_dict(tiny_model.state_dict())
    assert all(torch.equal(value, tiny_model.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["encoder.layers.99.conv.weight", "decoder_tempo.weight", "layers.0.conv.weight"])
def test_load_state_dict_refuses_a_foreign_key_beside_flat_ones(saved, tiny_config, key):
    flat = load_file(saved / "model.safetensors") | {key: torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict"):
        fresh_model(tiny_config).load_state_dict(flat)


def test_loading_restores_a_teacher_s_statistics(tiny_model, tmp_path):
    mean, std = torch.randn(24), torch.rand(24) + 0.5
    tiny_model.quantizer.proj_qwen.set_statistics(mean, std)
    tiny_model.save_pretrained(tmp_path)
    bridge = AutoModel.from_pretrained(tmp_path).quantizer.proj_qwen
    assert torch.equal(bridge.mean, mean) and torch.equal(bridge.std, std)


def test_loading_restores_buffers_that_no_checkpoint_holds(saved, tiny_model):
    loaded, original = dict(AutoModel.from_pretrained(saved).named_buffers()), dict(tiny_model.named_buffers())
    unsaved = original.keys() - tiny_model.state_dict().keys()
    assert any(name.endswith(".zero") for name in unsaved)
    assert all(torch.equal(loaded[name], original[name]) for name in unsaved)


def test_training_losses_are_finite_after_loading(saved, voiced_audio):
    output = AutoModel.from_pretrained(saved).train()(voiced_audio)
    assert all(torch.isfinite(loss) and loss < 1e6 for loss in output.losses.values())


def test_encoder_and_decoder_keys_on_disk_are_those_of_a_saved_mimi(saved, tiny_mimi, tmp_path):
    tiny_mimi.save_pretrained(tmp_path / "mimi")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "mimi"))
    assert {k for k in ours if not k.startswith("quantizer.")} == {k for k in theirs if not k.startswith("quantizer.")}


def test_loading_without_the_decoder_encodes_alike(saved, tiny_model, voiced_audio):
    encoder = AutoModel.from_pretrained(saved, decoder_config=None)
    assert encoder.decoder is None
    assert torch.equal(encoder.encode(voiced_audio).audio_codes, tiny_model.encode(voiced_audio).audio_codes)
    assert encoder(voiced_audio).audio_values is None


def test_loading_without_the_encoder_decodes_alike(saved, tiny_model, voiced_audio):
    decoder = AutoModel.from_pretrained(saved, encoder_config=None)
    codes = tiny_model.encode(voiced_audio).audio_codes
    assert torch.equal(decoder.decode(codes).audio_values, tiny_model.decode(codes).audio_values)
    with pytest.raises(ValueError, match="loaded without its encoder"):
        decoder.encode(voiced_audio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_codebooks_in_float32(saved, tiny_model, speech, dtype):
    model = AutoModel.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(
        c.dtype == torch.float32
        for head in (model.quantizer.head_content, model.quantizer.acoustic_residual)
        for c in head.codebooks
    )
    output = model(speech[None].to(dtype))
    assert output.audio_values.dtype == dtype
    same = (output.audio_codes == tiny_model.encode(speech[None]).audio_codes).float().mean()
    assert same > 0.5  # half-precision latents move some codes, not most; 1 in 64 would be chance


def test_a_checkpoint_that_lacks_a_key_is_refused(saved):
    rewrite(saved, lambda tensors: tensors.pop("quantizer.proj_qwen.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 key\(s\).*quantizer\.proj_qwen\.weight"):
        AutoModel.from_pretrained(saved)


@pytest.mark.parametrize("key", ["encoder.layers.99.conv.weight", "quantizer.head_tempo.weight", "other"])
def test_a_checkpoint_with_a_foreign_key_is_refused(saved, key):
    rewrite(saved, lambda tensors: tensors.update({key: torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"holds 1 foreign key\(s\)"):
        AutoModel.from_pretrained(saved)


def test_a_plain_mimi_checkpoint_is_refused_with_the_way_to_convert_it(tiny_mimi, tmp_path):
    tiny_mimi.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="conversion/convert_kyutai.py"):
        MimiBridgeModel.from_pretrained(tmp_path)


def test_loading_info_is_still_given_when_asked(saved):
    model, info = MimiBridgeModel.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, MimiBridgeModel)
    assert info["missing_keys"] == set()


def test_mimi_model_still_loads_and_saves_its_own_layout_beside_ours(tiny_mimi, tmp_path):
    tiny_mimi.save_pretrained(tmp_path)
    loaded, info = MimiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set()
    assert all(torch.equal(v, tiny_mimi.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_moved_residual_weight_is_saved_and_loaded(tiny_model, tmp_path):
    tiny_model.set_residual_weight(0.25)
    tiny_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["residual_weight"] == 0.25
    assert AutoModel.from_pretrained(tmp_path).quantizer.residual_weight == 0.25


def test_residual_weight_outside_its_range_leaves_the_model_as_it_was(tiny_model):
    with pytest.raises(ValueError, match="residual_weight must lie in"):
        tiny_model.set_residual_weight(1.5)
    assert tiny_model.config.residual_weight == tiny_model.quantizer.residual_weight == 1.0


def test_auto_config_gives_our_config(saved):
    assert isinstance(AutoConfig.from_pretrained(saved), MimiBridgeConfig)


# Bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 2, 24_000), "average stereo"), ((1, 24_000), "keep the channel axis"), ((1, 1, 0), "must hold audio")],
)
def test_audio_of_a_wrong_shape_is_refused(tiny_model, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.encode(torch.zeros(shape))


def test_integer_audio_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"input_values must be floats.*torch\.int16"):
        tiny_model.encode(torch.zeros(1, 1, 24_000, dtype=torch.int16))


def test_nan_audio_is_refused_and_names_the_sample(tiny_model):
    audio = torch.zeros(3, 1, 24_000)
    audio[1, 0, 7] = torch.nan
    with pytest.raises(ValueError, match="sample 1 hold NaN"):
        tiny_model.encode(audio)


def test_five_samples_of_audio_are_one_frame(tiny_model):
    assert tiny_model.encode(torch.zeros(1, 1, 5)).audio_codes.shape == (1, 9, 1)


def test_left_padding_is_refused(tiny_model, padded):
    batch, mask = padded
    with pytest.raises(ValueError, match="right padding.*sample 0 has padding before audio"):
        tiny_model.encode(batch, mask.flip(-1))
    with pytest.raises(ValueError, match="padding_side must be 'right'"):
        tiny_model.get_audio_codes_mask(mask, padding_side="left")


def test_padding_mask_of_another_length_is_refused(tiny_model, padded):
    batch, mask = padded
    with pytest.raises(ValueError, match="padding_mask must have a value for each of the 60000 samples"):
        tiny_model.encode(batch, mask[:, :-1])


def test_stream_chunk_of_half_a_frame_is_refused(tiny_model):
    with pytest.raises(ValueError, match="whole frames of 1920 samples, got 960"):
        tiny_model.encode(torch.zeros(1, 1, 960), use_streaming=True)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 9, 4), "must be integers, got torch.float32"),
        (torch.full((1, 9, 4), 64), r"must lie in \[0, 64\), got 64 to 64"),
        (torch.full((1, 9, 4), -1), "got -1 to -1"),
        (torch.zeros(1, 10, 4, dtype=torch.long), "with 1 to 9 codebooks"),
        (torch.zeros(9, 4, dtype=torch.long), "is an axis missing"),
        (torch.zeros(1, 9, 0, dtype=torch.long), "at least one frame"),
    ],
)
def test_bad_codes_are_refused(tiny_model, codes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.decode(codes)


def test_forward_with_neither_audio_nor_codes_is_refused(tiny_model):
    with pytest.raises(ValueError, match="got neither"):
        tiny_model()


def teachers(num_frames: int) -> dict[str, torch.Tensor]:
    """Random teachers for one recording: three tokens that leave some frames silent."""
    generator = torch.Generator().manual_seed(1)
    return {
        "qwen_hidden": torch.randn(1, 3, 24, generator=generator),
        "durations": torch.tensor([[4, 1, num_frames - 8]]),
        "wavlm_features": torch.randn(1, num_frames, 20, generator=generator),
    }


def teachers_of(padding_mask: torch.Tensor, num_frames: int) -> dict[str, torch.Tensor]:
    """Random teachers for a padded batch: three tokens that fit into the shortest recording's frames."""
    generator, batch_size = torch.Generator().manual_seed(1), len(padding_mask)
    shortest = -(-int(padding_mask.sum(dim=-1).min()) // FRAME)
    return {
        "qwen_hidden": torch.randn(batch_size, 3, 24, generator=generator),
        "durations": torch.tensor([[shortest // 2, 0, shortest - shortest // 2]]).expand(batch_size, -1),
        "wavlm_features": torch.randn(batch_size, num_frames, 20, generator=generator),
    }


def rewrite(folder, change) -> None:
    """Change the tensors of a saved model in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_latents_without_a_mask_are_all_real():
    model = MimiBridgeModel(MimiBridgeConfig(**TINY))
    latents = torch.randn(2, 5, model.config.hidden_size)
    assert torch.equal(model(latents=latents).audio_codes_mask, torch.ones(2, 5, dtype=torch.bool))


# Half precision


@pytest.mark.parametrize("way", ["from_pretrained", "from_config"])
def test_model_in_half_precision_keeps_codebooks_in_float32_and_flags_as_they_are(tiny_model, tmp_path, way):
    tiny_model.save_pretrained(tmp_path)
    if way == "from_pretrained":
        half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        half = AutoModel.from_config(tiny_model.config, dtype=torch.bfloat16)
    assert half.encoder.downsample.conv.weight.dtype == torch.bfloat16
    kept = {name: buffer.dtype for name, buffer in tiny_model.named_buffers() if "_codebook" in name or "proj" in name}
    assert {torch.bool, torch.float32} == set(kept.values())
    assert {name: dict(half.named_buffers())[name].dtype for name in kept} == kept


def test_saved_weights_have_the_mode_that_the_umask_gives(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    for weights in tmp_path.rglob("*.safetensors"):
        assert weights.stat().st_mode == (tmp_path / "config.json").stat().st_mode
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1


@pytest.mark.parametrize(
    "given", [np.zeros((1, 1, 1920), np.float32), [0.0] * 1920, None], ids=["numpy", "list", "none"]
)
def test_audio_that_is_no_tensor_is_refused_in_a_sentence(tiny_model, given):
    for method in (tiny_model.encode, tiny_model.get_latents):
        with pytest.raises(TypeError, match=r"input_values must be a tensor, got .*; convert it by torch\.as_tensor"):
            method(given)


@pytest.mark.parametrize(
    "name", ["latents", "frame_mask", "qwen_hidden", "durations", "token_spans", "token_mask", "wavlm_features"]
)
def test_what_forward_takes_beside_audio_is_refused_where_it_is_no_tensor(tiny_model, name):
    given = {"latents": torch.zeros(1, 3, tiny_model.config.hidden_size), name: [[[0.0]]]}
    with pytest.raises(TypeError, match=rf"{name} must be a tensor, got list; convert it by torch\.as_tensor"):
        tiny_model(**given)


@pytest.mark.parametrize("mask", [[[1] * 1920], np.ones((1, 1920))], ids=["list", "numpy"])
def test_padding_mask_that_is_no_tensor_is_refused(tiny_model, mask):
    for call in (tiny_model.encode, tiny_model.get_latents, tiny_model):
        with pytest.raises(TypeError, match="padding_mask must be a tensor, got"):
            call(torch.zeros(1, 1, 1920), mask)
    with pytest.raises(TypeError, match="padding_mask must be a tensor, got"):
        tiny_model.decode(torch.zeros(1, 9, 1, dtype=torch.long), mask)
    with pytest.raises(TypeError, match="padding_mask must be a tensor, got"):
        tiny_model.get_audio_codes_mask(mask)


@pytest.mark.parametrize(
    "made_of", [lambda given: given.to("meta"), lambda given: given.to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_that_hold_no_numbers_or_are_sparse_are_refused(tiny_model, made_of):
    audio, mask, codes = torch.zeros(1, 1, 1920), torch.ones(1, 1920), torch.zeros(1, 9, 1, dtype=torch.long)
    refused = "must hold numbers, but is on the meta device|must be a dense tensor, got"
    for call in (tiny_model.encode, tiny_model.get_latents, tiny_model):
        with pytest.raises(ValueError, match=f"input_values ({refused})"):
            call(made_of(audio))
        with pytest.raises(ValueError, match=f"padding_mask ({refused})"):
            call(audio, made_of(mask))
    with pytest.raises(ValueError, match=f"audio_codes ({refused})"):
        tiny_model.decode(made_of(codes))


def test_codes_that_are_no_tensor_are_refused_in_a_sentence(tiny_model):
    encoded = tiny_model.encode(torch.zeros(1, 1, 1920))
    for given in (encoded, encoded.audio_codes.numpy()):
        with pytest.raises(TypeError, match=r"audio_codes must be a tensor, got .*; pass encode\(.*\)\.audio_codes"):
            tiny_model.decode(given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_audio_of_another_precision_than_the_weights_is_refused_with_what_to_do(tiny_model, dtype):
    for method in (tiny_model.encode, tiny_model.get_latents, tiny_model):
        with pytest.raises(ValueError, match=r"must be torch\.float32, as the model, got .*; pass input_values\.to"):
            method(torch.zeros(1, 1, 1920, dtype=dtype))


def test_integer_audio_is_asked_to_be_scaled(tiny_model):
    with pytest.raises(ValueError, match="got torch.int16; divide by the type's full scale"):
        tiny_model.encode(torch.zeros(1, 1, 1920, dtype=torch.int16))


def test_a_number_of_codebooks_that_the_heads_do_not_have_is_refused_when_loading(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_quantizers must be 9, the sum of the three heads' codebooks, got 5"):
        MimiBridgeModel.from_pretrained(tmp_path, num_quantizers=5)


@pytest.mark.parametrize("number", [3.0, "3", True])
def test_a_number_of_codebooks_that_is_no_whole_number_is_refused_everywhere(tiny_model, number):
    audio = torch.zeros(1, 1, 1920)
    for method in (tiny_model.encode, tiny_model, lambda _, num_quantizers: tiny_model.stream(1, num_quantizers)):
        with pytest.raises(ValueError, match="num_quantizers must be 1 to 9 for this model, got .*whole number"):
            method(audio, num_quantizers=number)
