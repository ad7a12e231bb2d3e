"""A step is the same however it is divided, training goes on where it stopped, and what is frozen stands still."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, Trainer, TrainerCallback, TrainingArguments

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments, objective
from mimi_bridge.training.checkpoints import STATE_NAME
from mimi_bridge.training.codebooks import fill_from_data
from mimi_bridge.training.guards import HeadCollapsedError
from tiny import TINY

QWEN_DIM, WAVLM_DIM, CODEBOOK_SIZE = 6, 5, 16
SMALL = {
    **TINY,
    "hidden_size": 16,
    "num_filters": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "codebook_size": CODEBOOK_SIZE,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "upsample_groups": 16,
    "num_acoustic_codebooks": 3,
    "qwen_dim": QWEN_DIM,
    "wavlm_dim": WAVLM_DIM,
    "residual_weight": 0.5,
}
HEADS = {"content": "head_content", "prosody": "head_prosody", "acoustic": "acoustic_residual"}

BOTH_UPDATES = pytest.mark.parametrize("update", ["ema", "gradient"])


def teachers(num_frames: int, number: int, generator: torch.Generator, in_seconds: bool) -> dict[str, Tensor]:
    """Tokens of 1 to 3 frames and features of each frame; some rows lack the one, some the other."""
    durations = torch.randint(1, 4, (max(1, num_frames // 3),), generator=generator)
    durations = durations[durations.cumsum(0) <= num_frames]
    row = {"qwen_hidden": torch.randn(len(durations), QWEN_DIM, generator=generator), "durations": durations}
    if in_seconds:
        ends = row.pop("durations").cumsum(0) / 12.5
        row["token_spans"] = torch.stack([ends - durations / 12.5, ends], dim=-1)
    if number % 4 == 1:
        row = {}
    if number % 3 != 2:
        row["wavlm_features"] = torch.randn(num_frames, WAVLM_DIM, generator=generator)
    return row


def latents_rows(num_rows: int = 8, seed: int = 0, least: int = 8, most: int = 30) -> list[dict[str, Any]]:
    """Rows of latents of several lengths, some without a teacher, all with the original's quantized latents."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(num_rows):
        num_frames = int(torch.randint(least, most + 1, (1,), generator=generator))
        latents = torch.randn(num_frames, SMALL["hidden_size"], generator=generator)
        noise = 0.3 * torch.randn(latents.shape, generator=generator)
        row = {"id": number, "latents": latents, "target_latents": latents + noise}
        rows.append(row | teachers(num_frames, number, generator, in_seconds=False))
    return rows


def audio_rows(num_rows: int = 8, seed: int = 0, most_frames: int = 6) -> list[dict[str, Any]]:
    """Rows of noisy tones of 2 to 6 frames, the last of them rarely full."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(num_rows):
        num_frames = int(torch.randint(2, most_frames + 1, (1,), generator=generator))
        seconds = torch.arange(1920 * num_frames - 300 * (number % 3)) / 24_000
        audio = 0.3 * torch.sin(2 * torch.pi * (150 + 90 * number) * seconds * (1 + seconds))
        audio = audio + 0.1 * torch.randn(len(audio), generator=generator)
        rows.append({"id": number, "input_values": audio} | teachers(num_frames, number, generator, in_seconds=True))
    return rows


@torch.no_grad()
def fit(model: MimiBridgeModel, latents: Tensor) -> MimiBridgeModel:
    """Give each codebook centres of what it gets to see, so that many codes are used."""
    generator = torch.Generator().manual_seed(0)
    quantizer = model.eval().quantizer
    for head in quantizer.heads.values():
        head.project_out.weight.copy_(torch.linalg.pinv(head.project_in.weight[:, :, 0])[:, :, None])
        fill_from_data(head, latents, 100, generator, steps=3)
        latents = latents - quantizer.residual_weight * head(latents[None]).quantized[0]
    return model


@lru_cache
def _latents_model() -> MimiBridgeModel:
    torch.manual_seed(0)
    return fit(MimiBridgeModel(MimiBridgeConfig(**SMALL)), torch.randn(600, SMALL["hidden_size"]))


@lru_cache
def _audio_model() -> MimiBridgeModel:
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**SMALL)).eval()
    with torch.no_grad():
        latents = [model.get_latents(row["input_values"][None, None])[0] for row in audio_rows(40, seed=9)]
    return fit(model, torch.cat(latents))


def latents_model() -> MimiBridgeModel:
    """A small model whose codebooks fit `latents_rows`, its content head not silent."""
    return deepcopy(_latents_model())


def audio_model() -> MimiBridgeModel:
    """A small model whose codebooks fit `audio_rows`, its content head not silent."""
    return deepcopy(_audio_model())


def silence_content(model: MimiBridgeModel) -> MimiBridgeModel:
    """As the conversion leaves it."""
    nn.init.zeros_(model.quantizer.head_content.project_out.weight)
    model.set_residual_weight(0.0)
    return model


def arguments(output: Path, **options: Any) -> MimiBridgeTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "content_init": "none",
        "init_frames": 200,
        "collapse_below": 0.0,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return MimiBridgeTrainingArguments(output_dir=str(output), **{**defaults, **options})


def trainer_of(output: Path, model: MimiBridgeModel, rows: list, **options: Any) -> MimiBridgeTrainer:
    """A trainer of small steps; options are arguments, and some of the trainer's own."""
    own = {name: options.pop(name) for name in ("eval_dataset", "data_collator", "callbacks") if name in options}
    return MimiBridgeTrainer(model, arguments(output, **options), train_dataset=rows, **own)


