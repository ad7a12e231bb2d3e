"""Results over all recordings, from the lines of the log: reconstruction, probes, swaps, examples."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from ..audio.files import save_audio
from .intervals import mean_with_interval
from .labels import FrameLabels
from .metrics import Metric
from .probe_matrix import ProbedRecording, probe_matrix
from .recordings import RecordingEvaluator, run_or_record_failure
from .swaps import (
    CodedSpeech,
    another_recording,
    chosen_pairs,
    decoded_swap,
    listener_numbers,
    swap_numbers,
    swap_summary,
)

AUDIO_FOLDER = "audio"
BANDS = ("full_band", "wideband")


def reconstruction_tables(entries: list[dict], evaluator: RecordingEvaluator) -> dict:
    """Band -> system -> metric -> mean and interval; `all` is both bands."""
    tables = {}
    bands = {band: [entry for entry in entries if entry["band"] == band] for band in BANDS} | {"all": entries}
    for band, chosen in bands.items():
        table: dict[str, dict] = {}
        for system in evaluator.systems.labels():
            table[system] = {}
            figures = [entry["figures"].get(system, {}) for entry in chosen]
            weights = [entry.get("weights", {}) for entry in chosen]
            for name in evaluator.metrics:
                found = [(f[name], w.get(name, 1.0)) for f, w in zip(figures, weights, strict=True) if name in f]
                if found:
                    table[system][name] = mean_with_interval(*map(list, zip(*found, strict=True)))
        if chosen:
            tables[band] = table
    return tables


def probed_heads(
    evaluator: RecordingEvaluator,
    entries: list[dict],
    codes: list[Tensor],
    stock_codes: list[Tensor | None],
    not_run: dict[str, str],
    seed: int,
    progress: Callable[[str], None],
) -> dict:
    """The probe matrix; attributes that could not be probed are added to `not_run`."""
    inputs = evaluator.systems.probe_inputs()
    recordings = [
        ProbedRecording(
            entry["speaker"], FrameLabels(**entry["labels"]), evaluator.systems.probe_features(ours, theirs)
        )
        for entry, ours, theirs in zip(entries, codes, stock_codes, strict=True)
    ]
    # A recording that the stock Mimi failed on has no features for its columns.
    whole = [recording for recording in recordings if set(recording.features) == set(inputs)]
    matrix, missing = probe_matrix(whole, inputs, evaluator.systems.model.config.frame_rate, seed, progress)
    reasons = {"phone": not_run.get("phones and words"), "word": not_run.get("phones and words")}
    for name, reason in missing.items():
        because = reasons.get(name) or (None if evaluator.with_pitch else "the package praat-parselmouth is missing.")
        not_run[f"probe: {name}"] = because or reason
    return matrix


def swapped_heads(
    evaluator: RecordingEvaluator,
    listeners: Mapping[str, Metric],
    entries: list[dict],
    folder: Path,
    count: int,
    not_run: dict[str, str],
) -> dict:
    """Swap the heads of pairs of recordings and write the audio; a swap that fails is named in `not_run`."""

    def mean_pitch(entry: dict) -> float | None:
        known = [value for value in entry["labels"]["pitch"] if value is not None]
        return mean(known) if known else None

    spoken = [entry for entry in entries if entry["text"]] or entries
    speakers = [entry["speaker"] for entry in spoken]
    pairs = chosen_pairs([(entry["speaker"], mean_pitch(entry)) for entry in spoken], count)
    if not pairs:
        not_run["swaps"] = "swapping needs recordings of 2 speakers or more."
    transcripts = [entry["text"] for entry in spoken if entry["text"]]
    swaps = []
    for content, voice in pairs:
        other = another_recording(speakers, voice)
        another = None if other is None else spoken[other]
        swap = partial(_swap, evaluator, listeners, spoken[content], spoken[voice], another, folder, transcripts)
        found = run_or_record_failure(not_run, "swaps", swap)
        swaps += [found] if found else []
    return {"swaps": swaps, "swap_summary": swap_summary([swap["numbers"] for swap in swaps])}


def _swap(
    evaluator: RecordingEvaluator,
    listeners: Mapping[str, Metric],
    content: dict,
    voice: dict,
    another: dict | None,
    folder: Path,
    transcripts: list[str],
) -> dict:
    systems, rate = evaluator.systems, evaluator.systems.model.config.sampling_rate
    name = f"bridge_{systems.total}"

    def coded(entry: dict) -> CodedSpeech:
        return CodedSpeech(torch.tensor(entry["codes"]), round(entry["seconds"] * rate), entry["text"])

    same_voice = None if another is None else coded(another)
    swap = decoded_swap(systems.model, coded(content), coded(voice), same_voice, partial(systems.decode, name))
    path = f"{AUDIO_FOLDER}/swap_{hashlib.sha256((content['id'] + voice['id']).encode()).hexdigest()[:8]}.wav"
    save_audio(folder / path, swap.swapped.audio, rate)
    numbers = swap_numbers(swap, evaluator.aligner, transcripts) | listener_numbers(listeners, swap)
    return {"content_of": content["id"], "voice_of": voice["id"], "audio": path, "numbers": numbers}


def example(entry: dict) -> dict:
    """The entry of a recording whose decoded audio was kept."""
    named = {name: entry[name] for name in ("id", "speaker", "text", "seconds")}
    return {**named, **entry["example"], "codes": entry["codes"]}
