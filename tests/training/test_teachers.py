"""Teachers in the training loop say what they say when data is prepared, and leave everything else alone."""

import logging
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import SMALL, arguments, assert_same, fit, silence_content, state_of

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.teachers.speech import WavLMTeacher
from mimi_bridge.data.teachers.text import QwenTeacher
from mimi_bridge.training import MimiBridgeTrainer, TrainingTeachers, teachers
from mimi_bridge.training.checkpoints import STATE_NAME
from tiny_teachers import SENTENCES, write_tiny_qwen, write_tiny_w2v_bert, write_tiny_wavlm, write_tiny_whisper
from two_processes import run_in_two_processes

OF_TEACHERS = {"qwen_dim": 16, "wavlm_dim": 16}
CROP_SECONDS = 0.8
QUICK = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 2}
LOGGED = {"logging_strategy": "steps", "logging_steps": 1}


def raw_rows(folder: str, num_rows: int = 8) -> list[dict[str, Any]]:
    """Tones of 8 to 29 frames with a text, its tokens and their places; the last but one has no text."""
    tokenizer = QwenTeacher(folder).tokenizer
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for number in range(num_rows):
        seconds = torch.arange(1920 * (8 + 3 * number) - 500 * (number % 3)) / 24_000
        audio = 0.3 * torch.sin(2 * torch.pi * (150 + 90 * number) * seconds * (1 + seconds))
        audio = audio + 0.1 * torch.randn(len(audio), generator=generator)
        row = {"id": number, "input_values": audio}
        if number != num_rows - 2:
            text = SENTENCES[number % 3][: 20 + 4 * number]
            ids = tokenizer.states([text])[0].token_ids
            edges = torch.linspace(0.1, float(seconds[-1]) - 0.1, len(ids) + 1)
            row |= {"text": text, "token_ids": ids, "token_spans": torch.stack([edges[:-1], edges[1:]], dim=-1)}
        rows.append(row)
    return rows


def prepared(rows: list[dict[str, Any]], text: QwenTeacher, speech: WavLMTeacher) -> list[dict[str, Any]]:
    """The rows with what the teachers say of whole recordings, in half precision."""
    found = []
    for row in rows:
        row = {**row, "wavlm_features": speech.features([row["input_values"]], 24_000)[0].half()}
        if "text" in row:
            row["qwen_hidden"] = text.states([row["text"]])[0].hidden.half()
        found.append(row)
    return found


