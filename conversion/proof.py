"""The proof that nothing was lost: source and result run on the same speech, and everything is compared, twice.

The *reference path* runs the operations of transformers' modules on both sides, on the CPU in float32, the quantizer's
among them and none of the fast path, so equal means equal to the bit. With λ = 0 the codes of the prosody and acoustic
heads must all equal the source's, and so must the waveforms. With any λ the prosody codes must, and the source's own
codes must decode to the source's own waveform.

The *default path* is what users run. It rounds in another order, so its rule says what rounding may do: a code that is
another one than the source's must be a tie, that is, in float64 the latent lies no further from the boundary between
the two entries than `TIE` of its length; and the source's own codes must decode to the source's waveform within
`SAME_SOUND` of its peak. How near either path comes to float64 is in the report, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, MimiModel

import mimi_bridge  # noqa: F401 (AutoModel learns the model type)
from exact import ExactSource
from source import ConversionError

MIN_CODES_IN_USE = 10  # a codebook that answers everything with a few codes makes any comparison equal
MIN_SECONDS = 2.0
TIE = 1e-5  # of a projected latent's length: ten times what float32's rounding in the encoder was seen to move it
SAME_SOUND = 1e-5  # of the waveform's peak


@torch.no_grad()
def prove(source: MimiModel, folder: Path, speech: Tensor, speech_name: str) -> dict:
    """Compare a source with the result that a folder holds.

    Args:
        source: transformers' own model of the source.
        folder: What was written; loaded here through `AutoModel`.
        speech: `(1, samples)` at the model's rate.
        speech_name: For the report.

    Returns:
        The figures, ready for json; `"passed"` says whether they prove the surgery, `"failures"` what does not.

    Raises:
        ConversionError: If the speech is too short to show anything.
    """
    seconds = speech.shape[-1] / source.config.sampling_rate
    if seconds < MIN_SECONDS:
        raise ConversionError(
            f"the proof needs at least {MIN_SECONDS} s of speech, got {seconds:.2f} s from {speech_name}; give "
            "--speech a longer recording."
        )
    result = AutoModel.from_pretrained(folder).eval()
    audio = torch.nn.functional.pad(speech, (0, -speech.shape[-1] % source.config.frame_size))[None]
    num_carried = result.config.num_quantizers - 1
    source_codes = source.encode(audio, num_quantizers=num_carried).audio_codes
    source_audio = source.decode(source_codes).audio_values
    default = _Run.of(result, audio, source_codes)
    result.use_fast_path = False
    reference = _Run.of(result, audio, source_codes)

    names = ["prosody"] + [f"acoustic {i}" for i in range(1, num_carried)]
    exact = ExactSource(source, num_carried)
    latents = exact.latents(audio)
    exact_codes, exact_audio = exact.encode(latents), exact.decode(source_codes[0])
    margins = exact.margins(latents, source_codes[0], default.codes[0, 1:])
    num_comparable = num_carried if result.config.residual_weight == 0 else 1  # else acoustic codes are of other input
    in_use = [len(codes.unique()) for codes in source_codes.unbind(dim=1)]
    figures = {
        "speech": speech_name,
        "seconds": round(seconds, 3),
        "frames": source_codes.shape[-1],
        "residual_weight": result.config.residual_weight,
        **reference.against(source_codes, source_audio, names),
        "codes_in_use": dict(zip(names, in_use, strict=True)),
        "content_codes_in_use": len(reference.codes[:, 0].unique()),
        "waveform_peak": source_audio.abs().max().item(),
        "default_path": {
            **default.against(source_codes, source_audio, names),
            "largest_margin": {
                name: max(margin.tolist(), default=0.0) for name, margin in zip(names, margins, strict=True)
            },
        },
        "float64": {
            name: {
                "codes_equal": (run.codes[0, 1:] == exact_codes)[:num_comparable].double().mean().item(),
                "waveform_max_abs_difference": _largest_difference(exact_audio, run.same_codes_audio.double()),
            }
            for name, run in (("reference_path", reference), ("default_path", default))
        },
    }
    figures["failures"] = _failures(figures)
    figures["passed"] = not figures["failures"]
    return figures


@dataclass(frozen=True)
class _Run:
    """What a model made of the speech: its codes, content first, their waveform, and that of the source's codes."""

    codes: Tensor
    audio: Tensor
    same_codes_audio: Tensor

    @classmethod
    def of(cls, model: Any, audio: Tensor, source_codes: Tensor) -> "_Run":
        codes = model.encode(audio).audio_codes
        carried = torch.cat([codes[:, :1], source_codes], dim=1)
        return cls(codes, model.decode(codes).audio_values, model.decode(carried).audio_values)

    def against(self, source_codes: Tensor, source_audio: Tensor, names: list[str]) -> dict:
        are_equal = source_codes == self.codes[:, 1:]
        return {
            "codes_equal": dict(zip(names, are_equal.double().mean(dim=(0, 2)).tolist(), strict=True)),
            "codes_differing": int((~are_equal).sum()),
            "codes_compared": are_equal.numel(),
            "waveform_max_abs_difference": _largest_difference(source_audio, self.audio),
            "waveform_max_abs_difference_same_codes": _largest_difference(source_audio, self.same_codes_audio),
        }


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _failures(figures: dict) -> list[str]:
    failures = []
    is_exact = figures["residual_weight"] == 0
    idle = {name: count for name, count in figures["codes_in_use"].items() if count < MIN_CODES_IN_USE}
    if idle:
        failures.append(
            f"codebooks of the source use too few codes on this speech to prove anything ({idle}, expected at least "
            f"{MIN_CODES_IN_USE} each); give --speech more of it, or check the checkpoint"
        )
    for name, share in figures["codes_equal"].items():
        if share < 1.0 and (is_exact or name == "prosody"):
            failures.append(f"{share:.4f} of the {name} codes equal the source's, expected 1.0")
    compared = ["waveform_max_abs_difference_same_codes"] + (["waveform_max_abs_difference"] if is_exact else [])
    for name in compared:
        if not figures[name] == 0.0:
            failures.append(f"{name} is {figures[name]:.3e}, expected 0.0")
    return failures + _failures_of_default_path(figures["default_path"], is_exact, figures["waveform_peak"])


def _failures_of_default_path(figures: dict, is_exact: bool, peak: float) -> list[str]:
    failures = [
        f"on the default path a code of {name} differs from the source's by more than rounding ({margin:.1e} of the "
        f"latent's length from a tie, expected at most {TIE:.0e})"
        for name, margin in figures["largest_margin"].items()
        if not margin <= TIE and (is_exact or name == "prosody")
    ]
    difference = figures["waveform_max_abs_difference_same_codes"]
    if not difference <= SAME_SOUND * peak:
        failures.append(
            f"on the default path the waveform of the source's codes differs by {difference:.3e}, expected at most "
            f"{SAME_SOUND:.0e} of the peak, {peak:.3g}"
        )
    return failures
