"""Audio columns of `datasets` as what they hold, which soundfile reads: decoding them would take another package."""

from typing import Any


def undecoded(dataset: Any) -> Any:
    """A data set whose audio columns give bytes and paths."""
    from datasets import Audio

    for name, kind in (dataset.features or {}).items():
        if isinstance(kind, Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
    return dataset
