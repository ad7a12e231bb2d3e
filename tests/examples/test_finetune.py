"""The example that people copy, as they run it: on audio and on latents, stopped and gone on with, and gone wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModel, EncodecFeatureExtractor

import finetune
import mimi_bridge  # noqa: F401
from mimi_bridge.cli.main import main as cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"
QUICK = ["--max_steps", 4, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--use_cpu"]
QUIET = ["--report_to", "none", "--logging_steps", 2, "--save_steps", 2, "--init_frames", 100, "--crop_seconds", 1]


@pytest.fixture
def data(tmp_path, speech, tiny_model):
    """A model freshly converted, and eight recordings with both teachers."""
    torch.nn.init.zeros_(tiny_model.quantizer.head_content.project_out.weight)
    tiny_model.set_residual_weight(0.0)
    tiny_model.save_pretrained(tmp_path / "model")
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    rows = [
        {
            "id": str(number),
            "audio": {"array": speech[0, 48_000 * number : 48_000 * (number + 1)].numpy(), "sampling_rate": 24_000},
            "qwen_hidden": random.standard_normal((4, 24)).astype(np.float32),
            "token_spans": [[0.5 * token, 0.5 * token + 0.4] for token in range(4)],
            "wavlm_features": random.standard_normal((25, 20)).astype(np.float32),
        }
        for number in range(8)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments), *map(str, QUICK), *map(str, QUIET)])
    finetune.main()


def test_example_trains_evaluates_and_saves_a_model_that_loads(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--eval_dataset", data / "data"]
    run(monkeypatch, *given, "--output_dir", data / "out")
    before, after = (AutoModel.from_pretrained(data / name) for name in ("model", "out"))
    assert after.config.residual_weight == 1.0
    assert not torch.equal(before.quantizer.proj_qwen.weight, after.quantizer.proj_qwen.weight)
    assert torch.equal(before.decoder.upsample.conv.weight, after.decoder.upsample.conv.weight)
    metrics = json.loads((data / "out" / "eval_results.json").read_text())
    assert {"eval_loss", "eval_loss_qwen", "eval_baseline_qwen", "eval_usage_content"} <= metrics.keys()
    assert (data / "out" / "preprocessor_config.json").is_file()


def test_example_trains_on_cached_latents(data, monkeypatch):
    assert cli(["cache", str(data / "data"), "-o", str(data / "cached"), "-m", str(data / "model")]) == 0
    given = ["--model", data / "model", "--train_dataset", data / "cached"]
    run(monkeypatch, *given, "--output_dir", data / "out")
    state = json.loads((data / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert "loss_latents" in state["log_history"][0] and "loss_mel" not in state["log_history"][0]


def test_example_goes_on_from_a_checkpoint(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data"]
    run(monkeypatch, *given, "--output_dir", data / "whole")
    run(monkeypatch, *given, "--output_dir", data / "parts")
    (data / "parts" / "checkpoint-4").rename(data / "later")
    run(monkeypatch, *given, "--output_dir", data / "parts", "--resume_from_checkpoint", data / "parts/checkpoint-2")
    whole, parts = (AutoModel.from_pretrained(data / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--head_learning_rates", '{"prosdy": 1e-4}'],
            "finetune: head_learning_rates names prosdy, but the parts are",
        ),
        (["--codebook_update", "momentum"], "finetune: codebook_update must be one of ema, gradient, got 'momentum'."),
    ],
)
def test_example_says_in_one_sentence_what_is_wrong(data, arguments, sentence):
    command = [sys.executable, EXAMPLE, "--model", data / "model", "--train_dataset", data / "data"]
    command += ["--output_dir", data / "out", *arguments]
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(sentence)
    assert "Traceback" not in result.stderr


def test_traceback_is_shown_where_it_is_asked_for(data):
    given = ["--model", data / "model", "--train_dataset", data / "missing", "--output_dir", data / "run"]
    command = [sys.executable, EXAMPLE, *given, "--traceback"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "FileNotFoundError" in result.stderr


# --- recipes ---


@pytest.fixture
def labelled(data):
    """The same recordings with phones, pitch and level."""
    rows = load_from_disk(data / "data").to_list()
    random = np.random.default_rng(1)
    for row in rows:
        row["phones"] = [
            {"phone": phone, "start": 0.5 * n, "end": 0.5 * n + 0.4} for n, phone in enumerate(("K", "AE1"))
        ]
        row["f0_hz"] = random.uniform(80, 300, 200).astype(np.float32)
        row["level_db"] = random.uniform(-60, -10, 200).astype(np.float32)
    Dataset.from_list(rows).save_to_disk(data / "labelled")
    return data


def test_recipe_changes_losses_and_model_and_what_is_given_wins(labelled, monkeypatch):
    given = ["--model", labelled / "model", "--train_dataset", labelled / "labelled", "--output_dir", labelled / "out"]
    run(monkeypatch, *given, "--recipe", "content", "--prosody_weight", 0, "--content_delay", 1)
    state = json.loads((labelled / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert {"loss_phone", "loss_speech_content"} <= state["log_history"][0].keys()
    assert "loss_pitch" not in state["log_history"][0]
    config = AutoModel.from_pretrained(labelled / "out").config
    assert (config.content_layers, config.prosody_layers, config.content_delay) == (2, 1, 1)


def test_recipe_of_the_decoder_leaves_every_code_as_it_was(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    run(monkeypatch, *given, "--recipe", "decoder")
    before, after = (AutoModel.from_pretrained(data / name) for name in ("model", "out"))
    moved = [name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])]
    assert moved and all(name.startswith("decoder.") for name in moved)
    assert after.config.residual_weight == before.config.residual_weight


def test_unknown_recipe_is_refused(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    with pytest.raises(ValueError, match="recipe must be one of specification, content, decoder, got 'contnt'"):
        run(monkeypatch, *given, "--recipe", "contnt")
