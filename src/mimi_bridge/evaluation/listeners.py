"""Metrics by models that the user names: word error by a speech recognizer, naturalness by a MOS predictor.

No model comes with the package. `recognizer` takes any model of the Hub, or a folder, for transformers' pipeline;
`mos_predictor` any repository of torch.hub whose model takes `(batch, samples)` and a rate, as UTMOS does, and returns
a score.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

from ..audio.sound import WIDEBAND_RATE, Sound
from .metrics import Metric, raised_by


def recognizer(model: str, device: str = "cpu") -> Metric:
    """Word error of a model's transcript of the decoded audio, against the true transcript.

    Over recordings it is the corpus word error rate: all substitutions, insertions and deletions over all words said.

    Args:
        model: For `transformers.pipeline("automatic-speech-recognition")`.
        device: Where it runs.

    Returns:
        A metric: a share of the transcript's words, 0 is best; None for a recording without transcript.

    Raises:
        ModuleNotFoundError: If torchmetrics, which counts, is not installed.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(
            "the word error needs the package torchmetrics; run pip install 'mimi-bridge[eval]'."
        )
    from transformers import pipeline

    recognize: Any = pipeline("automatic-speech-recognition", model=model, device=device)

    def measure(decoded: Sound, original: Sound) -> float | None:
        if original.text is None or not spoken_words(original.text):
            return None
        audio = {"raw": decoded.wideband, "sampling_rate": WIDEBAND_RATE}
        with raised_by(model):
            recognized = recognize(audio)["text"]
        return word_error(recognized, original.text)

    def num_words(original: Sound) -> int:
        return len(spoken_words(original.text or ""))

    return Metric(measure, f"word error of {model}, share of all words", False, weight=num_words)


def mos_predictor(repository: str, entry: str, device: str = "cpu") -> Metric:
    """The score that a model of torch.hub predicts for the decoded audio. Its repository's code is run.

    Args:
        repository: `"owner/name:tag"` on GitHub, or a folder with a hubconf.py.
        entry: The model's name there.
        device: Where it runs.
    """
    source = "local" if Path(repository).is_dir() else "github"
    model = torch.hub.load(repository, entry, source=source, trust_repo=True).to(device).eval()

    @torch.inference_mode()
    def measure(decoded: Sound, original: Sound) -> float:
        audio = torch.from_numpy(decoded.wideband)[None].to(device)
        with raised_by(entry):
            return float(model(audio, WIDEBAND_RATE))

    return Metric(measure, f"score of {entry}", True)


def spoken_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'"))


def word_error(recognized: str, said: str) -> float:
    """Substitutions, insertions and deletions, over words said.

    >>> word_error("the bat sat", "The cat sat down."), word_error("Hello!", "hello")
    (0.5, 0.0)
    """
    from torchmetrics.functional.text import word_error_rate

    hypothesis, reference = spoken_words(recognized), spoken_words(said)
    share = word_error_rate([" ".join(hypothesis)], [" ".join(reference)]).item()
    return round(share * len(reference)) / len(reference)  # torchmetrics divides in float32: back to whole words
