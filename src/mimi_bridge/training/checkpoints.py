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
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..configuration_mimi_bridge import MimiBridgeConfig

logger = logging.get_logger(__name__)

STATE_NAME = "bridge_training.pt"  # in a checkpoint, beside transformers' own files
FILE_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
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


def state_at_its_end(folder: str, max_steps: int) -> TrainerState | None:
    """The trainer's state in a checkpoint that has all the steps of its run; None if some are left, or epochs count.

    transformers would take one more step, each time that it is asked to go on.
    """
    state = TrainerState.load_from_json(os.path.join(folder, TRAINER_STATE_NAME)) if is_complete(folder) else None
    return state if state is not None and 0 < max_steps <= state.global_step else None


class CheckpointWatch(TrainerCallback):
    """Knows which checkpoint is being read or written, so that an error on the way says so.

    transformers has events for the end of both alone: as training begins all has been read, and after a save all is
    written. The beginnings are `explained`, and `begin_writing`.
    """

    def __init__(self) -> None:
        self._read: str | None = None
        self._written: str | None = None

    @contextmanager
    def explained(self, checkpoint: str | None, is_first_process: bool) -> Iterator[None]:
        """While a run goes on from a checkpoint, if from one, and writes others.

        Raises:
            OSError: If a checkpoint cannot be written, as where the disk is full. It is deleted; the others stay as
                they are.
            ValueError: If a file of the one that it goes on from is cut off.
        """
        self._read, self._written = checkpoint, None
        try:
            yield
        except FILE_ERRORS as error:
            if self._read is not None and _is_of_a_cut_file(error):
                raise ValueError(
                    f"a file of {self._read} cannot be read ({_reason(error)}); go on from an earlier checkpoint."
                ) from error
            if self._written is None or (is_first_process and is_complete(self._written)):
                raise
            if is_first_process:
                shutil.rmtree(self._written, ignore_errors=True)
            raise OSError(
                f"{self._written} could not be written ({_reason(error)}); the checkpoints before it are sound: make "
                "room, and go on with --resume_from_checkpoint True."
            ) from error

    def begin_writing(self, folder: str, is_first_process: bool) -> None:
        """Before anything of a checkpoint is written."""
        state = os.path.join(folder, TRAINER_STATE_NAME)
        if is_first_process and os.path.isfile(state):  # of an earlier run: not to be taken for complete meanwhile
            os.unlink(state)
        self._written = folder

    def on_train_begin(self, args, state, control, **kwargs):
        """All has been read."""
        self._read = None

    def on_save(self, args, state, control, **kwargs):
        """All is written."""
        self._written = None


def _is_of_a_cut_file(error: Exception) -> bool:
    if isinstance(error, SafetensorError | EOFError | pickle.UnpicklingError):
        return True  # what torch raises for half of an archive depends on where it ends
    return "PytorchStreamReader" in str(error) or getattr(error, "errno", None) == errno.EINVAL


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_state(checkpoint: str) -> dict[str, Any]:
    """Read the trainer's own part of a checkpoint.

    Raises:
        ValueError: If it has none.
    """
    path = os.path.join(checkpoint, STATE_NAME)
    if not os.path.isfile(path):
        raise ValueError(
            f"{checkpoint} has no {STATE_NAME}, so training cannot go on from it; it was saved by another trainer "
            "or with save_only_model. Load its model and train that from the beginning instead."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def raise_if_of_another_run(checkpoint: str, config: MimiBridgeConfig) -> None:
    """Refuse a checkpoint whose trainer's state is cut off, or of a model whose sizes or whose delay are others.

    What training moves may differ; a folder without any state is for transformers to name.

    Raises:
        ValueError: Naming the checkpoint, and what differs.
    """
    if os.path.isfile(os.path.join(checkpoint, TRAINER_STATE_NAME)) and not is_complete(checkpoint):
        raise ValueError(
            f"{TRAINER_STATE_NAME} of {checkpoint} is cut off, since what wrote it was interrupted; go on from an "
            "earlier checkpoint."
        )
    if not os.path.isfile(os.path.join(checkpoint, "config.json")):
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
