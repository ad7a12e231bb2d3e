"""A speech teacher against a plain forward pass of its model, and its frames against Mimi's."""

import numpy as np
import pytest
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor, WavLMModel

from mimi_bridge.alignment_targets import pool_to_frames
from mimi_bridge.audio.files import resample
from mimi_bridge.data.teachers.speech import WavLMTeacher
from tiny_teachers import write_tiny_hubert, write_tiny_w2v_bert, write_tiny_wavlm, write_tiny_whisper

LONGEST = 200_000
NUM_SAMPLES = (46_080, 1, 30_000, 1_921, 47_000, 700, 40_319, 12_345)  # at 24 kHz
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=["layer", "group"])
def folder(request, tmp_path_factory):
    """A WavLM like WavLM-large, and one like WavLM-base."""
    return write_tiny_wavlm(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    return write_tiny_wavlm(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def recordings(speech):
    """Of many lengths and loudnesses, some shorter than WavLM's first window; `(1, samples)` at 24 kHz."""
    return [speech[:, 20_000 * place :][:, :num_samples] * 0.5**place for place, num_samples in enumerate(NUM_SAMPLES)]


@torch.no_grad()
def plain_pass(folder: str, recording: torch.Tensor):
    """transformers' own way with one recording, padded with silence to whole frames of 1,280 samples at 16 kHz."""
    samples = soxr.resample(recording[0].numpy(), 24_000, 16_000, quality="VHQ")
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    padded = torch.nn.functional.pad(inputs.input_values, (0, -inputs.input_values.shape[-1] % 1280))
    return AutoModel.from_pretrained(folder).eval()(padded, output_hidden_states=True)


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Slow and literal: windows of 8, 4 apart, centred on their frame, over what there is."""
    num_frames = (features.shape[1] + 1) // 4
    return torch.stack([features[0, max(0, 4 * n - 2) : 4 * n + 6].mean(dim=0) for n in range(num_frames)])


def test_features_are_those_of_a_plain_forward_pass_averaged_over_windows_of_8(folder, recordings):
    for recording, features in zip(recordings, WavLMTeacher(folder).features(recordings, 24_000), strict=True):
        torch.testing.assert_close(features, pooled(plain_pass(folder, recording).last_hidden_state), **CLOSE)


@pytest.mark.parametrize("batch_seconds", [0.01, 3, 1000])
def test_recordings_of_a_batch_get_what_they_get_alone(folder, recordings, batch_seconds):
    together = WavLMTeacher(folder, batch_seconds=batch_seconds).features(recordings, 24_000)
    alone = [WavLMTeacher(folder).features([recording], 24_000)[0] for recording in recordings]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_hubert_teaches_as_well(recordings, tmp_path, norm):
    folder = write_tiny_hubert(tmp_path, norm)
    for recording, features in zip(recordings, WavLMTeacher(folder).features(recordings, 24_000), strict=True):
        torch.testing.assert_close(features, pooled(plain_pass(folder, recording).last_hidden_state), **CLOSE)


@torch.no_grad()
def plain_spectra(folder: str, recording: torch.Tensor, layer: int):
    """transformers' own way with one recording, padded with silence to whole frames: `(1, features, dim)`."""
    samples = soxr.resample(recording[0].numpy(), 24_000, 16_000, quality="VHQ")
    num_frames = -(-recording.shape[1] // 1920)
    samples = np.pad(samples, (0, max(0, 1280 * num_frames - len(samples))))[: 1280 * num_frames]
    inputs = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    output = encoder(inputs.input_features, output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return states[:, : 4 * num_frames - 1]


@pytest.mark.parametrize("write", [write_tiny_whisper, write_tiny_w2v_bert])
@pytest.mark.parametrize("layer", [None, 1])
def test_models_that_take_spectra_teach_as_well(recordings, tmp_path, write, layer):
    folder = write(tmp_path)
    teacher = WavLMTeacher(folder, layer=layer)
    together = teacher.features(recordings, 24_000)
    for recording, features in zip(recordings, together, strict=True):
        torch.testing.assert_close(features, pooled(plain_spectra(folder, recording, layer)), **CLOSE)
    alone = [teacher.features([recording], 24_000)[0] for recording in recordings]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert teacher.dim == 16 and teacher.num_layers == 3
    assert together[0].std(dim=0).min() > 0


def test_whisper_hears_thirty_seconds_and_refuses_more(tmp_path, speech):
    teacher = WavLMTeacher(write_tiny_whisper(tmp_path))
    assert teacher.features([torch.zeros(1, 720_000)], 24_000)[0].shape == (375, 16)
    with pytest.raises(ValueError, match="recording 0 lasts 31.0 s, but max_seconds is 30; divide it"):
        teacher.features([torch.zeros(1, 744_000)], 24_000)


def test_every_recording_costs_whisper_thirty_seconds_of_a_batch(tmp_path, recordings, monkeypatch):
    teacher = WavLMTeacher(write_tiny_whisper(tmp_path), batch_seconds=60)
    sizes, forward = [], teacher._forward
    monkeypatch.setattr(teacher, "_forward", lambda rows, frames: sizes.append(len(rows)) or forward(rows, frames))
    teacher.features(recordings, 24_000)
    assert sizes == [2, 2, 2, 2]


@pytest.mark.parametrize("norm, num_passes", [("layer", 1), ("group", 7)])
def test_lengths_share_a_forward_pass_where_a_mask_parts_them(recordings, tmp_path, monkeypatch, norm, num_passes):
    teacher = WavLMTeacher(write_tiny_wavlm(tmp_path, norm))
    passes, forward = [], teacher._forward
    monkeypatch.setattr(teacher, "_forward", lambda *given: passes.append(given) or forward(*given))
    teacher.features(recordings, 24_000)
    assert len(passes) == num_passes  # 8 recordings, two of them of one frame


def test_batch_of_one_length_gets_what_its_recordings_get(folder, speech):
    rows = torch.stack([speech[:, :46_080], 0.1 * speech[:, 60_000:106_080]])
    teacher = WavLMTeacher(folder)
    features = teacher.batch_features(rows, 24_000)
    assert features.shape == (2, 24, teacher.dim) == (2, 24, 16) and features.dtype == torch.float32
    torch.testing.assert_close(features, torch.stack(teacher.features(list(rows), 24_000)), **CLOSE)
    assert features.std(dim=1).min() > 0


def test_features_of_a_batch_can_be_trained_on(folder, speech):
    student = torch.zeros(1, 24, 16, requires_grad=True)
    (student - WavLMTeacher(folder).batch_features(speech[None, :, :46_080], 24_000)).square().sum().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_layer_is_the_one_that_was_chosen(folder, recordings, layer):
    features = WavLMTeacher(folder, layer=layer).features(recordings, 24_000)[2]
    torch.testing.assert_close(features, pooled(plain_pass(folder, recordings[2]).hidden_states[layer]), **CLOSE)


@pytest.mark.parametrize("layer, layers", [("mean", [1, 2, 3]), ([0, 2], [0, 2]), ((1, 2), [1, 2])])
def test_several_layers_are_averaged(folder, recordings, layer, layers):
    features = WavLMTeacher(folder, layer=layer).features(recordings, 24_000)[2]
    hidden = plain_pass(folder, recordings[2]).hidden_states
    torch.testing.assert_close(features, pooled(torch.stack([hidden[one] for one in layers]).mean(dim=0)), **CLOSE)


def test_last_layer_of_a_large_model_is_followed_by_a_norm(large_folder, recordings):
    by_number, by_default = (
        WavLMTeacher(large_folder, layer=layer).features(recordings, 24_000) for layer in (3, None)
    )
    assert not torch.allclose(by_number[0], by_default[0], atol=0.1)


@pytest.mark.parametrize("layer", [-1, 4, [], [0, 4], "last"])
def test_layer_that_there_is_not_is_an_error(large_folder, layer):
    with pytest.raises(ValueError, match=r'layer must be "mean", or some of 0 to 3 for'):
        WavLMTeacher(large_folder, layer=layer)


def test_every_length_to_200_000_samples_has_mimis_number_of_frames(large_folder):
    model = WavLMModel.from_pretrained(large_folder)
    for num_samples in range(1, LONGEST + 1):
        assert WavLMTeacher.num_frames(num_samples, 24_000) == -(-num_samples // 1920)
    for num_frames in range(1, -(-LONGEST // 1920) + 1):
        num_features = model._get_feat_extract_output_lengths(torch.tensor(1280 * num_frames)).item()
        assert num_features == 4 * num_frames - 1
        frame_mask = torch.ones(1, num_frames, dtype=torch.bool)
        assert pool_to_frames(torch.ones(1, num_features, 1), frame_mask).shape[1] == num_frames


def test_no_recording_to_200_000_samples_outgrows_its_frames_when_it_is_resampled():
    around = sorted(
        {n for edge in range(0, LONGEST + 1, 1920) for n in (edge - 1, edge, edge + 1) if 0 < n <= LONGEST}
    )
    for num_samples in around:
        resampled = len(resample(np.zeros(num_samples, np.float32), 24_000, 16_000)[0])
        assert resampled <= 1280 * WavLMTeacher.num_frames(num_samples, 24_000)


def some_lengths() -> list[int]:
    random = np.random.default_rng(0)
    edges = [1920 * frames + more for frames in (0, 1, 2, 5, 13) for more in (-1, 0, 1)]
    short = [2, 3, 399, 400, 401, 598, 599, 600, 601, 880]  # around the 400 samples at 16 kHz of WavLM's first window
    return sorted({n for n in edges + short if n > 0} | set(random.integers(1, LONGEST, 8).tolist()) | {LONGEST})


def test_features_have_as_many_frames_as_mimis_codes(folder, speech, tiny_model):
    lengths = some_lengths()
    found = WavLMTeacher(folder).features([speech[:, :num_samples] for num_samples in lengths], 24_000)
    for num_samples, features in zip(lengths, found, strict=True):
        assert features.shape == (-(-num_samples // 1920), 16)
        assert bool(torch.isfinite(features).all())
        if num_samples < 30_000:
            codes = tiny_model.encode(speech[None, :, :num_samples]).audio_codes
            assert len(features) == codes.shape[-1]


@pytest.mark.parametrize("sampling_rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_recordings_of_any_rate_have_the_frames_of_what_mimi_gets(large_folder, speech, sampling_rate):
    whole = [round(frames * 0.08 * sampling_rate) for frames in (1, 2, 7)]
    lengths = [*range(1, 8), 24, *(n + more for n in whole for more in (-2, -1, 0, 1, 2))]
    recordings = [speech[0, :num_samples] for num_samples in lengths]
    for recording, features in zip(
        recordings, WavLMTeacher(large_folder).features(recordings, sampling_rate), strict=True
    ):
        at_mimis_rate = resample(recording.numpy(), sampling_rate, 24_000).shape[-1]
        assert len(features) == max(1, -(-at_mimis_rate // 1920))
        assert bool(torch.isfinite(features).all())


def test_loudness_changes_nothing_where_the_model_normalises(large_folder, recordings):
    quiet, loud = WavLMTeacher(large_folder).features([0.05 * recordings[0], recordings[0]], 24_000)
    torch.testing.assert_close(quiet, loud, atol=1e-2, rtol=1e-2)  # up to the 1e-7 that is added to the variance


def test_silence_has_features(folder):
    (features,) = WavLMTeacher(folder).features([torch.zeros(10_000)], 24_000)
    assert features.shape == (6, 16) and bool(torch.isfinite(features).all())


def test_recordings_may_be_arrays_or_tensors_of_one_channel(folder, recordings):
    teacher, one = WavLMTeacher(folder), recordings[2]
    expected = teacher.features([one], 24_000)[0]
    for same in (one[0], one.numpy(), one[0].numpy(), one.double()):
        torch.testing.assert_close(teacher.features([same], 24_000)[0], expected)


def test_no_recordings_give_no_features(folder):
    assert WavLMTeacher(folder).features([], 24_000) == []


def test_number_format_is_the_one_asked_for(large_folder, recordings):
    coarse, own = (
        WavLMTeacher(large_folder, dtype=dtype).features(recordings, 24_000) for dtype in ("bfloat16", "auto")
    )
    assert coarse[0].dtype == torch.float32 and not torch.equal(coarse[0], own[0])
    assert torch.nn.functional.cosine_similarity(coarse[0], own[0]).min() > 0.99


@pytest.mark.parametrize(
    "recording, message",
    [
        (torch.zeros(0), "recording 1 holds no audio"),
        (torch.full((100,), torch.nan), "recording 1 holds NaN or infinity"),
        (torch.zeros(2, 100), r"recording 1 must be mono, .*, got shape \(2, 100\)"),
        (torch.zeros(48_001), "recording 1 lasts 2.0 s, but max_seconds is 2"),
    ],
)
def test_recording_that_the_model_cannot_take_is_an_error_that_names_it(large_folder, recording, message):
    with pytest.raises(ValueError, match=message):
        WavLMTeacher(large_folder, max_seconds=2).features([torch.zeros(48_000), recording], 24_000)


def test_model_of_another_rate_is_an_error(tmp_path):
    folder = write_tiny_wavlm(tmp_path, conv_stride=(5, 2, 2, 2, 2, 2, 1))
    with pytest.raises(ValueError, match="must give 50 features a second"):
        WavLMTeacher(folder)


def test_teacher_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        WavLMTeacher(str(tmp_path / "nothing"))
