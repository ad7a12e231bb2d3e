"""Mimi Bridge: Kyutai's Mimi with its codes in three heads, content, prosody and acoustic.

Importing this package makes transformers' `AutoConfig` and `AutoModel` know the model type `mimi_bridge`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, EncodecFeatureExtractor
except (ImportError, OSError, RuntimeError) as error:
    reason: BaseException | None = error
    while reason is not None and "torchaudio" not in str(reason).lower():
        reason = reason.__cause__  # transformers says which of its names could not be imported
    if reason is None:
        raise
    raise ImportError(
        f"transformers imports torchaudio where it is installed, and the one here does not fit torch ({reason}): its "
        "last release, 2.11, loads beside torch 2.11 to 2.14, both built for CUDA or both not. Run pip uninstall "
        "torchaudio, which only aligning by a CTC model needs, or pip install 'mimi-bridge[ctc]'."
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
