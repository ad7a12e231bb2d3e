"""What is asked of the trainer is done, or refused by one sentence."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_trainer import (
    BOTH_UPDATES,
    CODEBOOK_SIZE,
    QWEN_DIM,
    WAVLM_DIM,
    arguments,
    assert_same,
    audio_model,
    audio_rows,
    latents_model,
    latents_rows,
    moved,
    silence_content,
    state_of,
    train,
    trainer_of,
    without_teachers,
)
from torch import Tensor, nn

from mimi_bridge import MimiBridgeModel
from mimi_bridge.data.streaming import StreamedRows
from mimi_bridge.data.teachers.statistics import RunningStatistics
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments
from mimi_bridge.training.checkpoints import STATE_NAME

LOGGED = {"logging_strategy": "steps", "logging_steps": 1}


def trainer_with(
    output: Path, model: MimiBridgeModel | None = None, rows: Any = None, **options: Any
) -> MimiBridgeTrainer:
    """A trainer with options of transformers' own, and `arguments` of ours."""
    args = arguments(output, **options.pop("arguments", {}))
    rows = latents_rows() if rows is None else rows
    if model is None and "model_init" not in options:
        model = latents_model()
    return MimiBridgeTrainer(model, args, train_dataset=rows, **options)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


# --- the teachers' statistics ---


@pytest.fixture
def statistics() -> dict[str, RunningStatistics]:
    statistics = RunningStatistics(WAVLM_DIM)
    statistics.add(torch.randn(500, WAVLM_DIM, generator=torch.Generator().manual_seed(0)) * 3 + 7)
    return {"wavlm": statistics}


@pytest.mark.parametrize("frozen", [[], ["content"], ["bridges"], ["content", "bridges"]], ids=str)
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "trained before"])
def test_statistics_given_are_used_whatever_is_frozen_or_was_trained_before(tmp_path, statistics, frozen, is_new):
    model = silence_content(latents_model()) if is_new else latents_model()
    rates = {"head_learning_rates": dict.fromkeys(frozen, 0.0)}
    trainer_with(tmp_path, model, teacher_statistics=statistics, arguments=rates).train()
    assert torch.equal(model.quantizer.proj_wavlm.mean, statistics["wavlm"].mean.float())
    assert torch.equal(model.quantizer.proj_wavlm.std, statistics["wavlm"].std.float())
    assert bool(model.quantizer.proj_qwen.mean.any()) is is_new  # not given: those of the data, in a new model


@pytest.mark.parametrize(
    "name, dim, message",
    [
        ("wavelm", WAVLM_DIM, r"teacher_statistics names 'wavelm', but the teachers are qwen, wavlm\."),
        (
            "wavlm",
            WAVLM_DIM + 1,
            rf"of wavlm are of vectors of {WAVLM_DIM + 1}, but the model's wavlm_dim is {WAVLM_DIM}",
        ),
        ("qwen", QWEN_DIM, r"teacher_statistics of qwen are of no vector at all; leave them out\."),
    ],
)
def test_statistics_of_no_teacher_are_refused_before_training(tmp_path, name, dim, message):
    statistics = RunningStatistics(dim)
    if name != "qwen":
        statistics.add(torch.randn(9, dim))
    with pytest.raises(ValueError, match=message):
        trainer_with(tmp_path, teacher_statistics={name: statistics})


def test_other_statistics_than_a_checkpoints_are_named_where_training_goes_on(tmp_path, statistics, caplog):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer_with(tmp_path, arguments=saving).train()
    trainer = trainer_with(tmp_path, teacher_statistics=statistics, arguments=saving)
    trainer.train(str(tmp_path / "checkpoint-1"))
    assert not trainer.bridge_model.quantizer.proj_wavlm.mean.any()
    assert "with the statistics of wavlm that are in it; the teacher_statistics given differ" in warnings_of(caplog)


# --- losses that have a weight ---


def logged_losses(output: Path, model: MimiBridgeModel, rows: list, **options: Any) -> dict[str, float]:
    trainer = trainer_of(output, model, rows, **{**LOGGED, **options})
    trainer.train()
    return {name: value for name, value in trainer.state.log_history[0].items() if name.startswith("loss_")}


def without_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "target_latents"} for row in rows]


