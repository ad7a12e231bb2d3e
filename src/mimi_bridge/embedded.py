"""The codec that comes with the package: a small Mimi that speaks, so that nothing needs a network to be heard."""

from pathlib import Path

SMALL_CODEC = "small"  # what `--source` calls it


def small_codec() -> Path:
    """The folder of a small Mimi, trained from nothing by `examples/train_codec.py`.

    Returns:
        A checkpoint for `transformers.MimiModel.from_pretrained` and `convert_kyutai.py --source`; its README.md says
        what it was trained on, how well it does, and whom to name.
    """
    return Path(__file__).parent / "weights" / "small_codec"
