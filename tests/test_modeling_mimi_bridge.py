"""`MimiBridgeModel`: transformers' Mimi with three heads, whole recordings, padded batches, gradients, loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, EncodecFeatureExtractor, MimiModel

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel, MimiBridgeOutput
from mimi_bridge.frames import mask_from_lengths

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


def test_encoding_frame_by_frame_with_transformers_caches_gives_the_codes_of_the_whole(tiny_model, speech):
    audio = speech[None, :, : 150 * FRAME]  # 12 s: longer than the attention window
    caches, streamed = (None, None), []
    for frame in audio.split(FRAME, dim=-1):
        output = tiny_model.encode(
            frame, encoder_past_key_values=caches[0], padding_cache=caches[1], use_streaming=True
        )
        caches = output.encoder_past_key_values, output.padding_cache
        streamed.append(output.audio_codes)
    assert torch.equal(torch.cat(streamed, dim=-1), tiny_model.encode(audio).audio_codes)


def test_encode_returns_a_tuple_when_asked(tiny_model, voiced_audio):
    codes = tiny_model.encode(voiced_audio, return_dict=False)[0]
    assert torch.equal(codes, tiny_model.encode(voiced_audio).audio_codes)


# Forward


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
    with pytest.raises(Exception, match="residual_weight must lie in"):
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


def rewrite(folder, change) -> None:
    """Change the tensors of a saved model in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
