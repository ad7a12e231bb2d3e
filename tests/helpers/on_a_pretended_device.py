"""Tests on a device of their own: nothing mixes with the CPU, and how often the host waits for it.

They run in a process of their own (`tests/test_devices.py`): a device is registered for good, and autograd must not
have run before it is.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch

from helpers.pretend_device import DEVICE, IS_POSSIBLE, PretendDevice, PretendTensor, pretend_device
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.runtime import invalidation
from tiny import TINY, TINY_TEACHERS

pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="torch 2.10 and newer can pretend a device")

OF_TRANSFORMERS = 1  # wait of each of its two transformers, which asks whether positions are packed


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    monkeypatch.setattr(invalidation, "PLAIN_TENSORS", (*invalidation.PLAIN_TENSORS, PretendTensor))
    with pretend_device() as device:
        yield device


@pytest.fixture
def here() -> MimiBridgeModel:
    torch.manual_seed(0)
    return MimiBridgeModel(MimiBridgeConfig(**TINY, **TINY_TEACHERS)).eval()


@pytest.fixture
def there(here: MimiBridgeModel, device: PretendDevice) -> MimiBridgeModel:
    return deepcopy(here).to(DEVICE)


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 9600, dtype=torch.long)
    mask[1, 6000:] = 0
    return {"input_values": torch.randn(2, 1, 9600, generator=generator) * 0.1, "padding_mask": mask}


def teachers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    spans = torch.tensor([[[0.0, 0.1], [0.1, 0.2], [0.2, 0.3]]] * 2)
    return {
        "qwen_hidden": torch.randn(2, 3, TINY_TEACHERS["qwen_dim"], generator=generator),
        "token_spans": spans,
        "token_mask": torch.tensor([[True, False, True]] * 2),
        "wavlm_features": torch.randn(2, 5, TINY_TEACHERS["wavlm_dim"], generator=generator),
        "wavlm_mask": torch.ones(2, 5, dtype=torch.bool),
    }


def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


def assert_close(found: Any, expected: torch.Tensor) -> None:
    assert found.device == torch.device(DEVICE)
    torch.testing.assert_close(found.cpu(), expected)


def test_tensors_of_two_devices_raise(device):
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        torch.ones(2, device=DEVICE) + torch.ones(2)


def test_every_read_of_a_value_is_counted(device):
    values = torch.arange(3, device=DEVICE)

    assert (int(values.sum()), values.tolist(), len(values.nonzero())) == (3, [0, 1, 2], 2)
    assert device.waits.total() == 3


@pytest.mark.parametrize("with_mask", [False, True])
def test_encode_waits_once(here, there, device, with_mask):
    given = batch() if with_mask else {"input_values": batch()["input_values"]}
    with torch.no_grad():
        expected = here.encode(given["input_values"][:1]).audio_codes
    on_device = moved(given)
    device.waits.clear()

    codes = there.encode(**on_device).audio_codes

    assert device.waits.total() == 1, device.waits
    assert torch.equal(codes[:1].cpu(), expected)


@torch.no_grad()
def test_decode_waits_once(here, there, device):
    codes = torch.randint(64, (2, 9, 3), generator=torch.Generator().manual_seed(3))
    on_device = codes.to(DEVICE)
    device.waits.clear()

    audio = there.decode(on_device).audio_values

    assert device.waits.total() == 1, device.waits
    assert_close(audio, here.decode(codes).audio_values)


def test_training_forward_waits_three_times_beside_transformers_own(here, there, device):
    given = batch() | teachers()
    on_device = moved(given)
    here.train(), there.train()
    expected = here(**given)
    device.waits.clear()

    output = there(**on_device)

    assert device.waits.total() == 3 + 2 * OF_TRANSFORMERS, device.waits
    assert_close(output.loss.detach(), expected.loss.detach())
    assert torch.equal(output.audio_codes.cpu(), expected.audio_codes)


def test_backward_waits_never_and_gives_the_cpus_gradients(here, there, device):
    given = batch() | teachers()
    here.train(), there.train()
    here(**given).loss.backward()
    loss = there(**moved(given)).loss
    device.waits.clear()

    loss.backward()

    assert device.waits.total() == 0, device.waits
    expected = {name: weight.grad for name, weight in here.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in there.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name])


def test_training_moves_codebooks_on_the_device(here, there, device):
    given = batch()
    here.train(), there.train()

    here(**given), there(**moved(given))

    for name, buffer in here.quantizer.named_buffers():
        if name.endswith(("embed", "embed_avg", "cluster_size")):
            assert_close(there.quantizer.get_buffer(name), buffer)


@torch.no_grad()
def test_a_frame_of_a_stream_waits_for_the_check_of_its_input_alone(here, there, device):
    audio = batch()["input_values"]
    expected = here.encode(audio).audio_codes
    stream = there.stream(batch_size=2)
    frames = []
    for chunk in audio.to(DEVICE).split(1920, dim=-1):
        device.waits.clear()
        frames.append(stream.encode(chunk))
        assert device.waits.total() == 1, device.waits
    assert torch.equal(torch.cat(frames, dim=-1).cpu(), expected)
    parts = []
    for frame in frames:
        device.waits.clear()
        parts.append(stream.decode(frame))
        assert device.waits.total() == 1, device.waits
    torch.testing.assert_close(torch.cat(parts, dim=-1).cpu(), here.decode(expected).audio_values)


@torch.no_grad()
def test_a_frame_of_a_stream_that_checks_no_input_never_waits(here, there, device):
    audio = batch()["input_values"]
    expected = here.encode(audio).audio_codes
    stream, pauses = there.stream(batch_size=2, check_inputs=False), torch.tensor([True, False])
    for frame, chunk in enumerate(audio.to(DEVICE).split(1920, dim=-1)):
        device.waits.clear()
        codes = stream.encode(chunk)
        sound = stream.decode(codes)
        assert device.waits.total() == 0, device.waits
        assert torch.equal(codes.cpu(), expected[..., frame : frame + 1])
    torch.testing.assert_close(sound.cpu(), here.decode(expected).audio_values[..., -1920:])
    device.waits.clear()
    alone = stream.decode(stream.encode(chunk, pauses))  # the codes of the row that pauses are PAD_CODE
    assert device.waits.total() == 0, device.waits
    assert not alone[1].cpu().any() and alone[0].cpu().any()


def test_heads_are_swapped_on_the_device(here, there, device):
    generator = torch.Generator().manual_seed(4)
    one, other = (torch.randint(64, (1, 9, frames), generator=generator) for frames in (4, 3))

    swapped = there.swap_heads(one.to(DEVICE), other.to(DEVICE), "acoustic")

    assert_close(swapped, here.swap_heads(one, other, "acoustic"))


def test_a_padding_mask_with_a_fault_is_still_explained(there):
    given = moved(batch())
    given["padding_mask"] = given["padding_mask"].flip(-1)

    with pytest.raises(ValueError, match="sample 1 has padding before audio"):
        there.encode(**given)
