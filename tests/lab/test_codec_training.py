"""The phases of training a codec, and what a checkpoint of it holds."""

import io
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import MimiConfig, MimiModel

from codec_training import run as codec_training
from codec_training.codec import UNQUANTIZED, CodecOutput
from codec_training.corpus import CropBatch, SpeechCorpus, write_corpus
from codec_training.losses import DISTANCES
from codec_training.run import (
    DISCRIMINATOR_SHARE,
    DROPOUT_SHARE,
    FRAMES_PER_ENTRY,
    REVIVE_EVERY,
    UNQUANTIZED_SHARE,
    WARMUP_STEPS,
    CodecTraining,
    Phase,
)
from mimi_bridge.data.manifest import Utterance
from mimi_bridge.training.codebooks import set_entries
from random_mimi import random_mimi
from tiny import TINY

SAMPLING_RATE, SECONDS = 24_000, 4.0
BATCH_SIZE, NUM_FRAMES, NUM_FILTERS, CODEBOOK_SIZE, NUM_ACOUSTIC = 2, 4, 2, 16, 3
CONFIG = MimiConfig(**{**TINY, "codebook_size": CODEBOOK_SIZE}, num_quantizers=1 + NUM_ACOUSTIC)


def glide_and_noise(utterance: Utterance, sampling_rate: int) -> Tensor:
    """Half-seconds of a voiced glide and of noise in turn, at a pitch of the speaker's own, `(1, samples)`."""
    number = int(utterance.id)
    seconds = torch.arange(round(SECONDS * sampling_rate)) / sampling_rate
    phase = 2 * torch.pi * ((100 + 40 * number) * seconds + 10 * seconds**2)
    voiced = sum(torch.sin(harmonic * phase) / harmonic for harmonic in range(1, 9))
    noise = torch.randn(len(seconds), generator=torch.Generator().manual_seed(number))
    return 0.2 * torch.where((2 * seconds).long() % 2 == 0, voiced, noise)[None]


def write_alignment(path: Path) -> Path:
    """The phones of `glide_and_noise`: AA and S in turn."""
    phones = [
        {"phone": ("AA", "S")[half % 2], "start": half / 2, "end": half / 2 + 0.5}
        for half in range(round(2 * SECONDS))
    ]
    path.write_text(json.dumps({"words": [{"word": "asasasas", "start": 0.0, "end": SECONDS, "phones": phones}]}))
    return path


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    """A corpus of four speakers of two sounds, three of them labelled."""
    folder = tmp_path_factory.mktemp("speech")
    alignment = write_alignment(folder / "alignment.json")
    utterances = [
        Utterance(str(number), Path("made"), f"speaker {number}", alignment=alignment if number else None)
        for number in range(4)
    ]
    write_corpus(folder / "corpus", utterances, SAMPLING_RATE, glide_and_noise)
    return folder / "corpus"


@pytest.fixture(scope="module")
def corpus(corpus_folder) -> SpeechCorpus:
    return SpeechCorpus(corpus_folder)


def begin_training(
    corpus: SpeechCorpus, *phases: tuple[str, int], seed: int = 0, learning_rate: float = 1e-3, **options
) -> CodecTraining:
    stretches = [Phase(name, num_steps, learning_rate) for name, num_steps in phases]
    options = {"accelerator": Accelerator(cpu=True), **options}
    return CodecTraining(CONFIG, corpus, stretches, BATCH_SIZE, NUM_FRAMES, NUM_FILTERS, seed, **options)


@pytest.fixture
def begin(corpus) -> Callable[..., CodecTraining]:
    """Begins a training of the given phases and lengths."""
    return partial(begin_training, corpus)


def run(training: CodecTraining, num_steps: int | None = None) -> list[dict[str, float]]:
    """The losses of so many steps, or of all that are left."""
    steps = islice(training.run(), num_steps)
    return [{name: loss.item() for name, loss in losses.items()} for losses in steps]


class Always:
    """The same batch at every step."""

    def __init__(self, batch: CropBatch):
        self.batch = batch

    def __getitem__(self, step: int) -> CropBatch:
        return self.batch


