"""The report of a conversion: what lies as `conversion_report.json` in the result, and what the user sees of it."""

import platform
from importlib.metadata import version

from source import Source
from transplant import Transplant

REPORT_FILE = "conversion_report.json"


def conversion_report(found: Source, result: Transplant, proof: dict) -> dict:
    """Source, sizes, proof, keys and versions of a result."""
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
