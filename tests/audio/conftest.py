"""What the tests of recordings share."""

import numpy as np
import pytest


@pytest.fixture
def tone():
    """Half a second of 440 Hz at 48 kHz."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 48_000).astype(np.float32)
