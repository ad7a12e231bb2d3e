"""The commands `mimi-bridge encode` and `decode`: a recording, or a folder of them, to codes and back."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..audio.files import load_audio, save_audio, written_format
from ..codes.distributed import DistributedContext
from ..codes.extractor import CodeExtractor, decode_codes
from ..codes.file import fingerprint, load_codes, save_codes
from ..codes.folder import CODES_SUFFIX, REPORT, FolderReport, decode_folder, encode_folder
from ..paths import printable
from .loading import add_model, load_model
from .numbers import positive
from .places import place_to_write

MAX_NAMED = 20  # files that failed, on the screen
DEFAULT_FORMAT = "wav"


def add_encode(commands: Any) -> None:
    """Add `encode` to a parser's commands."""
    encode = commands.add_parser(
        "encode",
        help="a recording, or a folder of them, to codes",
        description="Turn a recording (wav, flac, mp3, ogg, opus, ...; any rate, mono or stereo) into a codes file, "
        "or a folder of recordings into a folder of codes files. An interrupted folder is resumed by the same "
        "command; under torchrun or accelerate launch, the processes share the work.",
    )
    encode.add_argument("recording", help="the recording to read, or a folder of them")
    _add_common(encode, "codes file to write (.safetensors), or folder of them")
    encode.add_argument(
        "--num-quantizers", type=int, metavar="K", help="keep the first K codebooks only (default: all)"
    )
    folder = encode.add_argument_group("of a folder")
    folder.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="recordings of similar length encoded at once; worth it on a GPU, where rounding may then move a code "
        "(default: %(default)s)",
    )
    folder.add_argument(
        "--dataset", action="store_true", help="write one data set of `datasets` instead of a file a recording"
    )
    encode.set_defaults(run=_encode)


def add_decode(commands: Any) -> None:
    """Add `decode` to a parser's commands."""
    decode = commands.add_parser(
        "decode",
        help="codes to a recording, or a folder of them",
        description="Turn a codes file back into a recording, or a folder of codes files into a folder of recordings.",
    )
    decode.add_argument("codes", help="the codes file to read, or a folder of them")
    _add_common(decode, "recording to write (.wav, .flac, ...), or folder of them")
    decode.add_argument("--format", metavar="SUFFIX", help=f"of a folder's recordings (default: {DEFAULT_FORMAT})")
    decode.set_defaults(run=_decode)


def _add_common(parser: argparse.ArgumentParser, output_help: str) -> None:
    parser.add_argument("-o", "--output", required=True, help=output_help)
    add_model(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the output")


def _encode(options: argparse.Namespace) -> None:
    source, output = _places(options.recording, options)
    if source.is_dir():
        if options.dataset and options.overwrite:
            raise ValueError(f"--overwrite is not of --dataset; delete {output}, or choose another --output.")
        context = DistributedContext.of_environment(options.device)
        extractor = CodeExtractor(load_model(options.model, context.device), options.num_quantizers)
        if options.dataset:
            from ..codes.dataset import encode_to_dataset

            report = encode_to_dataset(extractor, source, output, context, batch_size=options.batch_size)
        else:
            report = encode_folder(
                extractor, source, output, context, batch_size=options.batch_size, overwrite=options.overwrite
            )
        # A data set that is finished is not written to any more; a folder is.
        remedy = "give another --output" if options.dataset else "give the same command again"
        _print(report, output, "recordings", remedy)
        return
    if options.dataset:
        raise ValueError(f"--dataset is of a folder of recordings; {source} is none.")
    if output.suffix != CODES_SUFFIX:  # `decode` of a folder would pass it by
        raise ValueError(f"the codes file must be called ...{CODES_SUFFIX}, got {printable(output)}.")
    extractor = CodeExtractor(load_model(options.model, options.device), options.num_quantizers)
    remarks: list[str] = []
    (codes,) = extractor.encode([load_audio(source, extractor.model.config.sampling_rate, remarks.append)])
    codes.remark = "; ".join(remarks) or None
    save_codes(output, codes)
    if codes.remark is not None:
        print(f"{source}: {codes.remark}", file=sys.stderr)
    codebooks, frames = codes.audio_codes.shape
    print(f"{output}: {codebooks} codebooks, {frames} frames, {codes.num_samples / codes.sampling_rate:.2f} s")


def _decode(options: argparse.Namespace) -> None:
    source, output = _places(options.codes, options)
    if source.is_dir():
        context = DistributedContext.of_environment(options.device)
        model = load_model(options.model, context.device)
        suffix = f".{(options.format or DEFAULT_FORMAT).removeprefix('.')}"
        report = decode_folder(model, source, output, context, suffix=suffix, overwrite=options.overwrite)
        _print(report, output, "codes files", "give the same command again")
        return
    if options.format is not None:
        raise ValueError(f"--format is of a folder of codes files; the format of {output} is that of its name.")
    written_format(output)
    codes = load_codes(source)
    model = load_model(options.model, options.device)
    try:
        audio = decode_codes(model, codes, fingerprint(model))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    save_audio(output, audio, codes.sampling_rate)
    print(f"{output}: {audio.shape[-1] / codes.sampling_rate:.2f} s at {codes.sampling_rate} Hz")


def _print(report: FolderReport | None, output: Path, what: str, remedy: str) -> None:
    if report is None:  # not the first process
        return
    for title, pairs in {"left out": report.failed, "kept": report.remarks}.items():
        for name, reason in pairs[:MAX_NAMED]:
            print(f"{title}: {name}: {reason}", file=sys.stderr)
        if len(pairs) > MAX_NAMED:
            print(f"... and {len(pairs) - MAX_NAMED} more {title}; {output / REPORT} has all", file=sys.stderr)
    kept = f", {report.kept} of them from before" if report.kept else ""
    print(f"{output}: {report.done + report.kept} {what}{kept}, {report.seconds / 3600:.2f} h")
    if report.failed:
        raise ValueError(
            f"{len(report.failed)} of the {what} were left out; {output / REPORT} names each with its reason; repair "
            f"them and {remedy}."
        )


def _places(name: str, options: argparse.Namespace) -> tuple[Path, Path]:
    # Where to read and where to write, if nothing that is there would be lost.
    source, output = Path(name), place_to_write(options.output)
    if not output.exists():
        return source, output
    if source.is_dir():
        if not output.is_dir():
            raise NotADirectoryError(f"{output} is a file, but a folder gives a folder; choose another --output.")
        return source, output
    if not output.is_file():
        raise ValueError(f"{output} is a folder or a device, but one file gives one file; choose another --output.")
    if source.exists() and output.samefile(source):
        raise ValueError(f"{output} is what is read itself; choose another --output.")
    if not options.overwrite:
        raise FileExistsError(f"{output} exists already; choose another --output, or pass --overwrite.")
    return source, output
