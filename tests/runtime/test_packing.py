"""Packed halves: as transformers' own for every option, refused where they cannot be, and never stale."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.runtime.invalidation import Unsupported
from mimi_bridge.runtime.packing import PackedModel
from tiny import TINY

FRAME = 1920
OPTIONS = [
    {},
    {"num_key_value_heads": 2},
    {"head_dim": 8},
    {"num_residual_layers": 2},
    {"num_residual_layers": 3, "dilation_growth_rate": 3},
    {"use_conv_shortcut": True},
    {"attention_bias": True},
    {"upsample_groups": 8},
    {"upsample_groups": 1},
    {"pad_mode": "replicate"},
    {"kernel_size": 5, "last_kernel_size": 5, "residual_kernel_size": 5},
    {"upsampling_ratios": [4, 3]},
    {"upsampling_ratios": [2, 2, 2, 2, 2]},
    {"hidden_act": "relu"},
    {"compress": 1},
    {"audio_channels": 2},
    {"sliding_window": 3},
    {"norm_eps": 1e-2},
]


def random_model(**fields) -> MimiBridgeModel:
    """A tiny model whose biases, norms and scales are random, too."""
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**{**TINY, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def halves(model):
    return model.packed.get("encoder", model.encoder), model.packed.get("decoder", model.decoder)


def close(result, expected) -> bool:
    return bool((result - expected).abs().max() <= 5e-6 * expected.abs().max())


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
@torch.no_grad()
def test_packed_compute_what_transformers_modules_do(fields):
    model = random_model(**fields)
    encoder, decoder = halves(model)
    audio = 0.1 * torch.randn(2, model.config.audio_channels, 20 * model.config.frame_size)
    latents = model.encoder(audio).latents.transpose(1, 2)
    assert close(encoder(None, audio)[0], latents)
    assert close(decoder(None, latents)[0], model.decoder(latents.transpose(1, 2)).audio_values)


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
def test_packed_in_chunks_give_the_whole(fields):
    model = random_model(**fields)
    encoder, decoder = halves(model)
    frame_size = model.config.frame_size
    audio, state, chunks = 0.1 * torch.randn(2, model.config.audio_channels, 20 * frame_size), None, []
    for chunk in audio.split([frame_size * count for count in (1, 1, 3, 10, 1, 4)], dim=-1):
        latents, state = encoder(state, chunk)
        chunks.append(latents)
    latents = torch.cat(chunks, dim=1)
    assert close(latents, encoder(None, audio)[0])
    state, chunks = None, []
    for chunk in latents.split([1, 1, 3, 10, 1, 4], dim=1):
        sound, state = decoder(state, chunk)
        chunks.append(sound)
    assert close(torch.cat(chunks, dim=-1), decoder(None, latents)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_packed_follow_the_precision_of_the_weights(dtype):
    model = random_model().to(dtype)
    encoder, _ = halves(model)
    audio = 0.1 * torch.randn(1, 1, 20 * FRAME, dtype=dtype)
    expected = model.encoder(audio).latents.transpose(1, 2)
    result = encoder(None, audio)[0]
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    assert result.dtype == dtype
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


# What cannot be packed


def replace_a_linear(model):
    model.encoder.encoder_transformer.layers[1].mlp.fc1 = nn.Sequential(nn.Linear(64, 128, bias=False))


def hook_a_layer(model):
    model.encoder.encoder_seanet.layers[3].register_forward_hook(lambda *arguments: None)


def replace_a_forward(model):
    model.encoder.downsample.forward = lambda *arguments, **options: None


def parametrize_a_weight(model):
    model.encoder.encoder_seanet.layers[0].apply_weight_norm()


def unload_one_layer(model):
    model.encoder.downsample.to("meta")


class Quantized(torch.Tensor):
    """A kind of tensor of its own, as libraries for low precision have."""


def quantize_one_layer(model):
    layer = model.encoder.downsample.conv
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantized))


def cast_one_layer(model):
    model.encoder.downsample.half()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_a_linear, r"not Mimi's own \(Sequential\)"),
        (hook_a_layer, "has a hook"),
        (replace_a_forward, "a forward of its own"),
        (parametrize_a_weight, "not Mimi's own"),
        (cast_one_layer, "one type and one device"),
        (unload_one_layer, "its weights are not loaded"),
        (quantize_one_layer, "no plain tensors"),
    ],
)
def test_half_that_computes_something_else_is_not_packed_and_says_why(change, reason):
    model = random_model()
    halves(model)
    change(model)
    with pytest.raises(Unsupported, match=reason):
        model.packed.get("encoder", model.encoder)
    model.packed.get("decoder", model.decoder)


@pytest.mark.parametrize(
    ("fields", "half", "reason"),
    [
        ({"trim_right_ratio": 0.5}, "decoder", "trimmed on the left"),
        ({"pad_mode": "reflect"}, "encoder", "padded by 'reflect'"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "encoder",
            "of type 'linear'",
        ),
    ],
)
def test_options_that_cannot_stream_are_named(fields, half, reason):
    model = random_model(**fields)
    with pytest.raises(ValueError, match=f"this model cannot stream, because of its {half}: .*{reason}"):
        model.packed.require(half, getattr(model, half))


def test_weights_made_in_inference_mode_are_not_packed():
    with torch.inference_mode():
        model = random_model()
    with pytest.raises(Unsupported, match="inference mode"):
        halves(model)


def test_hooks_that_transformers_leaves_behind_do_no_harm():
    model = random_model()
    expected = model.encode(torch.ones(1, 1, FRAME)).audio_codes
    model.encode(torch.ones(1, 1, FRAME), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.encoder.modules())
    halves(model)
    assert torch.equal(model.encode(torch.ones(1, 1, FRAME)).audio_codes, expected)


# Never stale


def step(optimizer):
    """A training step of the encoder with this kind of optimizer."""

    def change(model):
        model.encoder(torch.randn(1, 1, 2 * FRAME)).latents.square().mean().backward()
        optimizer(model.encoder.parameters()).step()

    return change


def load_others(model):
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def cast_there_and_back(model):
    model.to(torch.bfloat16).to(torch.float32)


def cast_the_half_there_and_back(model):
    model.encoder.bfloat16().float()


def write_through_data(model):
    for parameter in model.encoder.parameters():
        parameter.data.mul_(1.1)


def write_through_data_in_one_layer(model):
    model.encoder.encoder_seanet.layers[0].conv.weight.data.mul_(1.1)


def set_data(model):
    weight = model.encoder.encoder_transformer.layers[0].mlp.fc1.weight
    weight.data = 1.5 * weight.data


def write_one_weight(model):
    with torch.no_grad():
        model.encoder.encoder_transformer.layers[1].self_attn.v_proj.weight[3, 4] += 1.0


def replace_a_parameter(model):
    layer = model.encoder.encoder_seanet.layers[0].conv
    layer.weight = nn.Parameter(1.5 * layer.weight.detach())


def replace_a_module(model):
    model.encoder.encoder_seanet.layers[1] = deepcopy(model.encoder.encoder_seanet.layers[1])
    with torch.no_grad():
        model.encoder.encoder_seanet.layers[1].block[1].conv.weight.mul_(1.5)


CHANGES = {
    "SGD": step(lambda parameters: torch.optim.SGD(parameters, lr=1.0)),
    "AdamW": step(lambda parameters: torch.optim.AdamW(parameters, lr=0.01)),
    "AdamW foreach": step(lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True)),
    "load_state_dict": load_others,
    "to": cast_there_and_back,
    "to, on the half": cast_the_half_there_and_back,
    "setting data": set_data,
    "one weight": write_one_weight,
    "new parameter": replace_a_parameter,
    "new module": replace_a_module,
}
UNCOUNTED = {  # PyTorch counts no write
    "AdamW fused": step(lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True)),
    "data": write_through_data,
    "data of one tensor": write_through_data_in_one_layer,
}


def assert_packs_again(model, change, audio):
    with torch.no_grad():
        before = model.get_latents(audio)
    change(model)
    with torch.no_grad():
        expected = model.encoder(audio).latents.transpose(1, 2)
        assert close(model.get_latents(audio), expected)
    assert not close(before, expected)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_are_packed_again(change):
    assert_packs_again(random_model(), change, torch.randn(1, 1, 6 * FRAME))


@pytest.mark.parametrize("change", UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_writes_that_nothing_counts_are_seen_once_the_mode_is_set(change):
    def change_and_say_so(model):
        change(model)
        model.eval()

    assert_packs_again(random_model(), change_and_say_so, torch.randn(1, 1, 6 * FRAME))


@pytest.mark.parametrize("change", UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_in_training_mode_a_stream_has_the_weights_of_now(change):
    model, chunk = random_model().train(), torch.randn(1, 1, 6 * FRAME)
    with model.stream() as stream:
        before = stream.encode(chunk)
        change(model)
        stream.reset()
        after = stream.encode(chunk)
    with model.eval().stream() as stream:
        assert torch.equal(stream.encode(chunk), after)
    assert not torch.equal(before, after)


def test_unchanged_weights_are_packed_once():
    model = random_model()
    packed = halves(model)
    model.encode(torch.ones(1, 1, FRAME))
    model.requires_grad_(False)
    assert all(now is then for now, then in zip(halves(model), packed, strict=True))


def test_copy_of_a_model_has_packed_of_its_own():
    model, audio = random_model(), torch.randn(1, 1, 6 * FRAME)
    with torch.no_grad():
        before = model.get_latents(audio)
        copy = deepcopy(model)
        for parameter in copy.encoder.parameters():
            parameter.mul_(1.1)
        assert close(copy.get_latents(audio), copy.encoder(audio).latents.transpose(1, 2))
        assert torch.equal(model.get_latents(audio), before)


def test_packed_are_not_pickled():
    model = random_model()
    halves(model)
    assert len(pickle.dumps(model.packed)) < 100
    assert pickle.loads(pickle.dumps(model.packed))._kept == {}


def test_packed_are_no_part_of_the_model_s_state():
    model = random_model()
    names, modules = set(model.state_dict()), len(list(model.modules()))
    halves(model)
    assert set(model.state_dict()) == names and len(list(model.modules())) == modules


def test_moving_a_model_lets_go_of_its_packed():
    model = random_model()
    halves(model)
    model.to(torch.float64)
    assert model.packed._kept == {}


def test_two_halves_of_one_holder_do_not_mix():
    model = random_model()
    holder = PackedModel()
    assert type(holder.get("encoder", model.encoder)) is not type(holder.get("decoder", model.decoder))
