"""Mimi Bridge: Kyutai's Mimi with its codes in three heads, content, prosody and acoustic.

Importing this package makes transformers' `AutoConfig` and `AutoModel` know the model type `mimi_bridge`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, EncodecFeatureExtractor
except (ImportError, OSError, RuntimeError) as error:
    if "torchaudio" not in str(error):
        raise
    raise ImportError(
        f"transformers imports torchaudio where it is installed, and the one here does not fit torch ({error}): its "
        "wheels are built for CUDA, and load beside a torch that is built for CUDA, too, even without a GPU. Run pip "
        "uninstall torchaudio, which only aligning by a CTC model needs, or install a torch built for CUDA."
    ) from error

from .configuration_mimi_bridge import MimiBridgeConfig
from .modeling_mimi_bridge import MimiBridgeModel
from .outputs import CausalBridgeQuantizerOutput, MimiBridgeEncoderOutput, MimiBridgeOutput
from .quantizer import CausalBridgeQuantizer
from .weights import small_codec

__version__ = "0.1.0"

# Imported when they are asked for: they need the extra `train`, and a process that only encodes does without.
LAZY = {
    "EvaluationCallback": "training",
    "MimiBridgeTrainer": "training",
    "MimiBridgeTrainingArguments": "training",
    "MimiBridgeCollator": "data.collator",
}


def __getattr__(name: str) -> Any:
    """The names in `LAZY`."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{LAZY[name]}", __name__), name)


AutoConfig.register(MimiBridgeConfig.model_type, MimiBridgeConfig)
AutoModel.register(MimiBridgeConfig, MimiBridgeModel)
AutoFeatureExtractor.register(MimiBridgeConfig, EncodecFeatureExtractor)

if TYPE_CHECKING:
    from .data.collator import MimiBridgeCollator
    from .training import EvaluationCallback, MimiBridgeTrainer, MimiBridgeTrainingArguments

__all__ = [
    "CausalBridgeQuantizer",
    "CausalBridgeQuantizerOutput",
    "EvaluationCallback",
    "MimiBridgeCollator",
    "MimiBridgeConfig",
    "MimiBridgeEncoderOutput",
    "MimiBridgeModel",
    "MimiBridgeOutput",
    "MimiBridgeTrainer",
    "MimiBridgeTrainingArguments",
    "__version__",
    "small_codec",
]