def train(output: Path, model: MimiBridgeModel, rows: list, **options: Any) -> MimiBridgeModel:
    trainer_of(output, model, rows, **options).train()
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def assert_same_change(
    one: dict[str, Tensor], other: dict[str, Tensor], before: dict[str, Tensor], tolerance: float
) -> None:
    """Both moved alike: everything by the same within a share of its largest change."""
    for name, value in before.items():
        moved, apart = ((a[name].float() - b.float()).abs().max() for a, b in ((one, value), (one, other[name])))
        rounding = 2e-6 * value.float().abs().max()
        assert apart <= tolerance * moved + rounding, f"{name}: {apart} apart, moved by {moved}"


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


OPTIMIZERS = {
    "sgd": {"optim": "sgd", "learning_rate": 1.0},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3, "adam_epsilon": 1e-4, "weight_decay": 0.1},
}


# --- a step is the same however it is divided ---


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@BOTH_UPDATES
def test_step_of_four_batches_of_two_equals_a_step_of_one_batch_of_eight(tmp_path, update, optimizer):
    before, after = state_of(latents_model()), []
    for size, accumulated in ((2, 4), (8, 1)):
        model = train(
            tmp_path,
            latents_model(),
            latents_rows(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            codebook_update=update,
            revive_every=0,
            **OPTIMIZERS[optimizer],
        )
        after.append(state_of(model))
    assert_same_change(*after, before, tolerance=2e-3)
    still = set(before) - set(moved(before, after[0]))
    learned = {name for name in before if name.startswith("quantizer.") and not name.endswith((".mean", ".std"))}
    assert {name for name in still & learned if not name.endswith(("initted", "beam_score_weights"))} == set()


@BOTH_UPDATES
def test_step_of_audio_is_the_same_however_it_is_divided(tmp_path, update):
    before, after, losses = state_of(audio_model()), [], []
    for size, accumulated in ((2, 4), (8, 1)):
        trainer = trainer_of(
            tmp_path,
            audio_model(),
            audio_rows(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            codebook_update=update,
            head_learning_rates={"codec": 0.3},
            logging_strategy="steps",
            logging_steps=1,
            **OPTIMIZERS["sgd"],
        )
        trainer.train()
        after.append(state_of(trainer.bridge_model))
        losses.append(trainer.state.log_history[0])
    assert_same_change(*after, before, tolerance=5e-3)
    assert any(name.startswith("decoder.") for name in moved(before, after[0]))
    assert any(name.startswith("encoder.") for name in moved(before, after[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)


def test_several_steps_with_revived_entries_are_the_same_however_they_are_divided(tmp_path):
    before, after = state_of(latents_model()), []
    for size, accumulated in ((2, 4), (8, 1)):
        model = latents_model()
        model.quantizer.head_content.vq_codebooks[0].cluster_size[0, :3] = 0.0
        options = OPTIMIZERS["sgd"] | {"learning_rate": 1e-2, "revive_every": 1}
        train(
            tmp_path,
            model,
            latents_rows(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=3,
            **options,
        )
        after.append(state_of(model))
    assert_same_change(*after, before, tolerance=1e-2)


# --- training goes on where it stopped ---

RESUMED: dict[str, dict[str, Any]] = {
    "ema": {"codebook_update": "ema", "revive_every": 2, "revive_below": 0.5},
    "gradient": {"codebook_update": "gradient", "revive_every": 2, "revive_below": 0.5},
    "fresh": {"content_init": "k-means"},
    "audio": {"head_learning_rates": {"codec": 1e-4}, "per_device_train_batch_size": 2, "crop_seconds": 0.25},
    "adversary": {"adversarial_weight": 0.1, "mel_weight": 0.0, "per_device_train_batch_size": 1},
}
HAS_AUDIO = ("audio", "adversary")


def resumable(output: Path, case: str, model: MimiBridgeModel | None = None) -> MimiBridgeTrainer:
    """Six steps, two epochs, a checkpoint every two steps; λ moves over all of them."""
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "residual_weight_warmup_ratio": 1.0,
        **RESUMED[case],
    }
    if model is None:
        model = audio_model() if case in HAS_AUDIO else latents_model()
        model = silence_content(model) if case == "fresh" else model
    rows = audio_rows(12 if case == "audio" else 6) if case in HAS_AUDIO else latents_rows(24)
    seconds = options.pop("crop_seconds", None)
    collator = MimiBridgeCollator.for_model(model.config, crop_seconds=seconds, seed=3)
    return trainer_of(output, model, rows, data_collator=collator, **options)


def everything_of(trainer: MimiBridgeTrainer) -> dict[str, Tensor]:
    state = state_of(trainer.bridge_model) | {"λ": torch.tensor(trainer.bridge_model.config.residual_weight)}
    state["λ of the quantizer"] = torch.tensor(trainer.bridge_model.quantizer.residual_weight)
    state |= {f"reference.{name}": value for name, value in state_of(trainer.objective.reference).items()}
    if (adversary := trainer.objective.adversary) is not None:
        state |= {f"adversary.{name}": value for name, value in state_of(adversary.discriminator).items()}
    return state


@pytest.fixture(autouse=True, scope="module")
def _small_discriminator():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(objective, "DISCRIMINATOR_FILTERS", 2)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """The folder of a run that was never stopped, and what it ended with."""

    @lru_cache
    def run(case: str) -> tuple[Path, dict[str, Tensor]]:
        output = tmp_path_factory.mktemp("uninterrupted")
        trainer = resumable(output, case)
        trainer.train()
        return output, everything_of(trainer)

    return run


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_ends_as_if_it_had_never_stopped(uninterrupted, tmp_path, case, step):
    output, whole = uninterrupted(case)
    trainer = resumable(tmp_path, case)
    trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{step}"))
    assert_same(everything_of(trainer), whole)


@pytest.mark.parametrize("case", RESUMED)
def test_model_loaded_from_a_checkpoint_goes_on_as_if_it_had_never_stopped(uninterrupted, tmp_path, case):
    output, whole = uninterrupted(case)
    checkpoint = output / "checkpoint-4"
    trainer = resumable(tmp_path, case, MimiBridgeModel.from_pretrained(checkpoint))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_same(everything_of(trainer), whole)


def test_same_trainer_goes_on_from_its_own_checkpoint(uninterrupted, tmp_path):
    _, whole = uninterrupted("ema")
    trainer = resumable(tmp_path, "ema")
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(everything_of(trainer), whole)


# --- codebooks survive ---


@pytest.mark.slow
@BOTH_UPDATES
def test_entries_that_training_never_hits_stay_as_they_were_over_2000_steps(tmp_path, update):
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**{**SMALL, "num_acoustic_codebooks": 1}))
    fit(model, torch.randn(600, SMALL["hidden_size"]))
    model.encoder = model.decoder = None  # latents need neither
    unhit = slice(0, CODEBOOK_SIZE // 2)
    stores = [*model.quantizer.head_prosody.vq_codebooks, *model.quantizer.acoustic_residual.vq_codebooks]
    for store in stores:
        store.embed[0, unhit] += 100.0
        store.embed_avg[0, unhit] = store.embed[0, unhit]
        store.cluster_size[0, unhit] = 1.0
    before = [store.embed.detach().clone() for store in stores]
    rows = [row for row in latents_rows(24, least=40, most=60) if "qwen_hidden" in row]
    trainer = trainer_of(
        tmp_path,
        model,
        [{name: value for name, value in row.items() if name != "wavlm_features"} for row in rows],
        codebook_update=update,
        max_steps=2000,
        learning_rate=1e-4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        logging_strategy="steps",
        logging_steps=500,
        weight_decay=0.1,
    )
    trainer.train()
    for store, entries in zip(stores, before, strict=True):
        same = (store.embed[0] == entries[0]).all(dim=-1)
        assert same[unhit].all()
        assert not same[CODEBOOK_SIZE // 2 :].any()
    assert trainer.state.log_history[3]["step"] == 2000
    assert trainer.state.log_history[3]["usage_content"] > 0.5


# --- rates ---


@pytest.mark.parametrize("part", ["content", "prosody", "bridges", "acoustic"])
@BOTH_UPDATES
def test_part_of_rate_0_stays_as_it_was_and_the_others_move(tmp_path, part, update):
    model = latents_model()
    before = state_of(model)
    options = {"head_learning_rates": {part: 0}, "weight_decay": 0.1, "codebook_update": update}
    train(tmp_path, model, latents_rows(), max_steps=2, residual_weight_warmup_ratio=0.0, revive_every=1, **options)
    prefixes = {**{name: f"quantizer.{head}." for name, head in HEADS.items()}, "bridges": "quantizer.proj_"}
    names = moved(before, state_of(model))
    assert {name for name, prefix in prefixes.items() if any(n.startswith(prefix) for n in names)} == {*prefixes} - {
        part
    }


def test_codec_stays_as_it_was_by_default_while_audio_trains_the_heads(tmp_path):
    model = audio_model()
    before = state_of(model)
    train(tmp_path, model, audio_rows(), max_steps=2, weight_decay=0.1)
    names = moved(before, state_of(model))
    assert names
    assert [name for name in names if not name.startswith("quantizer.")] == []


class RateRecorder(TrainerCallback):
    """The learning rate of each part at each step."""

    def __init__(self):
        self.rates: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ratios_of_the_rates_hold_under_a_schedule_with_warmup(tmp_path, schedule):
    recorder = RateRecorder()
    train(
        tmp_path,
        latents_model(),
        latents_rows(),
        max_steps=8,
        warmup_steps=3,
        lr_scheduler_type=schedule,
        learning_rate=1e-3,
        head_learning_rates={"prosody": 5e-4, "codec": 1e-6},
        callbacks=[recorder],
    )
    expected = {"content": 1.0, "prosody": 0.5, "bridges": 1.0, "acoustic": 0.1, "encoder": 1e-3, "decoder": 1e-3}
    assert len({rates["content"] for rates in recorder.rates}) > 4  # it does move
    for rates in recorder.rates[1:]:
        assert {name: rate / rates["content"] for name, rate in rates.items()} == pytest.approx(expected)


# --- refusals, each a sentence ---


def test_misspelt_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"head_learning_rates names acustic, but the parts are content, prosody, "):
        arguments(tmp_path, head_learning_rates={"acustic": 1e-5})


def test_negative_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the learning rate of acoustic must be at least 0, got -1e-05; 0 freezes"):
        arguments(tmp_path, head_learning_rates={"acoustic": -1e-5})


def test_arguments_of_transformers_are_refused(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match=r"args must be MimiBridgeTrainingArguments, got TrainingArguments\."):
        MimiBridgeTrainer(latents_model(), args, train_dataset=latents_rows())


def test_empty_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_dataset is empty; give at least one recording\."):
        trainer_of(tmp_path, latents_model(), [])


def without_teachers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("id", "latents", "target_latents")} for row in rows]


def test_data_without_a_teacher_is_refused(tmp_path):
    sentence = r"no frame of the first \d+ steps has a teacher: .*set qwen_weight=0 and wavlm_weight=0"
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, latents_model(), without_teachers(latents_rows()))


