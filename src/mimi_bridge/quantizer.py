"""The quantizer of Mimi Bridge: content, prosody and acoustic heads in a residual chain.

    q_c = content(x + context_c(x))
    q_p = prosody(x - sg(q_c) + context_p(x))
    q_a = acoustic(x - λ sg(q_c + q_p))
    q   = q_c + q_p + q_a                      what the decoder gets

`sg` stops gradients. λ = 1 is the specification's chain; λ = 0 with a silent content head is Mimi's parallel split, to
the bit. A head's context is nothing unless it has layers of its own, which see the latents of the frames up to now,
not what other heads took. Two linear bridges lead to the teachers: content to a language model's states, content +
prosody to a speech model's features.

Source: the specification's `CausalBridgeQuantizer`; Mimi's split quantizer is arXiv:2410.00037, section 3.3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import reduce
from operator import index
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .alignment_targets import align_tokens_to_frames, delay_targets, features_at_frames
from .configuration_mimi_bridge import LOSSES, LossWeights, MimiBridgeConfig, Setting
from .distillation import TeacherBridge, TeacherDistance
from .frames import RealFrames, check_tensor
from .heads import HeadContext, HeadOutput, QuantizerHead, contexts_of, with_context, without_autocast
from .outputs import CausalBridgeQuantizerOutput


class CausalBridgeQuantizer(nn.Module):
    """Three heads and two bridges; the defaults are the specification's, all but the first three are by name.

    Args:
        codec_dim: Size of the latents.
        qwen_dim: Size of the language model's states.
        wavlm_dim: Size of the speech model's features.
        num_acoustic_codebooks: Codebooks of the acoustic head; content and prosody have one each.
        codebook_size: Entries of a codebook.
        codebook_dim: Size of an entry.
        frame_rate: Frames a second (Hz), for token spans in seconds.
        residual_weight: λ in [0, 1], see the top of the file.
        content_delay: Frames by which content answers late; see `MimiBridgeConfig`.
        codebook_decay: Decay of the codebooks' moving averages, per training forward.
        loss_weights: Weight of each loss in the sum, by name: `commitment`, `codebook`, `qwen`, `wavlm`. Missing ones
            count 1.
        distances: Distance to each teacher, by name: `qwen`, `wavlm`; `"mse"` or `"cosine"`. Missing ones are `"mse"`.
        contexts: Causal layers of a head's own, by name: `content`, `prosody`; see `HeadContext`.

    Attributes:
        settings: The owner of λ, delay, decay, weights and distances, which may be changed at any time: the config of
            the model that the quantizer belongs to, or an object of its own; see `configuration_mimi_bridge`.

    Raises:
        ValueError: If one of the last five breaks a rule of `MimiBridgeConfig`, or has an unknown name.
    """

    residual_weight = Setting()
    content_delay = Setting()
    codebook_decay = Setting()

    def __init__(
        self,
        codec_dim: int = 512,
        qwen_dim: int = 1536,
        wavlm_dim: int = 1024,
        *,
        num_acoustic_codebooks: int = 7,
        codebook_size: int = 2048,
        codebook_dim: int = 256,
        frame_rate: float = 12.5,
        residual_weight: float = 1.0,
        content_delay: int = 0,
        codebook_decay: float = 0.99,
        loss_weights: dict[str, float] | None = None,
        distances: dict[str, str] | None = None,
        contexts: Mapping[str, HeadContext] | None = None,
    ):
        super().__init__()
        self.codec_dim = codec_dim
        self.codebook_size = codebook_size
        self.num_quantizers = 2 + num_acoustic_codebooks
        self.frame_rate = frame_rate
        distances = {"qwen": "mse", "wavlm": "mse", **(distances or {})}
        if set(distances) != {"qwen", "wavlm"}:
            raise ValueError(f"distances must give 'mse' or 'cosine' for qwen and wavlm, got {distances}.")

        contexts = contexts or {}
        if not set(contexts) <= {"content", "prosody"}:
            raise ValueError(f"contexts must be of content and prosody, got {', '.join(contexts)}.")

        sizes = (codec_dim, codebook_dim, codebook_size)
        self.head_content, self.head_prosody = (
            QuantizerHead(*sizes, num_codebooks=None, decay=codebook_decay, context=contexts.get(name))
            for name in ("content", "prosody")
        )
        self.acoustic_residual = QuantizerHead(*sizes, num_codebooks=num_acoustic_codebooks, decay=codebook_decay)
        self.proj_qwen = TeacherBridge(codec_dim, qwen_dim, "qwen_hidden", distances["qwen"])
        self.proj_wavlm = TeacherBridge(codec_dim, wavlm_dim, "wavlm_features", distances["wavlm"])
        self.take_settings(SimpleNamespace(**{f"{name}_distance": kind for name, kind in distances.items()}))
        self.residual_weight, self.codebook_decay = residual_weight, codebook_decay
        self.content_delay = content_delay
        self.loss_weights = {**dict.fromkeys(LOSSES, 1.0), **(loss_weights or {})}

    @property
    def heads(self) -> dict[str, QuantizerHead]:
        """The heads by name: content, prosody, acoustic."""
        return {"content": self.head_content, "prosody": self.head_prosody, "acoustic": self.acoustic_residual}

    @property
    def is_freshly_converted(self) -> bool:
        """Whether the content head is silent and no bridge knows its teacher: the other heads are the original Mimi's.

        Training beside a frozen content head and without teachers leaves no such mark.
        """
        return self.head_content.is_silent and not (self.proj_qwen.has_statistics or self.proj_wavlm.has_statistics)

    @property
    def loss_weights(self) -> LossWeights:
        """Weight of each loss in the sum, by name; those that are assigned replace those of their names."""
        return LossWeights(self.settings)

    @loss_weights.setter
    def loss_weights(self, weights: Mapping[str, float]) -> None:
        LossWeights(self.settings).update(weights)

    @classmethod
    def from_config(cls, config: MimiBridgeConfig) -> CausalBridgeQuantizer:
        """The quantizer that a model of this configuration has; the config owns its settings."""
        quantizer = cls(
            config.hidden_size,
            config.qwen_dim,
            config.wavlm_dim,
            num_acoustic_codebooks=config.num_acoustic_codebooks,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            frame_rate=config.frame_rate,
            codebook_decay=config.codebook_decay,
            contexts={name: HeadContext(config, number) for name, number in config.context_layers.items()},
        )
        quantizer.take_settings(config)
        return quantizer

    def forward(
        self,
        x: Tensor,
        qwen_hidden: Tensor | None = None,
        durations: Tensor | None = None,
        *,
        token_spans: Tensor | None = None,
        token_mask: Tensor | None = None,
        wavlm_features: Tensor | None = None,
        wavlm_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        return_loss: bool | None = None,
        return_dict: bool = True,
    ) -> CausalBridgeQuantizerOutput | tuple[Tensor, Tensor, Tensor]:
        """Quantize latents and, where there is something to learn from, say how far each head is from its goal.

        Example:
        ```python
        >>> import torch
        >>> from mimi_bridge import CausalBridgeQuantizer
        >>> quantizer = CausalBridgeQuantizer(32, codebook_size=64, codebook_dim=16).eval()
        >>> q, codes, loss = quantizer(torch.zeros(1, 5, 32), return_dict=False)
        >>> q.shape, codes.shape
        (torch.Size([1, 5, 32]), torch.Size([1, 9, 5]))

        ```

        In training mode the codebooks move. Masked frames touch no statistic, no loss and no code, whatever they hold.

        Args:
            x: Latents, `(batch, frames, codec_dim)`.
            qwen_hidden: Language-model states, `(batch, tokens, qwen_dim)`; needs `durations` or `token_spans`, which
                say when a token is spoken: content is taught it `content_delay` frames later.
            durations: Frames of each token, `(batch, tokens)`, integers, 0 for padding.
            token_spans: Start and end of each token in seconds, `(batch, tokens, 2)`, instead of `durations`.
            token_mask: True on tokens that are targets, `(batch, tokens)`; False on silence that takes time.
            wavlm_features: Speech-model features, `(batch, frames, wavlm_dim)`, or at 50 Hz, which are pooled.
            wavlm_mask: True on frames that have such features, `(batch, frames)`; all real ones do, if left out.
            frame_mask: True on real frames, `(batch, frames)`; all are, if left out.
            num_quantizers: Use the first so many codebooks only; in inference.
            return_loss: Whether to compute the losses; by default in training mode and wherever a teacher is given.
                True also gives the commitments in inference without a teacher; False gives no loss.
            return_dict: False gives the specification's triple alone, a tuple: quantized latents, codes, loss.

        Raises:
            ValueError: If shapes, durations or spans do not fit, each with the sample's number; or if codebooks are
                left out while training.
        """
        self._check_latents(x, frame_mask)
        num_quantizers = self.check_num_quantizers(num_quantizers)
        if self.training and num_quantizers < self.num_quantizers:
            raise ValueError(
                f"num_quantizers must be left out while training, got {num_quantizers}: every head learns. Call "
                "model.eval() first to use fewer codebooks."
            )
        if return_loss is None:
            return_loss = self.training or qwen_hidden is not None or wavlm_features is not None
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if frame_mask is None else frame_mask
        tokens = qwen_hidden, durations, token_spans, token_mask
        given = dict(zip(("qwen_hidden", "durations", "token_spans", "token_mask"), tokens, strict=True))
        for name, value in (given | {"wavlm_features": wavlm_features, "wavlm_mask": wavlm_mask}).items():
            if value is not None:
                check_tensor(value, name)
        frames = RealFrames(frame_mask)
        with without_autocast(x.device.type):
            targets = self._lay_out_teachers(real, tokens, wavlm_features, wavlm_mask, num_quantizers, return_loss)
            contexts = {
                name: frames.gather(context) for name, context in self.contexts(x, frame_mask, num_quantizers).items()
            }
            heads = self._run_heads(frames.gather(x), contexts, num_quantizers, with_commitment=return_loss)
            shares = {name: frames.scatter(head.quantized) for name, head in heads.items()}
            distances = self._distances(shares, targets)
        codes = torch.cat([head.codes for head in heads.values()], dim=1)
        losses = self._losses(heads, distances) if return_loss else {}
        weights = self.loss_weights
        weighted = [weights[name.partition("_")[0]] * loss for name, loss in losses.items()]
        output = CausalBridgeQuantizerOutput(
            quantized=reduce(torch.add, shares.values()),
            codes=frames.scatter(codes.transpose(1, 2)).transpose(1, 2).contiguous(),
            loss=reduce(torch.add, weighted, x.new_zeros((), dtype=torch.float32)),
            losses=losses,
            distances=distances,
            **shares,
        )
        return output if return_dict else output[:3]

    @torch.no_grad()
    def encode(self, latents: Tensor, frame_mask: Tensor | None = None, num_quantizers: int | None = None) -> Tensor:
        """Codes of latents, by direct lookup; no codebook moves, in training mode either.

        Args:
            latents: `(batch, frames, codec_dim)`.
            frame_mask: True on real frames, `(batch, frames)`.
            num_quantizers: Give the first so many codebooks only.

        Returns:
            `(batch, codebooks, frames)`, int64; 0 on masked frames.

        Raises:
            ValueError: If shapes do not fit, or there are not so many codebooks.
        """
        self._check_latents(latents, frame_mask)
        num_quantizers = self.check_num_quantizers(num_quantizers)
        if frame_mask is not None:
            if not torch.compiler.is_compiling() and not bool(frame_mask.any()):
                raise ValueError("frame_mask marks no frame as real; pass at least one.")
            latents = latents.masked_fill(~frame_mask[:, :, None], 0.0)
        contexts = self.contexts(latents, frame_mask, num_quantizers)
        codes = [self.head_content.encode(with_context(contexts, "content", latents))]
        if num_quantizers > 1:
            content = self.head_content.decode(codes[0])
            codes.append(self.head_prosody.encode(with_context(contexts, "prosody", latents - content)))
        if num_quantizers > 2:
            taken = self.residual_weight * (content + self.head_prosody.decode(codes[1]))
            codes.append(self.acoustic_residual.encode(latents - taken, num_quantizers - 2))
        together = torch.cat(codes, dim=1)
        return together if frame_mask is None else together.masked_fill(~frame_mask[:, None], 0)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents for the decoder from the first `codebooks` codebooks' codes.

        Args:
            codes: `(batch, codebooks, frames)`, integers in `[0, codebook_size)`; 1 to `num_quantizers` codebooks.

        Returns:
            `(batch, frames, codec_dim)`.

        Raises:
            ValueError: If the codes are not integers, out of range, or of a wrong shape.
        """
        self.check_codes(codes)
        total = self.head_content.decode(codes[:, :1])
        if codes.shape[1] > 1:
            total = total + self.head_prosody.decode(codes[:, 1:2])
        if codes.shape[1] > 2:
            total = total + self.acoustic_residual.decode(codes[:, 2:])
        return total

    def contexts(
        self, latents: Tensor, frame_mask: Tensor | None = None, num_quantizers: int | None = None
    ) -> dict[str, Tensor]:
        """`contexts_of` the heads that give the first so many codebooks."""
        heads = dict(list(self.heads.items())[: num_quantizers or self.num_quantizers])
        return contexts_of(heads, latents, frame_mask)

    @property
    def has_contexts(self) -> bool:
        """Whether a head has layers of its own, so that its codes depend on the frames before."""
        return any(head.context is not None for head in self.heads.values())

    def take_settings(self, settings: Any) -> None:
        """Let λ, delay, decay, weights and distances be those of another owner, such as the model's config."""
        self.settings = self.proj_qwen.settings = self.proj_wavlm.settings = settings

    def _run_heads(
        self, latents: Tensor, contexts: dict[str, Tensor], num_quantizers: int, with_commitment: bool
    ) -> dict[str, HeadOutput]:
        if self.training:
            for head in self.heads.values():
                head.decay = self.codebook_decay
        content = self.head_content(with_context(contexts, "content", latents), with_commitment=with_commitment)
        outputs = {"content": content}
        if num_quantizers > 1:
            residual = with_context(contexts, "prosody", latents - content.quantized.detach())
            outputs["prosody"] = prosody = self.head_prosody(residual, with_commitment=with_commitment)
        if num_quantizers > 2:
            residual = latents - self.residual_weight * (content.quantized + prosody.quantized).detach()
            outputs["acoustic"] = self.acoustic_residual(
                residual, num_codebooks=num_quantizers - 2, with_commitment=with_commitment
            )
        return outputs

    def _lay_out_teachers(
        self,
        frame_mask: Tensor,
        tokens: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        wavlm_features: Tensor | None,
        wavlm_mask: Tensor | None,
        num_quantizers: int,
        return_loss: bool,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        # Targets and where there are some, by teacher. Before the heads run: what is refused has moved no codebook.
        qwen_hidden, durations, token_spans, token_mask = tokens
        targets = {}
        if qwen_hidden is None and (durations is not None or token_spans is not None):
            raise ValueError(
                "durations and token_spans say where qwen_hidden belongs, but it was not given; pass it, too."
            )
        if qwen_hidden is not None and return_loss:
            self.proj_qwen.check(qwen_hidden)
            places = durations, token_spans, token_mask
            laid_out = align_tokens_to_frames(qwen_hidden, frame_mask, self.frame_rate, *places)
            targets["qwen"] = delay_targets(*laid_out, self.content_delay, frame_mask)
        if wavlm_features is not None and return_loss:
            self.proj_wavlm.check(wavlm_features)
            if num_quantizers < 2:
                raise ValueError("wavlm_features need the content and the prosody head; ask for 2 codebooks or more.")
            if wavlm_mask is not None and wavlm_mask.shape != frame_mask.shape:
                raise ValueError(
                    f"wavlm_mask must have one value for each of the {tuple(frame_mask.shape)} (batch, frames), got "
                    f"{tuple(wavlm_mask.shape)}."
                )
            targets["wavlm"] = features_at_frames(wavlm_features, frame_mask, wavlm_mask)
        return targets

    def _distances(
        self, shares: dict[str, Tensor], targets: dict[str, tuple[Tensor, Tensor]]
    ) -> dict[str, TeacherDistance]:
        distances = {}
        if "qwen" in targets:
            distances["qwen"] = self.proj_qwen.compare(shares["content"], *targets["qwen"])
        if "wavlm" in targets:
            distances["wavlm"] = self.proj_wavlm.compare(shares["content"] + shares["prosody"], *targets["wavlm"])
        return distances

    @staticmethod
    def _losses(heads: dict[str, HeadOutput], distances: dict[str, TeacherDistance]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for name, head in heads.items():
            losses |= {f"commitment_{name}": head.commitment} if head.commitment is not None else {}
            losses |= {f"codebook_{name}": head.codebook_loss} if head.codebook_loss is not None else {}
        return losses | {name: distance.loss for name, distance in distances.items()}

    def check_num_quantizers(self, num_quantizers: int | None) -> int:
        """So many codebooks, all of them if None; raise a `ValueError` if there are not so many."""
        if num_quantizers is None:
            return self.num_quantizers
        try:
            number = 0 if isinstance(num_quantizers, bool) else index(num_quantizers)
        except TypeError:  # a number with a fraction, a text
            number = 0
        if not 1 <= number <= self.num_quantizers:
            raise ValueError(
                f"num_quantizers must be 1 to {self.num_quantizers} for this model, got {num_quantizers!r}. Pass a "
                "whole number that is not higher, or load a checkpoint with more acoustic codebooks."
            )
        return number

    def _check_latents(self, latents: Tensor, frame_mask: Tensor | None) -> None:
        check_tensor(latents, "latents")
        if frame_mask is not None:
            check_tensor(frame_mask, "frame_mask")
        if latents.ndim != 3 or latents.shape[-1] != self.codec_dim:
            raise ValueError(
                f"latents must be (batch, frames, {self.codec_dim}), got {tuple(latents.shape)}; the encoder's own "
                "are channel-first and want a transpose(1, 2)."
            )
        if latents.numel() == 0:
            raise ValueError(f"latents must hold at least one frame, got shape {tuple(latents.shape)}.")
        if frame_mask is not None and (frame_mask.dtype != torch.bool or frame_mask.shape != latents.shape[:2]):
            raise ValueError(
                f"frame_mask must be bool of shape {tuple(latents.shape[:2])}, True on real frames, got "
                f"{frame_mask.dtype} of shape {tuple(frame_mask.shape)}."
            )

    def check_codes(self, codes: Tensor, name: str = "audio_codes") -> None:
        """Raise a `ValueError`, of what is no tensor a `TypeError`, if these are no codes that `decode` could take."""
        check_tensor(codes, name, "pass encode(...).audio_codes")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {codes.dtype}; pass what encode returned.")
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.num_quantizers:
            raise ValueError(
                f"{name} must be (batch, codebooks, frames) with 1 to {self.num_quantizers} codebooks, got "
                f"{tuple(codes.shape)}; is an axis missing, or the model another one?"
            )
        if codes.numel() == 0:
            raise ValueError(f"{name} must hold at least one frame, got shape {tuple(codes.shape)}.")
        if torch.compiler.is_compiling():
            return
        low, high = torch.stack(codes.aminmax()).tolist()
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"{name} must lie in [0, {self.codebook_size}), got {low} to {high}; were they made by a model "
                "with other codebooks?"
            )


def swap_heads(
    audio_codes: Tensor, other_codes: Tensor, num_codebooks: Mapping[str, int], heads: Collection[str] = ("acoustic",)
) -> Tensor:
    """Codes of one recording with some heads of another.

    The result is as long as the first: the other's codes are cut, or start again where they end.

    Args:
        audio_codes: `(batch, codebooks, frames)`, all codebooks.
        other_codes: `(batch, codebooks, other frames)`; the heads named are taken from here.
        num_codebooks: Codebooks of each head, in the order of the codes.
        heads: Names among `content`, `prosody` and `acoustic`, or one of them.

    Returns:
        `(batch, codebooks, frames)`.

    Raises:
        ValueError: If a head is unknown, or the codes are not all of a model's codebooks for one batch.
        TypeError: If codes are no tensor.
    """
    heads = heads if isinstance(heads, Collection) and not isinstance(heads, str) else (heads,)
    unknown = [head for head in heads if head not in num_codebooks]
    if unknown:
        raise ValueError(f"heads must be among {', '.join(num_codebooks)}, got {', '.join(map(str, unknown))}.")
    total = sum(num_codebooks.values())
    for name, codes in (("audio_codes", audio_codes), ("other_codes", other_codes)):
        check_tensor(codes, name, "pass encode(...).audio_codes")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {codes.dtype}; pass what encode returned.")
        if codes.ndim != 3 or codes.shape[1] != total or codes.shape[2] == 0 or len(codes) != len(audio_codes):
            raise ValueError(
                f"{name} must be ({len(audio_codes)}, {total}, frames), got {tuple(codes.shape)}; pass what encode "
                "returned, of both recordings."
            )
    frames = audio_codes.shape[2]
    other = other_codes.repeat(1, 1, -(-frames // other_codes.shape[2]))[:, :, :frames]
    sizes = list(num_codebooks.values())
    blocks = zip(num_codebooks, audio_codes.split(sizes, dim=1), other.split(sizes, dim=1), strict=True)
    return torch.cat([theirs if name in heads else ours for name, ours, theirs in blocks], dim=1)
