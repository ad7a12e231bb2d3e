"""The command `mimi-bridge prepare`: its arguments and its summary."""

import argparse
import importlib.util
import sys
from typing import Any

from ..data.settings import AUDIO_CHOICES, COLUMNS, DTYPES, TEACHERS_CHOICES, Settings
from .numbers import positive, score
from .places import folder_to_write

MAX_NAMED = 20  # recordings, on the screen
MAX_TAGS = 5  # kinds of them
NEEDED = ("datasets", "accelerate")


def add_prepare(commands: Any) -> None:
    """Add it to a parser's commands."""
    defaults = Settings(source="")
    prepare = commands.add_parser(
        "prepare",
        help="recordings and transcripts to a data set to train on",
        description="Make a data set of token states with their place in time and of speech features. An interrupted "
        "run is resumed by the same command; under torchrun or accelerate launch, the processes share the work.",
    )
    prepare.add_argument(
        "source", help="a folder of recordings (transcripts beside them in .txt or .lab), a manifest, or a data set"
    )
    prepare.add_argument("-o", "--output", required=True, help="folder to write")
    prepare.add_argument(
        "--allow-outside", action="store_true", help="take what a manifest names outside its own folder"
    )
    source = prepare.add_argument_group("of a data set of `datasets`")
    source.add_argument("--config", metavar="NAME", help="of a data set on the Hub that has several")
    source.add_argument("--split", help="default: train")
    source = prepare.add_argument_group("of a data set, or a manifest")
    for what in COLUMNS:
        source.add_argument(f"--{what}-column", metavar="NAME", help=f"which holds its {what}; default: a usual name")
    prepare.add_argument(
        "--teachers",
        default=defaults.teachers,
        choices=TEACHERS_CHOICES,
        help="'none' stores nothing that they compute, for training with teachers in the loop: tokens (by the text "
        "teacher's tokenizer), words and phones in time, beside the audio (default: %(default)s)",
    )
    text = prepare.add_argument_group("the language model")
    text.add_argument("--text-teacher", default=defaults.text_teacher, help="or 'none' (default: %(default)s)")
    text.add_argument("--text-layer", type=int, metavar="N", help="0 is the embeddings; default: the last")
    text.add_argument("--no-final-norm", action="store_true", help="take the last layer's states before its norm")
    speech = prepare.add_argument_group("the speech model")
    speech.add_argument("--speech-teacher", default=defaults.speech_teacher, help="or 'none' (default: %(default)s)")
    speech.add_argument("--speech-layer", metavar="N", help="or 'mean'; default: the model's output")
    aligning = prepare.add_argument_group("words in time")
    aligning.add_argument(
        "--aligner",
        default=defaults.aligner,
        help="for recordings without an alignment: 'pocketsphinx' (English, offline), a CTC model of transformers, or "
        "'given' for none (default: %(default)s)",
    )
    aligning.add_argument("--realign", action="store_true", help="align recordings that have an alignment, too")
    aligning.add_argument(
        "--min-score",
        type=score,
        metavar="X",
        help="reject alignments below it; 'none' accepts all; default: the aligner's own limit",
    )
    aligning.add_argument(
        "--require-tokens",
        action="store_true",
        help="leave out recordings without transcript, of a low score, or that cannot be aligned (default: they are "
        "kept without tokens, for their speech features, and listed)",
    )
    aligning.add_argument("--phones", action="store_true", help="align even where there is no language model")
    prepare.add_argument("--prosody", action="store_true", help="store pitch (by praat) and level of every 10 ms, too")
    prepare.add_argument("--latents", metavar="MODEL", help="store this converted model's latents, too")
    prepare.add_argument(
        "--audio",
        default=defaults.audio,
        choices=AUDIO_CHOICES,
        help="how it is stored: 'path'; 'samples', 16 bits at 24 kHz; 'none', beside latents; 'auto': paths for "
        "files, samples for a data set and for segments of files (default: %(default)s)",
    )
    prepare.add_argument(
        "--min-seconds", type=float, metavar="S", default=defaults.min_seconds, help="(default: %(default)g)"
    )
    prepare.add_argument(
        "--max-seconds", type=float, metavar="S", default=defaults.max_seconds, help="(default: %(default)g)"
    )
    prepare.add_argument("--num-proc", type=positive, default=1, metavar="N", help="processes (default: 1)")
    prepare.add_argument("--recordings-per-shard", type=positive, default=defaults.recordings_per_shard, metavar="N")
    prepare.add_argument("--device", help="default: a GPU if there is one")
    prepare.add_argument(
        "--dtype", default=defaults.dtype, choices=DTYPES, help="of the teachers' computation (default: %(default)s)"
    )
    prepare.set_defaults(run=_prepare)


def _raise_if_not_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"preparing data needs the package {missing[0]}; run pip install 'mimi-bridge[train,align]'."
        )


def _prepare(options: argparse.Namespace) -> None:
    _raise_if_not_installed()
    from ..data.prepare.run import prepare

    output = folder_to_write(options.output, source=options.source)
    layer = options.speech_layer
    settings = Settings(
        source=options.source,
        config=options.config,
        split=options.split,
        columns={what: name for what in COLUMNS if (name := getattr(options, f"{what}_column")) is not None},
        allow_outside=options.allow_outside,
        text_teacher=None if options.text_teacher == "none" else options.text_teacher,
        teachers=options.teachers,
        text_layer=options.text_layer,
        final_norm=not options.no_final_norm,
        speech_teacher=None if options.speech_teacher == "none" else options.speech_teacher,
        speech_layer=int(layer) if layer is not None and layer.lstrip("-").isdigit() else layer,
        aligner=options.aligner,
        realign=options.realign,
        min_score=options.min_score,
        require_tokens=options.require_tokens,
        latents_model=options.latents,
        phones=options.phones,
        prosody=options.prosody,
        audio=options.audio,
        dtype=options.dtype,
        min_seconds=options.min_seconds,
        max_seconds=options.max_seconds,
        recordings_per_shard=options.recordings_per_shard,
    )
    report = prepare(settings, output, options.num_proc, options.device)
    if report is None:  # not the first process
        return
    for title, pairs in {"left out": report.dropped, "kept": report.remarks}.items():
        for name, reason in pairs[:MAX_NAMED]:
            print(f"{title}: {name}: {reason}", file=sys.stderr)
        if len(pairs) > MAX_NAMED:
            print(f"... and {len(pairs) - MAX_NAMED} more {title}; report.json has all", file=sys.stderr)
    if report.tags:
        most = sorted(report.tags.items(), key=lambda pair: -pair[1])[:MAX_TAGS]
        named = ", ".join(f"{count} {tag}" for tag, count in most)
        print(f"taken out of the texts: {sum(report.tags.values())} tags ({named})", file=sys.stderr)
    with_tokens = "" if settings.text_teacher is None else f", {report.num_with_tokens} of them with tokens"
    print(
        f"{options.output}: {report.num_recordings} recordings{with_tokens}, {report.hours:.2f} hours; "
        f"{len(report.dropped)} left out"
    )
