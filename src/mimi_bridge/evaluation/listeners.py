"""Metrics by models that the user names: word error, similarity of voices, naturalness.

No model comes with the package. `recognizer` takes any speech recognizer for transformers' pipeline; `speaker_encoder`
any of transformers' models with an x-vector; `mos_predictor` any repository of torch.hub whose model takes `(batch,
samples)` and a rate, as UTMOS does, and returns a score. `RESEMBLYZER` and `SPEECHMOS` are packages that carry their
weights, so that they need no network.

Source: Wan et al. 2018 (arXiv:1710.10467), resemblyzer's encoder; Reddy et al. 2021 (arXiv:2010.15258), DNSMOS.
"""

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio.sound import WIDEBAND_RATE, Sound
from ..data.named_models import loading
from .metrics import Metric, raised_by

RESEMBLYZER, SPEECHMOS = "resemblyzer", "speechmos"
TOKENS_PER_SECOND, MORE_TOKENS, MAX_TOKENS = 10, 16, 440  # a recognizer may write: 2 or 3 times what is said
WHISPER, WHISPER_SECONDS = "seq2seq_whisper", 30  # transformers' name for it; what it hears at once
MIN_SPEECH_SECONDS = 0.5  # for the voice of a recording


def recognizer(model: str, device: str = "cpu") -> Metric:
    """Word error of a model's transcript of the decoded audio, against the true transcript.

    A model that writes token by token (Whisper) may write as many as the recording's length allows, since such models
    invent long texts for noise. One that knows several tasks is asked to transcribe: unasked, it may repeat one
    word. A Whisper hears more than 30 s by its timestamps.

    Over recordings it is the corpus word error rate: all substitutions, insertions and deletions over all words said.

    Args:
        model: For `transformers.pipeline("automatic-speech-recognition")`.
        device: Where it runs.

    Returns:
        A metric: a share of the transcript's words, 0 is best; None for a recording without transcript.

    Raises:
        ModuleNotFoundError: If torchmetrics, which counts, is not installed.
        FileNotFoundError, OSError, ValueError: If the model cannot be loaded.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(
            "the word error needs the package torchmetrics; run pip install 'mimi-bridge[eval]'."
        )
    from transformers import pipeline

    dtype = torch.float32 if device == "cpu" else "auto"  # half precision, as stored, is slow there
    with loading(model):
        recognize: Any = pipeline("automatic-speech-recognition", model=model, device=device, dtype=dtype)

    def measure(decoded: Sound, original: Sound) -> float | None:
        if original.text is None or not spoken_words(original.text):
            return None
        audio = {"raw": decoded.wideband, "sampling_rate": WIDEBAND_RATE}
        with raised_by(model):
            recognized = recognize(audio, **_writing(recognize, decoded))["text"]
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


def dnsmos() -> Metric:
    """Opinion of the decoded audio as DNSMOS predicts it (P.835's overall score, 1 to 5), by the package speechmos.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    if importlib.util.find_spec(SPEECHMOS) is None:
        raise ModuleNotFoundError("--mos needs the package speechmos; run pip install speechmos onnxruntime.")
    from speechmos import dnsmos as predictor

    def measure(decoded: Sound, original: Sound) -> float:
        samples = decoded.wideband / max(1.0, float(abs(decoded.wideband).max()))
        with raised_by(SPEECHMOS):
            return float(predictor.run(samples, WIDEBAND_RATE)["ovrl_mos"])

    return Metric(measure, "DNSMOS, overall, 1 to 5", True)


def speaker_encoder(model: str = RESEMBLYZER, device: str = "cpu") -> Metric:
    """Cosine similarity of the voices of the decoded audio and of the original.

    Args:
        model: `"resemblyzer"`, or a name for `AutoModelForAudioXVector`, such as microsoft/wavlm-base-plus-sv.
        device: Where it runs.

    Returns:
        A metric: 1 is the same voice; None for less than half a second.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError, OSError, ValueError: If the model cannot be loaded.
    """
    embed = _resemblyzer(device) if model == RESEMBLYZER else _x_vector(model, device)

    @torch.inference_mode()
    def measure(decoded: Sound, original: Sound) -> float | None:
        if min(decoded.wideband.shape[0], original.wideband.shape[0]) < MIN_SPEECH_SECONDS * WIDEBAND_RATE:
            return None
        with raised_by(model):
            voice, other = embed(decoded), embed(original)
        return torch.nn.functional.cosine_similarity(voice, other, dim=0).item()

    return Metric(measure, f"similarity of the voice by {model}, cosine", True)


def _resemblyzer(device: str) -> Callable[[Sound], Tensor]:
    if importlib.util.find_spec(RESEMBLYZER) is None:
        raise ModuleNotFoundError(
            "--speaker needs the package resemblyzer, or the name of a model; run pip install resemblyzer, which "
            "needs a C compiler, or name one of transformers' models with an x-vector."
        )
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder(device, verbose=False)
    return lambda sound: torch.from_numpy(encoder.embed_utterance(sound.wideband))


def _x_vector(model: str, device: str) -> Callable[[Sound], Tensor]:
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    with loading(model):
        extractor = AutoFeatureExtractor.from_pretrained(model)
        encoder = AutoModelForAudioXVector.from_pretrained(model, dtype=torch.float32).to(device).eval()

    def embed(sound: Sound) -> Tensor:
        inputs = extractor(sound.wideband, sampling_rate=WIDEBAND_RATE, return_tensors="pt").to(device)
        return encoder(**inputs).embeddings[0].float().cpu()

    return embed


def _writing(recognize: Any, sound: Sound) -> dict[str, Any]:
    writer = getattr(recognize, "model", None)
    if writer is None or not writer.can_generate():
        return {}
    num_tokens = math.ceil(sound.audio.shape[-1] / sound.sampling_rate * TOKENS_PER_SECOND) + MORE_TOKENS
    asked: dict[str, Any] = {"max_new_tokens": min(num_tokens, MAX_TOKENS)}
    if getattr(writer.generation_config, "is_multilingual", False):
        asked["task"] = "transcribe"
    is_long = len(sound.wideband) > WHISPER_SECONDS * WIDEBAND_RATE
    timestamps = {"return_timestamps": True} if recognize.type == WHISPER and is_long else {}
    return {"generate_kwargs": asked, **timestamps}


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
