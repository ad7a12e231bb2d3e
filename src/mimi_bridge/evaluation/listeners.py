"""Models that listen, where the user names one: speech recognition for the word error, a judge of naturalness.

No model comes with the package. `recognizer` takes any of the Hub or a folder for transformers' pipeline; `judge` any
repository of torch.hub whose model is called with `(batch, samples)` and a rate, as that of UTMOS, and gives a score.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

from .metrics import Metric, raised_by
from .sound import TELEPHONE_RATE, Sound


def recognizer(model: str, device: str = "cpu") -> Metric:
    """The word error of what a model hears in the decoded sound, against the transcript.

    Over recordings it is that of the corpus: all words to change, add or drop, over all words said.

    Args:
        model: For `transformers.pipeline("automatic-speech-recognition")`.
        device: Where it runs.

    Returns:
        A share of the transcript's words, 0 is best; None for a recording without transcript.

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
        audio = {"raw": decoded.telephone, "sampling_rate": TELEPHONE_RATE}
        with raised_by(model):
            heard = recognize(audio)["text"]
        return word_error(heard, original.text)

    def num_words(original: Sound) -> int:
        return len(spoken_words(original.text or ""))

    return Metric(measure, f"word error of {model}, share of all words", False, weight=num_words)


def judge(repository: str, entry: str, device: str = "cpu") -> Metric:
    """The score that a model of torch.hub gives the decoded sound. Its repository's code is run.

    Args:
        repository: `"owner/name:tag"` on GitHub, or a folder with a hubconf.py.
        entry: The model's name there.
        device: Where it runs.
    """
    source = "local" if Path(repository).is_dir() else "github"
    model = torch.hub.load(repository, entry, source=source, trust_repo=True).to(device).eval()

    @torch.inference_mode()
    def measure(decoded: Sound, original: Sound) -> float:
        audio = torch.from_numpy(decoded.telephone)[None].to(device)
        with raised_by(entry):
            return float(model(audio, TELEPHONE_RATE))

    return Metric(measure, f"score of {entry}", True)


def spoken_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'"))


def word_error(heard: str, said: str) -> float:
    """Words to change, add or drop, over words said.

    >>> word_error("the bat sat", "The cat sat down."), word_error("Hello!", "hello")
    (0.5, 0.0)
    """
    from torchmetrics.functional.text import word_error_rate

    ours, theirs = spoken_words(heard), spoken_words(said)
    share = word_error_rate([" ".join(ours)], [" ".join(theirs)]).item()
    return round(share * len(theirs)) / len(theirs)  # a whole number of words, and not nearly
