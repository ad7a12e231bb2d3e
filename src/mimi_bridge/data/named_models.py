"""Models that a user names.

What transformers says of a model that it cannot load does not always name it; here every refusal does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loading(name: str) -> Iterator[None]:
    """While a model is loaded: every refusal names it.

    Raises:
        FileNotFoundError: If the name is a path, and nothing is there.
        ValueError: If it cannot be loaded.
    """
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"no such model folder: {name}")
    try:
        yield
    except (OSError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} cannot be loaded for this: {error}") from error