@pytest.mark.parametrize("kind", ["audio", "latents"])
def test_second_fine_tuning_is_anchored_at_the_model_as_it_begins(tmp_path, kind):
    model, rows = (
        (audio_model(), audio_rows()) if kind == "audio" else (latents_model(), without_targets(latents_rows()))
    )
    begun = logged_losses(tmp_path, model, rows, residual_weight_warmup_ratio=1.0, mel_weight=0.0)
    assert begun["loss_latents"] == pytest.approx(0, abs=1e-6)  # as far as it has come in no step at all
    later = trainer_of(tmp_path, model, rows, residual_weight_warmup_ratio=1.0, mel_weight=0.0, max_steps=4, **LOGGED)
    later.train()
    assert later.state.log_history[3]["loss_latents"] > 1e-4


@pytest.mark.parametrize("weight", ["mel_weight", "adversarial_weight"])
def test_loss_of_audio_is_refused_where_rows_hold_latents(tmp_path, weight):
    model = latents_model()
    before = state_of(model)
    message = (
        rf"{weight}=0\.5 needs audio, but rows hold latents computed before; leave {weight} out, or use a data set"
    )
    with pytest.raises(ValueError, match=message):
        train(tmp_path, model, latents_rows(), residual_weight_warmup_ratio=1.0, **{weight: 0.5})
    assert_same(state_of(model), before)


@pytest.mark.parametrize("weight", ["mel_weight", "adversarial_weight"])
def test_loss_of_audio_is_refused_without_a_decoder(tmp_path, weight):
    model = audio_model()
    model.decoder = None
    with pytest.raises(
        ValueError, match=rf"{weight}=0\.5 needs the decoder, but the model was loaded without it; load"
    ):
        trainer_of(tmp_path, model, audio_rows(), **{weight: 0.5})
    trainer_of(tmp_path, model, audio_rows())


def test_loss_without_a_single_target_is_named_after_an_epoch(tmp_path, caplog):
    rows = [{name: value for name, value in row.items() if name != "wavlm_features"} for row in latents_rows()]
    model = latents_model()
    model.config.wavlm_weight = 0.875
    train(tmp_path, model, rows)
    message = "wavlm_weight is 0.875, but no frame of the training data has a target in wavlm_features"
    assert message in warnings_of(caplog) and "qwen_weight" not in warnings_of(caplog)


def test_beginning_for_a_new_content_head_is_named_where_the_head_is_not_new(tmp_path, caplog):
    train(tmp_path, latents_model(), latents_rows(), content_init="least-squares")
    assert "content_init='least-squares' is for a new content head; this one has learned already" in warnings_of(
        caplog
    )


# --- what is frozen by hand ---


@BOTH_UPDATES
def test_what_was_frozen_by_hand_stays_as_it_was_and_is_named(tmp_path, caplog, update):
    model = latents_model()
    weight = model.quantizer.head_content.project_in.weight.requires_grad_(False)
    before = weight.clone()
    train(tmp_path, model, latents_rows(), codebook_update=update, head_learning_rates={"prosody": 0})
    assert torch.equal(weight, before) and not weight.requires_grad
    assert all(
        p.requires_grad for name, p in model.named_parameters() if name != "quantizer.head_content.project_in.weight"
    )
    assert "stay as they are: quantizer.head_content.project_in.weight" in warnings_of(caplog)


def test_codebooks_learn_by_gradients_in_a_second_training_of_one_trainer_too(tmp_path):
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), codebook_update="gradient")
    trainer.train()
    before = state_of(trainer.bridge_model)
    trainer.train()
    name = "quantizer.head_content.vq._codebook.embed"
    assert name in moved(before, state_of(trainer.bridge_model))


# --- rates ---


@pytest.mark.parametrize(
    "rates, expected",
    [
        ({}, [0.01, 0.01, 0.001]),
        ({"content": 0, "prosody": 0}, [None, None, 0.001]),
        ({"content": 1e-2}, [0.1, 0.01, 0.001]),
        ({"content": 0, "prosody": 0, "bridges": 1.0}, [None, None, 0.001]),
    ],
)
def test_codebooks_forget_as_fast_as_their_head_learns_beside_learning_rate(tmp_path, rates, expected):
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), head_learning_rates=rates, codebook_decay=0.99)
    trainer.create_optimizer()
    learners = [head.learner for head in trainer.bridge_model.quantizer.heads.values()]
    assert [learner and 1 - learner.decay for learner in learners] == [e and pytest.approx(e) for e in expected]


def test_head_that_would_forget_everything_in_a_step_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"content learns at 1000 times learning_rate, so its codebooks would forget all"
    ):
        train(tmp_path, latents_model(), latents_rows(), head_learning_rates={"content": 1.0})


