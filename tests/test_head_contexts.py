"""Heads with layers of their own: nothing at first, causal always, and taught by their own head's losses alone."""

import json
from copy import deepcopy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from head_layers import stir, with_layers
from mimi_bridge import CausalBridgeQuantizer, MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.frames import mask_from_lengths
from mimi_bridge.heads import HeadContext
from tiny import TINY, TINY_TEACHERS

FRAME = 1920
LENGTHS = torch.tensor([40, 26, 1])
BOTH_HEADS = pytest.mark.parametrize("layers", [(2, 0), (0, 1), (2, 1)], ids=["content", "prosody", "both"])


@pytest.fixture
def stirred(tiny_model) -> MimiBridgeModel:
    """The tiny model with two layers of content's own and one of prosody's, which count."""
    model = with_layers(tiny_model)
    stir(model)
    return model


@pytest.fixture
def latents() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 40, TINY["hidden_size"])


@pytest.fixture
def frame_mask() -> torch.Tensor:
    return mask_from_lengths(LENGTHS, 40)


# --- new layers change nothing ---


@BOTH_HEADS
@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "transformers' modules"])
def test_new_layers_leave_every_code_as_it_was(tiny_model, speech, layers, fast):
    model = with_layers(tiny_model, *layers)
    tiny_model.use_fast_path = model.use_fast_path = fast
    assert torch.equal(model.encode(speech[None]).audio_codes, tiny_model.encode(speech[None]).audio_codes)


@BOTH_HEADS
def test_new_layers_leave_the_losses_of_training_as_they_were(tiny_model, voiced_audio, layers):
    losses = [
        model.train()(voiced_audio, wavlm_features=torch.ones(1, 25, 20)).loss
        for model in (with_layers(tiny_model, *layers), tiny_model)
    ]
    assert torch.equal(*losses)


def test_no_layers_are_no_module_and_no_key(tiny_model):
    assert not [name for name, _ in tiny_model.named_modules() if "context" in name]
    assert not [key for key in tiny_model.state_dict() if "context" in key]
    assert not tiny_model.quantizer.has_contexts


def test_a_model_from_a_config_has_layers_that_begin_as_nothing():
    config = MimiBridgeConfig(**TINY, **TINY_TEACHERS, content_layers=1)
    model = MimiBridgeModel(config)
    context = model.quantizer.head_content.context
    assert context.out.bias is None and not context.out.weight.any()
    assert len(context.transformer.layers) == 1 and config.num_hidden_layers == TINY["num_hidden_layers"]
    assert all(bool(p.any()) for name, p in context.transformer.named_parameters() if name.endswith("proj.weight"))


# --- what they compute ---


