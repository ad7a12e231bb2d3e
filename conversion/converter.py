"""A released Mimi checkpoint becomes a Mimi Bridge model, which is proven before it gets its name.

The result is written beside the output folder, loaded again, compared with its source on speech, and only then given
its name: a folder with that name is whole and proven. What fails leaves nothing behind.
"""

import json
import sys
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from conversion_report import REPORT_FILE, conversion_report
from mimi_bridge.audio.espeak import given_or_made_speech
from mimi_bridge.configuration_mimi_bridge import MAX_ACOUSTIC_CODEBOOKS
from mimi_bridge.paths import printable
from mimi_bridge.weights import SMALL_CODEC, small_codec
from model_card import model_card
from output_folder import OutputFolder
from proof import prove
from source import ConversionError, read_source
from transplant import transplant

PROOF_SECONDS = 24.0


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
    folder = OutputFolder(output)
    folder.clear_up_after_killed()
    folder.check(Path(source).expanduser(), overwrite)
    new = {"content_layers": content_layers, "prosody_layers": prosody_layers, "content_delay": content_delay}
    _check_numbers(residual_weight, num_acoustic_codebooks, seed, new)
    _step(1, f"reading {printable(source)}")
    found = read_source(source, revision)
    audio, speech_name = proof_speech(speech, found.config.sampling_rate)
    model = found.build()
    _step(2, "transplanting")
    result = transplant(found, residual_weight, num_acoustic_codebooks, seed, qwen_dim, wavlm_dim, **new)
    try:
        _step(3, f"writing beside {printable(folder.path)}")
        result.model.save_pretrained(folder.partial)
        found.feature_extractor.save_pretrained(folder.partial)
        _step(4, "proving: source and result on the same speech")
        proof = prove(model, folder.partial, audio, speech_name)
        if not proof["passed"]:
            raise ConversionError(f"the proof failed, so nothing was written: {'; '.join(proof['failures'])}.")
        report = conversion_report(found, result, proof)
        (folder.partial / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        (folder.partial / "README.md").write_text(model_card(report, folder.path.name))
        folder.give_name()
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{folder.path} could not be written: {error}") from error
    finally:
        folder.clear_up_partial()
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


def _check_numbers(residual_weight: float, num_acoustic_codebooks: int, seed: int, new: dict[str, int]) -> None:
    if not 0.0 <= residual_weight <= 1.0:
        raise ConversionError(f"--residual-weight must lie in [0, 1], got {residual_weight}; 0 is exactly Mimi.")
    if not 1 <= num_acoustic_codebooks <= MAX_ACOUSTIC_CODEBOOKS:
        raise ConversionError(
            f"--num-acoustic-codebooks must be 1 to {MAX_ACOUSTIC_CODEBOOKS}, got {num_acoustic_codebooks}."
        )
    if not 0 <= seed < 2**64:
        raise ConversionError(f"--seed must be 0 to {2**64 - 1}, got {seed}.")
    for name, number in new.items():
        if number < 0:
            raise ConversionError(f"--{name.replace('_', '-')} must be at least 0, got {number}; 0 is none.")


def _step(number: int, what: str) -> None:
    print(f"[{number}/4] {what}", file=sys.stderr, flush=True)
