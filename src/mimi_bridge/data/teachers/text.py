"""A language model as a teacher: one vector a text token, and the characters that each token covers.

Texts share a forward pass, padded on the right and masked, and every text gets what it gets alone, within the error
of the model's number format. Which layer teaches is a choice; the last one is taken after the model's final norm, as
transformers gives it, or before, as its layers hand it on.

Source: the specification's `qwen_hidden`; the layer and the norm are not specified there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from .batching import batches_by_length
from .revision import of_revision

FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm")  # what transformers' models call it


@dataclass(frozen=True)
class TextStates:
    """What a language model makes of one text.

    Attributes:
        token_ids: The tokens; none for an empty text, unless the tokenizer adds some of its own.
        hidden: Their hidden states, `(tokens, dim)`, float32, on the CPU; `(tokens, 0)` of a tokenizer alone.
        offsets: First and last-plus-one character of each token; equal for tokens that the tokenizer adds. Where a
            byte-level tokenizer divides a character (emoji, rare letters) among several tokens, each of them covers
            the whole character; where it composes several characters to one (a letter and its accents), the tokens
            of that one cover them all. So every character but white space is covered, and starts never fall.
    """

    token_ids: list[int]
    hidden: Tensor
    offsets: list[tuple[int, int]]


class TextTokenizer:
    """The tokens of a language model, without the model.

    Args:
        name: Of a model on the Hub, or its folder.
        revision: On the Hub; None: the newest.

    Attributes:
        max_tokens: The longest text that the model takes, in tokens; None if there is no limit.

    Raises:
        OSError: If there is no such model.
        ValueError: If its tokenizer cannot tell which characters a token covers.
    """

    def __init__(self, name: str = "Qwen/Qwen2.5-1.5B", revision: str | None = None):
        self._tokenizer = AutoTokenizer.from_pretrained(name, **of_revision(revision))
        if not self._tokenizer.is_fast:
            raise ValueError(f"{name} has no fast tokenizer, which alone can tell the characters of a token.")
        config = AutoConfig.from_pretrained(name, **of_revision(revision)).get_text_config()
        limit = min(getattr(config, "max_position_embeddings", None) or math.inf, self._tokenizer.model_max_length)
        self.max_tokens: int | None = int(limit) if limit < 1e9 else None  # tokenizers say 1e30 for "none"
        self.padding: int = self._tokenizer.pad_token_id or 0

    def states(self, texts: Sequence[str]) -> list[TextStates]:
        """The tokens of each text; as `QwenTeacher.states`, without hidden states."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), return_offsets_mapping=True, split_special_tokens=True, verbose=False)
        token_ids: list[list[int]] = encoded["input_ids"]
        self._check_lengths(texts, token_ids)
        offsets = [_covering(*pair) for pair in zip(texts, encoded["offset_mapping"], strict=True)]
        return [
            TextStates(ids, torch.zeros(len(ids), 0), places) for ids, places in zip(token_ids, offsets, strict=True)
        ]

    def _check_lengths(self, texts: Sequence[str], token_ids: list[list[int]]) -> None:
        for row, ids in enumerate(token_ids):
            if self.max_tokens is not None and len(ids) > self.max_tokens:
                raise ValueError(
                    f"text {row} ({texts[row][:40]!r}...) has {len(ids)} tokens, but this model takes at most "
                    f"{self.max_tokens}; divide the recording and its text."
                )


