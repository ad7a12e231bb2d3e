"""The small codec of the package: it is small, it is whole, and one understands what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, MimiModel

from mimi_bridge import small_codec
from mimi_bridge.audio.espeak import SENTENCES, synthesize
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.evaluation.intelligibility import best_fitting_transcript
from mimi_bridge.evaluation.metrics import codebook_usage

CONVERTER = Path(__file__).parents[2] / "conversion" / "convert_kyutai.py"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def codec():
    return MimiModel.from_pretrained(small_codec()).eval()


def round_trip(codec, audio, num_quantizers=8):
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % codec.config.frame_size))[None]
    with torch.inference_mode():
        codes = codec.encode(padded, num_quantizers=num_quantizers).audio_codes
        return codes, codec.decode(codes).audio_values[0, :, : audio.shape[-1]]


def test_small_codec_is_a_mimi_of_kyutais_rates_and_codebooks(codec):
    config = codec.config
    assert (config.sampling_rate, config.frame_rate, config.num_quantizers) == (24_000, 12.5, 8)
    assert config.num_semantic_quantizers == 1 and config.use_causal_conv


def test_small_codec_fits_in_16_mebibytes_and_is_loaded_in_single_precision(codec):
    assert (small_codec() / "model.safetensors").stat().st_size <= 16 * MEBIBYTE
    assert {tensor.dtype for tensor in codec.parameters()} == {torch.float32}


def test_small_codec_holds_nothing_but_finite_numbers():
    with safe_open(small_codec() / "model.safetensors", "pt") as tensors:
        assert all(tensors.get_tensor(name).isfinite().all() for name in tensors.keys())


def test_small_codec_uses_many_codes_of_every_codebook(codec, speech):
    codes, _ = round_trip(codec, speech)
    assert min(perplexity for _, perplexity in codebook_usage(codes[0], 2048)) > 30


def test_what_the_small_codec_says_is_understood(codec):
    # Of espeak-ng's voices, whose words it took in another order: the right sentence among all of them.
    aligner = PocketsphinxAligner()
    known = [text for text in SENTENCES if not aligner.unknown_words(text)]
    chosen = []
    for number, text in enumerate(known[:6]):
        _, decoded = round_trip(codec, synthesize(text, ("en-us", "en-us+f2")[number % 2]))
        chosen.append(best_fitting_transcript(aligner, decoded, 24_000, known))
    assert len(known) > 8
    assert chosen == list(range(6))


def test_surgery_on_the_small_codec_is_exact_by_the_check_that_kyutais_weights_go_through(tmp_path):
    command = [sys.executable, str(CONVERTER), "--source", "small", "--output", str(tmp_path / "bridge")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    proof = json.loads((tmp_path / "bridge" / "conversion_report.json").read_text())["proof"]
    assert proof["passed"] and set(proof["codes_equal"].values()) == {1.0}
    assert proof["waveform_max_abs_difference"] == 0.0
    assert min(proof["codes_in_use"].values()) > 30
    assert "LibriSpeech" in (tmp_path / "bridge" / "README.md").read_text()
    assert AutoModel.from_pretrained(tmp_path / "bridge").config.num_quantizers == 9


def test_a_folder_called_small_is_meant_when_there_is_one(tmp_path):
    (tmp_path / "small").mkdir()
    command = [sys.executable, str(CONVERTER), "--source", "small", "--output", str(tmp_path / "bridge")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert "small has no config.json" in result.stderr
