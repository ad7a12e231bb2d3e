"""The script that trains a codec from nothing, as a user runs it, but of a tiny codec."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoFeatureExtractor, MimiConfig, MimiModel

import train_codec
from mimi_bridge.audio.files import load_audio, save_audio
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.data.alignment.types import Alignment
from mimi_bridge.data.manifest import Span, Utterance
from tiny import TINY

EXAMPLES = Path(__file__).parents[2] / "lab"
CODEC = {**TINY, "codebook_size": 32, "num_quantizers": 4}
WITH_A_TINY_CODEC = f"""
import train_codec
train_codec.small_config = lambda: train_codec.MimiConfig(**{CODEC})
train_codec.main()
"""
STEPS = {"reconstruction": 150, "codebook": 40, "adversarial": 10}
NUM_STEPS = sum(STEPS.values())
SETTINGS = {
    **{f"{phase}_steps": num_steps for phase, num_steps in STEPS.items()},
    "made_utterances": 10,
    "batch_size": 2,
    "crop_frames": 6,
    "discriminator_filters": 2,
    "save_every": 5,
    "evaluate_every": 100,
    "seed": 0,
}


@dataclass
class Run:
    """A run of the script that has ended: its folder, exit status and what it printed."""

    output: Path
    status: int
    printed: str
    errors: str


def command_line(output: Path, settings: dict[str, object]) -> list[str]:
    pairs = {"output": output, **settings}.items()
    return [word for name, value in pairs for word in (f"--{name.replace('_', '-')}", str(value))]


def start(output: Path, *, program: tuple[str, ...] = ("-c", WITH_A_TINY_CODEC), **settings: int) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != SPEECH_VARIABLE}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path])}
    return subprocess.Popen(
        [sys.executable, *program, *command_line(output, {**SETTINGS, **settings})],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, output: Path) -> Run:
    printed, errors = process.communicate(timeout=300)
    return Run(output, process.returncode, printed, errors)


def checkpointed_step(output: Path) -> int:
    checkpoint = output / "checkpoint.pt"
    return torch.load(checkpoint, weights_only=True)["training"]["step"] if checkpoint.exists() else 0


def curve(output: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows: value by step."""
    events = EventAccumulator(str(output), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """From nothing to the end."""
    output = tmp_path_factory.mktemp("never_stopped")
    return finish(start(output), output)


@pytest.fixture(scope="module")
def resumed(finished, tmp_path_factory) -> tuple[int, Run]:
    """The same, but killed while its codebooks learned and started again: the step of its checkpoint, and the run."""
    output = tmp_path_factory.mktemp("killed")
    shutil.copytree(finished.output / "corpus", output / "corpus")
    with start(output) as process:
        while process.poll() is None and checkpointed_step(output) <= STEPS["reconstruction"]:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return checkpointed_step(output), finish(start(output), output)


def test_script_ends_well_and_says_where_the_codec_is(finished):
    assert finished.status == 0, finished.errors
    assert finished.printed.splitlines()[-1] == f"the codec: {finished.output / 'mimi'}"


def test_mel_distance_falls_clearly_while_the_codec_learns_to_reconstruct(finished):
    distances = [curve(finished.output, "train/mel")[step] for step in range(1, STEPS["reconstruction"] + 1)]
    assert sum(distances[-10:]) < 0.8 * sum(distances[:10])


def test_every_step_is_a_point_of_the_curve(finished):
    assert list(curve(finished.output, "train/mel")) == list(range(1, NUM_STEPS + 1))


@pytest.mark.parametrize(
    ("loss", "phases"),
    [("commitment", ["codebook", "adversarial"]), ("discriminator", ["adversarial"]), ("features", ["adversarial"])],
)
def test_losses_are_drawn_in_their_phases_alone(finished, loss, phases):
    names = [name for name, num_steps in STEPS.items() for _ in range(num_steps)]
    steps = [step for step, name in enumerate(names, start=1) if name in phases]
    assert list(curve(finished.output, f"train/{loss}")) == steps


def test_held_out_speakers_are_measured_every_so_many_steps_and_at_the_end(finished):
    distances = curve(finished.output, "held_out/mel")
    assert list(distances) == [SETTINGS["evaluate_every"], NUM_STEPS]
    for step in distances:
        assert load_audio(finished.output / "samples" / f"{step:06d}.wav", 24_000).shape[-1] > 10 * 24_000


def test_codec_is_a_mimi_that_encodes_speech_to_many_codes(finished, speech):
    mimi = MimiModel.from_pretrained(finished.output / "mimi").eval()
    extract = AutoFeatureExtractor.from_pretrained(finished.output / "mimi")
    inputs = extract(speech[0].numpy(), sampling_rate=24_000, return_tensors="pt")
    codes = mimi.encode(**inputs).audio_codes[0]
    assert codes.shape == (CODEC["num_quantizers"], 24 * 25 // 2)
    assert all(len(codebook.unique()) > 8 for codebook in codes)


def test_codec_holds_the_weights_of_the_last_checkpoint(finished):
    trained = torch.load(finished.output / "checkpoint.pt", weights_only=True)["training"]["model"]
    mimi = MimiModel.from_pretrained(finished.output / "mimi")
    for part in ("encoder", "decoder"):
        for name, value in getattr(mimi, part).state_dict().items():
            torch.testing.assert_close(value, trained[f"{part}.{name}"], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_run_that_was_killed_ends_with_the_same_bits_as_one_never_stopped(finished, resumed):
    step, run = resumed
    assert STEPS["reconstruction"] < step < NUM_STEPS
    assert run.status == 0, run.errors
    ours, theirs = (torch.load(one.output / "checkpoint.pt", weights_only=True)["training"] for one in (run, finished))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    ours, theirs = (load_file(one.output / "mimi" / "model.safetensors") for one in (run, finished))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_curve_goes_on_with_the_same_values_when_a_run_was_killed(finished, resumed):
    step, run = resumed
    ours, theirs = (curve(one.output, "train/mel") for one in (run, finished))
    for later in range(step + 1, NUM_STEPS + 1):
        assert ours[later] == theirs[later]


def test_curve_lacks_no_step_when_a_run_was_killed(finished, resumed):
    _, run = resumed
    assert curve(run.output, "train/mel") == curve(finished.output, "train/mel")


def test_script_refuses_to_go_on_with_other_settings_in_one_sentence(finished):
    script = (str(EXAMPLES / "train_codec.py"),)
    run = finish(start(finished.output, program=script, seed=1, crop_frames=7), finished.output)
    assert run.status == 1
    (sentence,) = run.errors.splitlines()
    assert re.fullmatch(
        r"train_codec: .*checkpoint\.pt was made with other crop_frames, seed; give the same, or another --output\.",
        sentence,
    )


@pytest.mark.parametrize("is_shown", [False, True])
def test_traceback_is_shown_where_it_is_asked_for(tmp_path, monkeypatch, is_shown):
    def fail(*_):
        raise ModuleNotFoundError("espeak-ng is not installed")

    monkeypatch.setattr(train_codec, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train_codec.py", "--output", str(tmp_path), *["--traceback"] * is_shown])

    raised = ModuleNotFoundError if is_shown else SystemExit
    with pytest.raises(raised, match=f"^{'' if is_shown else 'train_codec: '}espeak-ng is not installed$"):
        train_codec.main()


def parse(output: Path, settings: dict[str, object]) -> Namespace:
    """The script's own reading of a command line."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv(SPEECH_VARIABLE, raising=False)
        monkeypatch.setattr(sys, "argv", ["train_codec.py", *command_line(output, settings)])
        return train_codec.parse_arguments()


@pytest.fixture
def arguments(finished, tmp_path, monkeypatch) -> Namespace:
    """A command line for `train` in this process, its corpus already there."""
    monkeypatch.setattr(train_codec, "small_config", lambda: MimiConfig(**CODEC))
    shutil.copytree(finished.output / "corpus", tmp_path / "codec" / "corpus")
    settings = {**SETTINGS, "reconstruction_steps": 4, "codebook_steps": 0, "adversarial_steps": 0}
    return parse(tmp_path / "codec", settings)


@pytest.fixture
def handlers():
    """Puts the handlers of signals back that a test had replaced."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_script_saves_and_stops_after_the_step_when_it_is_asked_to(arguments, handlers, monkeypatch, capsys, number):
    def run_and_ask(training):
        for step, losses in enumerate(run(training), start=1):
            if step == 2:
                os.kill(os.getpid(), number)
            yield losses

    run = train_codec.CodecTraining.run
    monkeypatch.setattr(train_codec.CodecTraining, "run", run_and_ask)
    train_codec.train(arguments, Accelerator(cpu=True))
    assert "stopped at step 2; the same command resumes here." in capsys.readouterr().out
    assert checkpointed_step(arguments.output) == 2
    assert not (arguments.output / "mimi").exists()


def test_second_request_stops_at_once(handlers):
    train_codec.StopRequest()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_checkpoint_stays_whole_when_saving_the_next_one_fails(arguments, handlers, monkeypatch):
    train_codec.train(arguments, Accelerator(cpu=True))

    def fail(_state, path):
        path.write_bytes(b"half a checkpoint")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    training = Namespace(state_dict=dict)
    with pytest.raises(OSError, match="disk full"):
        train_codec.save_checkpoint(training, arguments.output / "checkpoint.pt", {})
    assert checkpointed_step(arguments.output) == 4


def test_codec_that_is_given_is_where_training_begins(arguments, handlers, finished):
    arguments.initial = str(finished.output / "mimi")
    arguments.reconstruction_steps, arguments.adversarial_steps = 0, 1
    train_codec.train(arguments, Accelerator(cpu=True))
    ours, theirs = (load_file(output / "mimi" / "model.safetensors") for output in (arguments.output, finished.output))
    trained = [name for name in theirs if "codebook" not in name]  # one step, at a hundredth of the learning rate
    torch.testing.assert_close(
        {name: ours[name] for name in trained}, {name: theirs[name] for name in trained}, atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize(("kind", "teacher"), [("whisper", "WhisperTeacher"), ("wavlm", "WavLMTeacher")])
def test_teacher_that_is_given_teaches(arguments, handlers, monkeypatch, kind, teacher):
    class Silence:
        def __init__(self, name: str):
            self.name = name

        def features(self, recordings: Sequence[torch.Tensor], sampling_rate: int) -> list[torch.Tensor]:
            assert self.name == "silence" and sampling_rate == 24_000
            return [torch.ones(max(1, len(recording) // 1920), 3) for recording in recordings]

    monkeypatch.setattr(train_codec.AutoConfig, "from_pretrained", lambda name: SimpleNamespace(model_type=kind))
    monkeypatch.setattr(train_codec, teacher, Silence)
    shutil.rmtree(arguments.output / "corpus")
    arguments.teacher = "silence"
    train_codec.train(arguments, Accelerator(cpu=True))
    assert list(curve(arguments.output, "train/teacher")) == [1, 2, 3, 4]


def test_script_writes_the_codec_and_ends_well_when_its_minutes_are_over(arguments, handlers, capsys):
    arguments.minutes, arguments.reconstruction_steps = 1e-6, 1000
    train_codec.train(arguments, Accelerator(cpu=True))
    assert checkpointed_step(arguments.output) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"the codec: {arguments.output / 'mimi'}"
    assert MimiModel.from_pretrained(arguments.output / "mimi").config.num_quantizers == CODEC["num_quantizers"]


def test_speech_is_written_once(arguments):
    before = {path: path.stat().st_mtime_ns for path in (arguments.output / "corpus").rglob("*")}
    train_codec.prepare(arguments)
    assert {path: path.stat().st_mtime_ns for path in (arguments.output / "corpus").rglob("*")} == before


def test_corpus_can_be_written_before_there_is_anything_to_train_it_on(arguments):
    arguments.only_corpus = True
    train_codec.train(arguments, Accelerator(cpu=True))
    assert sorted(path.name for path in arguments.output.iterdir()) == ["corpus"]


def test_no_speaker_is_both_trained_on_and_held_out(finished):
    train, held_out = (
        set(train_codec.SpeechCorpus(finished.output / "corpus" / part).minutes_by_speaker)
        for part in ("train", "held_out")
    )
    assert len(train) == 8 and len(held_out) == 2 and not train & held_out


def test_recordings_of_a_folder_are_trained_on_beside_the_speech_that_is_made(voiced_audio, tmp_path):
    for speaker in ("ann", "bob"):
        (tmp_path / "speech" / speaker).mkdir(parents=True)
        save_audio(tmp_path / "speech" / speaker / "one.wav", voiced_audio[0], 24_000)
    train_codec.prepare(parse(tmp_path, {"speech": tmp_path / "speech", "held_out": "bob", "made_utterances": 1}))
    train, held_out = (train_codec.SpeechCorpus(tmp_path / "corpus" / part) for part in ("train", "held_out"))
    assert list(train.minutes_by_speaker) == ["ann", "espeak/en-us"]
    assert list(held_out.minutes_by_speaker) == ["bob"]
    torch.testing.assert_close(train.audio(0), voiced_audio[0], atol=1e-4, rtol=0)


def test_every_fifth_speaker_is_held_out_unless_some_are_named():
    assert train_codec.held_out_speakers([f"speaker {number}" for number in range(7)], None) == {
        "speaker 0",
        "speaker 5",
    }


def test_named_speakers_are_held_out_by_name_or_pattern():
    speakers = ["LJ", "jenny", "libri-10", "libri-12", "libri-15"]
    assert train_codec.held_out_speakers(speakers, ["LJ", "libri-*[05]"]) == {"LJ", "libri-10", "libri-15"}


def test_held_out_pattern_that_names_nobody_is_refused():
    with pytest.raises(ValueError, match=r"--held-out moon-\* names no speaker; speakers are ann, bob"):
        train_codec.held_out_speakers(["ann", "bob"], ["ann", "moon-*"])


@pytest.mark.parametrize(("speakers", "patterns"), [(["ann", "bob"], ["*"]), (["ann"], None), ([], None)])
def test_holding_out_everybody_or_nobody_is_refused(speakers, patterns):
    with pytest.raises(ValueError, match=r"some speakers must be held out and some not, got \d of \d"):
        train_codec.held_out_speakers(speakers, patterns)


def aligner_of(alignment: Alignment | None) -> Callable[[], SimpleNamespace]:
    """Stands in for pocketsphinx: it knows no word but `snow`."""

    def unknown_words(text: str) -> list[str]:
        return [word for word in text.split() if word != "snow"]

    return lambda: SimpleNamespace(unknown_words=unknown_words, align=lambda audio, sampling_rate, text: alignment)


@pytest.mark.parametrize(
    ("text", "alignment", "phones"),
    [
        ("snow", Alignment([], [Span("S", 0.1, 0.2)], -13.0), [Span("S", 0.1, 0.2)]),
        ("snow", None, None),
        ("snow zwisch", Alignment([], [], -13.0), None),
        ("", Alignment([], [], -13.0), None),
        (None, Alignment([], [], -13.0), None),
    ],
    ids=["laid over", "not to be laid over", "unknown word", "empty text", "no text"],
)
def test_phones_are_found_where_the_text_can_be_laid_over_the_recording(
    voiced_audio, monkeypatch, text, alignment, phones
):
    monkeypatch.setattr(train_codec, "PocketsphinxAligner", aligner_of(alignment))
    utterance = Utterance("one", Path("one.wav"), "ann", text)
    assert train_codec.PhoneFinder()(utterance, voiced_audio[0], 24_000) == phones


def test_phones_of_an_alignment_that_is_there_are_taken(voiced_audio, tmp_path, monkeypatch):
    phones = [{"phone": "S", "start": 0.0, "end": 0.5}]
    (tmp_path / "one.json").write_text(json.dumps({"words": [{"word": "s", "phones": phones}]}))
    monkeypatch.setattr(train_codec, "PocketsphinxAligner", aligner_of(None))
    utterance = Utterance("one", Path("one.wav"), "ann", "snow", alignment=tmp_path / "one.json")
    assert train_codec.PhoneFinder()(utterance, voiced_audio[0], 24_000) == [Span("S", 0.0, 0.5)]