def test_codebooks_that_learn_by_gradients_may_learn_at_any_rate(tmp_path):
    options = {"codebook_update": "gradient", "head_learning_rates": {"content": 1.0}}
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), **options)
    trainer.create_optimizer()
    assert trainer.bridge_model.quantizer.head_content.learner.decay == 0


def test_learning_rate_of_each_part_is_logged(tmp_path):
    options = {"head_learning_rates": {"prosody": 5e-4}, "max_steps": 2, "lr_scheduler_type": "linear"}
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), **LOGGED, **options)
    trainer.train()
    rates = {"content": 1e-3, "prosody": 5e-4, "bridges": 1e-3, "acoustic": 1e-4}
    for log, share in zip(trainer.state.log_history, (1.0, 0.5), strict=False):
        found = {name: log[f"learning_rate_{name}"] for name in rates}
        assert found == pytest.approx({name: share * rate for name, rate in rates.items()})


# --- options of transformers' Trainer ---


def test_metrics_are_computed_from_the_codes_of_every_recording(tmp_path):
    rows, found = latents_rows(5, seed=4), []
    model = latents_model()
    trainer = trainer_with(
        tmp_path,
        model,
        eval_dataset=rows,
        compute_metrics=lambda predictions: found.append(predictions) or {"answer": 42.0},
        arguments={"per_device_eval_batch_size": 2},
    )
    assert trainer.evaluate()["eval_answer"] == 42.0
    codes = found[0].predictions
    assert len(codes) == 5
    for row, got in zip(rows, codes, strict=True):
        expected = model.quantizer.encode(row["latents"][None])[0].T.numpy()
        np.testing.assert_array_equal(got[: len(expected)], expected)
        assert (got[len(expected) :] == -100).all()


def test_predictions_are_the_codes_beside_the_losses(tmp_path):
    rows = audio_rows(3, seed=4)
    output = trainer_with(tmp_path, audio_model(), arguments={"per_device_eval_batch_size": 2}).predict(rows)
    lengths = [-(-len(row["input_values"]) // 1920) for row in rows]
    assert output.predictions.shape == (3, max(lengths), 5)
    assert (output.predictions[:, :, 0] != -100).sum(axis=1).tolist() == lengths
    assert {"test_loss", "test_loss_wavlm", "test_loss_mel"} <= output.metrics.keys()


def test_model_may_be_made_by_model_init(tmp_path):
    made = []

    def model_init() -> MimiBridgeModel:
        made.append(silence_content(latents_model()))
        return made[-1]

    options = {"content_init": "k-means", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = trainer_with(tmp_path, model_init=model_init, arguments=options)
    trainer.train()
    assert trainer.bridge_model is made[-1]
    alone = silence_content(latents_model())
    trainer_with(tmp_path / "alone", alone, arguments=options).train()
    assert_same(state_of(made[-1]), state_of(alone))


def test_rates_of_a_search_reach_every_part(tmp_path):
    trainer = trainer_of(tmp_path, latents_model(), latents_rows())
    trainer.args.learning_rate = 0.5
    groups = {group["name"]: group["lr"] for group in trainer.create_optimizer().param_groups}
    assert groups == pytest.approx({"content": 0.5, "prosody": 0.5, "bridges": 0.5, "acoustic": 0.05})


def test_optimizer_class_and_its_options_are_used(tmp_path):
    trainer = trainer_with(tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {"momentum": 0.5}))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}


def test_optimizer_of_ones_own_says_what_learns(tmp_path):
    model = latents_model()
    before = state_of(model)
    parameters = [*model.quantizer.head_prosody.parameters(), *model.quantizer.proj_wavlm.parameters()]
    trainer_with(tmp_path, model, optimizers=(torch.optim.SGD(parameters, lr=0.1), None)).train()
    names = moved(before, state_of(model))
    assert "quantizer.head_prosody.vq._codebook.embed" in names and "quantizer.proj_wavlm.weight" in names
    assert [name for name in names if not name.startswith(("quantizer.head_prosody.", "quantizer.proj_wavlm."))] == []
    assert all(parameter.requires_grad for parameter in model.parameters())


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "loss": (
        {"compute_loss_func": lambda *inputs: 0},
        {},
        "compute_loss_func is not supported here: the losses are the",
    ),
    "rate": (
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
        {},
        r"optimizer_cls_and_kwargs gives lr=0\.1, but every part of the model has its own; give it as learning_rate",
    ),
    "decay": (
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"weight_decay": 0.1})},
        {},
        r"optimizer_cls_and_kwargs gives weight_decay=0\.1, .* give it as weight_decay in the arguments",
    ),
    "two owners of the rates": (
        {"optimizers": (torch.optim.SGD(nn.Linear(1, 1).parameters()), None)},
        {"head_learning_rates": {"content": 0}},
        "optimizers holds an optimizer of your own.* so head_learning_rates cannot be",
    ),
    "codebooks it does not hold": (
        {"optimizers": (torch.optim.SGD(nn.Linear(1, 1).parameters()), None)},
        {"codebook_update": "gradient"},
        "optimizers holds an optimizer of your own.* so codebook_update cannot be 'gradient'",
    ),
    "empty evaluation": ({"eval_dataset": []}, {}, "eval_dataset is empty; give at least one recording"),
    "one of two": (
        {"eval_dataset": {"a": latents_rows(1), "b": []}},
        {},
        "eval_dataset b is empty; give at least one",
    ),
    "a path": ({"eval_dataset": "held_out"}, {}, "eval_dataset must be rows, .* got the path 'held_out'; load it"),
    "paths": ({"eval_dataset": {"a": Path("held")}}, {}, "eval_dataset a must be rows, .* got the path 'held'"),
    "splits": (
        {"eval_dataset": {"a": {"train": latents_rows(1)}}},
        {},
        "eval_dataset a must be one data set, got several by name: train; take one",
    ),
}


