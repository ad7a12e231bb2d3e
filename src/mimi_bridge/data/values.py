"""The numbers of a column: a `datasets` row may hold lists, arrays or tensors of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_QUOTED = 60  # characters of a value, in a message


def array_of(values: Any, name: str) -> np.ndarray:
    """Numbers, in their own precision if numpy knows it; None among them is NaN.

    Raises:
        ValueError: If they are none, or rows of several lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
        array = array.astype(np.float64) if array.dtype == object else array
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in rows of one length, got {_shown(values)}.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {_shown(values)}.")
    return array


def tensor_of(values: Any, name: str, ndim: int, width: int | None = None) -> Tensor:
    """Numbers in float32.

    Raises:
        ValueError: If they have another number of axes, the last of another width, or are not finite.
    """
    array = array_of(values, name)
    tensor = torch.as_tensor(array if array.flags.writeable else array.copy())  # else torch warns
    tensor = tensor.float() if tensor.is_floating_point() or tensor.numel() == 0 else tensor.double().float()
    if tensor.shape == (0,) and width is not None:  # an empty list of a data set
        tensor = tensor.reshape(0, width)
    if tensor.ndim != ndim or (width is not None and tensor.shape[1] != width):
        axes = f"{ndim} axes" if width is None else f"the shape (any, {width})"
        raise ValueError(f"{name} must have {axes}, got shape {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} hold NaN or infinity; compute them again, or drop the row.")
    return tensor


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
