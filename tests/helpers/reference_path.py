"""A model for the length of a block without its fast path, so that transformers' own modules run."""

from collections.abc import Iterator
from contextlib import contextmanager

from mimi_bridge import MimiBridgeModel


@contextmanager
def reference_path(model: MimiBridgeModel) -> Iterator[None]:
    """Run transformers' own modules; the model is shared, so it is left as it was."""
    model.use_fast_path = False
    try:
        yield
    finally:
        del model.use_fast_path
