"""The numbers of a column, whatever holds them."""

import warnings

import numpy as np
import torch

from mimi_bridge.data.values import tensor_of


def test_memory_that_is_read_only_is_not_shared_and_brings_no_warning():
    held = np.arange(6, dtype=np.float32).reshape(2, 3)
    held.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = tensor_of(held, "it", 2)
    tensor += 1
    assert torch.equal(tensor - 1, torch.tensor(held.tolist()))