def weights_of(training: CodecTraining) -> dict[str, Tensor]:
    modules = torch.nn.ModuleDict({"model": training.model, "discriminator": training.discriminator})
    return deepcopy(modules.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


PARTS = {
    "model.encoder": "encoder",
    "model.decoder": "decoder",
    "model.readout": "readout",
    "model.semantic.vq": "semantic codebook",
    "model.semantic.project_in": "semantic in",
    "model.semantic.project_out": "semantic out",
    "model.acoustic.vq": "acoustic codebooks",
    "model.acoustic.project_in": "acoustic in",
    "model.acoustic.project_out": "acoustic out",
    "discriminator": "discriminator",
}


def moved_parts(training: CodecTraining, before: dict[str, Tensor]) -> set[str]:
    """The parts of which anything differs by a bit."""
    moved = [name for name, value in weights_of(training).items() if not torch.equal(value, before[name])]
    return {part for prefix, part in PARTS.items() if any(name.startswith(f"{prefix}.") for name in moved)}


def test_reconstruction_trains_what_the_sound_and_the_readout_come_from(begin):
    training = begin(("reconstruction", 3))
    before = weights_of(training)
    run(training)
    assert moved_parts(training, before) == {"encoder", "decoder", "semantic in", "readout"}


def test_codebooks_phase_trains_all_but_the_discriminator(begin):
    training = begin(("codebooks", 3))
    before = weights_of(training)
    run(training)
    assert moved_parts(training, before) == set(PARTS.values()) - {"discriminator"}


def test_adversarial_phase_trains_everything(begin):
    training = begin(("adversarial", 3))
    before = weights_of(training)
    run(training)
    assert moved_parts(training, before) == set(PARTS.values())


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        ("reconstruction", {"labels"}),
        ("codebooks", {"labels", "commitment"}),
        ("adversarial", {"labels", "commitment", "adversarial", "features", "discriminator"}),
    ],
)
def test_step_gives_the_losses_of_its_phase_beside_the_distances(begin, phase, names):
    (losses,) = run(begin((phase, 1)))
    assert set(losses) == names | set(DISTANCES)
    assert all(math.isfinite(loss) for loss in losses.values())


def all_are_labelled(batch: CropBatch) -> bool:
    """Whether the crops hold both sounds, and their labels are known."""
    return bool(batch.labelled.all()) and batch.label_shares.sum(dim=(0, 1)).count_nonzero() == 2


@pytest.fixture(scope="module")
def fitted(corpus, request) -> list[dict[str, float]]:
    """The losses of 25 steps of a phase that all see the same crops, at the full learning rate from the first."""
    training = begin_training(corpus, (request.param, 25))
    batch = next(batch for batch in map(training.batches.__getitem__, range(1, 50)) if all_are_labelled(batch))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(codec_training, "WARMUP_STEPS", 1)
        monkeypatch.setattr(training, "batches", Always(batch))
        return run(training)


@pytest.mark.parametrize("fitted", ["reconstruction", "codebooks", "adversarial"], indirect=True)
def test_label_loss_falls_when_one_batch_is_fitted(fitted):
    assert fitted[-1]["labels"] < 0.8 * fitted[0]["labels"]


@pytest.mark.parametrize("fitted", ["reconstruction", "codebooks", "adversarial"], indirect=True)
def test_mel_distance_falls_when_one_batch_is_fitted(fitted):
    assert fitted[-1]["mel"] < 0.85 * fitted[0]["mel"]


@pytest.mark.parametrize("fitted", ["codebooks", "adversarial"], indirect=True)
def test_commitment_falls_when_one_batch_is_fitted(fitted):
    assert fitted[-1]["commitment"] < 0.7 * fitted[0]["commitment"]


def score(training: CodecTraining, audio: Tensor) -> Tensor:
    """The discriminator's mean score of audio at one loudness."""
    scored = training.discriminator(audio / audio.square().mean(dim=(1, 2), keepdim=True).sqrt())
    return torch.stack([scores.mean() for scores, _ in scored]).mean()


