"""Recordings to codes and back, in memory: one at a time, or in batches of similar length.

A recording that is encoded alone gets the codes that `mimi-bridge encode` gives it.
"""

from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..audio.files import load_audio
from ..modeling_mimi_bridge import MimiBridgeModel
from .file import Codes, encoder_fingerprint, fingerprint

FILE_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    MemoryError,
)  # a damaged file, or one that is too long for the memory


class CodeExtractor:
    """Encodes recordings, read from files or given.

    Args:
        model: In eval mode.
        num_quantizers: How many codebooks to keep, from the first; None keeps all.

    Raises:
        ValueError: If the model does not have that many.
    """

    def __init__(self, model: MimiBridgeModel, num_quantizers: int | None = None):
        total = model.quantizer.num_quantizers
        self.num_quantizers = total if num_quantizers is None else num_quantizers
        if not 1 <= self.num_quantizers <= total:
            raise ValueError(f"num_quantizers must be 1 to {total} for this model, got {num_quantizers}.")
        self.model = model
        self.codebooks_sha256 = fingerprint(model)
        self.encoder_sha256 = encoder_fingerprint(model, self.codebooks_sha256)

    @torch.inference_mode()
    def encode(self, audios: list[Tensor]) -> list[Codes]:
        """Codes of recordings, each `(1, samples)`; several are padded and encoded as one batch."""
        rate, device = self.model.config.sampling_rate, self.model.device
        if len(audios) == 1:
            encoded = self.model.encode(audios[0][None].to(device), num_quantizers=self.num_quantizers)
            audio_codes = [encoded.audio_codes[0]]
        else:
            lengths = torch.tensor([audio.shape[-1] for audio in audios])
            batch = torch.zeros(len(audios), 1, int(lengths.max()))
            for row, audio in zip(batch, audios, strict=True):
                row[:, : audio.shape[-1]] = audio
            mask = torch.arange(batch.shape[-1]) < lengths[:, None]
            encoded = self.model.encode(batch.to(device), mask.to(device), num_quantizers=self.num_quantizers)
            masks = encoded.audio_codes_mask
            audio_codes = [codes[:, is_real] for codes, is_real in zip(encoded.audio_codes, masks, strict=True)]
        return [
            Codes(codes, audio.shape[-1], rate, self.codebooks_sha256, self.encoder_sha256)
            for codes, audio in zip(audio_codes, audios, strict=True)
        ]

    def encode_files(self, batches: list[list[Path]]) -> Iterator[tuple[Path, Codes | Exception]]:
        """The codes of each recording, or the error that reading or encoding it raised."""
        for batch in batches:
            audios: dict[Path, Tensor] = {}
            remarks: dict[Path, list[str]] = {path: [] for path in batch}
            for path in batch:
                try:
                    audios[path] = load_audio(path, self.model.config.sampling_rate, remarks[path].append)
                except FILE_ERRORS as error:
                    yield path, error
            for path, codes in self._encode_or_fail(audios):
                if isinstance(codes, Codes):
                    codes.remark = "; ".join(remarks[path]) or None
                yield path, codes

    def _encode_or_fail(self, audios: dict[Path, Tensor]) -> Iterator[tuple[Path, Codes | Exception]]:
        try:
            codes = self.encode(list(audios.values())) if audios else []
        except FILE_ERRORS as error:
            if len(audios) == 1:
                yield from ((path, error) for path in audios)
                return
            for path, audio in audios.items():  # one by one, to find which recording it is
                yield from self._encode_or_fail({path: audio})
            return
        yield from zip(audios, codes, strict=True)


def in_batches(paths: list[Path], batch_size: int) -> list[list[Path]]:
    """Recordings in batches of similar length; in their given order if `batch_size` is 1."""
    if batch_size > 1:
        paths = sorted(paths, key=_duration)
    return [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]


def _duration(path: Path) -> float:
    try:
        return soundfile.info(path).duration
    except FILE_ERRORS:
        return 0.0  # the error is reported when the file is read


@torch.inference_mode()
def decode_codes(model: MimiBridgeModel, codes: Codes, codebooks_sha256: str) -> Tensor:
    """The audio `(1, samples)` of a recording's codes.

    Raises:
        ValueError: As `check_fit`.
    """
    check_fit(model, codes, codebooks_sha256)
    decoded = model.decode(codes.audio_codes[None].to(model.device))
    return decoded.audio_values[0, :, : codes.num_samples]


def check_fit(model: MimiBridgeModel, codes: Codes, codebooks_sha256: str) -> None:
    """Refuse codes that this model cannot decode into their recording.

    Args:
        model: To decode them.
        codes: Of one recording.
        codebooks_sha256: The fingerprint of the model's codebooks.

    Raises:
        ValueError: If other codebooks made them, or they are of another rate or too few for their recording.
    """
    if codes.codebooks_sha256 != codebooks_sha256:
        raise ValueError(
            "it was made with other codebooks than this model's; decode it with the model that encoded it."
        )
    rate, longest = model.config.sampling_rate, codes.audio_codes.shape[-1] * model.config.frame_size
    if codes.sampling_rate != rate or codes.num_samples > longest:
        raise ValueError(
            f"its codes must be of {rate} Hz and at most {longest} samples, got {codes.sampling_rate} Hz and "
            f"{codes.num_samples} samples; encode the recording again."
        )
