"""An evaluation as a page gets it: made speech, what whispering and noise make of it, and figures drawn by lot."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from mimi_bridge.audio.files import save_audio

RATE = 24_000
SYSTEMS = {
    "original": "original",
    "mimi_8": "stock Mimi, 8 codebooks",
    "bridge_9": "all 9 codebooks",
    "bridge_1": "content alone",
    "bridge_2": "content + prosody",
}
INPUTS = {
    "content": "content",
    "prosody": "prosody",
    "acoustic": "acoustic",
    "all": "all heads",
    "mimi_1": "Mimi, codebook 0",
}
ATTRIBUTES = {
    "phone": ("accuracy", 0.118, "phone of a frame, unseen speakers"),
    "word": ("accuracy", 0.047, "which of the 20 most common words, a frame, unseen speakers"),
    "pitch": ("r2", 0.0, "log F0 of voiced frames, unseen speakers"),
    "pitch_in_speaker": ("r2", 0.0, "log F0 less the speaker's mean, voiced frames, unseen speakers"),
    "speaker": ("accuracy", 0.167, "speaker of 2 s, other recordings of the same people"),
}
METRICS = {
    "mel": ("mel distance, nepers", False),
    "si_sdr": ("SI-SDR, dB", True),
    "stoi": ("STOI, 0 to 1", True),
    "f0_cents": ("F0 error, cents", False),
    "voicing_error": ("voicing error, share", False),
}
NOT_RUN = {
    "word_error": "no model was named; --asr names one.",
    "pesq": "the package pesq is missing.",
}


def write_made_evaluation(folder: Path, recordings: dict[str, Tensor]) -> dict:
    """Write `evaluation.json` and its sounds; `recordings`: text -> `(1, samples)` at 24 kHz. Returns the json."""
    generator = torch.Generator().manual_seed(0)

    def lot(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def statistic(low: float, high: float) -> dict:
        mean = lot(low, high)
        return {"mean": mean, "low": mean - lot(0.005, 0.03), "high": mean + lot(0.005, 0.03), "count": 48}

    evaluation = {
        "format": "mimi_bridge_evaluation/3",
        "model": "mimi-bridge",
        "reference": "small codec",
        "command": "mimi-bridge evaluate mimi-bridge made-speech --output evaluation",
        "num_recordings": 48,
        "num_speakers": 6,
        "seconds": 1234.5,
        "systems": [{"name": name, "label": label} for name, label in SYSTEMS.items()],
        "metrics": {name: {"what": what, "higher_is_better": better} for name, (what, better) in METRICS.items()},
        "reconstruction": {
            band: {
                system: {
                    "mel": statistic(0.4, 0.9),
                    "si_sdr": statistic(-5.0, 3.0) if system != "original" else None,
                    "stoi": statistic(0.55, 0.85),
                    "f0_cents": statistic(80.0, 400.0),
                    "voicing_error": statistic(0.05, 0.3) | {"count": 47 if system == "bridge_1" else 48},
                }
                for system in SYSTEMS
            }
            for band in ("full_band", "wideband")
        },
        "not_run": NOT_RUN,
        "codes": {
            "bridge": [
                _usage(lot, "content" if codebook == 0 else "prosody" if codebook == 1 else "acoustic", codebook)
                for codebook in range(9)
            ],
            "bits_per_second": {"content": lot(50, 120), "prosody": lot(50, 120), "acoustic": lot(500, 800)},
            "mimi": [_usage(lot, "mimi", codebook) for codebook in range(8)],
            "overlap_with_mimi": [None, *(lot(0.2, 1.0) for _ in range(8))],
        },
        "probes": {
            "attributes": {
                name: {"kind": kind, "chance": chance, "count": 14_321, "what": what}
                for name, (kind, chance, what) in ATTRIBUTES.items()
            },
            "inputs": [{"name": name, "label": label} for name, label in INPUTS.items()],
            "scores": {
                name: {
                    attribute: {
                        probe: {key: value for key, value in statistic(chance, 0.85).items() if key != "count"}
                        for probe in ("linear", "mlp")
                    }
                    for attribute, (_, chance, _) in ATTRIBUTES.items()
                }
                for name in INPUTS
            },
        },
        "swaps": [],
        "swap_summary": {"words_kept": statistic(0.6, 0.9), "f0_follows_voice": statistic(-0.2, 0.4)},
        "examples": [],
    }
    evaluation["probes"]["scores"]["content"]["speaker"]["linear"] = {"mean": 0.171, "low": 0.149, "high": 0.193}
    for number, (text, audio) in enumerate(recordings.items()):
        evaluation["examples"].append(_example(folder, f"made-{number:02d}", text, audio))
    for first, second in zip(evaluation["examples"], evaluation["examples"][1:], strict=False):
        evaluation["swaps"].append(
            {
                "content_of": first["id"],
                "voice_of": second["id"],
                "audio": first["audio"]["bridge_2"],
                "numbers": {"words_kept": 1.0, "f0_content_hz": lot(90, 200), "timbre_follows_voice": lot(0, 1)},
            }
        )
    save_evaluation(folder, evaluation)
    return evaluation


def save_evaluation(folder: Path, evaluation: dict) -> None:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def _usage(lot, head: str, codebook: int) -> dict:
    used = round(lot(300, 2_000))
    perplexity = lot(0.3, 0.9) * used
    return {
        "head": head,
        "codebook": codebook,
        "used": used,
        "size": 2_048,
        "perplexity": perplexity,
        "bits_per_second": 12.5 * math.log2(perplexity),
    }


def _example(folder: Path, name: str, text: str, audio: Tensor) -> dict:
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    sounds = {
        "original": audio,
        "mimi_8": audio + 0.004 * noise,
        "bridge_9": audio + 0.002 * noise,
        "bridge_2": 0.5 * audio + 0.5 * whispered(audio),
        "bridge_1": whispered(audio),
    }
    for system, sound in sounds.items():
        save_audio(folder / "audio" / f"{name}_{system}.wav", sound, RATE)
    num_frames = -(-audio.shape[-1] // 1_920)
    codes = torch.randint(2_048, (9, num_frames), generator=torch.Generator().manual_seed(1))
    codes[0] = codes[0, torch.arange(num_frames) // 3]  # words last longer than frames
    return {
        "id": name,
        "speaker": "en-us",
        "text": text,
        "seconds": audio.shape[-1] / RATE,
        "audio": {system: f"audio/{name}_{system}.wav" for system in sounds},
        "f0_hz": {system: pitch_track(sound[0]) for system, sound in sounds.items()},
        "codes": codes.tolist(),
    }


def whispered(audio: Tensor) -> Tensor:
    """The same spectrum with phases by lot, `(1, samples)`."""
    window = torch.hann_window(1_024)
    spectrum = torch.stft(audio[0], 1_024, 256, window=window, return_complex=True)
    phases = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(2)) * 2 * torch.pi
    return torch.istft(torch.polar(spectrum.abs(), phases), 1_024, 256, window=window, length=audio.shape[-1])[None]


def pitch_track(audio: Tensor) -> list[float | None]:
    """F0 in Hz every 10 ms by the highest peak of the autocorrelation, None where it is low."""
    windows = torch.nn.functional.pad(audio, (480, 480)).unfold(0, 960, 240) * torch.hann_window(960)
    correlation = torch.fft.irfft(torch.fft.rfft(windows, 2_048).abs().square())
    peak, lag = correlation[:, 60:400].max(dim=1)
    voiced = (peak > 0.45 * correlation[:, 0]) & (correlation[:, 0] > 0.02)
    return [RATE / (60 + int(at)) if real else None for at, real in zip(lag, voiced, strict=True)]
