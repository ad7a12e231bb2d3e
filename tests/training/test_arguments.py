"""The arguments of a run: the specification's rates unless others are given, and sentences where one is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from mimi_bridge.training import MimiBridgeTrainingArguments

DEFAULT_RATES = {"content": 1e-4, "prosody": 1e-4, "bridges": 1e-4, "acoustic": 1e-5, "encoder": 0.0, "decoder": 0.0}
OTHER_RATES = {"acoustic": 0, "codec": 1e-6}


def arguments(output: Path, **options: Any) -> MimiBridgeTrainingArguments:
    return MimiBridgeTrainingArguments(output_dir=str(output), use_cpu=True, report_to=[], **options)


def from_command_line(output: Path, *words: str) -> MimiBridgeTrainingArguments:
    line = ["--output_dir", str(output), "--use_cpu", "--report_to", "none", *words]
    (parsed,) = HfArgumentParser(MimiBridgeTrainingArguments).parse_args_into_dataclasses(line)
    return parsed


def test_rates_and_optimizer_are_the_specifications_by_default(tmp_path):
    args = arguments(tmp_path)
    assert args.rates == pytest.approx(DEFAULT_RATES)
    assert args.optim.startswith("adamw_torch")
    assert (args.adam_beta1, args.adam_beta2) == (0.8, 0.99)
    assert args.gradient_accumulation_steps > 1


def test_rates_follow_the_learning_rate(tmp_path):
    rates = arguments(tmp_path, learning_rate=3e-3).rates
    assert rates == pytest.approx(DEFAULT_RATES | {name: 30 * rate for name, rate in DEFAULT_RATES.items()})


@pytest.mark.parametrize("given", [OTHER_RATES, json.dumps(OTHER_RATES)], ids=["dict", "json"])
def test_rates_by_name_replace_those_they_name_and_no_others(tmp_path, given):
    args = arguments(tmp_path, learning_rate=2e-4, head_learning_rates=given)
    assert args.rates == pytest.approx(
        {"content": 2e-4, "prosody": 2e-4, "bridges": 2e-4, "acoustic": 0.0, "encoder": 1e-6, "decoder": 1e-6}
    )


@pytest.mark.parametrize("given", [{"acustic": 1e-5}, '{"acustic": 1e-5}'], ids=["dict", "json"])
def test_misspelt_part_is_refused_beside_those_that_there_are(tmp_path, given):
    message = r"names acustic, but the parts are content, prosody, bridges, acoustic, encoder, decoder, "
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, head_learning_rates=given)


@pytest.mark.parametrize("text", ["acoustic=1e-5", "[1e-5]", "1e-5"])
def test_rates_that_are_no_json_object_are_refused_as_they_were_written(tmp_path, text):
    with pytest.raises(ValueError) as refusal:
        arguments(tmp_path, head_learning_rates=text)
    assert str(refusal.value) == (
        f'head_learning_rates must be a json object such as {{"acoustic": 1e-5}}, got {text!r}.'
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"codebook_update": "emma"}, r"codebook_update must be one of ema, gradient, got 'emma'\."),
        ({"content_init": "kmeans"}, r"content_init must be one of k-means, least-squares, none, got 'kmeans'\."),
        ({"head_learning_rates": {"codec": -1e-6}}, r"rate of codec must be at least 0, got -1e-06; 0 freezes it\."),
        ({"head_learning_rates": {"codec": float("nan")}}, r"rate of codec must be at least 0, got nan"),
        ({"learning_rate": -1e-4}, r"the learning rate of content must be at least 0, got -0\.0001"),
        ({"qwen_weight": -0.5}, r"qwen_weight must be at least 0, got -0\.5; 0 switches that loss off\."),
        ({"mel_weight": float("nan")}, r"mel_weight must be at least 0, got nan"),
        ({"residual_weight_end": 1.01}, r"residual_weight_end must lie in \[0, 1\], got 1\.01\."),
        ({"residual_weight_warmup_ratio": -0.1}, r"residual_weight_warmup_ratio must lie in \[0, 1\], got -0\.1\."),
        ({"collapse_below": 2.0}, r"collapse_below must lie in \[0, 1\], got 2\.0\."),
        ({"codebook_decay": 1.0}, r"codebook_decay must lie between 0 and 1, both excluded, got 1\.0\."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_choice_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"codebook_update": "gradient", "content_init": "least-squares"},
        {"qwen_weight": 0.0, "mel_weight": 0.0, "residual_weight_end": 0.0, "residual_weight_warmup_ratio": 1.0},
        {"codebook_decay": 0.5, "head_learning_rates": {"content": 0.0}},
    ],
    ids=["choices", "ends of ranges", "freezing"],
)
def test_right_choices_are_kept(tmp_path, options):
    args = arguments(tmp_path, **options)
    assert {name: getattr(args, name) for name in options} == options


def test_command_line_sets_what_it_names_and_leaves_the_rest(tmp_path):
    words = ["--learning_rate", "2e-4", "--head_learning_rates", '{"acoustic": 0, "codec": 1e-6}']
    words += [
        "--codebook_update",
        "gradient",
        "--qwen_weight",
        "0.3",
        "--revive_every",
        "0",
        "--codebook_decay",
        "0.9",
    ]
    args = from_command_line(tmp_path, *words)
    assert args.rates == arguments(tmp_path, learning_rate=2e-4, head_learning_rates=OTHER_RATES).rates
    assert (args.codebook_update, args.qwen_weight, args.revive_every, args.codebook_decay) == (
        "gradient",
        0.3,
        0,
        0.9,
    )
    assert (args.wavlm_weight, args.content_init, args.adam_beta1) == (None, "k-means", 0.8)


def test_command_line_without_a_word_gives_the_defaults(tmp_path):
    assert from_command_line(tmp_path).rates == arguments(tmp_path).rates


def test_dictionary_holds_the_rate_of_every_part_and_is_json(tmp_path):
    args = arguments(tmp_path, head_learning_rates='{"acoustic": 3e-6}')
    assert args.to_dict()["head_learning_rates"] == pytest.approx(DEFAULT_RATES | {"acoustic": 3e-6})
    assert json.loads(args.to_json_string())["head_learning_rates"] == args.rates


def test_arguments_made_from_the_dictionary_have_the_same_rates(tmp_path):
    args = arguments(tmp_path, learning_rate=2e-4, head_learning_rates={"prosody": 0.0}, qwen_weight=0.3)
    again = MimiBridgeTrainingArguments(**args.to_dict())
    assert again.rates == args.rates
    assert again.to_dict() == args.to_dict()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"adversarial_weight": -1.0}, "adversarial_weight must be at least 0, got -1.0"),
        ({"mel_weight": float("inf")}, "mel_weight must be at least 0, got inf"),
        ({"revive_every": -3}, "revive_every must be at least 0, got -3"),
        ({"init_frames": 0}, "init_frames must be at least 1, got 0"),
        ({"head_learning_rates": '{"codec": null}'}, "learning rate of codec must be at least 0, got None"),
        ({"head_learning_rates": {"codec": "fast"}}, "learning rate of codec must be at least 0, got 'fast'"),
        ({"head_learning_rates": {"codec": float("inf")}}, "learning rate of codec must be at least 0, got inf"),
    ],
)
def test_number_that_makes_no_sense_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MimiBridgeTrainingArguments(str(tmp_path), **options)
