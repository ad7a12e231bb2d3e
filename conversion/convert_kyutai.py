#!/usr/bin/env python
"""Turn a released Mimi checkpoint into a Mimi Bridge model, and prove that nothing was lost.

    python conversion/convert_kyutai.py --source kyutai/mimi --output mimi-bridge

The result is written beside the output folder, loaded again, compared with its source on speech, and only then given
its name: a folder with that name is whole and proven. What fails leaves nothing behind.
"""

import argparse
import signal
import sys
import traceback
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers.utils import logging as transformers_logging

from conversion_report import summary
from converter import convert
from mimi_bridge.audio.folders import SPEECH_VARIABLE
from mimi_bridge.cli.places import let_names_be_printed, refuse_empty
from mimi_bridge.weights import SMALL_CODEC
from source import ConversionError, one_line


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    let_names_be_printed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a terminated run clears up, too
    report = None
    try:
        _refuse_empty(options)
        report = convert(
            options.source,
            Path(options.output),
            revision=options.revision,
            residual_weight=options.residual_weight,
            num_acoustic_codebooks=options.num_acoustic_codebooks,
            speech=options.speech,
            seed=options.seed,
            qwen_dim=options.qwen_dim,
            wavlm_dim=options.wavlm_dim,
            content_layers=options.content_layers,
            prosody_layers=options.prosody_layers,
            content_delay=options.content_delay,
            overwrite=options.overwrite,
        )
        print(summary(report, options.output))
        if options.push_to_hub:
            push(Path(options.output), options.push_to_hub)
    except ConversionError as error:
        if options.traceback:
            traceback.print_exc()
            return 1
        print(f"convert_kyutai: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        what = "nothing was written" if report is None else f"{options.output} is written and proven, but not uploaded"
        print(f"convert_kyutai: interrupted; {what}.", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="convert_kyutai.py",
        description="Turn a Mimi checkpoint into a Mimi Bridge model (content, prosody and acoustic heads) and prove "
        "that nothing was lost.",
        epilog=f"Speech for the proof: --speech, else ${SPEECH_VARIABLE}, else made on the spot by espeak-ng.",
    )
    parser.add_argument(
        "--source",
        default="kyutai/mimi",
        help="an id on the Hub, a folder in transformers' layout, a safetensors file in Kyutai's native layout, or "
        f"{SMALL_CODEC!r}: the small codec that comes with this package (default: %(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the source on the Hub")
    parser.add_argument("--output", required=True, help="folder to write; refused if it exists")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder, once the new one is proven"
    )
    parser.add_argument(
        "--residual-weight",
        type=float,
        default=0.0,
        metavar="λ",
        help="0: exactly Mimi (default); 1: the full residual chain from the start",
    )
    parser.add_argument(
        "--num-acoustic-codebooks",
        type=int,
        default=7,
        metavar="N",
        help="codebooks of the acoustic head (default: 7)",
    )
    parser.add_argument(
        "--qwen-dim",
        type=int,
        default=1536,
        metavar="N",
        help="size of the language model's hidden states (default: %(default)s, of Qwen2.5-1.5B)",
    )
    parser.add_argument(
        "--wavlm-dim",
        type=int,
        default=1024,
        metavar="N",
        help="size of the speech model's features (default: %(default)s, of WavLM-large)",
    )
    for head in ("content", "prosody"):
        parser.add_argument(
            f"--{head}-layers",
            type=int,
            default=0,
            metavar="N",
            help=f"causal layers of the {head} head's own, which change nothing until they are trained (default: 0)",
        )
    parser.add_argument(
        "--content-delay",
        type=int,
        default=0,
        metavar="FRAMES",
        help="content is to be taught what was said so many frames before, 80 ms each (default: 0)",
    )
    parser.add_argument("--speech", metavar="PATH", help="a recording, or a folder of them, for the proof")
    parser.add_argument("--seed", type=int, default=0, help="of the new content head (default: 0)")
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="upload the result to this repository on the Hub")
    parser.add_argument("--traceback", action="store_true", help="of an error, show where it was raised")
    return parser


def push(folder: Path, repo_id: str) -> None:
    """Upload a converted folder.

    Raises:
        ConversionError: If the Hub refuses or is out of reach; the folder stays.
    """
    print(f"uploading to {repo_id}", file=sys.stderr, flush=True)
    try:
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Mimi Bridge, converted and proven")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ConversionError(
            f"{folder} is written and proven, but could not be uploaded to {repo_id}: {one_line(error)} "
            "Log in with `hf auth login` and upload the folder again."
        ) from error


def _refuse_empty(options: argparse.Namespace) -> None:
    try:
        refuse_empty(options)
    except ValueError as error:
        raise ConversionError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
