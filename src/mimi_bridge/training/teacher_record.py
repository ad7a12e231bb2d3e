"""Which teachers a checkpoint was trained with, and that training goes on with the same."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from .checkpoints import STATE_NAME


def record_in(checkpoint: str) -> dict[str, dict[str, Any]]:
    """What a checkpoint records of its teachers; nothing if it had none, or is none of ours."""
    path = os.path.join(checkpoint, STATE_NAME)
    if not os.path.isfile(path):
        return {}
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("teachers") or {}


def check_record(
    here: Mapping[str, Mapping[str, Any]], there: Mapping[str, Mapping[str, Any]] | None, checkpoint: str
) -> None:
    """Refuse to go on from a checkpoint that was trained with other teachers in the loop.

    A model that lies elsewhere, or has another name, is the same if its weights are.

    Raises:
        ValueError: Naming the checkpoint, the teacher, and what differs.
    """
    for kind in ("text", "speech"):
        ours, theirs = here.get(kind), (there or {}).get(kind)
        if ours is None and theirs is None:
            continue
        if ours is None:
            assert theirs is not None
            raise ValueError(
                f"{checkpoint} trains with a {kind} teacher in the loop ({theirs['name']}), but this run has none; go "
                "on with the teachers that it was begun with."
            )
        if theirs is None:
            raise ValueError(
                f"this run trains with a {kind} teacher in the loop ({ours['name']}), but {checkpoint} had none; go "
                "on with the teachers that it was begun with."
            )
        differing = [key for key in ours if key not in ("name", "revision") and ours[key] != theirs.get(key)]
        if differing:
            key = differing[0]
            found = " of the weights" if key == "digest" else ""
            raise ValueError(
                f"training cannot go on from {checkpoint}: its {kind} teacher was {theirs['name']}"
                f"{_revision(theirs)} with {key} {theirs.get(key)}{found}, and this run's is {ours['name']}"
                f"{_revision(ours)} with {key} {ours[key]}; go on with the one that it was begun with."
            )


def _revision(record: Mapping[str, Any]) -> str:
    return f", revision {record['revision']}," if record.get("revision") else ""
