"""The report: what it says of source, result and proof, and what the command prints of it."""

import hashlib
import json
import platform
from importlib.metadata import version


def test_report_on_the_disk_is_the_one_returned(converted):
    assert json.loads((converted.folder / "conversion_report.json").read_text()) == converted.report


def test_report_has_the_digest_of_the_source_file(converted, mimi_folder):
    digest = hashlib.sha256((mimi_folder / "model.safetensors").read_bytes()).hexdigest()
    assert converted.report["source"] == {
        "name": "tiny-mimi",
        "revision": None,
        "layout": "transformers",
        "sha256": {"model.safetensors": digest},
    }


def test_report_has_the_versions_that_made_it(converted):
    packages = ("mimi-bridge", "torch", "transformers", "vector-quantize-pytorch", "safetensors")
    expected = {"python": platform.python_version()} | {name: version(name) for name in packages}
    assert converted.report["versions"] == expected


def test_report_accounts_for_every_tensor_of_the_source(converted, mimi_tensors):
    keys = converted.report["keys"]
    assert len(keys["moved"]) + len(keys["left"]) == len(mimi_tensors)


def test_report_accounts_for_every_tensor_of_the_result(converted):
    keys = converted.report["keys"]
    assert len(keys["moved"]) + len(keys["derived"]) + len(keys["fresh"]) == len(converted.tensors)


def test_report_has_the_config_of_the_result(converted):
    assert converted.report["config"] == {
        "num_quantizers": 9,
        "frame_rate": 12.5,
        "sampling_rate": 24_000,
        "content_layers": 0,
        "prosody_layers": 0,
        "content_delay": 0,
    }


def test_report_names_the_speech_without_its_folder(converted):
    proof = converted.report["proof"]
    assert (proof["speech"], proof["seconds"], proof["frames"]) == ("short-speech.wav", 4.8, 60)


def test_report_of_the_full_residual_proves_what_it_claims(converted_residual):
    proof = converted_residual.report["proof"]
    assert proof["passed"]
    assert proof["residual_weight"] == 1.0
    assert proof["codes_equal"]["prosody"] == 1.0
    assert proof["waveform_max_abs_difference_same_codes"] == 0.0


def test_command_says_what_it_proved_and_wrote(run_command, mimi_folder, output):
    status, printed = run_command("--source", mimi_folder, "--output", output)
    rows = [line.split() for line in printed.out.splitlines()]
    assert status == 0
    assert [row[-3] for row in rows[1:9]] == ["1.0000"] * 8  # the reference path
    assert rows[0] == "codes equal reference path default path codes in use".split()
    assert any(row[:2] == ["default", "path:"] for row in rows) and sum(row[0] == "float64" for row in rows) == 2
    assert rows[-1] == ["wrote", str(output)]