@pytest.mark.parametrize(
    "given, message",
    [
        ("prepared", "train_dataset must be rows, such as a datasets.Dataset, got the path 'prepared'; load it, by"),
        ({"train": latents_rows(1)}, "train_dataset must be one data set, got several by name: train; take one"),
    ],
)
def test_training_data_that_is_no_data_set_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        MimiBridgeTrainer(latents_model(), arguments(tmp_path), train_dataset=given)


@pytest.mark.parametrize("case", REFUSED)
def test_option_that_cannot_be_honoured_is_refused_before_training(tmp_path, case):
    options, args, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        trainer_with(tmp_path, arguments=args, **options)


@pytest.mark.parametrize(
    "option, value, message",
    [
        (
            "remove_unused_columns",
            True,
            "remove_unused_columns=True is not supported here: the collator reads columns",
        ),
        ("label_smoothing_factor", 0.1, r"label_smoothing_factor=0\.1 is not supported here: there are no labels"),
        ("label_names", ["labels"], r"label_names=\['labels'\] is not supported here: a recording has no labels"),
        ("neftune_noise_alpha", 5.0, r"neftune_noise_alpha=5\.0 is not supported here: there are no token embeddings"),
        (
            "fsdp",
            "full_shard",
            "fsdp='full_shard' is not supported here: codebooks move as a whole; start one process",
        ),
        ("deepspeed", {"zero_optimization": {}}, "deepspeed=.* is not supported here: codebooks move as a whole"),
        ("include_for_metrics", ["inputs"], "include_for_metrics='inputs' is not supported here: recordings differ"),
    ],
)
def test_argument_that_cannot_be_honoured_is_refused(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **{option: value})


def test_optimizer_that_divides_parameters_itself_is_refused(tmp_path):
    class Factory(torch.optim.SGD):
        pass

    trainer = trainer_with(tmp_path, optimizer_cls_and_kwargs=(Factory, {"params": []}))
    with pytest.raises(
        ValueError, match="divides the parameters in its own way, but here every part has its own learning"
    ):
        trainer.train()


def test_trainer_needs_no_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = MimiBridgeTrainer(latents_model(), train_dataset=latents_rows())
    assert isinstance(trainer.args, MimiBridgeTrainingArguments)


def test_fifth_argument_is_the_evaluation_set_as_in_transformers(tmp_path):
    rows = latents_rows(3, seed=4)
    assert MimiBridgeTrainer(latents_model(), arguments(tmp_path), None, latents_rows(), rows).eval_dataset is rows


# --- rows by length ---


def data_set(rows: list[dict[str, Tensor]], **columns: Any) -> Dataset:
    names = {name for row in rows for name in row}
    lists = [
        {name: None if row.get(name) is None else np.asarray(row[name]).tolist() for name in names} for row in rows
    ]
    return Dataset.from_list(
        [row | {name: values[n] for name, values in columns.items()} for n, row in enumerate(lists)]
    )


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_are_grouped_by_their_number_of_frames(tmp_path, strategy, monkeypatch):
    rows = latents_rows(16)
    lengths = [len(row["latents"]) for row in rows]
    options = {
        "train_sampling_strategy": strategy,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "max_steps": -1,
    }
    trainer = trainer_of(tmp_path, latents_model(), data_set(rows, num_frames=lengths), **options)
    assert trainer.train().global_step == 4
    with pytest.raises(
        ValueError, match=r"needs the length of every row in the column 'num_frames' .* train_dataset has none"
    ):
        trainer_of(tmp_path, latents_model(), data_set(rows), **options)


