"""The example that people copy, as they run it: on audio and on latents, stopped and gone on with, and gone wrong."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, load_from_disk
from transformers import AutoModel, EncodecFeatureExtractor

import finetune
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.espeak import SENTENCES, VOICES, synthesize
from mimi_bridge.cli.main import main as cli
from tiny import TINY
from tiny_teachers import write_tiny_qwen, write_tiny_wavlm

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


def run_as_a_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


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
def test_example_says_in_one_sentence_what_is_wrong(data, monkeypatch, arguments, sentence):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out", *arguments]
    with pytest.raises(SystemExit, match=f"^{sentence}"):  # a text is printed, and the exit status is 1
        run_as_a_program(monkeypatch, *given)


def test_traceback_is_shown_where_it_is_asked_for(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "missing", "--output_dir", data / "run"]
    with pytest.raises(FileNotFoundError, match="missing"):
        run_as_a_program(monkeypatch, *given, "--traceback")


def test_streaming_without_max_steps_is_refused(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, given), "--streaming", "--use_cpu"])
    with pytest.raises(ValueError, match="--streaming needs --max_steps, since a stream has no end"):
        finetune.main()


def test_checkpoint_that_is_not_there_is_named(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    with pytest.raises(ValueError, match="out has no checkpoint to go on from; leave"):
        run(monkeypatch, *given, "--resume_from_checkpoint", "True")


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
    assert (config.content_layers, config.prosody_layers, config.content_delay) == (0, 2, 1)


@pytest.mark.parametrize("recipe", ["decoder", "swaps"])
def test_recipes_of_the_decoder_leave_every_code_as_it_was(data, monkeypatch, recipe):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    run(monkeypatch, *given, "--recipe", recipe)
    before, after = (AutoModel.from_pretrained(data / name) for name in ("model", "out"))
    moved = [name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])]
    assert moved and all(name.startswith("decoder.") for name in moved)
    assert after.config.residual_weight == before.config.residual_weight


def test_unknown_recipe_is_refused(data, monkeypatch):
    given = ["--model", data / "model", "--train_dataset", data / "data", "--output_dir", data / "out"]
    with pytest.raises(ValueError, match="recipe must be one of specification, content, decoder, swaps, got 'contnt'"):
        run(monkeypatch, *given, "--recipe", "contnt")


# --- teachers in the loop ---


def test_example_with_teachers_in_the_loop_does_what_it_does_on_prepared_features(tmp_path, monkeypatch):
    write_tiny_qwen(tmp_path / "qwen")
    write_tiny_wavlm(tmp_path / "wavlm")
    (tmp_path / "in").mkdir()
    for number, text in enumerate(SENTENCES[:6]):
        soundfile.write(tmp_path / "in" / f"{number}.flac", synthesize(text, VOICES[number])[0].numpy(), 24_000)
        (tmp_path / "in" / f"{number}.txt").write_text(text)
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**TINY, qwen_dim=16, wavlm_dim=16))
    torch.nn.init.zeros_(model.quantizer.head_content.project_out.weight)
    model.save_pretrained(tmp_path / "model")
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path / "model")
    common = ["prepare", str(tmp_path / "in"), "--text-teacher", str(tmp_path / "qwen"), "--min-score", "none"]
    assert cli([*common, "-o", str(tmp_path / "all"), "--speech-teacher", str(tmp_path / "wavlm")]) == 0
    assert cli([*common, "-o", str(tmp_path / "none"), "--teachers", "none"]) == 0
    given = ["--model", tmp_path / "model", "--mel_weight", 0]
    run(monkeypatch, *given, "--train_dataset", tmp_path / "all", "--output_dir", tmp_path / "a")
    in_loop = ["--text_teacher", tmp_path / "qwen", "--speech_teacher", tmp_path / "wavlm"]
    given = [*given, "--train_dataset", tmp_path / "none", "--output_dir", tmp_path / "b", *in_loop]
    run(monkeypatch, *given)
    there, here = (
        json.loads((tmp_path / name / "checkpoint-4/trainer_state.json").read_text())["log_history"]
        for name in ("a", "b")
    )
    for ours, theirs in zip(here, there, strict=True):
        assert ours["loss_wavlm"] == pytest.approx(theirs["loss_wavlm"], rel=0.2)
        assert ours["loss_qwen"] == pytest.approx(theirs["loss_qwen"], rel=0.2)
    (tmp_path / "b" / "checkpoint-4").rename(tmp_path / "later")
    run(monkeypatch, *given, "--resume_from_checkpoint", "True")
    whole, parts = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("later", "b"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    streamed = [*given[:-1], tmp_path / "wavlm", "--streaming", "--shuffle_buffer", 4]
    streamed[streamed.index(tmp_path / "b")] = tmp_path / "c"
    run(monkeypatch, *streamed)
    state = json.loads((tmp_path / "c" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss_wavlm"] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--train_split", "validation"], "--train_split validation is read with --streaming alone"),
        (["--text_layer", 3], "--text_layer 3 is read with --text_teacher alone"),
        (["--teacher_dtype", "bfloat16"], "--teacher_dtype bfloat16 is read with --text_teacher or --speech_teacher"),
        (["--speech_teacher", "wavlm", "--teacher_dtype", "half"], "--teacher_dtype must be one of auto, float32"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused(data, monkeypatch, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(monkeypatch, "--model", data / "model", "--train_dataset", data / "data", "--output_dir", "x", *options)


def test_audio_column_of_a_data_set_is_read_as_it_is_stored(data, monkeypatch):
    rows = [
        {"id": row["id"], "audio": {"bytes": wav_of(row["audio"]["array"]), "path": None}}
        for row in load_from_disk(data / "data").with_format("numpy")
    ]
    held = Dataset.from_list(rows).cast_column("audio", Audio(decode=False)).cast_column("audio", Audio())
    held.save_to_disk(data / "held")
    without = ["--qwen_weight", 0, "--wavlm_weight", 0]
    given = ["--model", data / "model", "--train_dataset", data / "held", "--output_dir", data / "run", *without]
    run(monkeypatch, *given)
    assert (data / "run/model.safetensors").is_file()


def wav_of(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 24_000, format="WAV")
    return file.getvalue()