@lru_cache
def _model() -> MimiBridgeModel:
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**SMALL | OF_TEACHERS)).eval()
    return fit(model, torch.randn(600, SMALL["hidden_size"]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Of a tiny language model and a tiny speech model."""
    folder = tmp_path_factory.mktemp("teachers")
    return {"text": write_tiny_qwen(folder / "qwen"), "speech": write_tiny_wavlm(folder / "wavlm")}


@pytest.fixture(scope="module")
def rows(folders) -> list[dict[str, Any]]:
    return raw_rows(folders["text"])


@pytest.fixture(scope="module")
def prepared_rows(folders, rows) -> list[dict[str, Any]]:
    return prepared(rows, QwenTeacher(folders["text"]), WavLMTeacher(folders["speech"]))


def trainer_of(
    output: Path,
    rows: list[dict[str, Any]],
    in_loop: TrainingTeachers | None,
    crop_seconds: float | None = None,
    model: MimiBridgeModel | None = None,
    **options: Any,
) -> MimiBridgeTrainer:
    model = deepcopy(_model()) if model is None else model
    collator = MimiBridgeCollator.for_model(model.config, crop_seconds)
    args = arguments(output, **QUICK | LOGGED | {"mel_weight": 0.0} | options)
    return MimiBridgeTrainer(model, args, collator, rows, teachers=in_loop, eval_dataset=rows[:5])


def losses(trained: MimiBridgeTrainer) -> list[dict[str, float]]:
    lines = [line for line in trained.state.log_history if "loss" in line]
    return [
        {name: value for name, value in line.items() if name.startswith(("loss", "baseline", "usage", "perplexity"))}
        for line in lines
    ]


@pytest.mark.parametrize("crop_seconds", [None, CROP_SECONDS])
@pytest.mark.parametrize("init", ["none", "k-means", "least-squares"])
def test_training_with_teachers_in_the_loop_is_training_on_prepared_features(
    folders, rows, prepared_rows, tmp_path, crop_seconds, init
):
    model = _model() if init == "none" else silence_content(deepcopy(_model()))
    options = {"crop_seconds": crop_seconds, "content_init": init}
    there = trainer_of(tmp_path / "prepared", prepared_rows, None, model=deepcopy(model), **options)
    here = trainer_of(tmp_path / "in loop", rows, TrainingTeachers(**folders), model=deepcopy(model), **options)
    there.train()
    here.train()
    for ours, theirs in zip(losses(here), losses(there), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)
    audio = rows[0]["input_values"][None, None]
    codes = [one.bridge_model.eval().encode(audio).audio_codes for one in (here, there)]
    assert torch.equal(*codes)
    results = [one.evaluate() for one in (here, there)]
    names = [name for name in results[0] if name.startswith(("eval_loss", "eval_baseline"))]
    assert {"eval_loss_qwen", "eval_loss_wavlm"} <= {*names}
    assert {name: results[0][name] for name in names} == pytest.approx(
        {name: results[1][name] for name in names}, rel=2e-3, abs=1e-4
    )


@pytest.mark.parametrize("write", [write_tiny_whisper, write_tiny_w2v_bert])
def test_models_that_take_spectra_are_in_the_loop_what_they_are_in_preparing(rows, tmp_path, write):
    speech = write(tmp_path / "speech")
    audio_only = [{name: row[name] for name in ("id", "input_values")} for row in rows]
    teacher = WavLMTeacher(speech)
    features = [row | {"wavlm_features": teacher.features([row["input_values"]], 24_000)[0]} for row in audio_only]
    options = {"crop_seconds": CROP_SECONDS, "content_init": "none", "qwen_weight": 0.0}
    there = trainer_of(tmp_path / "prepared", features, None, **options)
    here = trainer_of(tmp_path / "in loop", audio_only, TrainingTeachers(speech=speech), **options)
    there.train()
    here.train()
    for ours, theirs in zip(losses(here), losses(there), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)


def test_statistics_are_those_of_prepared_features(folders, rows, prepared_rows, tmp_path):
    bridges = []
    for output, data, in_loop in (("a", prepared_rows, None), ("b", rows, TrainingTeachers(**folders))):
        trained = trainer_of(tmp_path / output, data, in_loop, model=silence_content(deepcopy(_model())))
        trained.train()
        bridges.append((trained.bridge_model.quantizer.proj_qwen, trained.bridge_model.quantizer.proj_wavlm))
    for theirs, ours in zip(*bridges, strict=True):
        assert bool((ours.std != 1).any())
        torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(ours.std, theirs.std, atol=1e-3, rtol=1e-3)


def test_checkpoint_holds_no_weight_of_a_teacher_and_no_teacher_moves(folders, rows, tmp_path):
    in_loop = TrainingTeachers(**folders)
    before = [state_of(teacher.model) for teacher in (in_loop.text, in_loop.speech)]
    trained = trainer_of(tmp_path, rows, in_loop)
    trained.train()
    for teacher, weights in zip((in_loop.text, in_loop.speech), before, strict=True):
        assert_same(state_of(teacher.model), weights)
        assert not teacher.model.training
        assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    of_teachers = {id(p) for teacher in (in_loop.text, in_loop.speech) for p in teacher.model.parameters()}
    assert not of_teachers & {id(p) for group in trained.optimizer.param_groups for p in group["params"]}
    trained.save_model(tmp_path / "saved")
    assert MimiBridgeModel.from_pretrained(tmp_path / "saved").state_dict().keys() == _model().state_dict().keys()


def test_crop_hears_the_context_that_is_asked_for(folders, rows):
    row = {**rows[7], "input_values": rows[7]["input_values"].clone()}
    config = _model().config
    frames = {}
    for seconds in (None, 0.16):
        in_loop = TrainingTeachers(speech=folders["speech"], context_seconds=seconds)
        batch = in_loop.collator(MimiBridgeCollator.for_model(config, CROP_SECONDS))([row])
        frames[seconds] = int(batch["teacher_frames"])
        index = batch["wavlm_index"][0]
        assert torch.equal(index, torch.arange(10) + index[0])
        start = int(index[0])
        assert seconds is None or start <= 2
        audio = batch["input_values"][0, 0]
        if seconds is None:
            assert torch.equal(audio, row["input_values"][1920 * start : 1920 * (start + 10)])
    assert frames == {None: 29, 0.16: pytest.approx(13, abs=1)}


def test_longest_stretch_that_the_speech_model_hears_is_bounded(folders, rows):
    in_loop = TrainingTeachers(speech=folders["speech"], max_seconds=1.2)
    batch = in_loop.collator(MimiBridgeCollator.for_model(_model().config, CROP_SECONDS))(rows)
    assert max(batch["teacher_frames"].tolist()) == 15
    assert in_loop.add(batch)["wavlm_features"].shape == (8, 10, 16)


def test_recording_that_is_longer_than_the_speech_model_takes_is_evaluated_without_it(folders, rows, caplog):
    in_loop = TrainingTeachers(speech=folders["speech"], max_seconds=1.2)
    batch = in_loop.add(in_loop.collator(MimiBridgeCollator.for_model(_model().config))(rows))
    longer = [len(row["input_values"]) > 1.2 * 24_000 for row in rows]
    assert True in longer and False in longer
    assert batch["wavlm_mask"].any(dim=1).tolist() == [not is_longer for is_longer in longer]
    assert caplog.text.count("trains without the speech teacher: it takes 1.2 s at most") == sum(longer)


def test_rows_of_which_a_teacher_makes_no_number_lose_that_teacher_and_are_named(folders, rows, caplog, monkeypatch):
    in_loop = TrainingTeachers(**folders)
    batch = in_loop.collator(MimiBridgeCollator.for_model(_model().config))(rows[:3])
    spoilt = in_loop.speech.features_of_inputs

    def with_nan(*given):
        found = spoilt(*given)
        found[1][0, 0] = torch.nan
        return found

    monkeypatch.setattr(in_loop.speech, "features_of_inputs", with_nan)
    hidden = in_loop.text.hidden
    monkeypatch.setattr(
        in_loop.text, "hidden", lambda ids: [states / (place != 2) for place, states in enumerate(hidden(ids))]
    )
    with caplog.at_level(logging.WARNING):
        teachers.logger.addHandler(caplog.handler)
        added = in_loop.add(batch)
        teachers.logger.removeHandler(caplog.handler)
    assert added["wavlm_mask"].any(dim=1).tolist() == [True, False, True]
    assert added["token_mask"].any(dim=1).tolist() == [True, True, False]
    assert all(bool(torch.isfinite(added[name]).all()) for name in ("wavlm_features", "qwen_hidden"))
    assert "row '1' trains without the speech teacher: it gives NaN or infinity" in caplog.text
    assert "row '2' trains without the text teacher: it gives NaN or infinity" in caplog.text


# --- going on ---


def test_run_goes_on_with_its_teachers_to_the_same_weights(folders, rows, tmp_path):
    options = {"crop_seconds": CROP_SECONDS, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer_of(tmp_path / "whole", rows, TrainingTeachers(**folders), **options)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    parts = trainer_of(tmp_path / "parts", rows, TrainingTeachers(**folders, checkpoint=checkpoint), **options)
    parts.train(resume_from_checkpoint=checkpoint)
    assert_same(state_of(parts.bridge_model), state_of(whole.bridge_model))


@pytest.fixture
def checkpoint(folders, rows, tmp_path) -> str:
    trained = trainer_of(tmp_path, rows, TrainingTeachers(**folders), save_strategy="steps", save_steps=2)
    trained.train()
    return str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": None}, r"trains with a text teacher in the loop \(.*\), but this run has none"),
        ({"speech_layer": 1}, r"its speech teacher was .* with layer None, and this run's is .* with layer 1;"),
        ({"dtype": "bfloat16"}, r"its text teacher was .* with dtype auto, and this run's is .* with dtype bfloat16;"),
    ],
)
def test_run_does_not_go_on_with_other_teachers(checkpoint, folders, rows, tmp_path, changes, sentence):
    other = trainer_of(tmp_path / "other", rows, TrainingTeachers(**folders | changes))
    with pytest.raises(ValueError, match=sentence):
        other.train(resume_from_checkpoint=checkpoint)


def test_run_does_not_go_on_with_other_weights_of_a_name(checkpoint, folders, rows, tmp_path):
    moved = write_tiny_wavlm(tmp_path / "wavlm", initializer_range=0.1)
    other = trainer_of(tmp_path / "other", rows, TrainingTeachers(**folders | {"speech": moved}))
    with pytest.raises(ValueError, match=r"its speech teacher was .* with digest \w+ of the weights, and this run's"):
        other.train(resume_from_checkpoint=checkpoint)


def test_run_begun_on_prepared_features_does_not_go_on_with_teachers(folders, rows, prepared_rows, tmp_path):
    trained = trainer_of(tmp_path, prepared_rows, None, save_strategy="steps", save_steps=2)
    trained.train()
    other = trainer_of(tmp_path / "other", rows, TrainingTeachers(**folders))
    with pytest.raises(ValueError, match=r"this run trains with a text teacher in the loop \(.*\), but .* had none"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_run_does_not_go_on_without_teachers(checkpoint, prepared_rows, tmp_path):
    other = trainer_of(tmp_path / "other", prepared_rows, None)
    with pytest.raises(ValueError, match=r"trains with a text teacher in the loop .*, but this run has none; go on"):
        other.train(resume_from_checkpoint=checkpoint)


def test_revision_of_the_checkpoint_is_asked_for_and_named_if_it_is_gone(checkpoint, folders, monkeypatch):
    path = Path(checkpoint) / STATE_NAME
    state = torch.load(path, weights_only=True)
    state["teachers"]["text"]["revision"] = "abc123"
    torch.save(state, path)

    def gone(name, revision, **options):
        raise OSError(f"{name} has no {revision}\nand more")

    monkeypatch.setattr(teachers, "QwenTeacher", gone)
    with pytest.raises(OSError, match="revision abc123 of the text teacher .* is not available"):
        TrainingTeachers(**folders, checkpoint=checkpoint)


# --- what cannot be done ---


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda rows: without(rows, "token_ids"),
            r"the text teacher needs the columns token_ids and token_spans, but train_dataset has id, input_values, "
            r"text, token_spans; make them by mimi-bridge prepare --teachers none\.",
        ),
        (
            lambda rows: without(rows, "input_values"),
            r"the speech teacher needs a column of audio \(audio, input_values, audio_path\), but train_dataset has",
        ),
        (
            lambda rows: [{**row, "text": "another text"} for row in rows],
            r"token_ids of train_dataset are not what .* tokenizer makes of the text 'another text'; prepare the data",
        ),
    ],
)
def test_rows_that_teachers_cannot_be_computed_from_are_refused(folders, rows, tmp_path, change: Callable, sentence):
    with pytest.raises(ValueError, match=sentence):
        trainer_of(tmp_path, change(rows), TrainingTeachers(**folders))


def test_teacher_of_another_size_is_refused(folders, rows, tmp_path):
    model = MimiBridgeModel(MimiBridgeConfig(**SMALL | {"qwen_dim": 16}))
    with pytest.raises(ValueError, match=r"the speech teacher .* has vectors of 16, but the model's wavlm_dim is 5; "):
        trainer_of(tmp_path, rows, TrainingTeachers(**folders), model=model)


def test_no_teacher_at_all_is_refused():
    with pytest.raises(ValueError, match="teachers must name a text teacher, a speech teacher or both"):
        TrainingTeachers()


def test_latents_have_no_audio_for_a_speech_teacher(folders):
    collate = TrainingTeachers(speech=folders["speech"]).collator(MimiBridgeCollator.for_model(_model().config))
    with pytest.raises(ValueError, match="row '7' holds latents, but the speech teacher needs audio"):
        collate([{"id": "7", "latents": torch.zeros(4, 16)}])


def test_token_that_the_model_does_not_know_is_refused(folders, rows):
    in_loop = TrainingTeachers(text=folders["text"])
    row = {**rows[0], "token_ids": [9999] * len(rows[0]["token_ids"])}
    batch = in_loop.collator(MimiBridgeCollator.for_model(_model().config))([row])
    with pytest.raises(ValueError, match="token_ids of row '0' go up to 9999, but .* knows 320 tokens"):
        in_loop.add(batch)


# --- two processes ---


def train_both_ways(output: str) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    folders = {name: str(Path(output) / name) for name in ("text", "speech")}
    rows = raw_rows(folders["text"])
    for crop_seconds in (None, CROP_SECONDS):
        trained = trainer_of(
            Path(output) / "run",
            rows,
            TrainingTeachers(**folders),
            crop_seconds,
            silence_content(deepcopy(_model())),
            content_init="k-means",
        )
        trained.train()
        found = {"losses": losses(trained), "model": state_of(trained.bridge_model)}
        torch.save(found, Path(output) / f"{crop_seconds} {trained.accelerator.process_index}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_teachers_do_what_one_does_on_prepared_features(tmp_path):
    folders = {"text": write_tiny_qwen(tmp_path / "text"), "speech": write_tiny_wavlm(tmp_path / "speech")}
    run_in_two_processes(train_both_ways, tmp_path)
    rows = prepared(raw_rows(folders["text"]), QwenTeacher(folders["text"]), WavLMTeacher(folders["speech"]))
    for crop_seconds in (None, CROP_SECONDS):
        ours, theirs = (torch.load(tmp_path / f"{crop_seconds} {rank}.pt", weights_only=True) for rank in range(2))
        assert_same(ours["model"], theirs["model"])
        alone = trainer_of(
            tmp_path / "alone",
            rows,
            None,
            crop_seconds,
            silence_content(deepcopy(_model())),
            content_init="k-means",
            per_device_train_batch_size=8,
        )
        alone.train()
        for here, there in zip(ours["losses"], losses(alone), strict=True):
            assert here == pytest.approx(there, rel=2e-3, abs=1e-4)
