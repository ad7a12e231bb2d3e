"""Checkpoints that a run can go on from, whatever ended it: an incomplete one is named and passed over.

The trainer's state is the last file of a checkpoint. While a folder has none, or half of one, what else is in it may
be cut off: the process was killed, or the disk was full.
"""

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..configuration_mimi_bridge import MimiBridgeConfig

logger = logging.get_logger(__name__)
OF_A_MODEL = (
    "hidden_size",
    "codebook_size",
    "codebook_dim",
    "num_quantizers",
    "qwen_dim",
    "wavlm_dim",
    "content_layers",
    "prosody_layers",
    "content_delay",
)  # fields of a config that training does not change


def newest_checkpoint(output_dir: str) -> str | None:
    """The newest complete checkpoint of a run, or None; newer ones that are not are named."""
    if not os.path.isdir(output_dir):
        return None
    names = [name for name in os.listdir(output_dir) if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", name)]
    for name in sorted(names, key=lambda name: -int(name.rpartition("-")[2])):
        folder = os.path.join(output_dir, name)
        if is_complete(folder):
            return folder
        logger.warning("%s is incomplete, since what wrote it was interrupted, and is passed over", folder)
    return None


def is_complete(folder: str) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        with open(os.path.join(folder, TRAINER_STATE_NAME), encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """While a checkpoint is read.

    Raises:
        ValueError: If one of its files is cut off.
    """
    try:
        yield
    except (SafetensorError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(checkpoint, error) from error
    except (RuntimeError, OSError) as error:  # what torch raises for half of an archive depends on where it ends
        if "PytorchStreamReader" not in str(error) and getattr(error, "errno", None) != errno.EINVAL:
            raise
        raise _unreadable(checkpoint, error) from error


def raise_if_incomplete(checkpoint: str) -> None:
    """Refuse a folder whose trainer's state is cut off; one without any is for transformers to name.

    Raises:
        ValueError: Naming it.
    """
    if os.path.isfile(os.path.join(checkpoint, TRAINER_STATE_NAME)) and not is_complete(checkpoint):
        raise ValueError(
            f"{TRAINER_STATE_NAME} of {checkpoint} is cut off, since what wrote it was interrupted; go on from an "
            "earlier checkpoint."
        )


def _unreadable(checkpoint: str, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"a file of {checkpoint} cannot be read ({reason}); go on from an earlier checkpoint.")


@contextmanager
def writing(folder: str, is_first_process: bool) -> Iterator[None]:
    """While a checkpoint is written. One that cannot be is deleted; the others stay as they are.

    Raises:
        OSError: If it cannot be written, as where the disk is full.
    """
    if is_first_process and os.path.isdir(folder):  # of an earlier run: not to be taken for complete meanwhile
        state = os.path.join(folder, TRAINER_STATE_NAME)
        if os.path.isfile(state):
            os.unlink(state)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_first_process:
            shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{folder} could not be written ({reason}); the checkpoints before it are sound: make room, and go on "
            "with --resume_from_checkpoint True."
        ) from error


def raise_if_of_another_config(checkpoint: str, config: MimiBridgeConfig) -> None:
    """Refuse a checkpoint of a model whose sizes or whose delay are others; what training moves may differ.

    Raises:
        ValueError: Naming what differs.
    """
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        return
    saved = MimiBridgeConfig.from_pretrained(checkpoint)
    different = [
        f"{name} {getattr(saved, name)}, now {getattr(config, name)}"
        for name in OF_A_MODEL
        if getattr(saved, name) != getattr(config, name)
    ]
    if different:
        raise ValueError(
            f"{checkpoint} is of a model of another config ({'; '.join(different)}); go on with that model, or choose "
            "another output_dir."
        )
