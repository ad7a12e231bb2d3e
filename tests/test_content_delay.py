"""What a delay changes: the frames at which content is taught, and nothing else."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from mimi_bridge import CausalBridgeQuantizer, MimiBridgeConfig
from mimi_bridge.frames import mask_from_lengths

LENGTHS = torch.tensor([6, 4])


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "x": torch.randn(2, 6, 16),
        "qwen_hidden": torch.randn(2, 3, 12),
        "durations": torch.tensor([[2, 3, 1], [1, 3, 0]]),
        "wavlm_features": torch.randn(2, 6, 10),
        "frame_mask": mask_from_lengths(LENGTHS, 6),
    }


def quantizer(**options) -> CausalBridgeQuantizer:
    torch.manual_seed(0)
    return CausalBridgeQuantizer(
        16, 12, 10, num_acoustic_codebooks=2, codebook_size=32, codebook_dim=8, **options
    ).eval()


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_content_is_compared_with_what_was_said_so_many_frames_before(batch, delay):
    output = quantizer(content_delay=delay)(**batch)
    bridge = quantizer().proj_qwen
    taught = bridge(output.content)
    errors = [
        (taught[row, frame] - batch["qwen_hidden"][row, token]).square().mean()
        for row, length in enumerate(LENGTHS.tolist())
        for frame in range(delay, length)
        for token in [int((batch["durations"][row].cumsum(0) <= frame - delay).sum())]
    ]
    assert int(output.distances["qwen"].num_frames) == len(errors)
    torch.testing.assert_close(output.losses["qwen"], torch.stack(errors).mean())


def test_delay_moves_neither_codes_nor_the_speech_teacher(batch):
    without, late = quantizer()(**batch), quantizer(content_delay=2)(**batch)
    assert torch.equal(without.codes, late.codes)
    assert torch.equal(without.losses["wavlm"], late.losses["wavlm"])
    assert not torch.equal(without.losses["qwen"], late.losses["qwen"])


def test_a_delay_as_long_as_the_recordings_leaves_content_without_a_target(batch):
    output = quantizer(content_delay=6)(**batch)
    assert int(output.distances["qwen"].num_frames) == 0 and output.losses["qwen"] == 0


def test_delay_may_be_changed_at_any_time(tiny_model):
    tiny_model.quantizer.content_delay = 3
    assert tiny_model.config.content_delay == 3 and type(tiny_model.config.content_delay) is int
    tiny_model.config.content_delay = 1
    assert tiny_model.quantizer.content_delay == 1


@pytest.mark.parametrize("value", [-1, True, 1.5])
def test_a_delay_that_is_no_number_of_frames_is_refused(value):
    message = f"content_delay must be a whole number of frames, at least 0, got {value}"
    with pytest.raises(ValueError, match=message):
        quantizer(content_delay=value)


@pytest.mark.parametrize("value, message", [(-1, "content_delay must be a whole number"), ("2", "'content_delay'")])
def test_a_config_refuses_a_delay_that_is_no_number_of_frames(value, message):
    with pytest.raises(StrictDataclassError, match=message):
        MimiBridgeConfig(content_delay=value)


def test_delay_is_saved_and_loaded(tmp_path):
    MimiBridgeConfig(content_delay=4).save_pretrained(tmp_path)
    assert MimiBridgeConfig.from_pretrained(tmp_path).content_delay == 4
