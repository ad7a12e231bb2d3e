"""Audio columns of `datasets` as what they hold, which soundfile reads: decoding them would take another package."""

from typing import Any


def undecoded(dataset: Any, as_plain: bool = False) -> Any:
    """A data set whose audio columns give bytes and paths.

    Args:
        dataset: Of `datasets`.
        as_plain: Cast them to a pair of these by `Value`, which every version of `datasets` reads without another
            package, where they are stored as such a pair; else by `Audio(decode=False)`.
    """
    from datasets import Audio, Value

    kind_of_pair = {"bytes": Value("binary"), "path": Value("string")} if as_plain else Audio(decode=False)
    for name, kind in (dataset.features or {}).items():
        if isinstance(kind, Audio):
            dataset = dataset.cast_column(name, kind_of_pair)
    return dataset
