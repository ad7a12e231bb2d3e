"""mimi-bridge export: programs that give the codes and the audio of the whole recording without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mimi_bridge.cli.main import main

pytest.importorskip("onnxscript")

DOCS = Path(__file__).parents[2] / "docs" / "streaming.md"
FRAME = 1920
CHUNKINGS = (480, 1920, 5000, 1_000_000)  # samples
WITHOUT_TORCH = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mimi_bridge", "transformers", "torch"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
"""


def program_of_the_docs() -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    return WITHOUT_TORCH + next(block for block in blocks if "onnxruntime" in block)


@pytest.fixture(scope="module")
def model_folder(_tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    _tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", "--model", str(model_folder), "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("num_samples", CHUNKINGS)
def test_the_program_of_the_docs_gives_the_whole_recordings_codes_and_audio(
    exported, tiny_model, speech, tmp_path, num_samples
):
    audio = speech[None, :, : 250 * FRAME]
    np.save(tmp_path / "audio.npy", audio.numpy())
    with torch.no_grad():
        codes = tiny_model.encode(audio).audio_codes
        sound = tiny_model.decode(codes).audio_values

    command = [sys.executable, "-c", program_of_the_docs(), str(exported), "audio.npy", str(num_samples)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)

    result = np.load(tmp_path / "result.npz")
    assert np.array_equal(result["codes"], codes.numpy())
    assert np.abs(result["audio"] - sound.numpy()).max() <= 2e-6 * float(sound.abs().max())


def test_sizes_are_written_beside_the_programs(exported):
    about = json.loads((exported / "export.json").read_text())

    assert about == {
        "batch_size": 1,
        "num_quantizers": 9,
        "num_frames": 1,
        "sampling_rate": 24_000,
        "frame_size": FRAME,
    }
    assert sorted(path.name for path in exported.iterdir()) == ["decode.onnx", "encode.onnx", "export.json"]


def test_format_torch_writes_programs_of_so_many_frames_and_codebooks(model_folder, tiny_model, speech, tmp_path):
    sizes = ["--frames", "2", "--batch-size", "2", "--num-quantizers", "3"]
    command = ["export", "-m", str(model_folder), "-o", str(tmp_path / "out"), "--format", "torch"]
    assert main([*command, *sizes]) == 0

    program = torch.export.load(tmp_path / "out" / "encode.pt2")
    audio = torch.stack([speech[:, : 2 * FRAME], speech[:, 50_000 : 50_000 + 2 * FRAME]])
    state = [torch.zeros(each.shape, dtype=each.dtype) for each in program.example_inputs[0][1:]]
    codes, *_ = program.module()(audio, *state)
    assert torch.equal(codes, tiny_model.encode(audio, num_quantizers=3).audio_codes)


def test_too_many_frames_a_call_are_refused(model_folder, tmp_path, capsys):
    status = main(["export", "-m", str(model_folder), "-o", str(tmp_path), "--frames", "126"])

    assert (status, list(tmp_path.iterdir())) == (1, [])
    assert "--frames must be at most 125, got 126" in capsys.readouterr().err


def test_a_model_without_so_many_codebooks_is_refused_and_nothing_is_written(model_folder, tmp_path, capsys):
    output = tmp_path / "out"
    status = main(["export", "-m", str(model_folder), "-o", str(output), "--num-quantizers", "10"])

    assert (status, output.exists()) == (1, False)
    assert "num_quantizers must be 1 to 9" in capsys.readouterr().err


def test_without_the_exporter_the_extra_is_named(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mimi_bridge.cli.export.find_spec", lambda name: None)

    status = main(["export", "-m", str(model_folder), "-o", str(tmp_path / "out")])

    assert status == 1
    assert "needs the packages onnx and onnxscript; run pip install 'mimi-bridge[onnx]'" in capsys.readouterr().err
