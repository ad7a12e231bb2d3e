"""Which model a teacher is: its revision on the Hub, and a digest of its weights, wherever they lie."""

import hashlib

import torch
from torch import nn

NUMBERS_EACH = 64  # of every parameter: two models differ in some of them


def of_revision(revision: str | None) -> dict[str, str]:
    """Arguments of `from_pretrained` for a revision."""
    return {} if revision is None else {"revision": revision}


def revision_of(model: nn.Module) -> str | None:
    """The Hub's commit that a model of transformers was loaded from; None of a folder."""
    return getattr(model.config, "_commit_hash", None)


def digest_of(model: nn.Module) -> str:
    """Tells two sets of weights apart: the first numbers of every parameter, hashed; the same on every device."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        numbers = parameter.detach().flatten()[:NUMBERS_EACH].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:16]
