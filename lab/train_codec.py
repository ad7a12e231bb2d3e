"""Train a small Mimi from random weights: python lab/train_codec.py --output FOLDER --speech FOLDER

Speech comes from a folder (with a manifest.jsonl for speakers and phones, see `mimi_bridge.data.manifest`) and from
espeak-ng in many voices. Every fifth speaker is held out, or those that `--held-out` names. The same arguments resume
an interrupted run at its last checkpoint. Several processes:

    torchrun --nproc_per_node 2 lab/train_codec.py --output FOLDER --speech FOLDER

Losses and held-out figures: tensorboard --logdir FOLDER. Decoded samples during training: FOLDER/samples.
"""

import argparse
import math
import os
import signal
import sys
import time
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoConfig, EncodecFeatureExtractor, MimiConfig, MimiModel

from codec_training.corpus import SpeechCorpus, Teacher, given_phones, unknown_pitch, write_corpus
from codec_training.losses import LossWeights
from codec_training.run import CodecTraining, Phase
from codec_training.whisper_teacher import WhisperTeacher
from mimi_bridge.audio.files import save_audio
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.audio.sound import f0_or_none
from mimi_bridge.checkpoint import give_usual_mode
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.data.made_speech import load_utterance, made_utterances
from mimi_bridge.data.manifest import Span, Utterance, read_manifest
from mimi_bridge.data.teachers.speech import WavLMTeacher
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance

SAMPLING_RATE = 24_000
FREE_TO_CHANGE = (
    "_every",
    "_steps",
    "batch_size",
    "minutes",
    "only_corpus",
    "traceback",
    "workers",
)  # when a run is resumed; other arguments must be the same
LOGGED_TOGETHER = 10  # steps
HELD_OUT_FRAMES = 48
HELD_OUT_CROPS = 12


def small_config() -> MimiConfig:
    """Mimi's own shape, a quarter as wide: 12.5 frames a second, 1 + 7 codebooks of 2,048 entries."""
    return MimiConfig(
        num_filters=16,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        sliding_window=32,
        layer_scale_initial_scale=0.1,
        codebook_size=2048,
        codebook_dim=128,
        vector_quantization_hidden_dimension=128,
        num_quantizers=8,
        upsample_groups=256,
    )


def main() -> None:
    """Prepare the speech, train, and write the codec to FOLDER/mimi."""
    arguments = parse_arguments()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True  # shapes stay; sound is noisier
    try:
        train(arguments, accelerator)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if arguments.traceback:
            raise
        sys.exit(f"train_codec: {error}")
    finally:
        accelerator.end_training()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--speech", type=Path, default=os.environ.get(SPEECH_VARIABLE), help="folder of recordings")
    parser.add_argument("--held-out", nargs="+", metavar="SPEAKER", help="names or patterns; default every fifth")
    parser.add_argument("--teacher", help="speech model instead of phones: openai/whisper-base, microsoft/wavlm-large")
    parser.add_argument("--align", action="store_true", help="align texts that have no alignment, for their phones")
    parser.add_argument("--initial", help="start from this codec instead of random weights; see small_codec()")
    parser.add_argument(
        "--auxiliary", type=Path, help="and from the discriminator in the auxiliary.pt beside that codec"
    )
    parser.add_argument("--made-utterances", type=int, default=240, help="utterances made by espeak-ng")
    parser.add_argument("--reconstruction-steps", type=int, default=2200)
    parser.add_argument("--codebook-steps", type=int, default=1600)
    parser.add_argument("--adversarial-steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=6, help="crops a process")
    parser.add_argument("--crop-frames", type=int, default=24, help="length of a crop, of 80 ms each")
    parser.add_argument("--discriminator-filters", type=int, default=12)
    parser.add_argument(
        "--discriminator-share", type=float, default=0.5, help="of the crops that the discriminator sees"
    )
    parser.add_argument("--discriminator-seconds", type=float, default=0.48, help="of each crop that it sees")
    parser.add_argument("--discriminator-band", type=float, default=0.5, help="share of the frequencies that it sees")
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="of the adversarial steps, at their start")
    parser.add_argument("--label-weight", type=float, default=0.4, help="of the phones, read from the first codebook")
    parser.add_argument("--pitch-weight", type=float, default=0.5, help="of pitch and voicing, read from the latents")
    parser.add_argument("--workers", type=int, default=0, help="processes that cut crops ahead of the steps")
    parser.add_argument("--only-corpus", action="store_true", help="write OUTPUT/corpus, which takes no GPU, and stop")
    parser.add_argument("--minutes", type=float, help="stop this long after the start and write the codec")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traceback", action="store_true", help="of an error, show where it was raised")
    return parser.parse_args()


