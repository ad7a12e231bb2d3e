"""Weights that accelerate brings only for a module's forward: the codes and the audio are the plain model's."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch

from mimi_bridge import MimiBridgeModel
from mimi_bridge.codes.file import fingerprint
from mimi_bridge.runtime.export import export_decode_step, export_encode_step

accelerate = pytest.importorskip("accelerate")

FRAME = 1920
PARTS = ("encoder", "decoder", "quantizer")
HEADS = ("quantizer.head_content", "quantizer.head_prosody", "quantizer.acoustic_residual")
BRIDGES = ("quantizer.proj_qwen", "quantizer.proj_wavlm")


@pytest.fixture(scope="module")
def sound(speech) -> torch.Tensor:
    return speech[None, :, : 30 * FRAME]


@pytest.fixture(scope="module")
def folder(_tiny_model, tmp_path_factory):
    """The tiny model on disk; leave it as it is."""
    folder = tmp_path_factory.mktemp("offloading") / "model"
    _tiny_model.save_pretrained(folder)
    return folder


@torch.no_grad()
def results(model, sound):
    """What the model's methods give."""
    mask = torch.ones(2, sound.shape[-1]).bool()
    mask[1, 7 * FRAME :] = False
    encoded = model.encode(sound)
    codes = encoded.audio_codes
    return {
        "codes": codes,
        "codes of a padded batch": model.encode(sound.repeat(2, 1, 1), mask).audio_codes,
        "first codebooks": model.encode(sound, num_quantizers=2).audio_codes,
        "latents": model.get_latents(sound),
        "quantized": model.get_quantized(codes),
        "audio": model.decode(codes).audio_values,
        "forward": model(sound).audio_values,
        "forward of codes": model(audio_codes=codes).audio_values,
    }


def assert_same(found, expected):
    for name, value in expected.items():
        if name.startswith(("codes", "first")):
            assert torch.equal(found[name], value), name
        else:
            assert (found[name] - value).abs().max() <= 3e-6 * value.abs().max(), name


def cpu_offload(model, folder):
    return accelerate.cpu_offload(model)


def cpu_offload_with_buffers(model, folder):
    return accelerate.cpu_offload(model, offload_buffers=True)


def disk_offload(model, folder):
    return accelerate.disk_offload(model, folder)


def disk_offload_with_buffers(model, folder):
    return accelerate.disk_offload(model, folder, offload_buffers=True)


def offload_the_quantizer_alone(model, folder):
    accelerate.cpu_offload(model.quantizer, offload_buffers=True)
    return model


def offload_a_head_alone(model, folder):
    accelerate.cpu_offload(model.quantizer.acoustic_residual, offload_buffers=True)
    return model


def dispatch_without_offloading(model, folder):
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


OFFLOADS = [
    cpu_offload,
    cpu_offload_with_buffers,
    disk_offload,
    disk_offload_with_buffers,
    offload_the_quantizer_alone,
    offload_a_head_alone,
    dispatch_without_offloading,
]


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["fresh", "used before"])
def test_an_offloaded_model_gives_what_the_plain_one_does(tiny_model, sound, tmp_path, offload, is_packed):
    expected = results(deepcopy(tiny_model), sound)
    if is_packed:
        results(tiny_model, sound)
    offloaded = offload(tiny_model, tmp_path)
    for _ in range(2):
        assert_same(results(offloaded, sound), expected)


@pytest.mark.parametrize("part", [*PARTS, *HEADS, *BRIDGES])
@pytest.mark.parametrize("place", ["disk", "disk with buffers"])
def test_a_model_loaded_with_a_part_on_disk_gives_what_the_plain_one_does(
    _tiny_model, folder, sound, tmp_path, part, place
):
    names = PARTS if part in PARTS else ("encoder", "decoder", *HEADS, *BRIDGES)
    device_map = dict.fromkeys(names, "cpu") | {part: "disk"}
    model = MimiBridgeModel.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path, offload_buffers=place != "disk"
    ).eval()
    assert any(tensor.is_meta for tensor in model.get_submodule(part).parameters())
    assert_same(results(model, sound), results(_tiny_model, sound))


def test_a_teacher_s_distance_is_the_plain_model_s_when_all_is_offloaded(tiny_model, sound):
    features = torch.randn(1, 30, 20)
    expected = tiny_model(sound, wavlm_features=features).loss
    offloaded = accelerate.cpu_offload(tiny_model, offload_buffers=True)
    assert torch.allclose(offloaded(sound, wavlm_features=features).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("export", [export_encode_step, export_decode_step])
def test_a_step_of_a_model_with_an_offloaded_part_is_not_exported(tiny_model, export):
    accelerate.cpu_offload(tiny_model.quantizer)
    with pytest.raises(ValueError, match="a program holds its weights, but accelerate's hooks keep some"):
        export(tiny_model)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_an_offloaded_model_refuses_to_stream(tiny_model, sound, tmp_path, offload):
    model = offload(tiny_model, tmp_path)
    with pytest.raises(
        ValueError, match="cannot stream, because of its quantizer: accelerate's hooks bring its weights.*Encode and"
    ):
        model.stream()


def test_a_stream_refuses_a_model_that_was_offloaded_meanwhile(tiny_model, sound):
    stream = tiny_model.stream()
    stream.encode(sound[..., :FRAME])
    accelerate.cpu_offload(tiny_model)
    with pytest.raises(
        ValueError, match="cannot stream, because of its encoder: accelerate's hooks bring its weights"
    ):
        stream.encode(sound[..., :FRAME])


def test_a_model_whose_quantizer_alone_is_offloaded_encodes_and_refuses_to_stream(tiny_model, sound):
    codes = tiny_model.encode(sound).audio_codes
    accelerate.cpu_offload(tiny_model.quantizer, offload_buffers=True)
    assert torch.equal(tiny_model.encode(sound).audio_codes, codes)
    with pytest.raises(ValueError, match="cannot stream, because of its quantizer: accelerate's hooks"):
        tiny_model.stream()


def test_weights_are_put_away_again_where_a_call_fails(tiny_model, sound):
    accelerate.cpu_offload(tiny_model)
    with pytest.raises(ValueError, match="num_quantizers must be 1 to 9"):
        tiny_model.encode(sound, num_quantizers=10)
    with pytest.raises(RuntimeError):
        tiny_model.quantizer.head_content.encode(torch.zeros(1, 1, 3))
    assert all(parameter.is_meta for parameter in tiny_model.parameters())


def test_a_model_whose_hooks_were_removed_takes_the_fast_path_again(tiny_model, sound):
    expected = tiny_model.encode(sound).audio_codes
    accelerate.cpu_offload(tiny_model)
    assert torch.equal(tiny_model.encode(sound).audio_codes, expected)
    accelerate.hooks.remove_hook_from_submodules(tiny_model)
    assert torch.equal(tiny_model.stream().encode(sound), expected)


def test_the_fingerprint_of_an_offloaded_model_s_codebooks_is_the_plain_model_s(tiny_model):
    expected = fingerprint(tiny_model)
    assert fingerprint(accelerate.cpu_offload(tiny_model, offload_buffers=True)) == expected


@pytest.mark.parametrize("offload", [cpu_offload, cpu_offload_with_buffers, offload_a_head_alone])
def test_threads_take_turns_on_an_offloaded_model(tiny_model, sound, tmp_path, offload):
    sound = sound[..., : 3 * FRAME]
    expected = results(deepcopy(tiny_model), sound)
    offloaded = offload(tiny_model, tmp_path)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: results(offloaded, sound), range(16)):
            assert_same(found, expected)
