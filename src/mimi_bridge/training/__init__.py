"""Fine-tuning by transformers' Trainer. Needs the extra `train`."""

from .arguments import MimiBridgeTrainingArguments
from .evaluation_callback import EvaluationCallback
from .teachers import TrainingTeachers
from .trainer import MimiBridgeTrainer

__all__ = ["EvaluationCallback", "MimiBridgeTrainer", "MimiBridgeTrainingArguments", "TrainingTeachers"]
