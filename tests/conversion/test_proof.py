"""The proof passes for a whole result, and fails for one that differs in a single tensor, naming what differs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from exact import ExactSource
from mimi_bridge import runtime
from mimi_bridge.runtime.quantizer import PackedQuantizer
from proof import SAME_SOUND, TIE, prove
from source import ConversionError

PROSODY, ACOUSTIC = "quantizer.head_prosody", "quantizer.acoustic_residual"
HEADS = ["prosody"] + [f"acoustic {number}" for number in range(1, 8)]


@pytest.fixture
def tamper(converted, tmp_path):
    """A copy of the converted folder in which one tensor went through a function."""

    def change(key, function, folder=converted.folder):
        changed = shutil.copytree(folder, tmp_path / "tampered")
        tensors = load_file(changed / "model.safetensors")
        tensors[key] = function(tensors[key]).contiguous()
        save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
        return changed

    return change


def reverse_entries(codebook):
    return codebook.flip(1)  # (1, codebook_size, codebook_dim)


def test_proof_of_a_converted_model_passes(tiny_mimi, converted, short_speech):
    proof = prove(tiny_mimi, converted.folder, short_speech, "synthetic speech")
    assert proof["passed"] and proof["failures"] == []


def test_proof_counts_codes_of_the_source_for_every_carried_codebook(tiny_mimi, converted, short_speech):
    codes = tiny_mimi.encode(short_speech[None], num_quantizers=8).audio_codes
    proof = prove(tiny_mimi, converted.folder, short_speech, "synthetic speech")
    assert proof["codes_in_use"] == {name: len(codes[0, number].unique()) for number, name in enumerate(HEADS)}


def test_proof_of_speech_that_ends_inside_a_frame_passes(tiny_mimi, converted, short_speech):
    proof = prove(tiny_mimi, converted.folder, short_speech[:, : 4 * 24_000 + 7], "synthetic speech")
    assert (proof["passed"], proof["frames"]) == (True, 51)


@pytest.mark.parametrize(
    "key, change, differing",
    [
        (f"{PROSODY}.vq._codebook.embed", reverse_entries, ["prosody"]),
        (f"{PROSODY}.project_in.weight", torch.neg, ["prosody"]),
        (f"{ACOUSTIC}.vq.layers.0._codebook.embed", reverse_entries, ["acoustic 1"]),  # it leaves the same
        (f"{ACOUSTIC}.vq.layers.6._codebook.embed", reverse_entries, ["acoustic 7"]),
        ("encoder.layers.0.conv.weight", torch.neg, HEADS),
    ],
)
def test_proof_names_the_heads_whose_codes_differ(key, change, differing, tamper, tiny_mimi, short_speech):
    failures = "; ".join(prove(tiny_mimi, tamper(key, change), short_speech, "synthetic speech")["failures"])
    assert [name for name in HEADS if f"of the {name} codes equal the source's, expected 1.0" in failures] == differing


def test_proof_fails_for_a_single_changed_entry(tamper, tiny_mimi, short_speech):
    codes = tiny_mimi.encode(short_speech[None], num_quantizers=1).audio_codes
    used = int(codes[0, 0, 50])

    def move_away(codebook):
        codebook[0, used] += 1e3
        return codebook

    proof = prove(tiny_mimi, tamper(f"{PROSODY}.vq._codebook.embed", move_away), short_speech, "synthetic speech")
    share = (codes != used).double().mean().item()  # just below 1
    assert proof["codes_equal"]["prosody"] == pytest.approx(share)
    assert f"{share:.4f} of the prosody codes equal the source's, expected 1.0" in proof["failures"]


@pytest.mark.parametrize(
    "key, change",
    [
        (f"{PROSODY}.project_out.weight", lambda weight: weight * (1 + 1e-6)),
        (f"{ACOUSTIC}.project_out.weight", lambda weight: weight * (1 + 1e-6)),
        ("decoder.layers.14.conv.bias", lambda bias: bias + 1e-6),
        ("decoder.layers.14.conv.bias", lambda bias: bias * float("nan")),
    ],
)
def test_proof_fails_when_the_codes_are_equal_but_the_waveform_is_not(key, change, tamper, tiny_mimi, short_speech):
    proof = prove(tiny_mimi, tamper(key, change), short_speech, "synthetic speech")
    assert set(proof["codes_equal"].values()) == {1.0}
    failures = [failure for failure in proof["failures"] if not failure.startswith("on the default path")]
    assert [failure.split(" is ")[0] for failure in failures] == [
        "waveform_max_abs_difference_same_codes",
        "waveform_max_abs_difference",
    ]


def test_proof_fails_for_a_content_head_that_speaks(tamper, tiny_mimi, short_speech):
    folder = tamper("quantizer.head_content.project_out.weight", torch.randn_like)
    failures = prove(tiny_mimi, folder, short_speech, "synthetic speech")["failures"]
    assert any("of the prosody codes equal the source's, expected 1.0" in failure for failure in failures)


def test_proof_with_the_full_residual_passes_though_acoustic_codes_differ(tiny_mimi, converted_residual, short_speech):
    proof = prove(tiny_mimi, converted_residual.folder, short_speech, "synthetic speech")
    assert proof["passed"]
    assert max(proof["codes_equal"][name] for name in HEADS[1:]) < 1.0


def test_proof_with_the_full_residual_still_fails_for_other_prosody_codes(
    tamper, tiny_mimi, converted_residual, short_speech
):
    folder = tamper(f"{PROSODY}.vq._codebook.embed", reverse_entries, converted_residual.folder)
    failures = prove(tiny_mimi, folder, short_speech, "synthetic speech")["failures"]
    assert any("of the prosody codes equal the source's, expected 1.0" in failure for failure in failures)


def test_proof_with_the_full_residual_still_fails_for_another_decoder(
    tamper, tiny_mimi, converted_residual, short_speech
):
    folder = tamper("decoder.layers.14.conv.bias", lambda bias: bias + 1e-6, converted_residual.folder)
    failures = prove(tiny_mimi, folder, short_speech, "synthetic speech")["failures"]
    assert [failure.split(" is ")[0] for failure in failures] == ["waveform_max_abs_difference_same_codes"]


def test_proof_fails_on_silence_which_proves_nothing(tiny_mimi, converted):
    failures = prove(tiny_mimi, converted.folder, torch.zeros(1, 72_000), "silence")["failures"]
    assert len(failures) == 1
    assert failures[0].startswith("codebooks of the source use too few codes on this speech to prove anything")


def test_proof_on_too_short_speech_raises(tiny_mimi, converted, short_speech):
    with pytest.raises(
        ConversionError, match=r"at least 2\.0 s of speech, got 1\.50 s from a word; give --speech a longer"
    ):
        prove(tiny_mimi, converted.folder, short_speech[:, :36_000], "a word")


# The default path


def test_proof_holds_the_default_path_to_the_source_too(tiny_mimi, converted, short_speech):
    proof = prove(tiny_mimi, converted.folder, short_speech, "synthetic speech")
    default, near = proof["default_path"], proof["float64"]
    assert default["codes_compared"] == 8 * 60 and default["codes_differing"] <= 2
    assert set(default["codes_equal"]) == set(default["largest_margin"]) == set(HEADS)
    assert max(default["largest_margin"].values()) <= TIE
    assert 0 < default["waveform_max_abs_difference_same_codes"] <= SAME_SOUND * proof["waveform_peak"]
    assert set(near) == {"reference_path", "default_path"}
    for path in near.values():
        assert path["codes_equal"] >= 0.99 and 0 < path["waveform_max_abs_difference"] <= 1e-5


def test_proof_fails_for_a_default_path_that_gives_another_code(tiny_mimi, converted, short_speech, monkeypatch):
    encode = PackedQuantizer.encode

    def wrong(self, *given):
        codes = encode(self, *given)
        codes[0, 4, 7] = (codes[0, 4, 7] + 1) % 64
        return codes

    monkeypatch.setattr(PackedQuantizer, "encode", wrong)
    proof = prove(tiny_mimi, converted.folder, short_speech, "synthetic speech")
    assert set(proof["codes_equal"].values()) == {1.0}
    assert proof["default_path"]["codes_differing"] == 1
    assert len(proof["failures"]) == 1
    assert "on the default path a code of acoustic 3 differs from the source's by more than" in proof["failures"][0]


def test_proof_fails_for_a_default_path_that_sounds_otherwise(tiny_mimi, converted, short_speech, monkeypatch):
    decode = runtime.decode_recordings
    monkeypatch.setattr("mimi_bridge.runtime.decode_recordings", lambda *given: decode(*given) * (1 + 3 * SAME_SOUND))
    failures = prove(tiny_mimi, converted.folder, short_speech, "synthetic speech")["failures"]
    assert [failure.split(" differs by")[0] for failure in failures] == [
        "on the default path the waveform of the source's codes"
    ]


def test_exact_source_gives_the_source_s_codes_and_audio_but_for_rounding(tiny_mimi, short_speech):
    exact, codes = ExactSource(tiny_mimi, 8), tiny_mimi.encode(short_speech[None], num_quantizers=8).audio_codes
    latents = exact.latents(short_speech[None])
    assert latents.dtype == torch.float64
    assert (exact.encode(latents) == codes[0]).double().mean() >= 0.99
    expected = tiny_mimi.decode(codes).audio_values
    assert (exact.decode(codes[0]) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert next(tiny_mimi.parameters()).dtype == torch.float32


def test_margin_is_the_distance_to_the_boundary_between_two_entries(tiny_mimi):
    chain = ExactSource(tiny_mimi, 2).chains[0]
    one, other = chain.codebooks[0][3], chain.codebooks[0][5]
    shift = 1e-3 * (one - other) / (one - other).norm()
    latents = torch.linalg.pinv(chain.project_in) @ torch.stack([(one + other) / 2 + shift, one]).T
    codes, others = torch.tensor([[3, 7]]), torch.tensor([[5, 7]])
    (margins,) = chain.margins(latents.T, codes, others)
    length = ((one + other) / 2 + shift).norm()
    assert margins.tolist() == pytest.approx([(1e-3 / length).item()], rel=1e-6)
