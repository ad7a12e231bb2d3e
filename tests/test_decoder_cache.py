"""Streaming by transformers' own arguments: caches handed from call to call, for the decoder, too."""

import pytest
import torch
from transformers import DynamicCache

from mimi_bridge.decoder_cache import MimiBridgeDecoderPaddingCache

NUM_FRAMES = 60  # 120 steps: almost five windows of the tiny model


@pytest.fixture
def codes(tiny_model, speech):
    """Codes of two recordings."""
    audio = torch.stack([speech[:, 100_000 * row :][:, : NUM_FRAMES * 1920] for row in range(2)])
    return tiny_model.encode(audio).audio_codes


def decode_with_caches(model, codes, lengths):
    caches, sounds = {"use_streaming": True}, []
    for chunk in codes.split(lengths, dim=-1):
        output = model.decode(chunk, **caches)
        caches = {
            "decoder_cache": output.decoder_cache,
            "decoder_padding_cache": output.padding_cache,
        }
        sounds.append(output.audio_values)
    return torch.cat(sounds, dim=-1)


@pytest.mark.parametrize("lengths", [1, 5, [1, 30, 2, 27]], ids=str)
@torch.no_grad()
def test_chunks_decoded_with_both_caches_give_the_whole(tiny_model, codes, lengths):
    expected = tiny_model.decoder(tiny_model.get_quantized(codes).transpose(1, 2)).audio_values
    difference = decode_with_caches(tiny_model, codes, lengths) - expected
    assert difference.abs().max() <= 3e-6 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def test_empty_caches_of_one_s_own_begin_a_stream(tiny_model, codes):
    cache = MimiBridgeDecoderPaddingCache()
    past = DynamicCache(config=tiny_model.decoder.config)
    output = tiny_model.decode(codes, decoder_past_key_values=past, decoder_padding_cache=cache)
    assert output.padding_cache is cache and output.decoder_past_key_values is past
    assert torch.equal(output.audio_values, tiny_model.decode(codes, use_streaming=True).audio_values)


@torch.no_grad()
def test_streaming_by_the_config_moves_encode_and_decode_and_no_forward(tiny_model, speech):
    audio = speech[None, :, : 6 * 1920]
    asked = tiny_model.encode(audio, use_streaming=True)
    plain = tiny_model(audio)
    tiny_model.config.use_streaming = True
    encoded, decoded = tiny_model.encode(audio), tiny_model.decode(asked.audio_codes)
    assert torch.equal(encoded.audio_codes, asked.audio_codes)
    assert encoded.encoder_cache is not None and encoded.padding_cache is not None
    assert decoded.decoder_cache is not None and decoded.padding_cache is not None
    assert tiny_model.encode(audio, use_streaming=False).encoder_cache is None
    assert tiny_model.decode(asked.audio_codes, use_streaming=False).padding_cache is None
    whole = tiny_model(audio_codes=asked.audio_codes, output_hidden_states=True)
    assert whole.decoder_cache is None and whole.hidden_states is not None
    assert torch.equal(tiny_model(audio).audio_values, plain.audio_values)


def test_caches_of_different_calls_are_refused(tiny_model, codes):
    output = tiny_model.decode(codes[..., :5], use_streaming=True)
    with pytest.raises(ValueError, match="must come from the same call"):
        tiny_model.decode(codes[..., 5:], decoder_padding_cache=output.padding_cache)
    with pytest.raises(ValueError, match="must come from the same call"):
        tiny_model.decode(codes[..., 5:], None, output.decoder_past_key_values, MimiBridgeDecoderPaddingCache())


def test_caches_of_other_rows_are_refused(tiny_model, codes):
    output = tiny_model.decode(codes[..., :5], use_streaming=True)
    with pytest.raises(ValueError, match="holds 2 rows, but audio_codes have 1"):
        tiny_model.decode(codes[:1, :, 5:], None, output.decoder_past_key_values, output.padding_cache)


def test_decoding_without_caches_returns_none(tiny_model, codes):
    output = tiny_model.decode(codes)
    assert output.padding_cache is None and output.decoder_past_key_values is None
    assert len(tiny_model.decode(codes, return_dict=False)) == 1
