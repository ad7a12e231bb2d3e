"""A cache of latents: what a frozen codec makes of a data set, once, so that the heads train without it.

For every recording: the encoder's latents, and what the original Mimi's quantizer makes of them, which the heads are
held near to. Everything else in a row stays as it is; the audio is left out.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling_mimi_bridge import MimiBridgeModel
from .collator import MimiBridgeCollator
from .row_audio import AUDIO_KEYS
from .undecoded import undecoded

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 16


class OriginalLatents:
    """What the original Mimi makes of recordings, before and after its quantizer.

    Args:
        model: Freshly converted, so that its prosody and acoustic heads are the original's.
        device: Where it runs.

    Attributes:
        dim: Size of the latents.

    Raises:
        ValueError: If the model has been trained already.
    """

    def __init__(self, model: MimiBridgeModel, device: torch.device | str = "cpu"):
        if not model.quantizer.is_freshly_converted:
            raise ValueError(
                "the model has been trained (its content head says something, or a bridge knows its teacher), so its "
                "other heads are not the original Mimi's any more; cache with the model that "
                "conversion/convert_kyutai.py wrote."
            )
        self._model = model.eval().to(device)
        self.dim: int = model.config.hidden_size

    @torch.inference_mode()
    def __call__(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of a recording, `(1, samples)`, and their quantized ones.

        Returns:
            Both `(frames, dim)`, float32, on the CPU.
        """
        samples = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % self._model.config.frame_size))
        quantizer = self._model.quantizer
        latents = self._model.get_latents(samples[None].to(self._model.device))
        target = quantizer.head_prosody(latents).quantized + quantizer.acoustic_residual(latents).quantized
        return latents[0].float().cpu(), target[0].float().cpu()


def cache_latents(
    model: MimiBridgeModel,
    dataset: Any,
    output: Path,
    device: str = "cpu",
    dtype: str = "float16",
    leave_out: Callable[[str, str], object] | None = None,
) -> int:
    """Write a `datasets` data set with `latents` and `target_latents` in place of audio, atomically.

    Args:
        model: Freshly converted, so that its prosody and acoustic heads are the original's.
        dataset: A `datasets.Dataset` whose rows `MimiBridgeCollator` takes.
        output: A folder that does not exist yet.
        device: Where the encoder runs.
        dtype: Of what is stored: `"float16"` or `"float32"`.
        leave_out: Called with name and reason of each row whose audio is missing or cannot be read; the others are
            written. By default, that is logged as a warning.

    Returns:
        How many frames it holds.

    Raises:
        ValueError: If the model has been trained already, or no row has audio that can be read.
        FileExistsError: If the folder exists.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another folder.")
    original = OriginalLatents(model, device)
    collate = MimiBridgeCollator.for_model(model.config)
    numbers, nothing = np.dtype(dtype), torch.zeros(1, original.dim)
    bad: dict[int, str] = {}

    def add(rows: dict[str, list], numbers_of_rows: list[int]) -> dict[str, list]:
        latents: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for place, number in enumerate(numbers_of_rows):
            row = {key: rows[key][place] for key in (*AUDIO_KEYS, "id") if key in rows}
            try:
                both = original(collate([row])["input_values"][0])
            except (OSError, ValueError) as error:
                both = nothing, nothing  # until all are there, so that all are of one type
                bad[number] = " ".join(str(error).split())
            for kept, found in zip((latents, targets), both, strict=True):
                kept.append(found.numpy().astype(numbers))
        return {"latents": latents, "target_latents": targets}

    audio_columns = [name for name in dataset.column_names if name in AUDIO_KEYS]
    dataset = undecoded(dataset)
    partial, computed = (output.with_name(f".{output.name}.{part}") for part in ("partial", "computed"))
    for earlier in (partial, computed):
        shutil.rmtree(earlier, ignore_errors=True)
    try:
        computed.mkdir(parents=True)
        cached = dataset.map(
            add,
            with_indices=True,
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=audio_columns,
            keep_in_memory=False,
            load_from_cache_file=False,
            cache_file_name=str(computed / "latents.arrow"),  # not beside the source, which may be read-only
            desc="latents",
        )
        names = cached["id"] if "id" in cached.column_names else None
        for number, reason in bad.items():
            name = f"row {number}" if names is None else str(names[number])
            leave_out(name, reason) if leave_out is not None else logger.warning(f"left out: {name}: {reason}")
        if len(bad) == len(cached):
            raise ValueError(f"none of the {len(bad)} rows has audio that can be read; the first: {bad[0]}")
        if bad:
            cached = cached.select([number for number in range(len(cached)) if number not in bad])
        num_frames = sum(len(row) for row in cached.with_format("numpy")["latents"])
        cached.save_to_disk(partial)
        os.replace(partial, output)
    finally:
        for left in (partial, computed):
            shutil.rmtree(left, ignore_errors=True)
    return num_frames