def test_discriminator_learns_to_tell_decoded_speech_when_the_codec_hardly_moves(begin, monkeypatch):
    monkeypatch.setattr(codec_training, "DISCRIMINATOR_LEARNING_RATE", 3e-2)
    training = begin(("adversarial", 12), learning_rate=1e-6)
    batch = training.batches[0]
    monkeypatch.setattr(training, "batches", Always(batch))
    losses = run(training)
    assert losses[-1]["discriminator"] < 0.8 * losses[0]["discriminator"]
    with torch.no_grad():
        decoded = training.model(batch.audio, torch.full((BATCH_SIZE,), NUM_ACOUSTIC), may_learn=False).audio
        assert score(training, batch.audio) > score(training, decoded) + 1


@pytest.fixture
def unlike_discriminators(begin) -> list[CodecTraining]:
    """Two trainings in the adversarial phase that differ in the discriminator alone."""
    trainings = [begin(("adversarial", 2)) for _ in range(2)]
    with torch.no_grad():
        for parameter in trainings[1].discriminator.parameters():
            parameter.mul_(-1.5)
    return trainings


def test_codec_does_not_listen_to_the_discriminator_during_its_head_start(unlike_discriminators):
    one, other = unlike_discriminators
    assert run(one) != run(other)
    assert same(one.model.state_dict(), other.model.state_dict())


def test_codec_listens_to_the_discriminator_after_its_head_start(unlike_discriminators):
    one, other = unlike_discriminators
    one.head_start_steps = other.head_start_steps = 1
    run(one), run(other)
    assert not same(one.model.decoder.state_dict(), other.model.decoder.state_dict())


def test_discriminator_sees_audio_at_the_level_of_the_original(begin, monkeypatch):
    training, seen = begin(("adversarial", 1)), []
    forward = training.discriminator.forward
    monkeypatch.setattr(training.discriminator, "forward", lambda audio: seen.append(audio) or forward(audio))
    monkeypatch.setattr(training, "model", decoding_half_as_loud(training.model))
    run(training)
    real, decoded = (audio.square().mean(dim=(1, 2)).sqrt() for audio in seen)  # crops are shorter than the excerpt
    num_rows = math.ceil(DISCRIMINATOR_SHARE * BATCH_SIZE)
    torch.testing.assert_close(real, torch.ones(num_rows))
    torch.testing.assert_close(decoded, torch.full((num_rows,), 0.5))


def decoding_half_as_loud(model: torch.nn.Module) -> torch.nn.Module:
    forward = model.forward

    def decode(audio: Tensor, *others: Tensor) -> CodecOutput:
        output = forward(audio, *others)
        return replace(output, audio=audio / 2 + output.audio * 0)

    model.forward = decode
    return model


@pytest.mark.parametrize("phase", ["reconstruction", "codebooks", "adversarial"])
def test_weights_stay_finite_when_a_crop_is_silent(begin, phase, monkeypatch):
    training = begin((phase, 2))
    batch = training.batches[0]
    batch.audio[0] = 0.0
    monkeypatch.setattr(training, "batches", Always(batch))
    losses = run(training)
    assert all(math.isfinite(loss) for step in losses for loss in step.values())
    assert all(value.isfinite().all() for value in weights_of(training).values())


def test_label_loss_is_nothing_when_no_frame_has_a_label(begin, monkeypatch):
    training = begin(("reconstruction", 1))
    batch = training.batches[0]
    unlabelled = replace(batch, labelled=torch.zeros_like(batch.labelled))
    monkeypatch.setattr(training, "batches", Always(unlabelled))
    (losses,) = run(training)
    assert losses["labels"] == 0


def test_frames_without_labels_do_not_count_when_labels_are_learned(begin, monkeypatch):
    batches = map(begin(("reconstruction", 1)).batches.__getitem__, range(50))
    batch = next(batch for batch in batches if batch.labelled.any() and not batch.labelled.all())
    poisoned = replace(batch, label_shares=batch.label_shares.clone())
    poisoned.label_shares[~batch.labelled] = 1e3
    losses = []
    for given in (batch, poisoned):
        training = begin(("reconstruction", 1))
        monkeypatch.setattr(training, "batches", Always(given))
        losses += run(training)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("norm", "step"), [(100.0, 1.0), (0.5, 0.5)], ids=["long", "short"])
