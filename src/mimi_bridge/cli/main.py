"""The command `mimi-bridge`: recordings to codes and back, data sets to latents, and a demonstration of it all."""

import argparse
import sys
import traceback

from transformers.utils import logging as transformers_logging

from .. import __version__
from ..audio.folders import SPEECH_VARIABLE
from ..paths import printable
from ..weights import SMALL_CODEC
from .encode import add_decode, add_encode
from .evaluate import add_evaluate
from .export import add_export
from .loading import add_model, load_model
from .places import folder_to_write, let_names_be_printed, refuse_empty
from .prepare import add_prepare
from .threads import fit_threads


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status. Errors are a sentence on standard error, or a traceback if asked for."""
    let_names_be_printed()
    options = build_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        refuse_empty(options)
        fit_threads()
        options.run(options)
    except (OSError, ValueError, ModuleNotFoundError, RuntimeError, MemoryError) as error:
        if options.traceback:
            traceback.print_exc()
            return 1
        hint = " (--traceback shows where)" if isinstance(error, RuntimeError) else ""
        print(f"mimi-bridge: error: {_sentence(error)}{hint}", file=sys.stderr)
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

    add_encode(commands)
    add_decode(commands)

    cache = commands.add_parser(
        "cache",
        help="a data set's latents, to train the heads without the codec",
        description="Run a data set through the encoder once: writes one with the latents, and with what the original "
        "Mimi's quantizer makes of them, in place of the audio.",
    )
    cache.add_argument("dataset", help="folder that `Dataset.save_to_disk` wrote")
    cache.add_argument("-o", "--output", required=True, help="folder to write; must not exist")
    add_model(cache)
    cache.add_argument(
        "--dtype", default="float16", choices=["float16", "float32"], help="of what is stored (default: %(default)s)"
    )
    cache.set_defaults(run=_cache)
    add_evaluate(commands)
    add_export(commands)
    add_prepare(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="of an error, show where it was raised")
    return parser


def _sentence(error: Exception) -> str:
    # The system's errors name their file first, as ours do.
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        where = "what is printed" if error.filename is None else printable(error.filename)
        return f"{where} cannot be read or written: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo  # needs the extra `demo`, which the other commands do without

    run_demo(folder_to_write(options.output), options.source, options.speech, training=not options.no_training)


def _cache(options: argparse.Namespace) -> None:
    try:
        from datasets import load_from_disk
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data sets need the package datasets; run pip install 'mimi-bridge[train]'."
        ) from error
    from ..data.latents import cache_latents

    output = folder_to_write(options.output, source=options.dataset)
    dataset = load_from_disk(options.dataset)
    if not hasattr(dataset, "column_names") or isinstance(dataset.column_names, dict):
        raise ValueError(f"{options.dataset} holds several splits; give the folder of one of them.")
    model = load_model(options.model, options.device)
    left_out: list[str] = []

    def leave_out(name: str, reason: str) -> None:
        left_out.append(name)
        print(f"left out: {name}: {reason}", file=sys.stderr)

    num_frames = cache_latents(model, dataset, output, options.device, options.dtype, leave_out)
    more = f"; {len(left_out)} left out" if left_out else ""
    print(f"{options.output}: {len(dataset) - len(left_out)} recordings, {num_frames} frames{more}")


if __name__ == "__main__":
    sys.exit(main())