def train(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Train from the last checkpoint, or from nothing, to the end."""
    began = time.monotonic()
    with accelerator.main_process_first():
        prepare(arguments)
    if arguments.only_corpus:
        return
    corpus = SpeechCorpus(arguments.output / "corpus" / "train")
    held_out = SpeechCorpus(arguments.output / "corpus" / "held_out")
    phases = [
        Phase("reconstruction", arguments.reconstruction_steps, 5e-4),
        Phase("codebooks", arguments.codebook_steps, 4e-4),
        Phase("adversarial", arguments.adversarial_steps, arguments.learning_rate),
    ]
    initial = MimiModel.from_pretrained(arguments.initial) if arguments.initial else None
    training = CodecTraining(
        initial.config if initial else small_config(),
        corpus,
        [phase for phase in phases if phase.num_steps],
        arguments.batch_size,
        arguments.crop_frames,
        arguments.discriminator_filters,
        arguments.seed,
        accelerator,
        initial=initial,
        discriminator_share=arguments.discriminator_share,
        discriminator_seconds=arguments.discriminator_seconds,
        discriminator_band=arguments.discriminator_band,
        num_workers=arguments.workers,
        weights=LossWeights(labels=arguments.label_weight, pitch=arguments.pitch_weight),
    )
    if arguments.auxiliary:
        training.load_auxiliary(torch.load(arguments.auxiliary, map_location="cpu", weights_only=True))
    checkpoint = arguments.output / "checkpoint.pt"
    settings = {name: str(value) for name, value in vars(arguments).items() if not name.endswith(FREE_TO_CHANGE)}
    resume(training, checkpoint, settings)
    stop = StopRequest(math.inf if arguments.minutes is None else began + 60 * arguments.minutes)
    writer = SummaryWriter(arguments.output, purge_step=training.step + 1) if accelerator.is_main_process else None
    num_steps = sum(phase.num_steps for phase in phases)
    bar = tqdm(total=num_steps, initial=training.step, disable=writer is None, dynamic_ncols=True)
    unlogged: dict[int, dict[str, torch.Tensor]] = {}
    for losses in training.run():
        bar.update()
        stopping = stop.asked_of_any(accelerator)
        if writer is None:
            if stopping:
                return
            continue
        unlogged[training.step] = losses
        saving = training.step % arguments.save_every == 0 or training.step == num_steps or stopping
        if len(unlogged) == LOGGED_TOGETHER or saving:
            log(writer, bar, unlogged)
            unlogged = {}
        if training.step % arguments.evaluate_every == 0 or training.step == num_steps:
            distance = evaluate(training, held_out, arguments.output / "samples" / f"{training.step:06d}.wav")
            writer.add_scalar("held_out/mel", distance, training.step)
            bar.write(f"step {training.step} ({training.phase.name}): held-out mel distance {distance:.4f}")
        if saving:
            save_checkpoint(training, checkpoint, settings)
        if stopping and stop.is_time:
            break
        if stopping:
            bar.close()
            print(f"stopped at step {training.step}; the same command resumes here.")
            return
    bar.close()
    if accelerator.is_main_process:
        torch.save(training.auxiliary(), arguments.output / "auxiliary.pt")
        save_codec(training, arguments.output / "mimi")
        print(f"the codec: {arguments.output / 'mimi'}")


def log(writer: SummaryWriter, bar: tqdm, steps: dict[int, dict[str, torch.Tensor]]) -> None:
    """Write the losses of several steps, by number, and show the last ones; a GPU is synchronized once."""
    for step, losses in steps.items():
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, step)
    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)


class StopRequest:
    """Remembers that the time is over, or a first Ctrl-C or SIGTERM; a second one stops the process at once."""

    def __init__(self, end: float = math.inf) -> None:
        self._asked = False
        self._end = end  # as time.monotonic() counts
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def asked_of_any(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all processes get the same answer and stop after the same step."""
        if accelerator.num_processes == 1:
            return self._asked or self.is_time
        asked = torch.tensor(float(self._asked or self.is_time), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    @property
    def is_time(self) -> bool:
        """Whether the minutes are over."""
        return time.monotonic() > self._end

    def _ask(self, number: int, _frame: object) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)


def prepare(arguments: argparse.Namespace) -> None:
    """Write the training and held-out corpora, unless they exist."""
    folder = arguments.output / "corpus"
    if all((folder / part / "corpus.json").is_file() for part in ("train", "held_out")):
        return
    recorded = read_manifest(arguments.speech) if arguments.speech else []
    utterances = recorded + made_utterances(arguments.made_utterances, arguments.seed)
    held_out = held_out_speakers(sorted({utterance.speaker for utterance in utterances}), arguments.held_out)
    parts = {
        "train": [utterance for utterance in utterances if utterance.speaker not in held_out],
        "held_out": [utterance for utterance in utterances if utterance.speaker in held_out],
    }
    find_phones = PhoneFinder() if arguments.align else given_phones
    find_pitch = f0_or_none if find_spec("parselmouth") else unknown_pitch
    if find_pitch is unknown_pitch:
        print("train_codec: praat-parselmouth is missing, so the latents learn no pitch.", file=sys.stderr)
    teacher = speech_teacher(arguments.teacher) if arguments.teacher else None
    for part, members in parts.items():
        with tqdm(total=len(members), desc=f"{part} speech", dynamic_ncols=True) as bar:

            def load_and_count(utterance: Utterance, sampling_rate: int, bar: tqdm = bar) -> torch.Tensor:
                bar.update()
                return load_utterance(utterance, sampling_rate)

            taught = teacher if part == "train" else None
            write_corpus(folder / part, members, SAMPLING_RATE, load_and_count, find_phones, find_pitch, taught)


def speech_teacher(name: str) -> Teacher:
    """The teacher of that name: a Whisper, or a model of WavLM's kind."""
    is_whisper = AutoConfig.from_pretrained(name).model_type == "whisper"
    return WhisperTeacher(name) if is_whisper else WavLMTeacher(name)


class PhoneFinder:
    """Finds phones in a given alignment, else by forced alignment of the text."""

    def __init__(self) -> None:
        self._aligner = PocketsphinxAligner()

    def __call__(self, utterance: Utterance, audio: torch.Tensor, sampling_rate: int) -> list[Span] | None:
        """The phones, or None if there is no text, or it cannot be aligned."""
        if utterance.alignment is not None:
            return given_phones(utterance, audio, sampling_rate)
        if not utterance.text or self._aligner.unknown_words(utterance.text):
            return None
        alignment = self._aligner.align(audio, sampling_rate, utterance.text)
        return alignment.phones if alignment else None


def held_out_speakers(speakers: list[str], patterns: list[str] | None) -> set[str]:
    """Speakers that are not trained on.

    Raises:
        ValueError: If a pattern matches no speaker, or no speaker is left to train on.
    """
    if patterns is None:
        held_out = set(speakers[::5])
    else:
        unmatched = [pattern for pattern in patterns if not any(fnmatch(speaker, pattern) for speaker in speakers)]
        if unmatched:
            raise ValueError(f"--held-out {' '.join(unmatched)} names no speaker; speakers are {', '.join(speakers)}.")
        held_out = {speaker for speaker in speakers if any(fnmatch(speaker, pattern) for pattern in patterns)}
    if len(held_out) in (0, len(speakers)):
        raise ValueError(f"some speakers must be held out and some not, got {len(held_out)} of {len(speakers)}.")
    return held_out


def save_codec(training: CodecTraining, folder: Path) -> None:
    """Write the codec as a checkpoint of `MimiModel`: stored in half precision, loaded in single."""
    mimi = training.model.cpu().to_mimi()
    halves = {name: tensor.half() for name, tensor in mimi.state_dict().items()}
    mimi.save_pretrained(folder, state_dict=halves)
    give_usual_mode(folder)
    EncodecFeatureExtractor(sampling_rate=SAMPLING_RATE).save_pretrained(folder)


@torch.inference_mode()
def evaluate(training: CodecTraining, held_out: SpeechCorpus, sounds: Path) -> float:
    """Mel distance over fixed crops of held-out speakers; the first five of them are saved, original and decoded."""
    model, device = training.model.eval(), training.accelerator.device
    frame_size = model.config.frame_size
    audio = held_out.crops(HELD_OUT_CROPS, HELD_OUT_FRAMES, frame_size, (0,), augment=False).audio.to(device)
    codebooks = None
    if training.phase.name != "reconstruction":
        codebooks = torch.full((len(audio),), model.config.num_quantizers - 1, device=device)
    decoded = model(audio, codebooks, may_learn=False).audio
    pairs = torch.stack([audio[:5], decoded[:5]], dim=1).reshape(1, -1)
    save_audio(sounds, pairs, SAMPLING_RATE)
    return multi_scale_mel_distance(decoded, audio, SAMPLING_RATE).item()


def resume(training: CodecTraining, checkpoint: Path, settings: dict[str, str]) -> None:
    """Load the checkpoint if there is one.

    Raises:
        ValueError: If it belongs to other settings.
    """
    if not checkpoint.is_file():
        return
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    different = sorted(name for name in settings if saved["settings"].get(name) != settings[name])
    if different:
        raise ValueError(
            f"{checkpoint} was made with other {', '.join(different)}; give the same, or another --output."
        )
    training.load_state_dict(saved["training"])


def save_checkpoint(training: CodecTraining, checkpoint: Path, settings: dict[str, str]) -> None:
    """Write a checkpoint atomically."""
    partial = checkpoint.with_suffix(".partial")
    torch.save({"settings": settings, "training": training.state_dict()}, partial)
    os.replace(partial, checkpoint)


if __name__ == "__main__":
    main()
