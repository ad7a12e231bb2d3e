"""The codec that comes with the package: a small Mimi, so that everything can be tried without a network."""

from pathlib import Path

SMALL_CODEC = "small"  # what `--source` calls it
SMALL_CODEC_LICENCE = (
    "CC BY 4.0. The weights are those of Mimi Bridge's small codec, trained on LibriSpeech (V. Panayotov, G. Chen, "
    "D. Povey, S. Khudanpur, 2015; CC BY 4.0), the voice Kathleen (Rhasspy; CC0) and speech made by espeak-ng; "
    "nothing in them comes from Kyutai's weights."
)


def small_codec() -> Path:
    """The folder of a small Mimi, trained from nothing by `lab/train_codec.py`.

    Returns:
        A checkpoint for `transformers.MimiModel.from_pretrained` and `convert_kyutai.py --source`; its README.md has
        its training data, its figures, and the attribution it needs.
    """
    return Path(__file__).parent / "small_codec"
