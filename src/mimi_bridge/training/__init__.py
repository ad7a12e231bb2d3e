"""What trains: models by transformers' Trainer, codecs from nothing, codebooks. Needs the extra `train`."""

from .arguments import MimiBridgeTrainingArguments
from .evaluation_callback import EvaluationCallback
from .trainer import MimiBridgeTrainer

__all__ = ["EvaluationCallback", "MimiBridgeTrainer", "MimiBridgeTrainingArguments"]
