"""Two processes do together what one does alone, as `torchrun` starts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import (
    OPTIMIZERS,
    arguments,
    assert_same,
    assert_same_change,
    audio_model,
    audio_rows,
    latents_model,
    latents_rows,
    silence_content,
    state_of,
)
from torch import Tensor

from mimi_bridge import MimiBridgeModel
from mimi_bridge.training import MimiBridgeTrainer, objective
from two_processes import run_in_two_processes

SGD = {**OPTIMIZERS["sgd"], "learning_rate": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "moving averages, revived entries": {**SGD, "codebook_update": "ema", "revive_every": 1},
    "gradients": {**SGD, "codebook_update": "gradient"},
    "gradients, AdamW": {**OPTIMIZERS["adamw"], "codebook_update": "gradient"},
    "accumulation": {**SGD, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "audio": {**SGD, "head_learning_rates": {"codec": 0.03}, "max_steps": 1},
    "fresh, k-means": {**OPTIMIZERS["adamw"], "content_init": "k-means"},
    "fresh, least squares": {**OPTIMIZERS["adamw"], "content_init": "least-squares"},
    "no target latents": {**SGD, "latents_weight": 0.0},  # nothing then asks for the acoustic head's way out
    "anchored at itself": {**SGD},
    "two teachers in all": {**SGD},  # so that a process may have a batch without any
    "adversary": {**SGD, "adversarial_weight": 0.1, "mel_weight": 0.0},
}
EVALUATIONS = {  # rows, and the batch size of each process
    "7 rows, 1": (7, 1),
    "7 rows, 3": (7, 3),
    "7 rows, 11": (7, 11),
    "8 rows, 2": (8, 2),
    "audio, 5 rows, 2": (5, 2),
}
OF_AUDIO = ("audio", "adversary")


def rows_of(case: str) -> list[dict[str, Any]]:
    rows = audio_rows() if case in OF_AUDIO else latents_rows()
    if case in ("no target latents", "anchored at itself"):
        return [{name: value for name, value in row.items() if name != "target_latents"} for row in rows]
    if case == "two teachers in all":
        bare = [{name: row[name] for name in ("id", "latents", "target_latents")} for row in rows]
        bare[0]["wavlm_features"] = rows[0]["wavlm_features"]
        bare[4] |= {name: rows[4][name] for name in ("qwen_hidden", "durations")}
        return bare
    return rows


def model_of(case: str) -> MimiBridgeModel:
    model = audio_model() if case in OF_AUDIO else latents_model()
    if case.startswith("fresh"):
        silence_content(model)
    if "revive_every" in CASES[case]:
        model.quantizer.head_content.vq_codebooks[0].cluster_size[0, :3] = 0.0
    return model


def train_case(case: str, output: Path, **options: Any) -> None:
    """Train, alone or as one of two processes, and leave what came of it."""
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "residual_weight_warmup_ratio": 1.0,
    }
    objective.DISCRIMINATOR_FILTERS = 2
    args = arguments(output, **{**defaults, **CASES[case], **options})
    trained = MimiBridgeTrainer(model_of(case), args, train_dataset=rows_of(case))
    trained.train()
    state = {
        "processes": trained.accelerator.num_processes,
        "model": state_of(trained.bridge_model),
        "discriminator": state_of(trained.objective.adversary.discriminator) if trained.objective.adversary else {},
        "log": trained.state.log_history[0],
    }
    torch.save(state, output / f"{case} {trained.accelerator.process_index}.pt")


def evaluate_case(case: str, output: Path, batch_size: int | None = None) -> dict[str, Any]:
    """Evaluate and predict, alone or as one of two processes, and leave what came of it."""
    rows, size = EVALUATIONS[case]
    model, make = (audio_model(), audio_rows) if case.startswith("audio") else (latents_model(), latents_rows)
    data = make(rows, seed=4)
    args = arguments(output, per_device_eval_batch_size=batch_size or size)
    evaluating = MimiBridgeTrainer(model, args, train_dataset=make(4), eval_dataset=data)
    metrics = {
        name: value
        for name, value in evaluating.evaluate().items()
        if name.startswith(("eval_loss", "eval_constant", "eval_usage", "eval_perplexity"))
    }
    found = {"metrics": metrics, "codes": torch.from_numpy(evaluating.predict(data).predictions)}
    torch.save(found, output / f"{case} {evaluating.accelerator.process_index}.pt")
    return found


def train_all_cases(output: str) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    for case in CASES:
        train_case(case, Path(output))
    for case in EVALUATIONS:
        evaluate_case(case, Path(output))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Callable[[str], tuple[dict, dict]]:
    """What both processes ended with, by case."""
    output = tmp_path_factory.mktemp("two")
    run_in_two_processes(train_all_cases, output)

    def load(case: str) -> tuple[dict, dict]:
        ours, theirs = (torch.load(output / f"{case} {rank}.pt", weights_only=True) for rank in range(2))
        return ours, theirs

    return load


def run_alone(case: str, output: Path) -> dict[str, Any]:
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(objective, "DISCRIMINATOR_FILTERS", 2)
        train_case(case, output, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    return torch.load(output / f"{case} 0.pt", weights_only=True)


def numbers(log: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in log.items() if name != "epoch"}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_of_four_rows_do_what_one_of_eight_does(two, tmp_path, case):
    ours, alone = two(case)[0], run_alone(case, tmp_path)
    assert (ours["processes"], alone["processes"]) == (2, 1)
    before: dict[str, Tensor] = state_of(model_of(case))
    assert_same_change(ours["model"], alone["model"], before, tolerance=1e-2)
    assert numbers(ours["log"]) == pytest.approx(numbers(alone["log"]), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_codebooks_and_weights(two, case):
    ours, theirs = two(case)
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["discriminator"], theirs["discriminator"])
    before = state_of(model_of(case))
    name = "quantizer.head_content.vq._codebook.embed"
    assert not torch.equal(ours["model"][name], before[name])


@pytest.mark.parametrize("case", EVALUATIONS)
def test_two_processes_measure_and_predict_what_one_does(two, tmp_path, case):
    ours, theirs = two(case)
    alone = evaluate_case(case, tmp_path, batch_size=4)
    assert ours["metrics"] == theirs["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    assert torch.equal(ours["codes"], alone["codes"])
