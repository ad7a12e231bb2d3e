"""The README of a converted model: what it is, where it comes from, and the figures of its proof."""

from string import Template

from mimi_bridge.weights import SMALL_CODEC_LICENCE, small_codec

CARD = Template("""---
library_name: transformers
pipeline_tag: feature-extraction
license: cc-by-4.0
tags: [audio, speech, codec, mimi, mimi-bridge]
$base_model---

# Mimi Bridge, from $source

[Mimi](https://huggingface.co/kyutai/mimi) with its codes in three heads: content (codebook 0, new), prosody (codebook
1, Mimi's codebook 0) and acoustic (codebooks 2 to $last, Mimi's codebooks 1 to $carried). $frame_rate frames
a second of $sampling_rate Hz audio. Converted, not trained: the content head is new and silent until it is fine-tuned.
$levers
```python
import mimi_bridge  # or trust_remote_code=True below, without the package
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("$folder").eval()
extractor = AutoFeatureExtractor.from_pretrained("$folder")
inputs = extractor(audio, sampling_rate=$sampling_rate, return_tensors="pt")
codes = model.encode(**inputs).audio_codes  # (batch, $num_quantizers, frames)
audio_values = model.decode(codes).audio_values  # (batch, 1, samples)
```

## Proof of the conversion

$seconds s of speech ($speech), residual weight λ = $residual_weight. All figures: `conversion_report.json`.

| head | source codebook | codes equal to the source's | on the default path | codes in use |
|---|---|---|---|---|
$rows

Waveform against the source's: max |Δ| = $difference from end to end, $same_codes from the same codes (peak $peak).
$verdict

That is by the operations of transformers' modules. The default path, which `encode` and `decode` take, rounds in
another order: $num_differing of $num_compared codes differ there$why, and from the same codes the waveform differs by
at most $default_same_codes. In float64 the source gives $exact_reference of its own codes and $exact_default of the
default path's; its waveform lies $sound_reference from its own in float32 and $sound_default from the default path's.

Tensors: $moved moved, $derived derived, $fresh fresh, $left left behind. Source: $source, revision $revision, $layout
layout, sha256 $digests. Made with $versions.

## Licence

$licence The code is Apache-2.0.
""")
KYUTAI_LICENCE = """The weights are the source's: Kyutai's released Mimi is CC BY 4.0 (Kyutai, "Moshi: a speech-text
foundation model for real-time dialogue", arXiv:2410.00037). Check the licence of your source if it is another."""


def model_card(report: dict, folder_name: str) -> str:
    """Markdown with every figure taken from the report."""
    proof, source, config = report["proof"], report["source"], report["config"]
    default, exact_reference, exact_default = (
        proof["default_path"],
        proof["float64"]["reference_path"],
        proof["float64"]["default_path"],
    )
    rows = "\n".join(
        f"| {name} | {number} | {share:.4f} | {default['codes_equal'][name]:.4f} | {proof['codes_in_use'][name]} |"
        for number, (name, share) in enumerate(proof["codes_equal"].items())
    )
    exact = proof["residual_weight"] == 0
    return CARD.substitute(
        source=source["name"],
        base_model=f"base_model: {source['name']}\n" if source["revision"] else "",
        levers=_levers(config),
        folder=folder_name,
        last=config["num_quantizers"] - 1,
        carried=config["num_quantizers"] - 2,
        num_quantizers=config["num_quantizers"],
        frame_rate=config["frame_rate"],
        sampling_rate=config["sampling_rate"],
        seconds=proof["seconds"],
        speech=proof["speech"],
        residual_weight=proof["residual_weight"],
        rows=rows,
        difference=proof["waveform_max_abs_difference"],
        same_codes=proof["waveform_max_abs_difference_same_codes"],
        peak=f"{proof['waveform_peak']:.3f}",
        num_differing=default["codes_differing"],
        num_compared=default["codes_compared"],
        why=", where a latent lies on the boundary between two entries, up to rounding" if exact else "",
        default_same_codes=f"{default['waveform_max_abs_difference_same_codes']:.3g}",
        exact_reference=f"{exact_reference['codes_equal']:.6f}",
        exact_default=f"{exact_default['codes_equal']:.6f}",
        sound_reference=f"{exact_reference['waveform_max_abs_difference']:.3g}",
        sound_default=f"{exact_default['waveform_max_abs_difference']:.3g}",
        verdict="This model computes exactly what its source computes."
        if exact
        else "The acoustic codebooks are fed a residual that they were not trained for, so their codes differ.",
        moved=len(report["keys"]["moved"]),
        derived=len(report["keys"]["derived"]),
        fresh=len(report["keys"]["fresh"]),
        left=len(report["keys"]["left"]),
        revision=source["revision"] or "none (local)",
        layout=source["layout"],
        digests=", ".join(f"`{digest}` ({name})" for name, digest in source["sha256"].items()),
        licence=SMALL_CODEC_LICENCE if source["name"] == small_codec().name else KYUTAI_LICENCE,
        versions=", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    )


def _levers(config: dict) -> str:
    """What this model has beyond the specification, as a paragraph; nothing if it has nothing."""
    frames, frame_rate = config["content_delay"], config["frame_rate"]
    sentences = [
        f"The {head} head has {config[f'{head}_layers']} causal layer(s) of its own, which change nothing until they "
        "are trained."
        for head in ("content", "prosody")
        if config[f"{head}_layers"]
    ]
    if frames:
        sentences.append(
            f"`content_delay` is {frames} frame(s), {1000 * frames / frame_rate:g} ms: the content code at frame t is "
            f"to be taught what was said until frame t - {frames}, so read it so much later."
        )
    return "".join(f"\n{sentence}" for sentence in sentences) + "\n" * bool(sentences)