def test_long_gradients_are_cut_to_unit_length_and_short_ones_kept(begin, norm, step):
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.full((2,), norm / 2)
    begin(("reconstruction", 1))._update(torch.optim.SGD(weights, lr=1.0), weights)
    assert torch.cat(weights).norm().item() == pytest.approx(step, rel=1e-4)


def test_run_takes_every_step_of_every_phase_and_then_ends(begin):
    training = begin(("reconstruction", 2), ("adversarial", 1), ("codebooks", 2))
    seen = [(training.step, training.phase.name) for _ in training.run()]
    assert seen == list(enumerate(["reconstruction"] * 2 + ["adversarial"] + ["codebooks"] * 2, start=1))
    assert run(training) == []


def test_training_repeats_itself_to_the_bit_when_the_seed_does(begin):
    one, again, other = (begin(("reconstruction", 2), seed=seed) for seed in (0, 0, 1))
    assert run(one) == run(again) != run(other)
    assert same(weights_of(one), weights_of(again))


def test_every_step_sees_other_crops(begin):
    training, batches = begin(("reconstruction", 1)), []
    for training.step in range(3):
        batches.append(training.batches[training.step].audio)
    assert not any(torch.equal(one, other) for one, other in combinations(batches, 2))


def test_codebooks_are_filled_from_crops_that_all_differ(begin, monkeypatch):
    seen, encode = [], CodecTraining._encode
    monkeypatch.setattr(CodecTraining, "_encode", lambda self, audio: seen.append(audio) or encode(self, audio))
    training = begin(("codebooks", 1))
    assert sum(len(audio) for audio in seen) * NUM_FRAMES >= FRAMES_PER_ENTRY * CODEBOOK_SIZE
    trained = training.batches[training.step].audio
    assert not any(torch.equal(one, other) for one, other in combinations([*seen, trained], 2))


def test_another_seed_sees_other_crops(begin):
    one, other = (begin(("reconstruction", 1), seed=seed).batches[0].audio for seed in (0, 1))
    assert not torch.equal(one, other)


def saved(training: CodecTraining) -> bytes:
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    return file.getvalue()


LENGTHS = (("reconstruction", 3), ("codebooks", 11), ("adversarial", 3))


@pytest.fixture(scope="module")
def uninterrupted(corpus) -> tuple[list[dict[str, float]], list[bytes], dict[str, Tensor]]:
    """Losses and checkpoint after every step of a run through all phases, and its last weights."""
    training = begin_training(corpus, *LENGTHS)
    losses, checkpoints = zip(*[(losses, saved(training)) for losses in training.run()], strict=True)
    return list(losses), list(checkpoints), weights_of(training)


STOPS = pytest.mark.parametrize(
    "num_steps",
    [2, 3, 8, 14, 15, 17],
    ids=[
        "amid reconstruction",
        "after reconstruction",
        "amid codebooks",
        "after codebooks",
        "amid adversarial",
        "at the end",
    ],
)


@STOPS
def test_training_goes_on_to_the_same_bits_when_it_was_stopped(begin, uninterrupted, num_steps):
    losses, checkpoints, weights = uninterrupted
    training = begin(*LENGTHS)
    training.load_state_dict(torch.load(io.BytesIO(checkpoints[num_steps - 1]), weights_only=True))
    assert training.step == num_steps
    assert run(training) == losses[num_steps:]
    assert same(weights_of(training), weights)


@STOPS
def test_state_is_the_same_when_it_was_loaded_and_is_taken_again(begin, uninterrupted, num_steps):
    checkpoint = uninterrupted[1][num_steps - 1]
    training = begin(*LENGTHS)
    training.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    torch.testing.assert_close(
        torch.load(io.BytesIO(saved(training))), torch.load(io.BytesIO(checkpoint)), atol=0, rtol=0
    )


