"""Readouts: by hand and slowly, what their gradient reaches, and runs with them, divided, stopped and gone wrong."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_trainer import (
    CODEBOOK_SIZE,
    WAVLM_DIM,
    arguments,
    assert_same,
    assert_same_change,
    audio_model,
    audio_rows,
    latents_model,
    latents_rows,
    moved,
    state_of,
    train,
    trainer_of,
)
from torch import Tensor

from mimi_bridge import MimiBridgeModel
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.frame_targets import PHONES, PROSODY, UNKNOWN
from mimi_bridge.losses.characters import NUM_LABELS
from mimi_bridge.outputs import MimiBridgeOutput
from mimi_bridge.training import MimiBridgeTrainer
from mimi_bridge.training.checkpoints import STATE_NAME
from mimi_bridge.training.readout_columns import speakers_of
from mimi_bridge.training.readout_targets import readout_targets
from mimi_bridge.training.readouts import Readouts, frequency_entropy
from two_processes import run_in_two_processes

ALL = {
    "phone_weight": 2.0,
    "character_weight": 0.7,
    "speech_content_weight": 0.5,
    "prosody_weight": 1.5,
    "speaker_reversal_weight": 0.3,
}
NONE = dict.fromkeys(ALL, 0.0)
EACH = pytest.mark.parametrize("name", ALL)
QUICK: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
SPEAKERS = {"ann": 0, "bob": 1, "cy": 2}
LOSSES = {
    "phone_weight": {"phone"},
    "character_weight": {"character"},
    "speech_content_weight": {"speech_content"},
    "prosody_weight": set(PROSODY),
    "speaker_reversal_weight": {"speaker"},
}


def with_targets(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows with phones, pitch, level and speakers, some without one of them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, row in enumerate(rows):
        frames = len(row["latents"]) if "latents" in row else -(-len(row["input_values"]) // 1920)
        steps = 8 * frames
        f0 = 80 + 200 * torch.rand(steps, generator=generator)
        labels = torch.randint(len(PHONES), (frames,), generator=generator).tolist()
        said = [{"phone": PHONES[k], "start": n / 12.5, "end": (n + 0.9) / 12.5} for n, k in enumerate(labels)]
        words = [{"word": "Aé"[: k % 3], "start": n / 12.5, "end": (n + 0.9) / 12.5} for n, k in enumerate(labels)]
        more = {
            "phones": said,
            "words": words[::2],
            "f0_hz": f0 * (torch.rand(steps, generator=generator) < 0.7),
            "level_db": -60 * torch.rand(steps, generator=generator),
            "speaker": [*SPEAKERS][number % 3],
        }
        if number % 4 == 3:
            more.pop([*more][number // 4 % 2])
        found.append(row | more)
    return found


def rows_of(seed: int = 0) -> list[dict[str, Any]]:
    return with_targets(latents_rows(seed=seed), seed)


def batch_of(model: MimiBridgeModel, rows: list[dict[str, Any]] | None = None) -> dict[str, Tensor]:
    collate = MimiBridgeCollator.for_model(model.config)
    return collate.with_frame_targets(["phones", "characters", "prosody", "speaker"], SPEAKERS)(rows or rows_of())


def read(
    readouts: Readouts, model: MimiBridgeModel, batch: dict[str, Tensor], delay: int = 0
) -> tuple[MimiBridgeOutput, dict[str, Any], dict[str, Tensor]]:
    given = {name: batch[name] for name in ("latents", "frame_mask", "wavlm_features", "wavlm_mask")}
    outputs = model(**given, output_losses=True)
    terms, sums = readouts(outputs, readout_targets(batch, batch["frame_mask"], delay))
    return outputs, terms, sums


def readouts_of(model: MimiBridgeModel, **weights: float) -> Readouts:
    quantizer = model.quantizer
    return Readouts(NONE | weights, quantizer.codec_dim, quantizer.proj_wavlm, SPEAKERS, seed=1)


# --- what is read, by hand ---


@pytest.mark.parametrize("delay", [0, 2])
def test_losses_are_the_means_over_frames_that_a_slow_loop_gives(delay):
    model, readouts = latents_model(), None
    readouts, batch = readouts_of(model, **ALL), batch_of(latents_model())
    with torch.no_grad():
        outputs, terms, _ = read(readouts, model, batch, delay)
        slow: dict[str, list[Tensor]] = {name: [] for name in terms}
        for row, frames in enumerate(batch["frame_mask"].sum(dim=1).tolist()):
            for frame in range(frames):
                content, prosody = outputs.content[row, frame], outputs.prosody[row, frame]
                earlier = frame - delay
                if earlier >= 0 and (phone := batch["phone_ids"][row, earlier]) != UNKNOWN:
                    slow["phone"].append(-readouts.phone(content).log_softmax(-1)[phone])
                if earlier >= 0 and batch["wavlm_mask"][row, earlier]:
                    apart = readouts.speech_content(content) - batch["wavlm_features"][row, earlier]
                    slow["speech_content"].append(apart.square().mean())
                if (speaker := batch["speaker_ids"][row]) != UNKNOWN:
                    slow["speaker"].append(-readouts.speaker(content).log_softmax(-1)[speaker])
                said, target = readouts.prosody(prosody), batch["prosody_targets"][row, frame]
                for number, name in enumerate(PROSODY):
                    if batch["prosody_mask"][row, frame, number]:
                        apart = (said[number] - target[number]).abs()
                        if name == "voicing":
                            share = said[number].sigmoid()
                            slow[name].append(-(share if target[number] else 1 - share).log())
                        else:
                            slow[name].append(apart - 0.5 if apart > 1 else apart**2 / 2)
            if batch["character_mask"][row]:
                characters = slow_characters(batch, row, frames, delay)
                labels = readouts.character(outputs.content[row, delay:frames]).view(-1, NUM_LABELS).log_softmax(-1)
                slow["character"] += [slow_ctc(labels, characters) / (frames - delay)] * (frames - delay)
    assert terms.keys() == {"phone", "character", "speech_content", "speaker", *PROSODY}
    for name, losses in slow.items():
        assert terms[name].num_frames == len(losses) > 0, name
        torch.testing.assert_close(terms[name].value, torch.stack(losses).mean(), msg=name)


def slow_characters(batch: dict[str, Tensor], row: int, frames: int, delay: int) -> list[int]:
    written = zip(batch["character_labels"][row].tolist(), batch["character_frames"][row].tolist(), strict=True)
    return [label for label, frame in written if label != UNKNOWN and frame + delay < frames]


def slow_ctc(log_probs: Tensor, labels: list[int]) -> Tensor:
    """By the sum over all paths, a step after the other; log probabilities `(steps, labels)`."""
    places = [0, *(place for label in labels for place in (label, 0))]  # blanks between, before and after
    paths = [log_probs[0, places[0]], *([log_probs[0, places[1]]] if labels else [])]
    paths += [torch.tensor(-math.inf)] * (len(places) - len(paths))
    for step in log_probs[1:]:
        reached = []
        for n, label in enumerate(places):
            before = [paths[n], *([paths[n - 1]] if n else [])]
            if n > 1 and label and label != places[n - 2]:
                before.append(paths[n - 2])
            reached.append(torch.stack(before).logsumexp(0) + step[label])
        paths = reached
    return -torch.stack(paths[-2:]).logsumexp(0)


def test_speech_model_is_read_in_the_space_and_by_the_distance_of_its_bridge():
    model = latents_model()
    model.config.wavlm_distance = "cosine"
    bridge = model.quantizer.proj_wavlm
    bridge.set_statistics(torch.arange(WAVLM_DIM) - 2.0, 0.5 + torch.arange(WAVLM_DIM))
    readouts, batch = readouts_of(model, speech_content_weight=1.0), batch_of(model)
    with torch.no_grad():
        outputs, terms, _ = read(readouts, model, batch)
        said = readouts.speech_content(outputs.content)[batch["wavlm_mask"]]
    standard = bridge.standardise(batch["wavlm_features"][batch["wavlm_mask"]])
    expected = 1 - torch.cosine_similarity(said, standard, dim=-1).mean()
    torch.testing.assert_close(terms["speech_content"].value, expected)


@pytest.mark.parametrize(
    ("counts", "fitted", "expected"),
    [
        ([1, 3, 0], [1, 3, 0], -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))),
        ([2, 0], [1, 3], -math.log(0.25)),
        ([1, 1], [3, 0], -(math.log(3 / 4) + math.log(1 / 4)) / 2),
    ],
)
def test_baseline_of_classes_is_the_cross_entropy_of_their_frequencies(counts, fitted, expected):
    assert frequency_entropy(torch.tensor(counts).double(), torch.tensor(fitted).double()) == pytest.approx(expected)


def test_baselines_are_what_the_best_readout_that_sees_nothing_would_get():
    model, batch = latents_model(), batch_of(latents_model())
    readouts = readouts_of(model, **ALL)
    _, _, sums = read(readouts, model, batch)
    targets = readout_targets(batch, batch["frame_mask"], 0)
    found = {name: base.distance(sums[name], sums[name]) for name, base in readouts.baselines().items()}
    for name in ("phone", "speaker"):
        classes = targets[name][0][targets[name][1]]
        log_shares = (torch.bincount(classes) / len(classes)).log()
        assert found[name] == pytest.approx(-log_shares[classes].mean().item(), rel=1e-5)
    for name in ("pitch", "level"):
        values = targets[name][0][targets[name][1]]
        nothing = torch.nn.functional.smooth_l1_loss(torch.zeros(len(values)), values)
        assert found[name] == pytest.approx(nothing.item(), rel=1e-5)
    expected = 0.0
    mask = targets["character"][1]
    for row in mask.any(dim=1).nonzero()[:, 0].tolist():
        frames = int(mask[row].sum())
        characters = slow_characters(batch, row, frames, 0)
        shares = torch.bincount(torch.tensor(characters, dtype=torch.long), minlength=NUM_LABELS) / (4 * frames)
        shares[0] = 1 - len(characters) / (4 * frames)
        expected += slow_ctc(shares.log().expand(4 * frames, -1), characters).item()
    assert found["character"] == pytest.approx(expected / int(mask.sum()), rel=1e-4)
    share = targets["voicing"][0][targets["voicing"][1]].mean()
    entropy = torch.nn.functional.binary_cross_entropy(share, share).item()
    assert found["voicing"] == pytest.approx(entropy, rel=1e-5)
    standard = batch["wavlm_features"][batch["wavlm_mask"]]
    assert found["speech_content"] == pytest.approx(standard.var(dim=0, unbiased=False).mean().item(), rel=1e-5)


@EACH
def test_what_stands_in_padding_and_unknown_frames_does_not_count(name):
    model, readouts = latents_model(), None
    readouts, batch = readouts_of(model, **{name: 1.0}), batch_of(latents_model())
    _, expected, _ = read(readouts, model, batch)
    hole = ~batch["frame_mask"]
    spoilt = {key: value.clone() for key, value in batch.items()}
    spoilt["phone_ids"][hole] = 5
    spoilt["prosody_targets"][~batch["prosody_mask"]] = 1e9
    spoilt["prosody_mask"][hole] = True
    spoilt["wavlm_features"][~batch["wavlm_mask"]] = math.nan
    _, found, _ = read(readouts, model, spoilt)
    assert {key: (t.value.item(), int(t.num_frames)) for key, t in found.items()} == {
        key: (t.value.item(), int(t.num_frames)) for key, t in expected.items()
    }


# --- whom the gradient reaches ---

OWN_HEAD = {name: "prosody" if name == "prosody_weight" else "content" for name in ALL}
MODULES = {"content": "quantizer.head_content.", "prosody": "quantizer.head_prosody."}


def gradients_of(name: str, model: MimiBridgeModel) -> tuple[Readouts, dict[str, Tensor], dict[str, Any]]:
    readouts = readouts_of(model, **{name: 1.0})
    model.eval()
    _, terms, _ = read(readouts, model, batch_of(model))
    torch.stack([term.value for term in terms.values()]).sum().backward()
    named = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    return readouts, named, terms


@EACH
def test_gradient_reaches_its_own_head_and_readout_and_nothing_else(name):
    readouts, named, _ = gradients_of(name, latents_model())
    assert named and all(key.startswith(MODULES[OWN_HEAD[name]]) for key in named)
    assert {"project_in.weight", "project_out.weight"} <= {
        key.rsplit(".head_", 1)[1].partition(".")[2] for key in named
    }
    assert all(bool(parameter.grad.any()) for parameter in readouts.parameters())


def test_speakers_gradient_is_reversed_on_its_way_to_content_and_not_in_the_readout():
    model = latents_model().eval()
    readouts, batch = readouts_of(model, speaker_reversal_weight=1.0), batch_of(latents_model())
    outputs, terms, _ = read(readouts, model, batch)
    outputs.content.retain_grad()
    terms["speaker"].value.backward()
    content = outputs.content.detach().requires_grad_()
    plain = copy.deepcopy(readouts)
    plain.zero_grad()
    mask = batch["frame_mask"]
    speakers = batch["speaker_ids"][:, None].expand_as(mask)
    known = mask & (speakers != UNKNOWN)
    torch.nn.functional.cross_entropy(plain.speaker(content[known]), speakers[known]).backward()
    torch.testing.assert_close(outputs.content.grad, -content.grad)
    for ours, theirs in zip(readouts.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# --- runs ---


@EACH
def test_readout_learns_with_its_head_and_says_so_beside_a_constant(tmp_path, name):
    options = {"logging_strategy": "steps", "logging_steps": 1, "readout_learning_rate": 0.02, "latents_weight": 0.0}
    rates = {"head_learning_rates": {"acoustic": 0}, "learning_rate": 1e-2, "max_steps": 40}
    weights = {name: 5.0, "qwen_weight": 0.0, "wavlm_weight": 0.0}
    rows = [
        {key: value for key, value in row.items() if key != "qwen_hidden" and key != "durations"} for row in rows_of()
    ]
    trainer = trainer_of(tmp_path, latents_model(), rows, **options, **rates, **weights)
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    for loss in LOSSES[name]:
        assert f"baseline_{loss}" in log[0]
        if name != "speaker_reversal_weight":
            assert log[-1][f"loss_{loss}"] < log[0][f"loss_{loss}"]
    unasked = set().union(*LOSSES.values()) - LOSSES[name]
    assert not {f"loss_{loss}" for loss in unasked} & set(log[0])
    assert log[0]["learning_rate_readouts"] > 0


def test_run_without_readouts_has_none_and_is_what_it_is_with_their_columns_left_out(tmp_path):
    states, numbers = [], []
    for rows in (latents_rows(), rows_of()):
        torch.manual_seed(5)
        model = latents_model()
        trainer = trainer_of(tmp_path, model, rows, max_steps=20, readout_learning_rate=0.5, save_strategy="no")
        trainer.train()
        assert trainer.readouts is None
        in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert in_optimizer <= {id(parameter) for parameter in model.parameters()}
        states.append(state_of(model))
        numbers.append(torch.rand(1))
    assert_same(*states)
    assert torch.equal(*numbers)


def test_readouts_draw_no_number_of_the_callers(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    readouts_of(latents_model(), **ALL)
    assert torch.equal(torch.rand(3), expected)


def test_model_that_was_trained_with_readouts_has_the_keys_of_one_that_was_not(tmp_path):
    model = train(tmp_path, latents_model(), rows_of(), **QUICK, **ALL)
    assert state_of(model).keys() == state_of(latents_model()).keys()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_step_is_the_same_however_it_is_divided(tmp_path, update):
    before, after, logs = state_of(latents_model()), [], []
    for size, accumulated in ((2, 4), (8, 1)):
        options = {"optim": "sgd", "learning_rate": 0.1, "readout_learning_rate": 0.1, "max_grad_norm": 0.0}
        divided = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 2}
        logged = {"logging_strategy": "steps", "logging_steps": 1, "codebook_update": update}
        trainer = trainer_of(tmp_path, latents_model(), rows_of(), **options, **divided, **logged, **ALL)
        trainer.train()
        after.append(state_of(trainer.bridge_model) | state_of(trainer.readouts))
        logs.append({k: v for k, v in trainer.state.log_history[0].items() if k.startswith(("loss_", "baseline_"))})
    readouts = Readouts(ALL, 16, latents_model().quantizer.proj_wavlm, SPEAKERS, seed=42)
    assert_same_change(*after, before | state_of(readouts), tolerance=1e-2)
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_training_that_goes_on_is_what_it_would_have_been(tmp_path):
    options = {**ALL, "per_device_train_batch_size": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    logged = {"logging_strategy": "steps", "logging_steps": 1}
    whole = trainer_of(tmp_path / "whole", latents_model(), rows_of(), **options, **logged)
    whole.train()
    parts = trainer_of(tmp_path / "parts", latents_model(), rows_of(), **options, **logged)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(state_of(parts.bridge_model), state_of(whole.bridge_model))
    assert_same(state_of(parts.readouts), state_of(whole.readouts))
    names = [name for name in whole.state.log_history[-2] if name.startswith(("loss_", "baseline_"))]
    assert {"loss_phone", "baseline_voicing"} <= set(names)
    assert all(parts.state.log_history[-2][name] == whole.state.log_history[-2][name] for name in names)


def test_second_training_goes_on_with_the_readouts_that_the_optimizer_holds(tmp_path):
    trainer = trainer_of(tmp_path, latents_model(), rows_of(), **QUICK, phone_weight=1.0)
    trainer.train()
    before = state_of(trainer.readouts)
    trainer.train()
    assert moved(before, state_of(trainer.readouts)) == ["phone.weight", "phone.bias"]
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in trainer.readouts.parameters()} <= held


def test_evaluation_compares_with_the_frequencies_of_the_training(tmp_path):
    rows = rows_of(seed=3)
    trainer = trainer_of(tmp_path, latents_model(), rows_of(), eval_dataset=rows, **QUICK, **ALL, logging_steps=1)
    trainer.args.logging_strategy = "steps"
    trainer.train()
    alone = trainer.evaluate()
    assert {
        "eval_loss_phone",
        "eval_baseline_phone",
        "eval_loss_pitch",
        "eval_baseline_speech_content",
    } <= alone.keys()
    trainer.args.per_device_eval_batch_size = 3
    again = trainer.evaluate()
    names = [name for name in alone if name.startswith(("eval_loss", "eval_constant"))]
    assert {name: alone[name] for name in names} == pytest.approx({name: again[name] for name in names}, rel=1e-5)


def test_content_delay_moves_the_phones_and_not_the_pitch(tmp_path):
    logs = []
    for delay in (0, 3):
        model = latents_model()
        model.config.content_delay = delay
        options = {"logging_strategy": "steps", "logging_steps": 1, **QUICK, **ALL}
        trainer = trainer_of(tmp_path, model, rows_of(), **options)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[0]["loss_pitch"] == logs[1]["loss_pitch"]
    assert logs[0]["loss_phone"] != logs[1]["loss_phone"]
    assert logs[0]["loss_speech_content"] != logs[1]["loss_speech_content"]


# --- two processes ---

TWO: dict[str, Any] = {
    **ALL,
    "optim": "sgd",
    "learning_rate": 0.1,
    "readout_learning_rate": 0.1,
    "max_grad_norm": 0.05,
}


def train_divided(output: Path, size: int) -> None:
    divided = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 1, "max_steps": 2}
    logged = {"logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(output, latents_model(), rows_of(), **TWO, **divided, **logged)
    trainer.train()
    log = {k: v for k, v in trainer.state.log_history[0].items() if k.startswith(("loss_", "baseline_"))}
    found = {"model": state_of(trainer.bridge_model), "readouts": state_of(trainer.readouts), "log": log}
    torch.save(found, output / f"{trainer.accelerator.num_processes} {trainer.accelerator.process_index}.pt")


def train_in_two(output: str) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    train_divided(Path(output), 4)
    torch.distributed.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    run_in_two_processes(train_in_two, tmp_path)
    train_divided(tmp_path, 8)
    ours, theirs, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("2 0", "2 1", "1 0"))
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["readouts"], theirs["readouts"])
    before = Readouts(ALL, 16, latents_model().quantizer.proj_wavlm, SPEAKERS, seed=42)
    assert_same_change(ours["model"], alone["model"], state_of(latents_model()), tolerance=1e-2)
    assert_same_change(ours["readouts"], alone["readouts"], state_of(before), tolerance=1e-2)
    assert ours["log"] == pytest.approx(alone["log"], rel=1e-3)


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("phone_weight", "phones"),
        ("speech_content_weight", "wavlm_features"),
        ("prosody_weight", "f0_hz"),
        ("speaker_reversal_weight", "speaker"),
    ],
)
@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_readout_of_a_column_that_no_row_has_is_refused_before_training(tmp_path, kind, name, column):
    rows = [{key: value for key, value in row.items() if key != column} for row in rows_of()]
    if kind is not list:
        keep = ("latents", "phones", "wavlm_features", "f0_hz", "level_db", "speaker")
        rows = [{key: row[key] for key in keep if key in row} for row in rows[:3]]
        rows = [{k: v.tolist() if isinstance(v, Tensor) else v for k, v in row.items()} for row in rows]
    with pytest.raises(ValueError, match=rf"{name} needs the column {column}, but the training data has none; add it"):
        trainer_of(tmp_path, latents_model(), kind(rows), **{name: 1.0})


def test_phones_of_another_alphabet_are_refused_after_an_epoch(tmp_path):
    rows = [row | {"phones": [{"phone": "ʃ", "start": 0.0, "end": 9.0}]} for row in rows_of()]
    message = (
        "phone_weight is 1.0, but no frame of the training data has a target in phones that is a phone of ARPAbet"
    )
    with pytest.raises(ValueError, match=message):
        train(tmp_path, latents_model(), rows, max_steps=3, phone_weight=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phone_weight": -1.0}, r"phone_weight must be at least 0, got -1\.0"),
        ({"prosody_weight": math.inf}, "prosody_weight must be at least 0, got inf"),
        ({"speaker_reversal_weight": math.nan}, "speaker_reversal_weight must be at least 0, got nan"),
        ({"readout_learning_rate": 0.0}, r"readout_learning_rate must be more than 0, got 0\.0"),
        ({"acoustic_dropout": 1.0}, r"acoustic_dropout must lie in \[0, 1\), got 1\.0"),
        ({"acoustic_shift": 1.0}, r"acoustic_shift must lie in \[0, 1\), got 1\.0"),
        (
            {"acoustic_dropout": 0.5, "acoustic_shift": 0.5},
            "acoustic_dropout and acoustic_shift must be less than 1 together, got 0.5 and 0.5",
        ),
        ({"acoustic_dropout": -0.1}, r"acoustic_dropout must lie in \[0, 1\), got -0\.1"),
    ],
)
def test_argument_that_makes_no_sense_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, latents_model(), rows_of(), **options)


def test_one_speaker_alone_is_refused():
    with pytest.raises(ValueError, match="needs two speakers or more to tell apart, got 'ann' alone"):
        speakers_of([{"speaker": "ann"}, {"speaker": "ann"}, {"speaker": None}])


def test_speakers_of_a_stream_are_refused():
    with pytest.raises(ValueError, match="of the whole data set, but the training data has no length; use one"):
        speakers_of(iter([{"speaker": "ann"}]))


def test_optimizer_of_ones_own_and_readouts_are_refused(tmp_path):
    model = latents_model()

    optimizer = torch.optim.SGD(model.quantizer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"whose groups say what learns and how fast, so phone_weight cannot be 1\.0"):
        args = arguments(tmp_path, phone_weight=1.0)
        MimiBridgeTrainer(model, args, train_dataset=rows_of(), optimizers=(optimizer, None))


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"phone_weight": 1.0}, {}, "was trained with readouts of phone, but this run has readouts of nothing"),
        ({}, {"phone_weight": 1.0}, "was trained with readouts of nothing, but this run has readouts of phone"),
        ({"phone_weight": 1.0}, {"prosody_weight": 1.0}, "of phone, but this run has readouts of prosody"),
    ],
)
def test_going_on_with_other_readouts_is_refused(tmp_path, then, now, message):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    train(tmp_path, latents_model(), rows_of(), **options, **then)
    trainer = trainer_of(tmp_path, latents_model(), rows_of(), **options, **now)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_checkpoint_holds_the_readouts_beside_the_model(tmp_path):
    train(tmp_path, latents_model(), rows_of(), max_steps=1, save_strategy="steps", save_steps=1, phone_weight=1.0)
    state = torch.load(tmp_path / "checkpoint-1" / STATE_NAME, weights_only=True)
    assert state["readouts"]["weights"].keys() == {"phone.weight", "phone.bias"}


# --- audio ---


def test_readouts_learn_from_audio_with_crops_and_a_codec_that_learns(tmp_path):
    rows, model = with_targets(audio_rows()), audio_model()
    before = state_of(model)
    collator = MimiBridgeCollator.for_model(model.config, crop_seconds=0.25)
    options = {"head_learning_rates": {"encoder": 1e-4}, "data_collator": collator, "max_steps": 1}
    trainer = trainer_of(tmp_path, model, rows, **options, **ALL)
    trainer.train()
    assert any(name.startswith("encoder.") for name in moved(before, state_of(model)))
    assert collator.frame_targets == frozenset()  # the caller's own is as it was
    assert CODEBOOK_SIZE == model.quantizer.codebook_size