class QwenTeacher:
    """A language model: Qwen, or any causal model or encoder of transformers with a fast tokenizer.

    Args:
        name: Of a model on the Hub, or its folder.
        layer: Whose states are taken: 0 are the embeddings, `num_layers` the last. None: the last.
        final_norm: The last layer's states after the model's final norm (True) or before it. It concerns no other
            layer: those are taken as they are.
        device: Where the model runs.
        dtype: Its number format, as in `from_pretrained`: `"auto"` is the checkpoint's own (bfloat16 for Qwen2.5), in
            which a batch and a text alone differ by its coarse rounding; `"float32"` makes them agree closely.
        batch_tokens: What a forward pass may hold, padding included; a longer text goes alone.
        revision: Of the model on the Hub; None: the newest.

    Attributes:
        dim: Size of the states.
        num_layers: Of the model.
        num_tokens: That it knows; an id is less.
        max_tokens: The longest text that it takes, in tokens; None if there is no limit.
        tokenizer: Its own.
        model: Of transformers; frozen, in eval mode.

    Raises:
        OSError: If there is no such model.
        ValueError: If its tokenizer cannot tell which characters a token covers, it has no such layer, or
            `final_norm` is False and its final norm is not to be found.
    """

    def __init__(
        self,
        name: str = "Qwen/Qwen2.5-1.5B",
        layer: int | None = None,
        final_norm: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "auto",
        batch_tokens: int = 8192,
        revision: str | None = None,
    ):
        self.tokenizer = TextTokenizer(name, revision)
        self.model = AutoModel.from_pretrained(name, dtype=dtype, **of_revision(revision)).eval().to(device)
        self.model.requires_grad_(False)
        config = self.model.config.get_text_config()
        self.model.config.use_cache = config.use_cache = False  # nothing is generated
        self.dim: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        if layer is not None and not 0 <= layer <= self.num_layers:
            raise ValueError(f"layer must be 0 (embeddings) to {self.num_layers} for {name}, got {layer}.")
        self._layer = None if layer == self.num_layers else layer
        self._norm = None if final_norm or self._layer is not None else _final_norm_of(self.model, name)
        self.num_tokens: int = config.vocab_size
        self.max_tokens = self.tokenizer.max_tokens
        self._batch_tokens = batch_tokens

    def states(self, texts: Sequence[str]) -> list[TextStates]:
        """What the model makes of each text, as if it were alone; in the order given.

        Args:
            texts: Any number, of any lengths; an empty one has no tokens. What looks like a special token
                (`<|endoftext|>`) is read as the characters that it is written in.

        Raises:
            ValueError: If a text is longer than the model takes; the message names its place in `texts`.
        """
        tokenized = self.tokenizer.states(texts)
        hidden = self.hidden([text.token_ids for text in tokenized])
        return [
            TextStates(text.token_ids, states.cpu(), text.offsets)
            for text, states in zip(tokenized, hidden, strict=True)
        ]

    def hidden(self, token_ids: Sequence[list[int]]) -> list[Tensor]:
        """The hidden states of each text's tokens, `(tokens, dim)`, float32, on the model's device."""
        found = [torch.zeros(0, self.dim, device=self.model.device) for _ in token_ids]
        filled = [row for row, ids in enumerate(token_ids) if ids]
        for batch in batches_by_length([len(token_ids[row]) for row in filled], self._batch_tokens):
            rows = [filled[place] for place in batch]
            together = self._forward([token_ids[row] for row in rows]).float()
            for row, states in zip(rows, together, strict=True):
                found[row] = states[: len(token_ids[row])].clone()
        return found

    @torch.no_grad()
    def _forward(self, token_ids: list[list[int]]) -> Tensor:
        # Rows of ids to (rows, longest, dim) on the device; what stands after a row's end means nothing.
        longest = max(len(ids) for ids in token_ids)
        input_ids = torch.tensor([ids + [self.tokenizer.padding] * (longest - len(ids)) for ids in token_ids])
        attention_mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids])
        inputs = {
            "input_ids": input_ids.to(self.model.device),
            "attention_mask": attention_mask.to(self.model.device),
        }
        if self._layer is not None:
            return self.model(**inputs, output_hidden_states=True).hidden_states[self._layer]
        if self._norm is None:
            return self.model(**inputs).last_hidden_state
        entered: list[Tensor] = []
        hook = self._norm.register_forward_pre_hook(lambda _, given: entered.append(given[0].clone()))
        try:
            self.model(**inputs)
        finally:
            hook.remove()
        return entered[-1]


def _final_norm_of(model: nn.Module, name: str) -> nn.Module:
    for owner in (model, getattr(model, "decoder", None), getattr(model, "language_model", None)):
        for attribute in FINAL_NORMS:
            if isinstance(found := getattr(owner, attribute, None), nn.Module):
                return found
    raise ValueError(f"{name} has no final norm by any of the names {', '.join(FINAL_NORMS)}; leave final_norm True.")


def _covering(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    # A normalizer that composes e and its accent to one letter leaves the accent to no token: it belongs to the e's.
    covered = {place for first, last in offsets for place in range(first, last)}
    extended = []
    for first, last in offsets:
        if last > first:
            while last < len(text) and last not in covered and not text[last].isspace():
                last += 1
        extended.append((first, last))
    return extended
