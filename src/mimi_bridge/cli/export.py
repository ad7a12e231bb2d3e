"""The command `mimi-bridge export`: the encode and the decode step of a stream as programs that need no Python."""

import argparse
import contextlib
import io
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..atomic_files import growing_file, write_whole
from .loading import add_model, load_model
from .numbers import positive
from .places import folder_to_write

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
EXPORTERS = ("onnx", "onnxscript")  # packages that torch.onnx asks for
MAX_FRAMES = 125  # of a call: 10 s


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "export",
        help="the steps of a stream as programs for ONNX Runtime, or for torch without this package",
        description="Write encode and decode as programs of some frames a call, state in and state out, and "
        "export.json, which says their sizes. docs/streaming.md has a program of 30 lines that runs them.",
    )
    parser.add_argument("-o", "--output", required=True, help="folder to write; programs in it are replaced")
    parser.add_argument("--format", choices=[*SUFFIXES], default="onnx", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="rows, fixed (default: 1)")
    parser.add_argument("--frames", type=positive, default=1, metavar="N", help="of a call, fixed (default: 1)")
    parser.add_argument("--num-quantizers", type=int, metavar="N", help="the first so many codebooks only")
    add_model(parser)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    missing = [name for name in EXPORTERS if options.format == "onnx" and find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"--format onnx needs the packages {' and '.join(missing)}; run pip install 'mimi-bridge[onnx]'."
        )
    if options.frames > MAX_FRAMES:
        raise ValueError(f"--frames must be at most {MAX_FRAMES}, got {options.frames}; call the program again.")
    from ..runtime.export import export_decode_step, export_encode_step

    folder, suffix = folder_to_write(options.output), SUFFIXES[options.format]
    model = load_model(options.model, options.device)
    sizes = {
        "batch_size": options.batch_size,
        "num_quantizers": model.quantizer.check_num_quantizers(options.num_quantizers),
        "num_frames": options.frames,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in {"encode": export_encode_step, "decode": export_decode_step}.items():
        program, state = make(model, **sizes)
        with growing_file(folder / f"{name}{suffix}") as path:
            SAVERS[options.format](program, name, list(state), path)
        print(f"{folder / name}{suffix}: {(folder / f'{name}{suffix}').stat().st_size / 1e6:.1f} MB")
    config = model.config
    about = sizes | {"sampling_rate": config.sampling_rate, "frame_size": config.frame_size}
    write_whole(folder / "export.json", (json.dumps(about, indent=2) + "\n").encode())


def _save_onnx(program: ExportedProgram, name: str, state_names: list[str], path: Path) -> None:
    result = {"encode": "audio_codes", "decode": "audio_values"}[name]
    given = {"encode": "input_values", "decode": "audio_codes"}[name]
    names: dict[str, Any] = {
        "input_names": [given, *state_names],
        "output_names": [result, *(f"next_{state}" for state in state_names)],
    }
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # its progress
        warnings.simplefilter("ignore")
        exporter.setLevel(logging.ERROR)
        try:
            onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
            assert onnx_program is not None
            onnx_program.save(path)
        finally:
            exporter.setLevel(level)


def _save_torch(program: ExportedProgram, _name: str, _state_names: list[str], path: Path) -> None:
    with open(path, "wb") as file:  # by its name alone torch would want another suffix
        torch.export.save(program, file)


SAVERS = {"onnx": _save_onnx, "torch": _save_torch}
