"""Mimi with three heads: audio -> latents -> content, prosody and acoustic codes -> audio.

The encoder, the decoder and their checkpoint keys are those of transformers' Mimi; only the quantizer is ours. Audio
that does not fill its last frame is padded with silence, as in Kyutai's own code, so that a right-padded batch gives
every recording the codes it gets alone.

Source: transformers `models/mimi/modeling_mimi.py`; moshi `models/compression.py` for the padding.
"""

from typing import Any, Self, Unpack

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import MimiModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.models.mimi.modeling_mimi import MimiConv1dPaddingCache
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from .checkpoint import (
    accept_flat_keys,
    cache_from,
    call_with_cache,
    give_usual_mode,
    keep_mimi_layout,
    keep_sizes_on_cpu,
    raise_on_ignored,
    raise_on_unknown,
    raise_on_wrong_keys,
)
from .configuration_mimi_bridge import MimiBridgeConfig
from .distillation import TeacherBridge
from .frames import check_tensor, checked_audio, frame_mask_from_padding_mask, silence_padding, whole_frames
from .heads import ZeroLinear
from .offloading import alone_where_offloaded, takes_turns
from .outputs import MimiBridgeDecoderOutput, MimiBridgeEncoderOutput, MimiBridgeOutput
from .quantizer import CausalBridgeQuantizer, swap_heads

try:  # without the package a checkpoint runs transformers' own modules, and cannot stream
    from mimi_bridge import runtime
except ImportError:
    runtime = None  # type: ignore[assignment]

RUNTIME_VERSION = 1
if runtime is not None and runtime.VERSION != RUNTIME_VERSION:
    logging.get_logger(__name__).warning(
        f"this checkpoint's files fit version {RUNTIME_VERSION} of mimi_bridge.runtime, but version {runtime.VERSION} "
        "is installed; encode and decode run transformers' own modules, and stream() is not available."
    )
    runtime = None  # type: ignore[assignment]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RECORDED = ("output_hidden_states", "output_attentions")  # what transformers' halves return besides, if asked


