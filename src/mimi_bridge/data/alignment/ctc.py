"""Forced alignment by any CTC model of transformers that hears samples and writes letters: wav2vec 2.0, HuBERT, WavLM.

The model says for each of its frames (20 ms) how likely each letter is; torchaudio finds the likeliest way of the text
through them. A word reaches from its first letter's first frame to its last letter's last. Such models write a letter
in one or two frames and leave the rest blank, so words come out a little short.

What the model has no letter for (digits, signs, other scripts) is matched by a wildcard that costs hardly more than
its best letter, so that it takes the speech between its neighbours and shifts nothing. What nobody says (emoji,
punctuation) is passed over. Needs the extra `ctc`.

Source: Kürzinger et al. 2020 (arXiv:2007.09127), alignment by CTC; the wildcard follows Pratap et al. 2023
(arXiv:2305.13516), section 3.1.5.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from ...audio.files import resample
from ..manifest import Span
from .tokens import APOSTROPHES, JOINERS, SIGNS
from .types import Alignment

WILDCARD_COST = 0.05  # a frame, in log probability: enough that silence beside it stays silence
MAX_CELLS = 2**30  # frames times places in the text: a byte each, and at 2**31 torchaudio's search crashes
MIN_LETTERS = 10  # of a vocabulary of letters; one of whole syllables or words has fewer


@dataclass(frozen=True)
class _Word:
    # As written, and its signs in the model's vocabulary; none if it is all wildcard.
    label: str
    signs: list[int]


class CtcAligner:
    """Aligns texts in the language of its model.

    Args:
        name: Of a CTC model on the Hub with a tokenizer of letters and a feature extractor, or its folder.
        device: Where the model runs; the search runs on the CPU.
        dtype: The model's number format, as in `from_pretrained`.
        window_seconds: Longer recordings are processed in windows of this length, which bounds the model's memory.
        context_seconds: What the model hears on both sides of a window, to be thrown away.

    Attributes:
        min_score: A guess: right texts have the log probability of a good model's frames, near 0; a model that knows
            nothing has minus the logarithm of its letters, about -3.5.

    Raises:
        ModuleNotFoundError: If torchaudio is not installed, or does not fit torch.
        OSError: If there is no such model.
        ValueError: If it does not hear samples, or does not write letters.
    """

    min_score = -1.5

    def __init__(
        self,
        name: str = "facebook/wav2vec2-base-960h",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "auto",
        window_seconds: float = 30.0,
        context_seconds: float = 3.0,
    ):
        try:
            from torchaudio.functional import forced_align, merge_tokens
        except (ImportError, OSError, RuntimeError) as error:  # the others: a build for another torch
            raise ModuleNotFoundError(
                "aligning by a CTC model needs torchaudio 2.11 beside torch 2.11 to 2.14, both built for CUDA; here "
                f"torch is {torch.__version__} ({error}); run pip install 'mimi-bridge[ctc]'."
            ) from error
        self._forced_align, self._merge_tokens = forced_align, merge_tokens
        self._model = AutoModelForCTC.from_pretrained(name, dtype=dtype).eval().to(device)
        self._extractor = AutoFeatureExtractor.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        config = self._model.config
        if not hasattr(config, "conv_stride") or getattr(config, "add_adapter", False):
            raise ValueError(f"{name} must hear samples, as wav2vec 2.0, HuBERT and WavLM do; take another CTC model.")
        self._rate: int = self._extractor.sampling_rate
        self._stride = math.prod(config.conv_stride)  # samples from one frame to the next
        strides = [math.prod(config.conv_stride[:layer]) for layer in range(len(config.conv_stride))]
        self._reach = 1 + sum((k - 1) * s for k, s in zip(config.conv_kernel, strides, strict=True))  # of one frame
        self._window = max(1, round(window_seconds * self._rate / self._stride))
        self._context = max(0, round(context_seconds * self._rate / self._stride))
        self._vocabulary = {
            sign: number for sign, number in tokenizer.get_vocab().items() if number < config.vocab_size
        }
        if sum(len(sign) == 1 and sign.isalpha() for sign in self._vocabulary) < MIN_LETTERS:
            raise ValueError(f"{name} must write single letters, but its signs are {list(self._vocabulary)[:8]}.")
        self._blank: int = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
        delimiters = (getattr(tokenizer, "word_delimiter_token", None), "|", " ")
        self._delimiter = next((self._vocabulary[sign] for sign in delimiters if sign in self._vocabulary), None)
        self._wildcard: int = config.vocab_size

    def align(self, audio: Tensor, sampling_rate: int, text: str) -> Alignment | None:
        """Lay a text over a recording; see `Aligner`.

        Words have the spelling of the text and end at its punctuation, also inside ("Mary-Ann" is two). A frame lasts
        as long as one is from the next, around the middle of what it hears. The score is the mean log probability of
        a frame on the way.
        """
        words = self._words(text)
        if not any(word.signs for word in words):
            raise ValueError(f"text must hold at least one letter that the model writes, got {text[:60]!r}.")
        samples = resample(audio[0].detach().cpu().float().numpy(), sampling_rate, self._rate)[0]
        log_probabilities = self._log_probabilities(samples)
        targets, owners = self._targets(words)
        repeated = sum(a == b for a, b in pairwise(targets))
        if len(targets) + repeated > len(log_probabilities):
            return None
        if len(log_probabilities) * (2 * len(targets) + 1) > MAX_CELLS:
            raise ValueError(
                f"a recording of {audio.shape[-1] / sampling_rate / 60:.0f} minutes with {len(targets)} letters is "
                "too long to be aligned at once (a quarter of an hour of common speech goes); divide it at pauses."
            )
        best = log_probabilities.max(dim=-1, keepdim=True).values
        emission = torch.cat([log_probabilities, best - WILDCARD_COST], dim=-1)
        way, scores = self._forced_align(emission[None], torch.tensor([targets]), blank=self._blank)
        found = self._merge_tokens(way[0], scores[0], blank=self._blank)
        frames: dict[int, tuple[int, int]] = {}  # of each run of words
        for run, sign in zip(owners, found, strict=True):
            if run is not None:
                frames[run] = (frames.get(run, (sign.start, 0))[0], sign.end)
        seconds = audio.shape[-1] / sampling_rate
        return Alignment(
            words=[
                span
                for run, together in enumerate(_runs(words))
                for span in _divided(together, *(self._edge(frame, seconds) for frame in frames[run]))
            ],
            score=float(scores.mean()),
        )

    def _edge(self, frame: int, seconds: float) -> float:
        # Where a frame begins. It hears `reach` samples, and the middle of these is its own.
        samples = frame * self._stride + (self._reach - self._stride) / 2
        return min(max(samples / self._rate, 0.0), seconds) if frame else 0.0

    def _words(self, text: str) -> list[_Word]:
        words = []
        for label in "".join(c if _is_said(c) or c in APOSTROPHES + JOINERS else " " for c in text).split():
            label = label.strip(APOSTROPHES + JOINERS)
            signs = self._signs(unicodedata.normalize("NFC", label))
            if signs:
                words.append(_Word(label, [] if set(signs) == {self._wildcard} else signs))
        return words

    def _signs(self, word: str) -> list[int]:
        signs: list[int] = []
        for character in word:
            known = self._known(character)
            if known:
                signs += known
            elif (character.isalnum() or character in SIGNS) and signs[-1:] != [self._wildcard]:
                signs.append(self._wildcard)
        return signs

    def _known(self, character: str) -> list[int]:
        # As the vocabulary writes it: in its case, divided from its accent, or without it.
        if character in APOSTROPHES:
            character = "'"
        parts = unicodedata.normalize("NFKD", character)
        for written in (character, parts, "".join(part for part in parts if not unicodedata.combining(part))):
            for spelled in (written, written.lower(), written.upper()):
                if spelled and all(sign in self._vocabulary for sign in spelled):
                    return [self._vocabulary[sign] for sign in spelled]
        return []

    def _targets(self, words: list[_Word]) -> tuple[list[int], list[int | None]]:
        # Signs in order, and the run of words that each belongs to; None for the delimiters.
        targets: list[int] = []
        owners: list[int | None] = []
        for run, together in enumerate(_runs(words)):
            if run and self._delimiter is not None:
                targets.append(self._delimiter)
                owners.append(None)
            signs = together[0].signs or [self._wildcard]
            targets += signs
            owners += [run] * len(signs)
        return targets, owners

    @torch.no_grad()
    def _log_probabilities(self, samples: Tensor) -> Tensor:
        # (samples,) at the model's rate to (frames, vocabulary) on the CPU.
        values = torch.as_tensor(self._extractor(samples.numpy(), sampling_rate=self._rate)["input_values"][0])
        num_frames = max(0, (len(values) - self._reach) // self._stride + 1)
        window = num_frames if num_frames <= self._window + 2 * self._context else self._window
        pieces = [torch.zeros(0, self._wildcard)]
        for first in range(0, num_frames, max(1, window)):
            last = min(first + window, num_frames)
            wider_first, wider_last = max(0, first - self._context), min(last + self._context, num_frames)
            crop = values[wider_first * self._stride : (wider_last - 1) * self._stride + self._reach]
            logits = self._model(crop[None].to(self._model.device, self._model.dtype)).logits[0]
            assert len(logits) == wider_last - wider_first
            kept = logits[first - wider_first : last - wider_first]
            pieces.append(kept.float().log_softmax(dim=-1).cpu())
        return torch.cat(pieces)


def _is_said(character: str) -> bool:
    return character.isalnum() or character in SIGNS or unicodedata.category(character)[0] == "M"


def _runs(words: Sequence[_Word]) -> list[list[_Word]]:
    # Neighbours that are all wildcard are one, since nothing tells where one ends; every other word is alone.
    runs: list[list[_Word]] = []
    for word in words:
        if runs and not word.signs and not runs[-1][0].signs:
            runs[-1].append(word)
        else:
            runs.append([word])
    return runs


def _divided(words: list[_Word], start: float, end: float) -> list[Span]:
    total, done, spans = sum(len(word.label) for word in words), 0, []
    for word in words:
        until = done + len(word.label)
        spans.append(Span(word.label, start + (end - start) * done / total, start + (end - start) * until / total))
        done = until
    return spans
