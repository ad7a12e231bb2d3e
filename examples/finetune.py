"""Fine-tune a Mimi Bridge model: python examples/finetune.py --model FOLDER --train_dataset FOLDER --output_dir FOLDER

The model is what conversion/convert_kyutai.py wrote; a data set is what `mimi-bridge prepare` wrote, or
`Dataset.save_to_disk` with the columns that `mimi_bridge.data.collator` describes. Arguments of transformers' Trainer
work, or are refused by one sentence; --recipe gives them other defaults (mimi_bridge.training.recipes). A run that was
stopped goes on with --resume_from_checkpoint True. Several processes:

    torchrun --nproc_per_node 2 examples/finetune.py ...
"""

import sys
from dataclasses import dataclass, field

from datasets import load_from_disk
from transformers import AutoFeatureExtractor, AutoModel, HfArgumentParser

import mimi_bridge  # noqa: F401  makes AutoModel know the model
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.teachers.statistics import stored_statistics
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments
from mimi_bridge.training.guards import HeadCollapsedError
from mimi_bridge.training.recipes import CONFIG_CHANGES, DEFAULT_RECIPE, RECIPES, model_with, recipe_named


@dataclass
class DataArguments:
    """What to train, and on what."""

    model: str = field(metadata={"help": "folder that the conversion wrote, or an id on the Hub"})
    train_dataset: str = field(metadata={"help": "folder of a data set"})
    eval_dataset: str | None = field(default=None, metadata={"help": "folder of another, of other speakers"})
    recipe: str = field(default=DEFAULT_RECIPE, metadata={"help": f"defaults of the rest: {', '.join(RECIPES)}"})
    content_layers: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    prosody_layers: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    content_delay: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    crop_seconds: float | None = field(default=4.0, metadata={"help": "longest stretch of a recording in a batch"})
    traceback: bool = field(default=False, metadata={"help": "of an error, show where it was raised"})


def main() -> None:
    """Train, evaluate if there is something to evaluate on, and save the model."""
    parser = HfArgumentParser((DataArguments, MimiBridgeTrainingArguments))  # type: ignore[arg-type]  # any is right
    recipe = recipe_named(parser.parse_args().recipe)
    parser.set_defaults(**recipe.arguments)  # what is given on the command line wins
    data, args = parser.parse_args_into_dataclasses()
    given = {name: getattr(data, name) for name in CONFIG_CHANGES if getattr(data, name) is not None}
    model = model_with(AutoModel.from_pretrained(data.model), recipe.config | given, args.seed)
    train_dataset = load_from_disk(data.train_dataset).with_format("numpy")
    eval_dataset = load_from_disk(data.eval_dataset).with_format("numpy") if data.eval_dataset else None
    trainer = MimiBridgeTrainer(
        model,
        args,
        MimiBridgeCollator.for_model(model.config, data.crop_seconds, seed=args.seed),
        train_dataset,
        teacher_statistics=stored_statistics(data.train_dataset),
        eval_dataset=eval_dataset,
        processing_class=AutoFeatureExtractor.from_pretrained(data.model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ArithmeticError, HeadCollapsedError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"finetune: {error}")
