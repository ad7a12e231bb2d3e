"""The proof that nothing was lost: source and result run on the same speech, and everything is compared.

With λ = 0 the codes of the prosody and acoustic heads must all equal the source's, and the waveforms must be equal to
the bit. With any λ the prosody codes must, and the source's own codes must decode to the source's own waveform. Both
sides run the operations of transformers' modules on the CPU in float32, the quantizer's among them and none of the
fast path, so equal means equal.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, MimiModel

import mimi_bridge  # noqa: F401 (AutoModel learns the model type)
from source import ConversionError

MIN_CODES_IN_USE = 10  # a codebook that answers everything with a few codes makes any comparison equal
MIN_SECONDS = 2.0


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
    result.use_fast_path = False
    result.quantizer.like_transformers = True
    frame_size = source.config.frame_size
    audio = torch.nn.functional.pad(speech, (0, -speech.shape[-1] % frame_size))[None]
    num_carried = result.config.num_quantizers - 1

    source_codes = source.encode(audio, num_quantizers=num_carried).audio_codes
    result_codes = result.encode(audio).audio_codes
    source_audio = source.decode(source_codes).audio_values
    result_audio = result.decode(result_codes).audio_values
    carried_codes = torch.cat([result_codes[:, :1], source_codes], dim=1)
    same_codes_audio = result.decode(carried_codes).audio_values

    names = ["prosody"] + [f"acoustic {i}" for i in range(1, num_carried)]
    shares = (source_codes == result_codes[:, 1:]).double().mean(dim=(0, 2)).tolist()
    in_use = [len(codes.unique()) for codes in source_codes.unbind(dim=1)]
    figures = {
        "speech": speech_name,
        "seconds": round(seconds, 3),
        "frames": source_codes.shape[-1],
        "residual_weight": result.config.residual_weight,
        "codes_equal": dict(zip(names, shares, strict=True)),
        "codes_in_use": dict(zip(names, in_use, strict=True)),
        "content_codes_in_use": len(result_codes[:, 0].unique()),
        "waveform_max_abs_difference": (source_audio - result_audio).abs().max().item(),
        "waveform_max_abs_difference_same_codes": (source_audio - same_codes_audio).abs().max().item(),
        "waveform_peak": source_audio.abs().max().item(),
    }
    figures["failures"] = _failures(figures)
    figures["passed"] = not figures["failures"]
    return figures


def _failures(figures: dict) -> list[str]:
    failures = []
    exact = figures["residual_weight"] == 0
    idle = {name: count for name, count in figures["codes_in_use"].items() if count < MIN_CODES_IN_USE}
    if idle:
        failures.append(
            f"codebooks of the source use too few codes on this speech to prove anything ({idle}, expected at least "
            f"{MIN_CODES_IN_USE} each); give --speech more of it, or check the checkpoint"
        )
    for name, share in figures["codes_equal"].items():
        if share < 1.0 and (exact or name == "prosody"):
            failures.append(f"{share:.4f} of the {name} codes equal the source's, expected 1.0")
    compared = ["waveform_max_abs_difference_same_codes"] + (["waveform_max_abs_difference"] if exact else [])
    for name in compared:
        if not figures[name] == 0.0:
            failures.append(f"{name} is {figures[name]:.3e}, expected 0.0")
    return failures
