"""A speech teacher of WavLM's architecture, tiny, with random weights."""

import numpy as np
import pytest
import soxr
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from mimi_bridge.data.teachers import SpeechTeacher


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = WavLMConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        WavLMModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def test_teacher_gives_a_vector_a_frame(teacher_folder, speech):
    teacher = SpeechTeacher(str(teacher_folder))
    features = teacher.features(speech[None, :, : 24 * 1920], 24_000, 24)
    assert features.shape == (1, 24, teacher.dim) == (1, 24, 16)
    assert features.std(dim=1).min() > 0


def test_features_are_the_models_own_averaged_over_windows_of_8(teacher_folder, speech):
    audio = speech[None, :, : 24 * 1920]
    features = SpeechTeacher(str(teacher_folder)).features(audio, 24_000, 24)
    samples = soxr.resample(audio[0, 0].numpy(), 24_000, 16_000, quality="HQ")
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        hidden = WavLMModel.from_pretrained(teacher_folder).eval()(torch.from_numpy(samples)[None]).last_hidden_state
    torch.testing.assert_close(features[0, 5], hidden[0, 18:26].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_rows_of_a_batch_get_what_they_get_alone(teacher_folder, speech):
    teacher = SpeechTeacher(str(teacher_folder))
    rows = torch.stack([speech[:, :46_080], 0.1 * speech[:, 60_000:106_080]])
    together = teacher.features(rows, 24_000, 24)
    alone = torch.cat([teacher.features(row[None], 24_000, 24) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_teacher_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        SpeechTeacher(str(tmp_path / "nothing"))
