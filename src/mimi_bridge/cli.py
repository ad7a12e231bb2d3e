"""The command `mimi-bridge`: recordings to codes and back, data sets to latents, and a demonstration of it all."""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from . import MimiBridgeConfig, MimiBridgeModel, __version__
from .audio import SPEECH_VARIABLE, load_audio, save_audio
from .codes import Codes, fingerprint, load_codes, save_codes
from .embedded import SMALL_CODEC
from .evaluate_command import add_evaluate
from .prepare_command import add_prepare


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status. Errors are one sentence on standard error."""
    options = build_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        options.run(options)
    except (OSError, ValueError, ModuleNotFoundError, RuntimeError) as error:
        print(f"mimi-bridge: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mimi-bridge: interrupted.", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mimi-bridge", description="Speech to codes in three heads (content, prosody, acoustic), and back."
    )
    parser.add_argument("--version", action="version", version=f"mimi-bridge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="convert a Mimi, encode and decode speech, fine-tune, report",
        description="Convert a Mimi checkpoint, load the result, encode and decode speech, fine-tune it for a minute "
        "on speech that is made, and report what each head carries.",
    )
    demo.add_argument(
        "--source",
        default=SMALL_CODEC,
        help="a Mimi checkpoint: an id on the Hub (kyutai/mimi), a folder or a file (default: the small codec that "
        "comes with the package)",
    )
    demo.add_argument(
        "--speech", help=f"a recording or a folder of them (default: ${SPEECH_VARIABLE}, else made by espeak-ng)"
    )
    demo.add_argument("--no-training", action="store_true", help="stop after encoding and decoding")
    demo.add_argument("--output", default="demo", help="folder for everything it writes (default: %(default)s)")
    demo.set_defaults(run=_demo)

    encode = commands.add_parser(
        "encode",
        help="a recording to codes",
        description="Turn a recording (wav, flac, mp3, ogg; any rate, mono or stereo) into a codes file.",
    )
    encode.add_argument("recording", help="the recording to read")
    _add_common(encode, "codes file to write (.safetensors)")
    encode.add_argument(
        "--num-quantizers", type=int, metavar="K", help="keep the first K codebooks only (default: all)"
    )
    encode.set_defaults(run=_encode)

    decode = commands.add_parser(
        "decode", help="codes to a recording", description="Turn a codes file back into a recording."
    )
    decode.add_argument("codes", help="the codes file to read")
    _add_common(decode, "recording to write (.wav, .flac, ...)")
    decode.set_defaults(run=_decode)

    cache = commands.add_parser(
        "cache",
        help="a data set's latents, to train the heads without the codec",
        description="Run a data set through the encoder once: writes one with the latents, and with what the original "
        "Mimi's quantizer makes of them, in place of the audio.",
    )
    cache.add_argument("dataset", help="folder that `Dataset.save_to_disk` wrote")
    cache.add_argument("-o", "--output", required=True, help="folder to write; must not exist")
    _add_model(cache)
    cache.add_argument(
        "--dtype", default="float16", choices=["float16", "float32"], help="of what is stored (default: %(default)s)"
    )
    cache.set_defaults(run=_cache)
    add_evaluate(commands)
    add_prepare(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser, output_help: str) -> None:
    parser.add_argument("-o", "--output", required=True, help=output_help)
    _add_model(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True, help="folder that the conversion wrote, or an id on the Hub")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo  # needs the extra `demo`, which the other commands do without

    run_demo(Path(options.output), options.source, options.speech, training=not options.no_training)


@torch.inference_mode()
def _encode(options: argparse.Namespace) -> None:
    _refuse_existing(options)
    model = load_model(options.model, options.device)
    rate = model.config.sampling_rate
    audio = load_audio(options.recording, rate)
    audio_codes = model.encode(audio[None].to(options.device), num_quantizers=options.num_quantizers).audio_codes[0]
    save_codes(options.output, Codes(audio_codes, audio.shape[-1], rate, fingerprint(model)))
    codebooks, frames = audio_codes.shape
    print(f"{options.output}: {codebooks} codebooks, {frames} frames, {audio.shape[-1] / rate:.2f} s")


@torch.inference_mode()
def _decode(options: argparse.Namespace) -> None:
    _refuse_existing(options)
    codes = load_codes(options.codes)
    model = load_model(options.model, options.device)
    if fingerprint(model) != codes.codebooks_sha256:
        raise ValueError(
            f"{options.codes} was made with other codebooks than those of {options.model}; decode it with the model "
            "that encoded it."
        )
    audio = model.decode(codes.audio_codes[None].to(options.device)).audio_values[0, :, : codes.num_samples]
    save_audio(options.output, audio, codes.sampling_rate)
    print(f"{options.output}: {audio.shape[-1] / codes.sampling_rate:.2f} s at {codes.sampling_rate} Hz")


def _cache(options: argparse.Namespace) -> None:
    try:
        from datasets import load_from_disk
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data sets need the package datasets; run pip install 'mimi-bridge[train]'."
        ) from error
    from .data.latents import cache_latents

    dataset = load_from_disk(options.dataset)
    if not hasattr(dataset, "column_names") or isinstance(dataset.column_names, dict):
        raise ValueError(f"{options.dataset} holds several splits; give the folder of one of them.")
    model = load_model(options.model, options.device)
    num_frames = cache_latents(model, dataset, Path(options.output), options.device, options.dtype)
    print(f"{options.output}: {len(dataset)} recordings, {num_frames} frames")


def load_model(name: str, device: str = "cpu") -> MimiBridgeModel:
    """A Mimi Bridge model from a folder or the Hub, in eval mode.

    Raises:
        OSError: If there is none.
        ValueError: If it is another kind of model, a broken one, or the device is not there.
    """
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"no such model folder: {name}")
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, MimiBridgeConfig):
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, expected 'mimi_bridge'; convert a Mimi checkpoint with "
            "conversion/convert_kyutai.py."
        )
    try:
        return AutoModel.from_pretrained(name).eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} is not to be had here: {error}") from error


def _refuse_existing(options: argparse.Namespace) -> None:
    if Path(options.output).exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists already; choose another --output, or pass --overwrite.")


if __name__ == "__main__":
    sys.exit(main())
