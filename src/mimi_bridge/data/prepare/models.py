"""The models that a row is computed by, as the settings name them."""

from importlib.util import find_spec

import torch
from transformers import AutoModel

from ...modeling_mimi_bridge import MimiBridgeModel
from ..alignment.types import Aligner
from ..latents import OriginalLatents
from ..named_models import loading
from ..settings import GIVEN, POCKETSPHINX, Settings
from ..teachers.speech import WavLMTeacher
from ..teachers.text import QwenTeacher, TextTokenizer
from .sources import Source


class Models:
    """The models of some settings; each is None where nothing needs it.

    Args:
        settings: What is wanted.
        source: Where recordings come from; it says whether there is anything to align.
        device: Where models run.

    Attributes:
        text: The text teacher; where no states are stored, its tokenizer alone.
        aligner: Places words in time.
        speech: The speech teacher.
        latents: The codec whose latents are stored.

    Raises:
        OSError: If a model is not available.
        ModuleNotFoundError: If pitch is wanted and praat-parselmouth is not installed.
        ValueError: If a setting fits nothing.
    """

    def __init__(self, settings: Settings, source: Source, device: str):
        self.text: QwenTeacher | TextTokenizer | None = None
        self.aligner: Aligner | None = None
        self.speech: WavLMTeacher | None = None
        self.latents: OriginalLatents | None = None
        if (text := settings.text_teacher) is not None:
            with loading(text):
                if settings.teachers == "stored":
                    self.text = QwenTeacher(
                        text, settings.text_layer, settings.final_norm, device=device, dtype=settings.dtype
                    )
                else:
                    self.text = TextTokenizer(text)
        if settings.has_words and settings.aligner != GIVEN and source.has_text_to_align(settings.realign):
            self.aligner = _aligner(settings.aligner, device)
        if (speech := settings.speech_teacher) is not None:
            with loading(speech):
                self.speech = WavLMTeacher(
                    speech,
                    settings.speech_layer,  # type: ignore[arg-type]  # the settings have checked that a text is "mean"
                    device=device,
                    dtype=settings.dtype,
                    max_seconds=settings.max_seconds + 1,
                )
        if settings.prosody and find_spec("parselmouth") is None:
            raise ModuleNotFoundError(
                "pitch needs the package praat-parselmouth; run pip install 'mimi-bridge[eval]', or leave prosody out."
            )
        if settings.latents_model is not None:
            with loading(settings.latents_model):
                model = AutoModel.from_pretrained(settings.latents_model, dtype=torch.float32)
            if not isinstance(model, MimiBridgeModel):
                raise ValueError(f"latents_model must be a Mimi Bridge model, got {type(model).__name__}.")
            self.latents = OriginalLatents(model, device)


def _aligner(name: str, device: str) -> Aligner:
    if name == POCKETSPHINX:
        from ..alignment.pocketsphinx import PocketsphinxAligner

        return PocketsphinxAligner()
    from ..alignment.ctc import CtcAligner

    with loading(name):
        return CtcAligner(name, device=device)
