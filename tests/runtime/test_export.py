"""Exported steps: the same numbers as a stream's, in a process that has torch but not this package."""

import subprocess
import sys
import textwrap

import pytest
import torch

from mimi_bridge.runtime.export import STATE, ExportableStep, export_decode_step, export_encode_step
from mimi_bridge.runtime.steps import DecodeStep, EncodeStep

FRAME = 1920
NUM_FRAMES = 20  # 40 steps: beyond the tiny model's window

PROGRAM = textwrap.dedent(
    """
    import sys, torch

    class NotInstalled:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("mimi_bridge", "transformers", "vector_quantize_pytorch"):
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, NotInstalled())
    torch.set_num_threads(1)
    folder = sys.argv[1]
    encode, decode = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encode", "decode"))
    given = torch.load(folder + "/given.pt")
    codes, sounds, states = [], [], [given["encode"], given["decode"]]
    for chunk in given["audio"].split(1920, dim=-1):
        found, *states[0] = encode(chunk, *states[0])
        sound, *states[1] = decode(found, *states[1])
        codes.append(found)
        sounds.append(sound)
    torch.save({"codes": torch.cat(codes, dim=-1), "audio": torch.cat(sounds, dim=-1)}, folder + "/result.pt")
    """
)


@pytest.fixture
def audio(speech):
    """Two recordings."""
    return torch.stack([speech[:, 100_000 * row :][:, : NUM_FRAMES * FRAME] for row in range(2)])


def test_exported_steps_give_a_stream_s_numbers_in_another_process(tiny_model, audio, tmp_path):
    given = {"audio": audio}
    for name, make in (("encode", export_encode_step), ("decode", export_decode_step)):
        program, state = make(tiny_model, batch_size=2)
        torch.export.save(program, tmp_path / f"{name}.pt2")
        given[name] = [state[each] for each in STATE]
    torch.save(given, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=300)
    result = torch.load(tmp_path / "result.pt")
    with tiny_model.stream(2) as stream:
        codes = stream.encode(audio)
        sound = stream.decode(codes)
    assert torch.equal(result["codes"], codes)
    assert (result["audio"] - sound).abs().max() <= 3e-6 * max(1.0, float(sound.abs().max()))


@pytest.mark.parametrize("name", ["encode", "decode"])
@torch.no_grad()
def test_step_leaves_the_state_that_it_is_given_as_it_was(tiny_model, audio, name):
    quantizer = tiny_model.packed.require("quantizer", tiny_model.quantizer)
    if name == "encode":
        step = EncodeStep(tiny_model.packed.require("encoder", tiny_model.encoder), quantizer, 9)
        given = audio[..., :FRAME]
    else:
        step = DecodeStep(tiny_model.packed.require("decoder", tiny_model.decoder), quantizer)
        given = torch.zeros(2, 9, 1).long()
    state = [torch.rand_like(value) if value.is_floating_point() else value for value in step.new_state(2).values()]
    before = [value.clone() for value in state]
    ExportableStep(step)(given, *state)
    assert all(torch.equal(value, other) for value, other in zip(state, before, strict=True))


def test_program_of_the_first_codebooks_has_weights_of_its_own(tiny_model, audio):
    program, state = export_encode_step(tiny_model, 2, num_quantizers=3)
    expected = tiny_model.encode(audio[..., :FRAME]).audio_codes[:, :3]
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())
    for value in tiny_model.state_dict().values():
        value.zero_()  # the program's weights are its own
    assert torch.equal(program.module()(audio[..., :FRAME], *(state[name] for name in STATE))[0], expected)


def test_model_that_cannot_stream_is_not_exported(tiny_model):
    tiny_model.encoder.downsample.register_forward_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match="cannot stream, because of its encoder"):
        export_encode_step(tiny_model)