@torch.no_grad()
def shares_missed(training: CodecTraining, audio: Tensor) -> list[float]:
    """For each head, the share of the power of what it gets that its codebooks miss."""
    latents, shares = training.model.eval().encoder(audio).latents.transpose(1, 2), []
    for head in (training.model.semantic, training.model.acoustic):
        power = head.project_in(latents.transpose(1, 2)).square().mean()
        shares.append((head(latents, with_commitment=True).commitment / power).item())
    return shares


def test_codebooks_begin_where_the_latents_are(begin):
    filled, unfilled = begin(("codebooks", 1)), begin(("reconstruction", 1))
    audio = torch.cat([filled.batches.cut(0, 100 + number).audio for number in range(8)])  # no step's crops
    assert max(shares_missed(filled, audio)) < 0.6 < min(shares_missed(unfilled, audio))


def test_acoustic_projections_begin_by_keeping_most_of_the_latents(begin):
    training = begin(("codebooks", 1))
    with torch.no_grad():
        latents = training.model.eval().encoder(training.batches.cut(0, 100).audio).latents
        kept = training.model.acoustic.project_out(training.model.acoustic.project_in(latents))
    assert (kept - latents).square().mean() < 0.2 * latents.square().mean()


def test_codebooks_begin_with_counts_on_the_scale_of_a_batch(begin):
    training = begin(("codebooks", 1))
    for codebook in codebooks_of(training):
        assert codebook.cluster_size.sum().item() == pytest.approx(BATCH_SIZE * NUM_FRAMES)


@pytest.mark.parametrize("phases", [("codebooks", "adversarial"), ("adversarial", "codebooks")])
def test_codebooks_are_filled_once_when_several_phases_use_them(begin, monkeypatch, phases):
    filled, fill = [], codec_training.fill_from_data
    monkeypatch.setattr(
        codec_training, "fill_from_data", lambda head, *others: filled.append(head) or fill(head, *others)
    )
    training = begin(("reconstruction", 1), *((phase, 1) for phase in phases))
    run(training, 1)
    assert filled == []
    run(training)
    assert filled == [training.model.semantic, training.model.acoustic]


@pytest.fixture
def initial(fitting_speech) -> MimiModel:
    """A Mimi with codebooks of its own."""
    return random_mimi(CONFIG, fitting_speech[:, : 10 * SAMPLING_RATE])


@pytest.mark.parametrize("phase", ["reconstruction", "codebooks", "adversarial"])
def test_training_begins_with_the_codes_and_the_sound_of_the_codec_it_is_given(begin, initial, phase, voiced_audio):
    training = begin((phase, 1), initial=initial)
    ours, theirs = training.model.to_mimi()(voiced_audio), initial(voiced_audio)
    assert torch.equal(ours.audio_codes, theirs.audio_codes)
    torch.testing.assert_close(ours.audio_values, theirs.audio_values)


def test_reconstruction_leaves_what_is_not_in_the_sound_as_it_was_given(begin, initial):
    training = begin(("reconstruction", 2), initial=initial)
    run(training)
    semantic, acoustic = training.model.semantic, training.model.acoustic
    split = initial.quantizer
    pairs = [
        (semantic.project_out, split.semantic_residual_vector_quantizer.output_proj),
        (acoustic.project_in, split.acoustic_residual_vector_quantizer.input_proj),
        (acoustic.project_out, split.acoustic_residual_vector_quantizer.output_proj),
    ]
    assert all(given.weight.any() and torch.equal(ours.weight, given.weight) for ours, given in pairs)


def test_codebooks_that_were_given_are_not_filled_again(begin, initial, monkeypatch):
    filled = []
    monkeypatch.setattr(codec_training, "fill_from_data", lambda *arguments: filled.append(arguments))
    run(begin(("reconstruction", 1), ("codebooks", 1), initial=initial))
    assert filled == []