def slow_context(context: HeadContext, latents: torch.Tensor) -> torch.Tensor:
    """One frame of one row at a time: attention written out, the window's frames alone."""
    config = context.transformer.config
    heads, size, window = config.num_attention_heads, config.head_dim, config.sliding_window
    inverse = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)

    def turned(vector: torch.Tensor, position: int) -> torch.Tensor:
        angles = position * inverse
        first, second = vector[: size // 2], vector[size // 2 :]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    def one_row(x: torch.Tensor) -> torch.Tensor:
        for layer in context.transformer.layers:
            normed = layer.input_layernorm(x)
            attention = layer.self_attn
            queries, keys, values = (
                project(normed).view(len(x), heads, size)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            rows = []
            for now in range(len(x)):
                seen = range(max(0, now - window + 1), now + 1)
                parts = []
                for head in range(heads):
                    query = turned(queries[now, head], now)
                    scores = torch.stack([query @ turned(keys[then, head], then) for then in seen]) / size**0.5
                    parts.append(scores.softmax(dim=0) @ torch.stack([values[then, head] for then in seen]))
                rows.append(torch.cat(parts))
            x = x + layer.self_attn_layer_scale(attention.o_proj(torch.stack(rows)))
            x = x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
        return context.out(x)

    return torch.stack([one_row(row) for row in latents])


@torch.no_grad()
def test_a_head_s_layers_are_mimi_s_causal_transformer_with_its_window(stirred, latents):
    context = stirred.quantizer.head_content.context
    torch.testing.assert_close(context(latents), slow_context(context, latents), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_codes_are_those_of_the_equations_at_the_top_of_the_quantizer(stirred, latents):
    quantizer = stirred.quantizer
    content, prosody, acoustic = quantizer.heads.values()
    of_content = content(latents + content.context(latents))
    of_prosody = prosody(latents - of_content.quantized + prosody.context(latents))
    taken = quantizer.residual_weight * (of_content.quantized + of_prosody.quantized)
    expected = torch.cat([of_content.codes, of_prosody.codes, acoustic(latents - taken).codes], dim=1)
    output = quantizer(latents)
    assert torch.equal(output.codes, expected) and torch.equal(quantizer.encode(latents), expected)
    torch.testing.assert_close(output.quantized, quantizer.decode(expected))


@torch.no_grad()
def test_layers_that_count_change_the_codes_of_their_head(tiny_model, stirred, latents):
    before, after = tiny_model.quantizer.encode(latents), stirred.quantizer.encode(latents)
    assert (before[:, 0] != after[:, 0]).float().mean() > 0.1
    assert (before[:, 1] != after[:, 1]).float().mean() > 0.1


@torch.no_grad()
def test_a_frame_s_codes_do_not_depend_on_the_frames_after_it(stirred, latents):
    other = latents.clone()
    other[:, 20:] = torch.randn_like(other[:, 20:])
    codes, others = stirred.quantizer.encode(latents), stirred.quantizer.encode(other)
    assert torch.equal(codes[..., :20], others[..., :20]) and not torch.equal(codes, others)


# --- padding ---


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "transformers' modules"])
def test_a_recording_in_a_padded_batch_gets_the_codes_it_gets_alone(stirred, speech, fast):
    stirred.use_fast_path = fast
    lengths = (LENGTHS * FRAME).tolist()
    clips = [speech[None, :, 90_000 * row :][..., :length] for row, length in enumerate(lengths)]
    padded = torch.cat([nn.functional.pad(clip, (0, lengths[0] - clip.shape[-1]), value=torch.nan) for clip in clips])
    codes = stirred.encode(padded, mask_from_lengths(LENGTHS * FRAME, lengths[0])).audio_codes
    for row, clip in enumerate(clips):
        assert torch.equal(codes[row, :, : LENGTHS[row]], stirred.encode(clip).audio_codes[0])


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_row_in_a_padded_batch_of_latents_gets_what_it_gets_alone(stirred, latents, frame_mask, training):
    quantizer = stirred.train(training).quantizer
    holed = latents.masked_fill(~frame_mask[:, :, None], torch.nan)
    whole = deepcopy(quantizer)(holed, frame_mask=frame_mask)
    assert torch.isfinite(whole.loss)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = deepcopy(quantizer)(latents[row : row + 1, :length])
        assert torch.equal(whole.codes[row, :, :length], alone.codes[0])
        torch.testing.assert_close(whole.content[row, :length], alone.content[0], atol=1e-5, rtol=1e-5)
        encoded = quantizer.encode(latents[row : row + 1], frame_mask[row : row + 1])
        assert torch.equal(encoded[0, :, :length], alone.codes[0])


def test_padding_before_a_recording_is_refused_where_heads_have_layers(stirred, tiny_model, latents):
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, :2] = False
    with pytest.raises(ValueError, match="frame_mask must be True on a recording's frames and False after them"):
        stirred.quantizer(latents, frame_mask=mask)
    assert tiny_model.quantizer(latents, frame_mask=mask).codes.shape == (3, 9, 40)


# --- training ---


@pytest.mark.parametrize(
    "loss, reaches",
    [
        ("qwen", {"content"}),
        ("commitment_content", {"content"}),
        ("commitment_prosody", {"prosody"}),
        ("commitment_acoustic", set()),
        ("wavlm", {"content", "prosody"}),
    ],
)
def test_losses_reach_the_layers_of_their_own_heads_alone(stirred, latents, loss, reaches):
    stirred.train()
    teachers = {"qwen_hidden": torch.randn(3, 1, 24), "durations": torch.full((3, 1), 40)}
    output = stirred.quantizer(latents, **teachers, wavlm_features=torch.randn(3, 40, 20))
    output.losses[loss].backward()
    for name in ("content", "prosody"):
        parameters = dict(stirred.quantizer.heads[name].context.named_parameters())
        reached = {key for key, parameter in parameters.items() if parameter.grad is not None and parameter.grad.any()}
        assert reached == (set(parameters) if name in reaches else set())


