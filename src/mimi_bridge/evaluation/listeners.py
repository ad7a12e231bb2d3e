"""Models that listen, where the user names one: speech recognition for the word error, a judge of naturalness.

No model comes with the package. `recognizer` takes any of the Hub or a folder for transformers' pipeline; `judge` any
repository of torch.hub whose model is called with `(batch, samples)` and a rate, as that of UTMOS, and gives a score.
"""

import re
from pathlib import Path
from typing import Any

import torch

from .metrics import Metric
from .sound import TELEPHONE_RATE, Sound


def recognizer(model: str, device: str = "cpu") -> Metric:
    """The word error of what a model hears in the decoded sound, against the transcript.

    Args:
        model: For `transformers.pipeline("automatic-speech-recognition")`.
        device: Where it runs.

    Returns:
        A share of the transcript's words, 0 is best; None for a recording without transcript.
    """
    from transformers import pipeline

    recognize: Any = pipeline("automatic-speech-recognition", model=model, device=device)

    def measure(decoded: Sound, original: Sound) -> float | None:
        if original.text is None or not spoken_words(original.text):
            return None
        heard = recognize({"raw": decoded.telephone, "sampling_rate": TELEPHONE_RATE})["text"]
        return word_error(heard, original.text)

    return Metric(measure, f"word error of {model}, share", False)


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
        return float(model(torch.from_numpy(decoded.telephone)[None].to(device), TELEPHONE_RATE))

    return Metric(measure, f"score of {entry}", True)


def spoken_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'"))


def word_error(heard: str, said: str) -> float:
    """Words to change, add or drop, over words said.

    >>> word_error("the bat sat", "The cat sat down."), word_error("Hello!", "hello")
    (0.5, 0.0)
    """
    ours, theirs = spoken_words(heard), spoken_words(said)
    distances = list(range(len(theirs) + 1))
    for number, word in enumerate(ours, start=1):
        diagonal, distances[0] = distances[0], number
        for place, other in enumerate(theirs, start=1):
            diagonal, distances[place] = (
                distances[place],
                min(distances[place] + 1, distances[place - 1] + 1, diagonal + (word != other)),
            )
    return distances[-1] / len(theirs)
