#!/usr/bin/env python
"""Turn a released Mimi checkpoint into a Mimi Bridge model, and prove that nothing was lost.

    python conversion/convert_kyutai.py --source kyutai/mimi --output mimi-bridge

The result is written beside the output folder, loaded again, compared with its source on speech, and only then given
its name: a folder with that name is whole and proven. What fails leaves nothing behind.
"""

import argparse
import json
import platform
import shutil
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from mimi_bridge.audio.espeak import given_or_made_speech
from mimi_bridge.audio.files import SPEECH_VARIABLE
from mimi_bridge.cli.places import folder_to_write, refuse_empty
from mimi_bridge.configuration_mimi_bridge import MAX_ACOUSTIC_CODEBOOKS
from mimi_bridge.weights import SMALL_CODEC, small_codec
from model_card import model_card
from proof import prove
from source import ConversionError, Source, one_line, read_source
from transplant import Transplant, transplant

REPORT_FILE = "conversion_report.json"
PROOF_SECONDS = 24.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
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


def convert(
    source: str,
    output: Path,
    *,
    revision: str | None = None,
    residual_weight: float = 0.0,
    num_acoustic_codebooks: int = 7,
    speech: str | None = None,
    seed: int = 0,
    qwen_dim: int = 1536,
    wavlm_dim: int = 1024,
    content_layers: int = 0,
    prosody_layers: int = 0,
    content_delay: int = 0,
    overwrite: bool = False,
) -> dict:
    """Convert, prove and write; see the command's help for the arguments.

    Returns:
        The report that was written as `conversion_report.json`.

    Raises:
        ConversionError: With one sentence for the user; the output folder is then as it was before.
    """
    if source == SMALL_CODEC and not Path(source).exists():
        source = str(small_codec())
    output = output.absolute()
    _clear_up_after_killed(output)
    _check_output(output, Path(source).expanduser(), overwrite)
    new = {"content_layers": content_layers, "prosody_layers": prosody_layers, "content_delay": content_delay}
    _check_numbers(residual_weight, num_acoustic_codebooks, new)
    _step(1, f"reading {source}")
    found = read_source(source, revision)
    audio, speech_name = proof_speech(speech, found.config.sampling_rate)
    model = found.build()
    _step(2, "transplanting")
    result = transplant(found, residual_weight, num_acoustic_codebooks, seed, qwen_dim, wavlm_dim, **new)
    partial = _partial(output)
    try:
        _step(3, f"writing beside {output}")
        result.model.save_pretrained(partial)
        found.feature_extractor.save_pretrained(partial)
        _step(4, "proving: source and result on the same speech")
        proof = prove(model, partial, audio, speech_name)
        if not proof["passed"]:
            raise ConversionError(f"the proof failed, so nothing was written: {'; '.join(proof['failures'])}.")
        report = _report(found, result, proof)
        (partial / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        (partial / "README.md").write_text(model_card(report, output.name))
        _give_name(partial, output)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{output} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def proof_speech(path: str | None, sampling_rate: int) -> tuple[Tensor, str]:
    """Speech for the proof, `(1, samples)`, and what to call it.

    Raises:
        ConversionError: If the path holds none, or none can be made.
    """
    try:
        return given_or_made_speech(path, PROOF_SECONDS, sampling_rate)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise ConversionError(f"no speech for the proof: {error}") from error


def push(folder: Path, repo_id: str) -> None:
    """Upload a converted folder.

    Raises:
        ConversionError: If the Hub refuses or is out of reach; the folder stays.
    """
    _step(5, f"uploading to {repo_id}")
    try:
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Mimi Bridge, converted and proven")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ConversionError(
            f"{folder} is written and proven, but could not be uploaded to {repo_id}: {one_line(error)} "
            "Log in with `hf auth login` and upload the folder again."
        ) from error


