"""A cache of latents: what a frozen codec makes of a data set, once, so that the heads train without it.

For every recording: the encoder's latents, and what the original Mimi's quantizer makes of them, which the heads are
held near to. Everything else in a row stays as it is; the audio is left out.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..modeling_mimi_bridge import MimiBridgeModel
from .collator import AUDIO_KEYS, MimiBridgeCollator

ROWS_AT_ONCE = 16


def cache_latents(
    model: MimiBridgeModel, dataset: Any, output: Path, device: str = "cpu", dtype: str = "float16"
) -> int:
    """Write a `datasets` data set with `latents` and `target_latents` in place of audio; whole or not at all.

    Args:
        model: Freshly converted, so that its prosody and acoustic heads are the original's.
        dataset: A `datasets.Dataset` whose rows `MimiBridgeCollator` takes.
        output: A folder that does not exist yet.
        device: Where the encoder runs.
        dtype: Of what is stored: `"float16"` or `"float32"`.

    Returns:
        How many frames it holds.

    Raises:
        ValueError: If the model's content head has been trained already.
        FileExistsError: If the folder exists.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another folder.")
    quantizer = model.quantizer
    if bool(quantizer.head_content.project_out.weight.any()):
        raise ValueError(
            "the model's content head has been trained, so its other heads are not the original Mimi's any more; "
            "cache with the model that conversion/convert_kyutai.py wrote."
        )
    collate = MimiBridgeCollator.for_model(model.config)
    model = model.eval().to(device)
    numbers = np.dtype(dtype)

    @torch.inference_mode()
    def add(rows: dict[str, list]) -> dict[str, list]:
        latents, targets = [], []
        for values in zip(*rows.values(), strict=True):
            row = dict(zip(rows, values, strict=True))
            audio = collate([{key: row[key] for key in (*AUDIO_KEYS, "id") if key in row}])
            found = model.get_latents(audio["input_values"].to(device))
            target = quantizer.head_prosody(found).quantized + quantizer.acoustic_residual(found).quantized
            latents.append(found[0].cpu().numpy().astype(numbers))
            targets.append(target[0].cpu().numpy().astype(numbers))
        return {"latents": latents, "target_latents": targets}

    audio_columns = [name for name in dataset.column_names if name in AUDIO_KEYS]
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        cached = dataset.map(
            add,
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=audio_columns,
            keep_in_memory=False,
            load_from_cache_file=False,
            desc="latents",
        )
        cached.save_to_disk(partial)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(len(row) for row in cached.with_format("numpy")["latents"])