class MimiBridgeModel(MimiModel, PreTrainedAudioTokenizerBase):
    """Mimi whose codes come in three heads: content (1 codebook), prosody (1) and acoustic (7).

    `from_pretrained` raises if the checkpoint lacks a key of the model or holds a foreign one, where transformers
    would warn and go on with random weights.

    Example:
    ```python
    >>> from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
    >>> sizes = dict(hidden_size=32, num_filters=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    >>> codebooks = dict(codebook_size=64, codebook_dim=16, vector_quantization_hidden_dimension=16)
    >>> model = MimiBridgeModel(MimiBridgeConfig(**sizes, **codebooks, upsample_groups=32)).eval()
    >>> codes = model.encode(torch.zeros(1, 1, 24_000)).audio_codes
    >>> codes.shape, model.decode(codes).audio_values.shape
    (torch.Size([1, 9, 13]), torch.Size([1, 1, 24960]))

    ```
    """

    config: MimiBridgeConfig
    use_fast_path: bool = True  # False: `encode`, `decode` and `get_latents` run transformers' own modules
    _no_split_modules = ["CausalBridgeQuantizer", "MimiTransformerLayer"]
    _keep_in_fp32_modules_strict = [
        "_codebook.embed",  # not all of `_codebook`: its flags are bool
        "_codebook.embed_avg",
        "_codebook.cluster_size",
        "proj_qwen.mean",
        "proj_qwen.std",
        "proj_wavlm.mean",
        "proj_wavlm.std",
    ]

    def __init__(self, config: MimiBridgeConfig):
        config.validate_architecture()  # fields that were set one by one, by `from_pretrained` too, were not
        super().__init__(config)
        self.quantizer: CausalBridgeQuantizer = CausalBridgeQuantizer.from_config(config)  # type: ignore[assignment]
        self.packed = None if runtime is None else runtime.PackedModel()
        self.post_init()
        # The halves bring patterns that hide foreign keys, the other half's and the quantizer's among them.
        self._keys_to_ignore_on_load_unexpected = []
        self.register_load_state_dict_pre_hook(accept_flat_keys)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "config" and "quantizer" in self.__dict__.get("_modules", {}):
            self.quantizer.take_settings(value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """As in transformers, but a missing or foreign key raises a `ValueError` that names it.

        For a teacher of another size: `from_pretrained(path, qwen_dim=896, ignore_mismatched_sizes=True)`.
        """
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except StrictDataclassError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} has a config that is none of Mimi Bridge: {error}. A Mimi "
                "checkpoint must be converted first, with conversion/convert_kyutai.py."
            ) from error
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} cannot be read ({error}): the file is damaged, or "
                "was written or fetched in part only; convert the model or fetch it again."
            ) from error
        model, loading_info = loaded
        raise_on_wrong_keys(model, pretrained_model_name_or_path, loading_info)
        return (model, loading_info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, but the weights have the mode that the umask gives, as the other files have."""
        super().save_pretrained(save_directory, *args, **kwargs)
        give_usual_mode(save_directory)

    def set_residual_weight(self, residual_weight: float) -> None:
        """Move λ, as `config.residual_weight = ...` or `quantizer.residual_weight = ...` does: there is but one.

        Raises:
            ValueError: If it does not lie in [0, 1].
        """
        self.quantizer.residual_weight = residual_weight

    def get_latents(self, input_values: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The encoder's continuous latents, before any head.

        Args:
            input_values: Audio at the model's sampling rate, `(batch, channels, samples)`.
            padding_mask: Non-zero on real samples, `(batch, samples)` or `(batch, channels, samples)`; right padding.

        Returns:
            `(batch, frames, hidden_size)`. Frames of padding hold what the encoder makes of silence; their mask is
            `get_audio_codes_mask(padding_mask)`.

        Raises:
            ValueError: As in `encode`.
        """
        encoder = self._require("encoder")
        packed = self._packed_parts(input_values, "encoder")
        if packed is None:
            audio, _ = self._whole_frames(input_values, padding_mask)
            with alone_where_offloaded(self):
                return encoder(audio).latents.transpose(1, 2)
        audio, _ = checked_audio(input_values, padding_mask, self.config.audio_channels, self.config.frame_size)
        return torch.cat(list(packed[0].in_chunks(audio)), dim=1)

    def get_quantized(self, audio_codes: Tensor) -> Tensor:
        """Latents for the decoder from codes: `(batch, codebooks, frames)` -> `(batch, frames, hidden_size)`."""
        with alone_where_offloaded(self):
            return self.quantizer.decode(audio_codes)

    def get_audio_codes_mask(self, padding_mask: Tensor, padding_side: str = "right") -> Tensor:
        """Which frames are real: `(batch, samples)` -> `(batch, frames)`, bool.

        A frame's codes stand at the place of its audio. With `config.content_delay = D` the content code at frame `t`
        was taught what was said until frame `t - D`: to read what is said at a frame, read the content code `D` frames
        later; for the last `D` frames there is none, unless the recording is padded with `D` frames of silence.

        Raises:
            ValueError: If the mask is padded on the left.
        """
        if padding_side != "right":
            raise ValueError(f"padding_side must be 'right', got {padding_side!r}: left padding changes the codes.")
        return frame_mask_from_padding_mask(padding_mask, self.config.frame_size)

    @can_return_tuple
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        encoder_cache: Cache | None = None,
        padding_cache: MimiConv1dPaddingCache | None = None,
        use_streaming: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MimiBridgeEncoderOutput:
        """Audio to codes.

        A recording in a padded batch gets the codes it gets alone: on a CPU because each row is run alone, without its
        padding; on other devices up to rounding, which moves a code whose two nearest entries are equally near.

        Args:
            input_values: Audio at the model's sampling rate, `(batch, channels, samples)`.
            padding_mask: Non-zero on real samples, `(batch, samples)` or `(batch, channels, samples)`; right padding.
            num_quantizers: Give the first so many codebooks only, in the order content, prosody, acoustic.
            encoder_cache: Cache of the encoder transformer from the call before; streaming. Its name before
                transformers 5.24, `encoder_past_key_values`, is taken, too. A model whose heads have layers of their
                own takes none: use `stream()`.
            padding_cache: Cache of the convolutions from the call before; streaming.
            use_streaming: Keep both caches and return them; the config's, if left out. Chunks must then be whole
                frames.
            **kwargs: `output_hidden_states`, `output_attentions`, of the encoder transformer; `return_dict`.

        Returns:
            Codes `(batch, codebooks, frames)`, their mask, and what transformers' Mimi returns.

        Raises:
            ValueError: If the audio is empty, of a wrong shape, or not finite; if padding is not on the right; if a
                stream's chunk is not whole frames; if there are not so many codebooks.
            TypeError: If a keyword is unknown.
        """
        encoder_cache = cache_from(encoder_cache, kwargs, "encoder")
        raise_on_unknown(kwargs, "encode", RECORDED)
        use_streaming = self.config.use_streaming if use_streaming is None else use_streaming
        streaming = use_streaming or padding_cache is not None
        is_plain = not (streaming or encoder_cache is not None or any(kwargs.values()))
        if streaming or encoder_cache is not None:
            self._raise_on_contexts()
        encoder = self._require("encoder")
        packed = self._packed_parts(input_values, "encoder", "quantizer") if is_plain else None
        if packed is not None:
            number = self.quantizer.check_num_quantizers(num_quantizers)
            sizes = self.config.audio_channels, self.config.frame_size
            audio, audio_codes_mask = checked_audio(input_values, padding_mask, *sizes)
            half, quantizer = packed
            codes = runtime.encode_recordings(half, quantizer, audio, audio_codes_mask, number)
            return MimiBridgeEncoderOutput(audio_codes=codes, audio_codes_mask=audio_codes_mask)
        audio, audio_codes_mask = self._whole_frames(input_values, padding_mask, must_be_whole=streaming)
        if is_plain and audio.device.type == "cpu" and not bool(audio_codes_mask.all()):
            return self._encode_row_by_row(audio, audio_codes_mask, num_quantizers)
        with alone_where_offloaded(self):
            encoded, encoder_cache = call_with_cache(
                encoder, audio, cache=encoder_cache, padding_cache=padding_cache, use_streaming=use_streaming, **kwargs
            )
            latents = encoded.latents.transpose(1, 2)
            audio_codes = self.quantizer.encode(latents, audio_codes_mask, num_quantizers)
        return MimiBridgeEncoderOutput(
            audio_codes=audio_codes,
            encoder_cache=encoder_cache,
            padding_cache=encoded.padding_cache,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            audio_codes_mask=audio_codes_mask,
        )

    @can_return_tuple
    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        decoder_cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MimiBridgeDecoderOutput:
        """Codes to audio, from the first 1 to all codebooks.

        Args:
            audio_codes: `(batch, codebooks, frames)`, integers.
            padding_mask: The mask the audio was encoded with; the result is cut to its length, and silent in padding.
            decoder_cache: Cache of the decoder transformer from the call before, which is all that transformers
                remembers: its convolutions restart at each chunk, so chunks do not fit together; `stream()` decodes
                them as the whole. Its name before transformers 5.24, `decoder_past_key_values`, is taken, too.
            **kwargs: `output_hidden_states`, `output_attentions`, of the decoder transformer; `return_dict`.

        Returns:
            `audio_values`, `(batch, channels, frames * frame_size)` or as long as `padding_mask`, and the cache.

        Raises:
            ValueError: If the codes are not integers, out of range, or of a wrong shape.
            TypeError: If a keyword is unknown.
        """
        decoder_cache = cache_from(decoder_cache, kwargs, "decoder")
        raise_on_unknown(kwargs, "decode", RECORDED)
        decoder = self._require("decoder")
        is_plain = decoder_cache is None and not any(kwargs.values())
        packed = self._packed_parts(audio_codes, "decoder", "quantizer") if is_plain else None
        if packed is not None:
            self.quantizer.check_codes(audio_codes)
            half, quantizer = packed
            audio = runtime.decode_recordings(half, quantizer, audio_codes)
            return MimiBridgeDecoderOutput(audio_values=silence_padding(audio, padding_mask))
        with alone_where_offloaded(self):
            latents = self.quantizer.decode(audio_codes).transpose(1, 2)
            decoded, decoder_cache = call_with_cache(decoder, latents, cache=decoder_cache, **kwargs)
        return MimiBridgeDecoderOutput(
            audio_values=silence_padding(decoded.audio_values, padding_mask),
            decoder_cache=decoder_cache,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )

    def stream(
        self,
        batch_size: int = 1,
        num_quantizers: int | None = None,
        cuda_graphs: bool = False,
        check_inputs: bool = True,
    ) -> Any:
        """Open a live codec: whole frames out of chunks of any length, exactly as from the whole recording.

        Example:
        ```python
        >>> import torch
        >>> from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
        >>> sizes = dict(hidden_size=32, num_filters=4, num_hidden_layers=1, num_attention_heads=2)
        >>> codebooks = dict(codebook_size=64, codebook_dim=16, vector_quantization_hidden_dimension=16)
        >>> config = MimiBridgeConfig(**sizes, **codebooks, num_key_value_heads=2, upsample_groups=32)
        >>> with MimiBridgeModel(config).eval().stream(batch_size=2) as stream:
        ...     codes = stream.encode(torch.zeros(2, 1, 5_000))
        ...     codes.shape, stream.decode(codes).shape
        (torch.Size([2, 9, 2]), torch.Size([2, 1, 3840]))

        ```

        Args:
            batch_size: Rows: batch slots, each with a stream of its own.
            num_quantizers: Encode to the first so many codebooks only.
            cuda_graphs: On a GPU, record the step of one frame once and replay it by a single launch.
            check_inputs: Look for NaN in chunks and for codes out of range, for which a GPU is waited for once a call.
                False never waits in a step of one frame; such values then give wrong audio, or an error of the GPU.

        Raises:
            ValueError: If the model cannot stream, a number makes no sense, or there is no GPU to record on.
            ImportError: If the package is not installed.

        Returns:
            A `mimi_bridge.runtime.MimiBridgeStream`.
        """
        if runtime is None:
            raise ImportError(
                "stream() needs the package mimi-bridge beside the files of this checkpoint, of a version that fits "
                "them; pip install it, or encode and decode whole recordings."
            )
        return runtime.MimiBridgeStream(self, batch_size, num_quantizers, cuda_graphs, check_inputs)

    @can_return_tuple
    @takes_turns
    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        audio_codes: Tensor | None = None,
        encoder_cache: Cache | None = None,
        decoder_cache: Cache | None = None,
        qwen_hidden: Tensor | None = None,
        durations: Tensor | None = None,
        token_spans: Tensor | None = None,
        token_mask: Tensor | None = None,
        wavlm_features: Tensor | None = None,
        wavlm_mask: Tensor | None = None,
        latents: Tensor | None = None,
        frame_mask: Tensor | None = None,
        output_audio: bool | None = None,
        output_losses: bool = False,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MimiBridgeOutput:
        """Audio to codes to audio, with losses in training mode and wherever a teacher is given.

        Gradients reach the encoder: the lookup passes them straight through. In training mode the codebooks move.

        Args:
            input_values: Audio at the model's sampling rate, `(batch, channels, samples)`.
            padding_mask: Non-zero on real samples, `(batch, samples)` or `(batch, channels, samples)`; right padding.
            num_quantizers: Use the first so many codebooks only; in inference.
            audio_codes: Codes to decode, instead of encoding `input_values`.
            encoder_cache: As in `encode`.
            decoder_cache: As in `decode`.
            qwen_hidden: Language-model states, `(batch, tokens, qwen_dim)`.
            durations: Frames of each token, `(batch, tokens)`, integers, 0 for padding.
            token_spans: Start and end of each token in seconds, `(batch, tokens, 2)`, instead of `durations`.
            token_mask: True on tokens that are targets, `(batch, tokens)`.
            wavlm_features: Speech-model features, `(batch, frames, wavlm_dim)`, or at 50 Hz.
            wavlm_mask: True on frames that have them, `(batch, frames)`; all real ones do, if left out.
            latents: The encoder's, `(batch, frames, hidden_size)`, computed before, instead of `input_values`.
            frame_mask: With `latents`: True on real frames, `(batch, frames)`; all are, if left out.
            output_audio: Also decode; by default where audio was given and there is a decoder.
            output_losses: Compute the losses in inference without a teacher, too, commitment among them.
            return_loss: False computes no loss. (True by default: by this transformers' Trainer knows that the model
                has a loss without labels.)
            **kwargs: `output_hidden_states`, `output_attentions`; `return_dict`.

        Raises:
            ValueError: As in `encode`, `decode` and the quantizer's `forward`.
            TypeError: If a keyword is unknown.
        """
        encoder_cache = cache_from(encoder_cache, kwargs, "encoder")
        decoder_cache = cache_from(decoder_cache, kwargs, "decoder")
        raise_on_unknown(kwargs, "forward", RECORDED)
        teachers = {"qwen_hidden": qwen_hidden, "durations": durations, "token_spans": token_spans}
        teachers |= {"token_mask": token_mask, "wavlm_features": wavlm_features, "wavlm_mask": wavlm_mask}
        of_latents = {"latents": latents, "frame_mask": frame_mask}
        if audio_codes is not None:
            others = teachers | of_latents | {"encoder_cache": encoder_cache, "num_quantizers": num_quantizers}
            others |= {"output_losses": output_losses, "output_audio=False": output_audio is False}
            raise_on_ignored("where audio_codes are decoded", others)
            decoded = self.decode(audio_codes, padding_mask, decoder_cache, return_dict=True, **kwargs)
            return MimiBridgeOutput(
                audio_codes=audio_codes,
                audio_values=decoded.audio_values,
                hidden_states=decoded.hidden_states,
                attentions=decoded.attentions,
                decoder_cache=decoded.decoder_cache,
            )
        if (input_values is None) == (latents is None):
            got = "neither" if latents is None else "both audio and latents"
            raise ValueError(f"pass exactly one of input_values (audio), latents and audio_codes; got {got}.")
        wants_audio = input_values is not None and self.decoder is not None if output_audio is None else output_audio
        if not wants_audio:
            raise_on_ignored("where no audio is decoded", {"decoder_cache": decoder_cache})
        recorded = None
        if input_values is not None:
            raise_on_ignored("where audio is given; it goes with latents, and padding_mask with audio", of_latents)
            if encoder_cache is not None:
                self._raise_on_contexts()
            audio, frame_mask = self._whole_frames(input_values, padding_mask)
            encoder = self._require("encoder")
            recorded, encoder_cache = call_with_cache(encoder, audio, cache=encoder_cache, **kwargs)
            latents = recorded.latents.transpose(1, 2)
        elif latents is not None:
            check_tensor(latents, "latents")
            of_audio = {"padding_mask": padding_mask, "encoder_cache": encoder_cache}
            raise_on_ignored("where latents are given; it goes with audio, and frame_mask with latents", of_audio)
            if not wants_audio:
                raise_on_ignored("where neither audio is encoded nor latents decoded", kwargs)
            frame_mask = latents.new_ones(latents.shape[:2], dtype=torch.bool) if frame_mask is None else frame_mask
        heads = self.quantizer(
            latents,
            qwen_hidden,
            durations,
            token_spans=token_spans,
            token_mask=token_mask,
            wavlm_features=wavlm_features,
            wavlm_mask=wavlm_mask,
            frame_mask=frame_mask,
            num_quantizers=num_quantizers,
            return_loss=(output_losses or None) if return_loss else False,
        )
        audio_values = None
        if wants_audio:
            decoder, asked = self._require("decoder"), {} if input_values is not None else kwargs
            decoded, decoder_cache = call_with_cache(
                decoder, heads.quantized.transpose(1, 2), cache=decoder_cache, **asked
            )
            recorded, audio_values = recorded or decoded, decoded.audio_values
            if input_values is not None:
                audio_values = silence_padding(audio_values[..., : input_values.shape[-1]], padding_mask)
        return MimiBridgeOutput(
            loss=heads.loss if heads.losses else None,
            audio_codes=heads.codes,
            audio_values=audio_values,
            audio_codes_mask=frame_mask,
            losses=heads.losses or None,
            distances=heads.distances or None,
            latents=latents,
            quantized=heads.quantized,
            content=heads.content,
            prosody=heads.prosody,
            acoustic=heads.acoustic,
            hidden_states=recorded and recorded.hidden_states,
            attentions=recorded and recorded.attentions,
            encoder_cache=encoder_cache,
            decoder_cache=decoder_cache,
        )

    def _encode_row_by_row(
        self, audio: Tensor, audio_codes_mask: Tensor, num_quantizers: int | None
    ) -> MimiBridgeEncoderOutput:
        rows = [
            self.encode(
                row[None, :, : int(frames) * self.config.frame_size], num_quantizers=num_quantizers
            ).audio_codes[0]
            for row, frames in zip(audio, audio_codes_mask.sum(dim=-1), strict=True)
        ]
        num_frames = audio_codes_mask.shape[-1]
        padded = [torch.nn.functional.pad(codes, (0, num_frames - codes.shape[-1])) for codes in rows]
        return MimiBridgeEncoderOutput(audio_codes=torch.stack(padded), audio_codes_mask=audio_codes_mask)

    def set_attn_implementation(self, attn_implementation, *args, **kwargs):
        """As in transformers; the heads' own layers follow."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        for head in self.quantizer.heads.values():
            if head.context is not None:
                head.context.transformer.config._attn_implementation = self.config._attn_implementation

    def _raise_on_contexts(self) -> None:
        if self.quantizer.has_contexts:
            raise ValueError(
                "transformers' caches know nothing of the heads' own layers (content_layers, prosody_layers), so "
                "chunks cannot be encoded by them; use stream(), or encode whole recordings."
            )

    def _packed_parts(self, given: Tensor, *names: str) -> Any:
        return None if runtime is None else runtime.packed_parts(self, given, *names)

    def _apply(self, fn, recurse=True):
        self._forget_packed()  # moved or cast weights would otherwise be kept beside the new ones
        super()._apply(fn, recurse)
        keep_sizes_on_cpu(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; weights are packed again after it, whatever wrote to the model's."""
        self._forget_packed()
        return super().train(mode)

    def _forget_packed(self) -> None:
        if getattr(self, "packed", None) is not None:
            self.packed.clear()

    def _whole_frames(
        self, input_values: Tensor, padding_mask: Tensor | None, must_be_whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        frames = whole_frames(input_values, padding_mask, config.audio_channels, config.frame_size, must_be_whole)
        given = input_values.dtype
        dtype = next((weight.dtype for weight in self.encoder.parameters()), given) if self.encoder else given
        if dtype != given and dtype in FLOATS and not torch.is_autocast_enabled(input_values.device.type):
            raise ValueError(
                f"input_values must be {dtype}, as the model, got {given}; pass input_values.to(model.dtype), or run "
                "the model under torch.autocast."
            )
        return frames

    def _require(self, half: str) -> Any:
        module = getattr(self, half)
        if module is None:
            raise ValueError(f"this model was loaded without its {half} ({half}_config=None); load it whole for this.")
        return module

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VectorQuantize):
            # No checkpoint holds it, so loading leaves it undefined; every loss of the library starts from it.
            init.zeros_(module.zero)
            codebook = module._codebook
            init.normal_(codebook.embed, std=codebook.embed.shape[-1] ** -0.5)
            init.copy_(codebook.embed_avg, codebook.embed)
            init.ones_(codebook.cluster_size)
            init.ones_(codebook.initted)
        elif isinstance(module, ResidualVQ):
            init.ones_(module.beam_score_weights)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)  # a head's new layers change nothing
        elif isinstance(module, TeacherBridge):
            init.zeros_(module.mean)
            init.ones_(module.std)

    def swap_heads(self, audio_codes: Tensor, other_codes: Tensor, heads: tuple[str, ...] = ("acoustic",)) -> Tensor:
        """The first codes with some heads of the other's, as long as the first; see `quantizer.swap_heads`.

        Raises:
            ValueError: As there; and if codes are out of range.
            TypeError: As there.
        """
        for name, codes in (("audio_codes", audio_codes), ("other_codes", other_codes)):
            self.quantizer.check_codes(codes, name)
        num_codebooks = {name: len(head.codebooks) for name, head in self.quantizer.heads.items()}
        return swap_heads(audio_codes, other_codes, num_codebooks, heads)


keep_mimi_layout("MimiBridgeModel")
MimiBridgeModel.register_for_auto_class("AutoModel")
