"""Tests on a device of their own: nothing mixes with the CPU, and how often the host waits for it.

They run in a process of their own (`tests/test_devices.py`): a device is registered for good, and autograd must not
have run before it is.
"""

from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MimiConfig, MimiModel

from codec_training.corpus import CropBatch
from codec_training.run import CodecTraining, Phase
from helpers.pretend_device import DEVICE, FLOAT64, IS_POSSIBLE, PretendDevice, PretendTensor, pretend_device
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel, MimiBridgeTrainer, MimiBridgeTrainingArguments, distillation
from mimi_bridge.evaluation.code_statistics import codebook_usage
from mimi_bridge.evaluation.systems import Systems
from mimi_bridge.runtime import invalidation
from mimi_bridge.training import content_init
from mimi_bridge.training.codebooks import fill_from_data, revive_unused
from mimi_bridge.training.init_frames import InitFrameCollector
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


def test_step_of_a_codecs_training_waits_for_nothing_that_a_recording_forbids(device):
    corpus = SimpleNamespace(feature_dim=0, labels=["SIL", "AA"], has_pitch=True, sampling_rate=24_000)
    accelerator = SimpleNamespace(device=torch.device(DEVICE), num_processes=1, process_index=0)
    config = MimiConfig(**TINY, num_quantizers=4)
    phases, codec = [Phase("adversarial", 2, 1e-3)], MimiModel(config)
    training = CodecTraining(config, corpus, phases, 2, 4, 2, 0, accelerator, initial=codec)
    shares = torch.full((2, 4, 2), 0.5)
    known = torch.ones(2, 4)
    crops = CropBatch(batch()["input_values"][..., : 4 * 1920], shares, known.bool(), 7 * known, known)
    inputs = crops.tensors() | {"excerpt": torch.arange(1920), "num_acoustic": torch.tensor([3, -1])}
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    training.model.train()
    device.waits.clear()

    training._take_gradient_step(inputs)

    # Transformers asks whether positions are packed, except while a GPU records.
    assert device.waits.total() == 2 * OF_TRANSFORMERS, device.waits


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


@pytest.mark.parametrize("is_training", [True, False])
def test_the_trainers_loss_stays_on_the_device(here, there, device, tmp_path, is_training):
    given, losses = batch() | teachers(), []
    for model, inputs in ((here, given), (there, moved(given))):
        args = MimiBridgeTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], mel_weight=0.5)
        trainer = MimiBridgeTrainer(model.cpu() if model is here else here, args, train_dataset=[{"input_values": 0}])
        trainer.model = trainer.model_wrapped = model.train(is_training)
        device.waits.clear()  # of the device's model, which comes last
        losses.append(trainer.compute_loss(model, inputs))
    assert device.waits.total() <= 11 + is_training, device.waits
    assert_close(losses[1].detach(), losses[0].detach())


def test_a_device_without_float64_is_never_asked_for_it(here, there, device, tmp_path, monkeypatch):
    for module in (distillation, content_init):
        monkeypatch.setattr(module, "WITHOUT_FLOAT64", (*module.WITHOUT_FLOAT64, "pretend"))
    inputs, args = moved(batch() | teachers()), MimiBridgeTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = MimiBridgeTrainer(here, args, train_dataset=[{"input_values": 0}])
    trainer.model = trainer.model_wrapped = there.train()
    FLOAT64.clear()
    trainer.compute_loss(there, inputs).backward()
    trainer.compute_loss(there.eval(), inputs)
    taker = InitFrameCollector(there.config.frame_rate)
    taker.add(there.get_latents(inputs["input_values"]), torch.ones(2, 5, dtype=torch.bool).to(DEVICE), inputs)
    frames, quantizer = taker.collected(), there.quantizer
    content_init.set_teacher_statistics(quantizer, frames)
    content_init.begin_with_k_means(quantizer, frames, 10, torch.Generator().manual_seed(0))
    with there.stream(batch_size=2) as stream:
        stream.decode(stream.encode(inputs["input_values"]))
    assert not FLOAT64, FLOAT64


@torch.no_grad()
def test_codebooks_are_filled_by_k_means_and_revived_on_the_device(here, there, device):
    latents = torch.randn(300, there.config.hidden_size, generator=torch.Generator().manual_seed(5))
    for work in (fill_from_data, revive_unused):
        for model, given in ((here, latents), (there, latents.to(DEVICE))):
            head = model.quantizer.head_content
            generator = torch.Generator().manual_seed(6)
            if work is fill_from_data:
                work(head, given, 100, generator, steps=3)
            else:
                head.vq_codebooks[0].cluster_size[0, 1:30] = 0
                assert work(head, given, generator) == [29]
        for name, buffer in here.quantizer.head_content.named_buffers():
            if name.endswith(("embed", "embed_avg", "cluster_size")):
                assert_close(there.quantizer.head_content.get_buffer(name), buffer)


@torch.no_grad()
def test_evaluation_brings_what_it_measures_to_the_cpu(here, there, device):
    audio, made = batch()["input_values"][0, :, :5000], []
    for system in map(Systems, (here, there)):
        codes = system.encode(audio)
        made.append((codes, system.decode("bridge_2", codes, 5000), system.probe_features(codes, None)))
    torch.testing.assert_close(made[1], made[0])
    assert codebook_usage(made[1][0], 64) == codebook_usage(made[0][0], 64)


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