def test_model_trains_without_teachers_when_their_weights_are_0(tmp_path):
    model = latents_model()
    before = state_of(model)
    train(tmp_path, model, without_teachers(latents_rows()), qwen_weight=0.0, wavlm_weight=0.0)
    assert not any(name.startswith("quantizer.proj_") for name in moved(before, state_of(model)))


def test_teacher_of_the_wrong_width_is_refused(tmp_path):
    rows = latents_rows()
    for row in rows:
        row["wavlm_features"] = torch.randn(len(row["latents"]), WAVLM_DIM + 1)
    with pytest.raises(ValueError, match=rf"wavlm_features must be \(batch, length, {WAVLM_DIM}\) for this model"):
        train(tmp_path, latents_model(), rows)


def test_checkpoint_of_another_trainer_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), save_strategy="steps", save_steps=1)
    trainer.train()
    (tmp_path / "checkpoint-1" / STATE_NAME).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 has no bridge_training\.pt, so training cannot go on from it"):
        trainer_of(tmp_path, latents_model(), latents_rows(), max_steps=2).train(str(tmp_path / "checkpoint-1"))


def test_checkpoint_of_another_config_is_refused_in_a_sentence(tmp_path):
    trainer_of(tmp_path, latents_model(), latents_rows(), save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"

    model = latents_model()
    model.config.content_delay = 2
    with pytest.raises(
        ValueError, match=r"another config \(content_delay 0, now 2\); go on with that model, or choose"
    ):
        trainer_of(tmp_path, model, latents_rows(), max_steps=2).train(str(checkpoint))


def test_checkpoint_with_a_file_that_is_cut_off_is_refused_in_a_sentence(tmp_path):
    trainer_of(tmp_path, latents_model(), latents_rows(), save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", STATE_NAME, "trainer_state.json"):
        whole = (checkpoint / name).read_bytes()
        for kept in (0, len(whole) // 2, len(whole) - 9):
            (checkpoint / name).write_bytes(whole[:kept])
            again = trainer_of(tmp_path, latents_model(), latents_rows(), max_steps=2)
            with pytest.raises(ValueError, match=r"of .*checkpoint-1 (cannot be read \(|is cut off).* an earlier"):
                again.train(str(checkpoint))
        (checkpoint / name).write_bytes(whole)
    trainer_of(tmp_path, latents_model(), latents_rows(), max_steps=2).train(str(checkpoint))


class Poison(TrainerCallback):
    """Spoils the model after a step."""

    def __init__(self, step: int, spoil: Callable[[MimiBridgeModel], Any]):
        self.step, self.spoil = step, spoil

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.spoil(model)


def spoilt(output: Path, spoil: Callable[[MimiBridgeModel], Any], **options: Any) -> MimiBridgeTrainer:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, **options}
    return trainer_of(output, latents_model(), latents_rows(), callbacks=[Poison(3, spoil)], **saving)


def assert_earlier_checkpoint_is_sound(output: Path) -> None:
    model = MimiBridgeModel.from_pretrained(output / "checkpoint-2")
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert not model.quantizer.head_content.codebooks[0].eq(0).all()


POISONS = {
    "a bridge": ("qwen of the content head", lambda model: model.quantizer.proj_qwen.weight.fill_(math.nan)),
    "a teacher": ("wavlm of the content and prosody heads", lambda m: m.quantizer.proj_wavlm.std.fill_(math.nan)),
    "a head": (
        "commitment_prosody of the prosody head",
        lambda model: model.quantizer.head_prosody.project_in.weight.fill_(math.inf),
    ),
}


@pytest.mark.parametrize("poisoned", POISONS)
def test_loss_that_is_not_finite_stops_training_and_names_step_and_head(tmp_path, poisoned):
    blamed, spoil = POISONS[poisoned]
    with pytest.raises(FloatingPointError, match=rf"step 4: the loss {blamed} is not finite\. .* are sound\."):
        spoilt(tmp_path, spoil).train()
    assert_earlier_checkpoint_is_sound(tmp_path)


@pytest.mark.parametrize("head", ["content", "prosody", "acoustic"])
def test_collapsed_head_stops_training_and_is_named(tmp_path, head):
    def collapse(model):
        store = model.quantizer.heads[head].vq_codebooks[-1]
        store.embed[0, 1:] += 1e3

    number = {"content": 0, "prosody": 1, "acoustic": 4}[head]
    options = {"collapse_below": 0.2, "logging_strategy": "steps", "logging_steps": 1, "revive_every": 0}
    message = rf"step 4: the {head} head collapsed: codebook {number} uses its {CODEBOOK_SIZE} entries .* are sound\."
    with pytest.raises(HeadCollapsedError, match=message):
        spoilt(tmp_path, collapse, **options).train()
    assert_earlier_checkpoint_is_sound(tmp_path)


def test_head_that_does_not_learn_may_collapse(tmp_path):
    def collapse(model):
        model.quantizer.head_prosody.vq_codebooks[0].embed[0, 1:] += 1e3

    options = {"collapse_below": 0.2, "logging_strategy": "steps", "logging_steps": 1}
    trainer = spoilt(tmp_path, collapse, head_learning_rates={"prosody": 0}, **options)
    trainer.train()
    assert trainer.state.global_step == 6


# --- λ ---


@pytest.mark.parametrize(
    ("start", "end", "ratio", "expected"),
    [
        (0.0, 1.0, 0.5, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (0.5, 0.9, 1.0, [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]),
        (0.0, 1.0, 0.0, [1.0] * 8),
    ],
)
def test_residual_weight_moves_linearly_and_is_in_every_checkpoint(tmp_path, start, end, ratio, expected):
    model = latents_model()
    model.set_residual_weight(start)
    options = {
        "residual_weight_end": end,
        "residual_weight_warmup_ratio": ratio,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    train(tmp_path, model, latents_rows(), max_steps=8, **options)
    checkpoints = [tmp_path / f"checkpoint-{step}" / "config.json" for step in range(1, 9)]
    assert [json.loads(path.read_text())["residual_weight"] for path in checkpoints] == pytest.approx(expected)
    assert model.quantizer.residual_weight == model.config.residual_weight == pytest.approx(expected[-1])


class WeightRecorder(TrainerCallback):
    """λ while each step's batches are computed."""

    def __init__(self):
        self.weights: list[float] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(model.quantizer.residual_weight)


@pytest.mark.parametrize(("ratio", "first"), [(0.0, 1.0), (1.0, 0.5)])
def test_first_step_sees_the_models_own_residual_weight_unless_it_is_to_move_at_once(tmp_path, ratio, first):
    recorder = WeightRecorder()
    train(tmp_path, latents_model(), latents_rows(), residual_weight_warmup_ratio=ratio, callbacks=[recorder])
    assert recorder.weights == [first]


# --- evaluation ---


def summed_up(trainer: MimiBridgeTrainer, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Row by row: the losses over all frames, and the distance of the targets' mean."""
    model, collate = trainer.bridge_model.eval(), trainer.data_collator
    sums: dict[str, list[float]] = {}
    targets: dict[str, list[Tensor]] = {}
    for row in rows:
        batch = collate([row])
        target = batch.pop("target_latents")
        with torch.no_grad():
            outputs = model(**batch, output_audio=False, output_losses=True)
        num_frames = target.shape[1]
        counts = {"wavlm": num_frames, "qwen": int(batch["durations"].sum()) if "durations" in batch else 0}
        losses = {name: loss.item() for name, loss in outputs.losses.items()}
        error = (outputs.quantized - target).square().sum(-1) / target.square().sum(-1)
        losses["latents"] = error.mean().item()
        for name, loss in losses.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = [total + loss * counts.get(name, num_frames), count + counts.get(name, num_frames)]
        if "qwen_hidden" in batch:
            targets.setdefault("qwen", []).append(row["qwen_hidden"].repeat_interleave(row["durations"], dim=0))
        if "wavlm_features" in batch:
            targets.setdefault("wavlm", []).append(row["wavlm_features"])
    results = {f"eval_loss_{name}": total / count for name, (total, count) in sums.items()}
    for name, vectors in targets.items():
        results[f"eval_baseline_{name}"] = torch.cat(vectors).var(dim=0, correction=0).mean().item()
    return results


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_evaluation_is_over_the_frames_of_the_whole_set_at_any_batch_size(tmp_path, batch_size):
    rows = latents_rows(11, seed=4)
    trainer = trainer_of(
        tmp_path, latents_model(), latents_rows(), eval_dataset=rows, per_device_eval_batch_size=batch_size
    )
    metrics, expected = trainer.evaluate(), summed_up(trainer, rows)
    assert len(expected) == 8
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
    weights = {"qwen": 1.0, "wavlm": 1.0, "commitment": 0.25, "latents": 1.0}
    parts = {name.removeprefix("eval_loss_"): v for name, v in metrics.items() if name.startswith("eval_loss_")}
    assert metrics["eval_loss"] == pytest.approx(sum(weights[n.partition("_")[0]] * v for n, v in parts.items()))


def losses_at(
    output: Path, rows: list[dict[str, Any]], batch_size: int, model: MimiBridgeModel, **options: Any
) -> dict:
    """What an evaluation measures, and not how long it took."""
    options |= {"eval_dataset": rows, "per_device_eval_batch_size": batch_size}
    metrics = trainer_of(output, model, latents_rows(), **options).evaluate()
    return {
        name: value for name, value in metrics.items() if name.startswith(("eval_loss", "eval_constant", "eval_usage"))
    }


@pytest.mark.parametrize("kind", ["latents", "audio", "no teachers", "some targets", "audio in crops"])
def test_evaluation_is_the_same_to_six_digits_at_any_batch_size(tmp_path, kind):
    rows = audio_rows(7, seed=4) if kind.startswith("audio") else latents_rows(11, seed=4)
    model, options = audio_model if kind.startswith("audio") else latents_model, {}
    if kind == "no teachers":
        rows = without_teachers(rows)
    if kind == "some targets":
        rows = [row | {"target_latents": row["target_latents"] if row["id"] % 3 else None} for row in rows]
    if kind == "audio in crops":
        options["data_collator"] = MimiBridgeCollator.for_model(model().config, crop_seconds=0.16)
    one, *others = (losses_at(tmp_path, rows, size, model(), **options) for size in (1, 3, 11))
    assert {f"eval_loss_commitment_{head}" for head in HEADS} <= one.keys()
    assert "eval_loss_mel" in one or not kind.startswith("audio")
    for other in others:
        assert other == pytest.approx(one, rel=1e-6)


def test_evaluation_takes_whole_recordings_and_the_last_batch_whatever_training_crops_and_drops(tmp_path):
    rows, collator = latents_rows(5, seed=4), MimiBridgeCollator(24_000, 1920, crop_seconds=0.3)
    whole = losses_at(tmp_path, rows, 1, latents_model())
    options = {"data_collator": collator, "dataloader_drop_last": True}
    for epoch in (0, 3):
        collator.set_epoch(epoch)
        assert losses_at(tmp_path, rows, 2, latents_model(), **options) == pytest.approx(whole, rel=1e-6)


def test_collator_that_asks_for_losses_changes_neither_training_nor_evaluation(tmp_path):
    found = []
    for asks in (False, True):
        collate = MimiBridgeCollator(24_000, 1920, output_losses=asks)
        options = {"data_collator": collate, "eval_dataset": latents_rows(3, seed=4), "content_init": "k-means"}
        trainer = trainer_of(tmp_path, silence_content(latents_model()), latents_rows(), **options)
        trainer.train()
        found.append((state_of(trainer.bridge_model), trainer.evaluate()["eval_loss"]))
    (plain, plain_loss), (asked, asked_loss) = found
    assert_same(plain, asked)
    assert plain_loss == asked_loss


def test_evaluation_moves_nothing(tmp_path):
    model = latents_model()
    before = state_of(model)
    trainer_of(tmp_path, model, latents_rows(), eval_dataset=latents_rows(5, seed=4)).evaluate()
    assert_same(state_of(model), before)


def test_best_model_is_the_one_with_the_lowest_loss_at_the_end(tmp_path):
    class GrowWorse(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step > 2:
                with torch.no_grad():
                    model.quantizer.proj_qwen.bias += 1.0

    saving = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1, "max_steps": 4}
    trainer = trainer_of(
        tmp_path,
        latents_model(),
        latents_rows(),
        eval_dataset=latents_rows(5, seed=4),
        callbacks=[GrowWorse()],
        load_best_model_at_end=True,
        metric_for_best_model="loss_qwen",
        greater_is_better=False,
        **saving,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name in ("checkpoint-1", "checkpoint-2")
    assert_same(state_of(trainer.bridge_model), state_of(MimiBridgeModel.from_pretrained(best)))


def test_every_loss_is_logged_beside_its_constant_usage_and_drift(tmp_path):
    options = {"logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), **options)
    trainer.train()
    losses = {"qwen", "wavlm", "latents", *(f"commitment_{head}" for head in HEADS)}
    expected = {f"loss_{name}" for name in losses} | {"baseline_qwen", "baseline_wavlm", "residual_weight"}
    expected |= {f"{what}_{head}" for what in ("usage", "perplexity") for head in HEADS}
    expected |= {f"learning_rate_{part}" for part in ("content", "prosody", "bridges", "acoustic")}
    expected |= {"drift_prosody", "drift_acoustic", "loss", "grad_norm", "learning_rate", "epoch", "step"}
    assert set(trainer.state.log_history[0]) == expected


def test_logged_loss_is_the_weighted_sum_of_the_logged_losses(tmp_path):
    weights = {"qwen": 0.3, "wavlm": 0.7, "commitment": 0.5, "latents": 2.0}
    options = {f"{name}_weight": weight for name, weight in weights.items()}
    trainer = trainer_of(
        tmp_path, latents_model(), latents_rows(), logging_strategy="steps", logging_steps=1, **options
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    losses = {name.removeprefix("loss_"): v for name, v in logged.items() if name.startswith("loss_")}
    total = sum(weights[name.partition("_")[0]] * value for name, value in losses.items())
    assert logged["loss"] == pytest.approx(total, rel=1e-3)


# --- as any Trainer ---


def test_saved_model_loads_with_auto_model(tmp_path):
    trainer = trainer_of(tmp_path, silence_content(latents_model()), latents_rows(), content_init="k-means")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, MimiBridgeModel)
    assert_same(state_of(loaded), state_of(trainer.bridge_model))


@BOTH_UPDATES
def test_model_learns_by_itself_again_after_training(tmp_path, update):
    model = train(tmp_path, latents_model(), latents_rows(), codebook_update=update).train()
    before = model.quantizer.head_content.codebooks[0].clone()
    model(latents=latents_rows()[0]["latents"][None])
    assert all(head.learner is None for head in model.quantizer.heads.values())
    assert not torch.equal(before, model.quantizer.head_content.codebooks[0])


def test_plain_trainer_trains_the_model(tmp_path):
    model = latents_model()
    before = state_of(model)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_steps=2,
        remove_unused_columns=False,
        per_device_train_batch_size=4,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{name: value for name, value in row.items() if name != "target_latents"} for row in latents_rows()]
    Trainer(model, args, MimiBridgeCollator.for_model(model.config), rows).train()
    names = moved(before, state_of(model))
    assert "quantizer.proj_qwen.weight" in names
    assert "quantizer.head_content.vq._codebook.embed" in names


def test_scalars_reach_tensorboard_by_name(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    options = {"report_to": ["tensorboard"], "logging_strategy": "steps", "logging_steps": 1, "max_steps": 2}
    trainer = trainer_of(tmp_path, latents_model(), latents_rows(), **options)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    wanted = {"loss_qwen", "baseline_qwen", "usage_content", "perplexity_acoustic", "drift_prosody", "residual_weight"}
    assert {f"train/{name}" for name in wanted} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss_qwen")] == [1, 2]


@BOTH_UPDATES
def test_model_trains_in_bfloat16(tmp_path, update):
    model = audio_model()
    before = state_of(model)
    trainer = trainer_of(
        tmp_path, model, audio_rows(), bf16=True, logging_strategy="steps", logging_steps=1, codebook_update=update
    )
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert model.quantizer.head_content.codebooks[0].dtype == torch.float32
    assert len(moved(before, state_of(model))) > 10
