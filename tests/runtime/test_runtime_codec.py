"""Both halves on the small codec, which was trained: real weights, real scale."""

import pytest
import torch
from transformers import MimiModel

from mimi_bridge import small_codec
from mimi_bridge.runtime.packing import PackedModel

FRAME = 1920


@pytest.fixture(scope="module")
def codec():
    return MimiModel.from_pretrained(small_codec()).eval()


@pytest.mark.parametrize("num_frames", [1, 5, 75])
@torch.no_grad()
def test_chunks_give_the_codes_of_the_whole_and_its_audio_within_a_millionth(codec, speech, num_frames):
    audio, halves = speech[None, :, : 75 * FRAME], PackedModel()  # 150 steps, almost five windows
    encoder, decoder = halves.require("encoder", codec.encoder), halves.require("decoder", codec.decoder)
    codes = codec.encode(audio).audio_codes
    state, latents = None, []
    for chunk in audio.split(num_frames * FRAME, dim=-1):
        found, state = encoder(state, chunk)
        latents.append(found)
    streamed = codec.quantizer.encode(torch.cat(latents, dim=1).transpose(1, 2)).transpose(0, 1)
    assert torch.equal(streamed, codes)
    state, sounds = None, []
    for chunk in codec.quantizer.decode(codes).transpose(1, 2).split(num_frames, dim=1):
        sound, state = decoder(state, chunk)
        sounds.append(sound)
    assert (torch.cat(sounds, dim=-1) - codec.decode(codes).audio_values).abs().max() <= 1e-6


@pytest.mark.usefixtures("_row_by_row")
@pytest.mark.parametrize("num_frames", [1, 2, 5, 16, 40])
def test_chunks_give_the_latents_and_the_audio_of_the_whole_to_the_bit(codec, speech, num_frames):
    audio, halves = speech[None, :, : 75 * FRAME], PackedModel()
    encoder, decoder = halves.require("encoder", codec.encoder), halves.require("decoder", codec.decoder)
    latents = encoder(None, audio)[0]
    for half, whole, chunks in (
        (encoder, latents, audio.split(num_frames * FRAME, dim=-1)),
        (decoder, decoder(None, latents)[0], latents.split(num_frames, dim=1)),
    ):
        state, found = None, []
        for chunk in chunks:
            result, state = half(state, chunk)
            found.append(result)
        assert torch.equal(torch.cat(found, dim=1 if half is encoder else -1), whole)


@pytest.mark.usefixtures("_row_by_row")
@pytest.mark.parametrize("num_frames", [1, 40])
def test_a_row_of_a_batch_is_the_row_alone_to_the_bit(codec, speech, num_frames):
    audio, halves = torch.stack([speech[:, start:][:, : 40 * FRAME] for start in (0, 7_000, 90_001)]), PackedModel()
    encoder, decoder = halves.require("encoder", codec.encoder), halves.require("decoder", codec.decoder)

    def run(rows):
        state, latents = None, []
        for chunk in rows.split(num_frames * FRAME, dim=-1):
            found, state = encoder(state, chunk)
            latents.append(found)
        return torch.cat(latents, dim=1)

    together = run(audio)
    assert torch.equal(torch.cat([run(row[None]) for row in audio]), together)
    decoded = decoder(None, together)[0]
    assert torch.equal(torch.cat([decoder(None, row[None])[0] for row in together]), decoded)


def test_state_is_not_changed_by_a_call_that_takes_it(codec):
    encoder = PackedModel().require("encoder", codec.encoder)
    _, state = encoder(None, torch.randn(1, 1, 3 * FRAME))
    before = {name: state[name].clone() for name in ("tails", "positions")}
    encoder(state, torch.randn(1, 1, FRAME))
    assert all(torch.equal(state[name], value) for name, value in before.items())
