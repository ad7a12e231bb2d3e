"""The command `mimi-bridge prepare`: its arguments, and what it says at the end."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .data.settings import COLUMNS, Settings

MOST_NAMED = 20  # recordings that were left out, on the screen


def add_prepare(commands: Any) -> None:
    """Add it to a parser's commands."""
    defaults = Settings(source="")
    prepare = commands.add_parser(
        "prepare",
        help="recordings and transcripts to a data set to train on",
        description="Make a data set of token states with their place in time and of speech features. A run that was "
        "killed goes on when the same command is given again; under torchrun or accelerate launch, the processes "
        "share the work.",
    )
    prepare.add_argument(
        "source", help="a folder of recordings (transcripts beside them in .txt or .lab), a manifest, or a data set"
    )
    prepare.add_argument("-o", "--output", required=True, help="folder to write; must not exist")
    source = prepare.add_argument_group("of a data set of `datasets`")
    source.add_argument("--split", help="default: train")
    for what in COLUMNS:
        source.add_argument(f"--{what}-column", metavar="NAME", help=f"which holds its {what}; default: a usual name")
    text = prepare.add_argument_group("the language model")
    text.add_argument("--text-teacher", default=defaults.text_teacher, help="or 'none' (default: %(default)s)")
    text.add_argument("--text-layer", type=int, metavar="N", help="0 are the embeddings; default: the last")
    text.add_argument("--no-final-norm", action="store_true", help="of the last layer, take what enters its norm")
    speech = prepare.add_argument_group("the speech model")
    speech.add_argument("--speech-teacher", default=defaults.speech_teacher, help="or 'none' (default: %(default)s)")
    speech.add_argument("--speech-layer", metavar="N", help="or 'mean'; default: the model's output")
    aligning = prepare.add_argument_group("words in time")
    aligning.add_argument(
        "--aligner",
        default=defaults.aligner,
        help="of what comes without an alignment: 'pocketsphinx' (English, offline), a CTC model of transformers, or "
        "'given' for none (default: %(default)s)",
    )
    aligning.add_argument("--realign", action="store_true", help="align even what comes with an alignment")
    prepare.add_argument("--latents", metavar="MODEL", help="store this converted model's latents, too")
    prepare.add_argument("--samples", action="store_true", help="store audio (16 bits, 24 kHz), not paths")
    prepare.add_argument("--max-seconds", type=float, default=defaults.max_seconds, help="(default: %(default)g)")
    prepare.add_argument("--num-proc", type=_positive, default=1, metavar="N", help="processes (default: 1)")
    prepare.add_argument("--recordings-per-shard", type=_positive, default=defaults.recordings_per_shard, metavar="N")
    prepare.add_argument("--device", help="default: a GPU if there is one")
    prepare.add_argument("--dtype", default=defaults.dtype, help="that teachers compute in (default: %(default)s)")
    prepare.set_defaults(run=_prepare)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def needs_datasets() -> None:
    """Raise ModuleNotFoundError, with what to do, if `datasets` is not installed."""
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data sets need the package datasets; run pip install 'mimi-bridge[train]'."
        ) from error


def _prepare(options: argparse.Namespace) -> None:
    needs_datasets()
    from .data.preparation import prepare

    layer = options.speech_layer
    settings = Settings(
        source=options.source,
        split=options.split,
        columns={what: name for what in COLUMNS if (name := getattr(options, f"{what}_column")) is not None},
        text_teacher=None if options.text_teacher == "none" else options.text_teacher,
        text_layer=options.text_layer,
        final_norm=not options.no_final_norm,
        speech_teacher=None if options.speech_teacher == "none" else options.speech_teacher,
        speech_layer=int(layer) if layer is not None and layer.lstrip("-").isdigit() else layer,
        aligner=options.aligner,
        realign=options.realign,
        latents_model=options.latents,
        samples=options.samples,
        dtype=options.dtype,
        max_seconds=options.max_seconds,
        recordings_per_shard=options.recordings_per_shard,
    )
    report = prepare(settings, Path(options.output), options.num_proc, options.device)
    if report is None:  # not the first process
        return
    for name, reason in report.dropped[:MOST_NAMED]:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if len(report.dropped) > MOST_NAMED:
        print(f"... and {len(report.dropped) - MOST_NAMED} more; report.json has all", file=sys.stderr)
    kept, left_out = report.num_recordings, len(report.dropped)
    print(f"{options.output}: {kept} recordings, {report.hours:.2f} hours; {left_out} left out")
