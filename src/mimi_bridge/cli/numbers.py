"""Numbers on a command line: what is none is refused by a sentence that says which are taken."""

import argparse

from ..data.alignment.check import NO_SCORE


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def score(text: str) -> float:
    """The least score of an alignment that is accepted; `none` accepts all."""
    try:
        return NO_SCORE if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or 'none', got {text!r}") from None