def test_the_output_projection_of_new_layers_learns_from_the_first_step(tiny_model, latents):
    model = with_layers(tiny_model).train()
    model.quantizer(latents).losses["commitment_content"].backward()
    assert model.quantizer.head_content.context.out.weight.grad.any()


def test_layers_whose_weights_are_offloaded_give_the_codes_of_the_plain_model(stirred, voiced_audio):
    accelerate = pytest.importorskip("accelerate")
    stirred.use_fast_path = False
    expected = stirred.encode(voiced_audio).audio_codes
    assert torch.equal(accelerate.cpu_offload(stirred).encode(voiced_audio).audio_codes, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_gives_the_codes_of_inference(stirred, latents, dtype):
    expected = stirred.quantizer.encode(latents)
    with torch.autocast("cpu", dtype):
        assert torch.equal(stirred.train().quantizer(latents).codes, expected)


@torch.no_grad()
def test_attention_that_the_model_is_given_is_that_of_its_heads_layers(stirred, voiced_audio):
    stirred.set_attn_implementation("eager")
    for name in ("content", "prosody"):
        context = stirred.quantizer.heads[name].context
        assert {each.config._attn_implementation for each in context.modules() if hasattr(each, "config")} == {"eager"}


# --- saving, caches, configuration ---


def test_saved_layers_are_loaded_and_give_the_same_codes(stirred, speech, tmp_path):
    stirred.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["content_layers"] == 2
    loaded = MimiBridgeModel.from_pretrained(tmp_path)
    for (name, value), other in zip(stirred.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert torch.equal(loaded.encode(speech[None]).audio_codes, stirred.encode(speech[None]).audio_codes)


def test_a_checkpoint_without_the_layers_that_are_asked_for_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 13 key\(s\) of a MimiBridgeModel: quantizer.head_content.context"):
        MimiBridgeModel.from_pretrained(tmp_path, content_layers=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_layers_give_codes_in_half_precision_models(stirred, voiced_audio, tmp_path, dtype):
    stirred.save_pretrained(tmp_path)
    model = MimiBridgeModel.from_pretrained(tmp_path, dtype=dtype)
    assert model.quantizer.head_content.context.out.weight.dtype == dtype
    codes = model.encode(voiced_audio.to(dtype)).audio_codes
    model.use_fast_path = False
    assert (model.encode(voiced_audio.to(dtype)).audio_codes[:, 0] == codes[:, 0]).float().mean() > 0.7


@pytest.mark.parametrize("how", ["use_streaming", "encoder_cache", "forward"])
def test_chunks_by_transformers_caches_are_refused_where_heads_have_layers(stirred, voiced_audio, how):
    chunk = voiced_audio[..., :FRAME]
    with pytest.raises(
        ValueError, match=r"transformers' caches know nothing of the heads' own layers .* use stream\(\)"
    ):
        if how == "use_streaming":
            stirred.encode(chunk, use_streaming=True)
        elif how == "encoder_cache":
            stirred.encode(chunk, encoder_cache=object())
        else:
            stirred(chunk, encoder_cache=object())


@pytest.mark.parametrize("name", ["content_layers", "prosody_layers"])
@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_layers_that_are_no_whole_number_are_refused(name, value):
    with pytest.raises(StrictDataclassError, match=name):
        MimiBridgeConfig(**{name: value})


def test_contexts_of_other_heads_than_content_and_prosody_are_refused():
    with pytest.raises(ValueError, match="contexts must be of content and prosody, got acoustic"):
        CausalBridgeQuantizer(64, contexts={"acoustic": HeadContext(MimiBridgeConfig(**TINY), 1)})
