"""The command `mimi-bridge evaluate`: measure a model on a folder of recordings."""

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..data.manifest import Utterance, list_recordings
from .numbers import score
from .places import folder_to_write

RESEMBLYZER = "resemblyzer"  # as in evaluation.listeners, which is slow to import
SECONDS_BETWEEN_LINES = 5.0


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model: reconstruction, codes, what each head carries, swaps",
        description="Measure a model on recordings beside the stock Mimi: reconstruction, codes, probes of what each "
        "head carries, and swapped heads. Prints tables; writes evaluation.json, audio and a page. "
        "docs/evaluation.md explains each number.",
    )
    parser.add_argument("model", help="folder that the conversion or the training wrote, or an id on the Hub")
    parser.add_argument("data", help="a folder of recordings, or a manifest (.jsonl, .csv, .tsv)")
    parser.add_argument(
        "-o", "--output", required=True, help="folder to write; an interrupted evaluation there is resumed"
    )
    parser.add_argument(
        "--reference",
        metavar="MIMI",
        help="the stock Mimi, a folder or an id (default: the source that the model's conversion report names)",
    )
    parser.add_argument(
        "--before", metavar="FOLDER", help="an earlier evaluation of the same recordings, to stand beside this one"
    )
    parser.add_argument("--asr", metavar="MODEL", help="a speech recognition model for the word error")
    parser.add_argument(
        "--speaker",
        nargs="?",
        const=RESEMBLYZER,
        metavar="MODEL",
        help="how alike voices are: a model of transformers with an x-vector (no name: the package resemblyzer)",
    )
    parser.add_argument(
        "--mos",
        nargs="*",
        metavar="NAME",
        help="naturalness: REPOSITORY and ENTRY of a model of torch.hub, such as UTMOS, whose code is run (without "
        "names: DNSMOS by the package speechmos)",
    )
    parser.add_argument(
        "--max-recordings", type=int, metavar="N", help="take N recordings only, of as many speakers as possible"
    )
    parser.add_argument("--speakers", nargs="+", metavar="NAME", help="these speakers only; patterns such as 'p2*'")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="metrics and parts: mel, stoi, ..., codes, probes, swaps"
    )
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="recordings to listen to (default: 3)")
    parser.add_argument("--swaps", type=int, default=4, metavar="N", help="pairs to swap heads of (default: 4)")
    parser.add_argument(
        "--min-score",
        type=score,
        metavar="X",
        help="reject alignments below it; 'none' accepts all (default: the aligner's own limit)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the probes (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from fnmatch import fnmatch

    from ..evaluation.evaluator import evaluate
    from ..evaluation.listeners import dnsmos, mos_predictor, recognizer, speaker_encoder
    from ..evaluation.result import RESULT_FILE, read_evaluation
    from ..evaluation.tables import markdown_tables
    from .loading import load_model

    for name in ("max_recordings", "examples", "swaps"):
        value = getattr(options, name)
        if value is not None and value < (1 if name == "max_recordings" else 0):
            raise ValueError(f"--{name.replace('_', '-')} must not be below {1 if name == 'max_recordings' else 0}.")
    if options.mos is not None and len(options.mos) not in (0, 2):
        given = f"{len(options.mos)}: {' '.join(options.mos)}"
        raise ValueError(f"--mos takes REPOSITORY and ENTRY, or nothing for DNSMOS, got {given}.")
    before = read_evaluation(Path(options.before) / RESULT_FILE) if options.before else None
    output = folder_to_write(options.output, source=options.data)
    listing = list_recordings(options.data)
    results = output.resolve()  # earlier ones may lie below the data: sounds that were decoded are no recordings
    utterances = [u for u in listing.utterances if results not in u.path.resolve().parents]
    if options.speakers:
        utterances = [u for u in utterances if any(fnmatch(u.speaker, pattern) for pattern in options.speakers)]
        if not utterances:
            raise ValueError(f"--speakers {' '.join(options.speakers)} names nobody in {options.data}.")
    if options.max_recordings:
        utterances = of_many_speakers(utterances, options.max_recordings)
    listeners = {}
    if options.asr:
        listeners["word_error"] = recognizer(options.asr, options.device)
    if options.speaker:
        listeners["speaker_similarity"] = speaker_encoder(options.speaker, options.device)
    if options.mos is not None:
        listeners["mos"] = mos_predictor(options.mos[0], options.mos[1], options.device) if options.mos else dnsmos()
    model = load_model(options.model, options.device)
    result = evaluate(
        model,
        utterances,
        output,
        model_name=options.model,
        reference=options.reference,
        before=before,
        only=options.only,
        listeners=listeners,
        num_examples=options.examples,
        num_swaps=options.swaps,
        min_score=options.min_score,
        seed=options.seed,
        left_out=listing.left_out,
        command=shlex.join(["mimi-bridge", *options.arguments]),
        progress=_printer(),
    )
    for title, key, what in (("left out", "left_out", "reason"), ("kept", "remarks", "remark")):
        for entry in result[key]:
            print(f"{title}: {entry['id']}: {entry[what]}", file=sys.stderr)
    print(markdown_tables(result))
    if result["num_recordings"] == 0:
        raise ValueError(f"none of the recordings of {options.data} can be read; see above.")
    print(f"\n{output / RESULT_FILE}")
    try:
        report = importlib.import_module("mimi_bridge.evaluation.report.page")
    except ModuleNotFoundError as error:
        print(f"no page: it needs the package {error.name}; run pip install 'mimi-bridge[eval]'.", file=sys.stderr)
        return
    print(report.write_report(output) or output / "report.html")


def of_many_speakers(utterances: list[Utterance], count: int) -> list[Utterance]:
    """Choose `count` recordings, in their order: the first of every speaker, then the second, and so on."""
    rank: dict[str, int] = {}
    rounds: dict[int, list[int]] = {}
    for number, utterance in enumerate(utterances):
        rank[utterance.speaker] = rank.get(utterance.speaker, -1) + 1
        rounds.setdefault(rank[utterance.speaker], []).append(number)
    chosen: list[int] = []
    for numbers in rounds.values():
        room = min(count - len(chosen), len(numbers))
        chosen += [numbers[place * len(numbers) // room] for place in range(room)]
    return [utterances[number] for number in sorted(chosen)]


def _printer() -> Callable[[str], None]:
    # A line every few seconds, not one for each of a thousand short recordings.
    last = 0.0

    def show(message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(message, file=sys.stderr, flush=True)

    return show