class PitchAndLoudness:
    """Stands in for a speech model: its features are two numbers that the audio's own frames hold."""

    def features(self, recordings: Sequence[Tensor], sampling_rate: int) -> list[Tensor]:
        assert sampling_rate == SAMPLING_RATE
        return [self._of(recording.unfold(0, CONFIG.frame_size, CONFIG.frame_size)) for recording in recordings]

    def _of(self, frames: Tensor) -> Tensor:
        crossings = (frames[..., 1:].sign() != frames[..., :-1].sign()).float().mean(dim=-1)
        return torch.stack([0.2 - crossings, frames.std(dim=-1)], dim=-1)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> SpeechCorpus:
    """Two speakers of two sounds, their voice every other half-second, and a teacher's features."""
    folder = tmp_path_factory.mktemp("taught")
    utterances = [Utterance(str(number), Path("made"), f"speaker {number}") for number in range(2)]
    f0 = np.where(np.arange(round(100 * SECONDS)) // 50 % 2 == 0, 140.0, 0.0)
    options = {"find_pitch": lambda *_: f0, "teacher": PitchAndLoudness()}
    write_corpus(folder, utterances, SAMPLING_RATE, glide_and_noise, **options)
    return SpeechCorpus(folder)


@pytest.mark.parametrize("phase", ["reconstruction", "codebooks", "adversarial"])
def test_teacher_takes_the_place_of_labels(taught, phase):
    (losses,) = run(begin_training(taught, (phase, 1)))
    assert "teacher" in losses and "labels" not in losses


def test_distance_from_the_teacher_is_the_mean_cosine_distance_of_the_readout(taught):
    training = begin_training(taught, ("reconstruction", 1))
    batch = training.batches[0]
    readout = training.model(batch.audio).readout
    expected = 1 - torch.nn.functional.cosine_similarity(readout, batch.features, dim=-1).mean()
    (losses,) = run(training)
    assert losses["teacher"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(("loss", "share"), [("teacher", 0.5), ("pitch", 0.8)])
def test_what_the_latents_should_hold_is_learned_when_one_batch_is_fitted(taught, monkeypatch, loss, share):
    monkeypatch.setattr(codec_training, "WARMUP_STEPS", 1)
    training = begin_training(taught, ("reconstruction", 20))
    batch = next(batch for batch in map(training.batches.__getitem__, range(1, 50)) if 0.2 < batch.voiced.mean() < 0.8)
    monkeypatch.setattr(training, "batches", Always(batch))
    losses = run(training)
    assert losses[-1][loss] < share * losses[0][loss]


def test_pitch_reaches_the_encoder(taught):
    training = begin_training(taught, ("reconstruction", 1))
    batch = training.batches[0]
    training.pitch_reader.loss(training.model(batch.audio).latents, batch.pitch, batch.voiced).backward()
    assert all(parameter.grad.any() for parameter in training.pitch_reader.parameters())
    assert next(training.model.encoder.parameters()).grad.any()


def test_pitch_is_left_out_when_it_is_not_known(begin):
    (losses,) = run(begin(("reconstruction", 1)))
    assert "pitch" not in losses


def codebooks_of(training: CodecTraining) -> list[Any]:
    return [codebook for head in (training.model.semantic, training.model.acoustic) for codebook in head.vq_codebooks]


def forget_entry_5(training: CodecTraining) -> None:
    """Puts an entry of every codebook where nothing uses it."""
    for codebook in codebooks_of(training):
        set_entries(codebook, torch.tensor([5]), torch.full((1, TINY["codebook_dim"]), 1e3), torch.tensor([1e-3]))


def test_unused_entries_come_back_every_so_many_steps_of_the_codebooks_phase(begin):
    training = begin(("codebooks", REVIVE_EVERY + 1))
    codebooks = codebooks_of(training)
    run(training, 1)
    forget_entry_5(training)
    run(training, REVIVE_EVERY - 1)
    assert all(codebook.embed[0, 5].norm() > 100 for codebook in codebooks)
    run(training, 1)
    assert all(codebook.embed[0, 5].norm() < 100 for codebook in codebooks)


@pytest.fixture
def draws(begin) -> Tensor:
    """Numbers of acoustic codebooks, of one step with very many sequences."""
    training = begin(("codebooks", 1))
    training.batch_size = 20_000
    return training._draw_num_acoustic()


def test_a_share_of_the_sequences_is_unquantized(draws):
    assert (draws == UNQUANTIZED).float().mean() == pytest.approx(UNQUANTIZED_SHARE, abs=0.02)


def test_a_share_of_the_others_has_fewer_codebooks_and_every_number_of_them_alike(draws):
    others = draws[draws != UNQUANTIZED]
    shares = torch.bincount(others) / len(others)
    expected = [DROPOUT_SHARE / NUM_ACOUSTIC] * NUM_ACOUSTIC + [1 - DROPOUT_SHARE]
    assert shares.tolist() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("phase", ["codebooks", "adversarial"])
def test_sequences_are_decoded_from_as_many_codebooks_as_were_drawn(begin, phase, monkeypatch):
    training, given, drawn = begin((phase, 3)), [], []
    draw, forward = training._draw_num_acoustic, training.model.forward
    monkeypatch.setattr(training, "_draw_num_acoustic", lambda: drawn.append(draw()) or drawn[-1])
    monkeypatch.setattr(
        training.model, "forward", lambda audio, number: given.append(number) or forward(audio, number)
    )
    run(training)
    assert len(torch.cat(drawn).unique()) > 1
    assert all(torch.equal(number, wanted) for number, wanted in zip(given, drawn, strict=True))


def test_number_of_codebooks_is_drawn_again_each_step(begin):
    training = begin(("codebooks", 1))
    training.batch_size = 50
    draws = []
    for training.step in range(3):
        draws.append(training._draw_num_acoustic())
        assert torch.equal(training._draw_num_acoustic(), draws[-1])
    assert not any(torch.equal(one, other) for one, other in combinations(draws, 2))


def learning_rate(training: CodecTraining) -> float:
    return training.optimizer.param_groups[0]["lr"]


def test_learning_rate_warms_up_and_falls_to_a_tenth(begin):
    training, rates = begin(("reconstruction", 400), learning_rate=1e-3), []
    for training.phase_step in range(400):
        training._set_learning_rate()
        rates.append(learning_rate(training))
    assert rates[0] == pytest.approx(1e-3 / WARMUP_STEPS)
    assert all(later > earlier for earlier, later in pairwise(rates[:WARMUP_STEPS]))
    assert max(rates) > 0.8e-3
    assert all(later < earlier for earlier, later in pairwise(rates[WARMUP_STEPS:]))
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)


def test_learning_rate_goes_on_with_every_step_and_begins_again_with_every_phase(begin):
    training, rates = begin(("reconstruction", 2), ("adversarial", 1), learning_rate=1e-3), []
    for _ in training.run():
        rates.append(learning_rate(training))
    first = 1e-3 / WARMUP_STEPS
    assert rates == pytest.approx([first, 2 * first * 0.55, first])


def train_in_process(rank: int, port: int, folder: Path) -> None:
    """One of two processes: trains through all phases and leaves its losses and weights."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
        os.environ[name] = str(value)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    codec_training.REVIVE_EVERY = 2
    accelerator = Accelerator(cpu=True)
    lengths = (("reconstruction", 1), ("codebooks", 2), ("adversarial", 2))
    training = begin_training(SpeechCorpus(folder / "corpus"), *lengths, accelerator=accelerator)
    losses = run(training, 2)
    forget_entry_5(training)
    losses += run(training)
    torch.save((accelerator.num_processes, losses, weights_of(training)), folder / f"{rank}.pt")
    accelerator.end_training()


@pytest.mark.slow
def test_processes_hold_the_same_weights_though_they_see_different_crops(corpus_folder, tmp_path):
    shutil.copytree(corpus_folder, tmp_path / "corpus")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    torch.multiprocessing.spawn(train_in_process, (port, tmp_path), nprocs=2)
    (processes, ours, our_weights), (_, theirs, their_weights) = (torch.load(tmp_path / f"{n}.pt") for n in range(2))
    assert processes == 2
    assert all(value[0, 5].norm() < 100 for name, value in our_weights.items() if name.endswith("embed"))  # revived
    assert all(one["mel"] != other["mel"] for one, other in zip(ours, theirs, strict=True))
    assert [name for name, value in our_weights.items() if not torch.equal(value, their_weights[name])] == []