def summary(report: dict, output: str) -> str:
    """What the user sees at the end."""
    proof, keys = report["proof"], report["keys"]
    default, exact = proof["default_path"], proof["float64"]
    lines = [f"{'codes equal':<12} {'reference path':>14} {'default path':>13} {'codes in use':>13}"]
    lines += [
        f"{name:<12} {share:>14.4f} {default['codes_equal'][name]:>13.4f} {proof['codes_in_use'][name]:>13}"
        for name, share in proof["codes_equal"].items()
    ]
    lines += [
        f"reference path: waveform max |Δ| {proof['waveform_max_abs_difference']:.3g} (from the same codes "
        f"{proof['waveform_max_abs_difference_same_codes']:.3g}), peak {proof['waveform_peak']:.3f}, "
        f"{proof['seconds']} s of speech, λ = {proof['residual_weight']:g}",
        f"default path: {default['codes_differing']} of {default['codes_compared']} codes differ, waveform from the "
        f"same codes max |Δ| {default['waveform_max_abs_difference_same_codes']:.3g}",
        *(
            f"float64 against the {name.replace('_', ' ')}: codes equal {near['codes_equal']:.6f}, waveform max |Δ| "
            f"{near['waveform_max_abs_difference']:.3g}"
            for name, near in exact.items()
        ),
        f"tensors: {len(keys['moved'])} moved, {len(keys['derived'])} derived, {len(keys['fresh'])} fresh, "
        f"{len(keys['left'])} left",
        f"wrote {output}",
    ]
    return "\n".join(lines)


def _refuse_empty(options: argparse.Namespace) -> None:
    try:
        refuse_empty(options)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    try:
        folder_to_write(str(output))
    except (OSError, ValueError) as error:
        raise ConversionError(str(error)) from error
    if not output.exists():
        return
    if source.exists() and output.samefile(source):
        raise ConversionError(f"{output} is the source itself; choose another --output.")
    if not overwrite:
        raise ConversionError(f"{output} exists already; choose another --output, or pass --overwrite to replace it.")
    if not (output / "config.json").is_file():
        raise ConversionError(
            f"{output} is no model folder, so --overwrite will not replace it; choose another --output."
        )


def _check_numbers(residual_weight: float, num_acoustic_codebooks: int, new: dict[str, int]) -> None:
    if not 0.0 <= residual_weight <= 1.0:
        raise ConversionError(f"--residual-weight must lie in [0, 1], got {residual_weight}; 0 is exactly Mimi.")
    if not 1 <= num_acoustic_codebooks <= MAX_ACOUSTIC_CODEBOOKS:
        raise ConversionError(
            f"--num-acoustic-codebooks must be 1 to {MAX_ACOUSTIC_CODEBOOKS}, got {num_acoustic_codebooks}."
        )
    for name, number in new.items():
        if number < 0:
            raise ConversionError(f"--{name.replace('_', '-')} must be at least 0, got {number}; 0 is none.")


def _report(found: Source, result: Transplant, proof: dict) -> dict:
    packages = ("mimi-bridge", "torch", "transformers", "vector-quantize-pytorch", "safetensors")
    config = result.model.config
    return {
        "source": {
            "name": found.name,
            "revision": found.revision,
            "layout": found.layout,
            "sha256": found.sha256,
        },
        "config": {
            "num_quantizers": config.num_quantizers,
            "frame_rate": config.frame_rate,
            "sampling_rate": config.sampling_rate,
            "content_layers": config.content_layers,
            "prosody_layers": config.prosody_layers,
            "content_delay": config.content_delay,
        },
        "proof": proof,
        "keys": {"moved": result.moved, "derived": result.derived, "fresh": result.fresh, "left": result.left},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _give_name(partial: Path, output: Path) -> None:
    replaced = _replaced(output)
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    try:
        partial.rename(output)
    finally:
        _restore_replaced(output)
    shutil.rmtree(replaced, ignore_errors=True)


def _clear_up_after_killed(output: Path) -> None:
    # What a killed conversion to the same output left: an unproven result; an old output without its name, or one
    # that a proven result has replaced.
    if _partial(output).exists():
        _say(f"found {_partial(output)}, which a killed conversion left unproven; removing it")
        shutil.rmtree(_partial(output), ignore_errors=True)
    if _replaced(output).exists():
        what = "removing it" if output.exists() else "giving it its name again"
        _say(f"found {_replaced(output)}, the old {output.name} that a killed conversion was to replace; {what}")
        if output.exists():
            shutil.rmtree(_replaced(output), ignore_errors=True)
    _restore_replaced(output)


def _restore_replaced(output: Path) -> None:
    """Give an old output its name back if the new one did not get it."""
    if _replaced(output).exists() and not output.exists():
        _replaced(output).rename(output)


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _replaced(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


def _step(number: int, what: str) -> None:
    _say(f"[{number}/4] {what}" if number <= 4 else what)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