# --- half precision ---


@pytest.mark.parametrize("precision", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_in_half_precision_is_near_and_leaves_the_model_as_it_was(tmp_path, precision):
    rows, model = audio_rows(3, seed=4), audio_model()
    options = {"eval_dataset": rows, "per_device_eval_batch_size": 2}
    full = trainer_of(tmp_path, model, audio_rows(), **options).evaluate()
    before, codes = state_of(model), model.encode(rows[0]["input_values"][None, None]).audio_codes
    half = trainer_of(tmp_path, model, audio_rows(), **options, **{precision: True}).evaluate()
    assert_same(state_of(model), before)
    assert torch.equal(model.encode(rows[0]["input_values"][None, None]).audio_codes, codes)
    assert half["eval_loss_mel"] == pytest.approx(full["eval_loss_mel"], rel=0.05)
    assert half["eval_loss_mel"] != full["eval_loss_mel"]


@BOTH_UPDATES
@pytest.mark.parametrize("kind", ["audio", "latents"])
def test_model_loaded_in_bfloat16_trains_and_evaluates(tmp_path, update, kind):
    model, rows = (audio_model(), audio_rows()) if kind == "audio" else (latents_model(), latents_rows())
    silence_content(model).save_pretrained(tmp_path / "model")
    model = MimiBridgeModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    before = state_of(model)
    options = {"codebook_update": update, "content_init": "k-means", "eval_dataset": rows, "learning_rate": 0.1}
    trainer = trainer_of(tmp_path, model, rows, **options, **LOGGED)
    trainer.train()
    assert {"quantizer.proj_qwen.bias", "quantizer.head_content.vq._codebook.embed"} <= set(
        moved(before, state_of(model))
    )
    assert model.quantizer.head_content.codebooks[0].dtype == torch.float32
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_codebooks_in_half_precision_are_refused(tmp_path):
    message = r"codebooks must be float32 to learn, got torch\.bfloat16, as model\.to\(torch\.bfloat16\) leaves them"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, latents_model().to(torch.bfloat16), latents_rows())


# --- a smoke test ---


@pytest.mark.parametrize("content_init", ["k-means", "least-squares", "none"])
def test_a_few_clips_are_enough_to_try_things_out(tmp_path, caplog, content_init):
    rows = [row for row in latents_rows(9, least=3, most=5) if len(row.get("durations", ()))][:3]
    num_frames = sum(len(row["latents"]) for row in rows)
    assert 1 < num_frames < CODEBOOK_SIZE
    options = {"content_init": content_init, "max_steps": 30, "logging_strategy": "steps", "logging_steps": 10}
    trainer = trainer_of(tmp_path, silence_content(latents_model()), rows, collapse_below=0.3, **options)
    trainer.train()
    message = (
        f"the training data has {num_frames} frames for the {CODEBOOK_SIZE} entries of the content head's codebook"
    )
    assert (message in warnings_of(caplog)) is (content_init != "none")
    assert trainer.state.global_step == 30


def test_state_of_a_run_is_json(tmp_path):
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), save_strategy="steps", save_steps=1, **LOGGED)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["learning_rate_content"] == 1e-3
    assert STATE_NAME in {path.name for path in (tmp_path / "checkpoint-1").iterdir()}


def test_teachers_are_not_needed_for_statistics_where_their_losses_have_no_weight(tmp_path):
    model = silence_content(latents_model())
    rows = without_teachers(latents_rows())
    train(tmp_path, model, rows, qwen_weight=0.0, wavlm_weight=0.0, head_learning_rates={"content": 0, "bridges": 0})
    assert not model.quantizer.proj_qwen.mean.any()


def endless() -> StreamedRows:
    rows = [{"id": row["id"], "latents": row["latents"].tolist()} for row in latents_rows(2)]
    return StreamedRows(Dataset.from_list(rows).to_iterable_dataset())


def test_stream_to_evaluate_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset is a stream, which has no end"):
        trainer_of(tmp_path, latents_model(), latents_rows(), eval_dataset=endless())


def test_stream_is_not_grouped_by_length(tmp_path):
    with pytest.raises(ValueError, match="needs the length of every row, and train_dataset is read row by row"):
        trainer_of(tmp_path, latents_model(), endless(), train_sampling_strategy="group_by_length")
