"""Fine-tune a Mimi Bridge model: python examples/finetune.py --model FOLDER --train_dataset FOLDER --output_dir FOLDER

The model is what conversion/convert_kyutai.py wrote; a data set is what `mimi-bridge prepare` wrote, or
`Dataset.save_to_disk` with the columns that `mimi_bridge.data.collator` describes. Arguments of transformers' Trainer
work, or are refused by one sentence; --recipe gives them other defaults (mimi_bridge.training.recipes). A run that was
stopped goes on with --resume_from_checkpoint True. With --text_teacher and --speech_teacher the teachers are computed
while training, and rows hold audio and tokens (`mimi-bridge prepare --teachers none`); with --streaming, rows are read
while training, from the Hub, parquet files or tars. Several processes:

    torchrun --nproc_per_node 2 examples/finetune.py ...
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from datasets import Dataset, load_from_disk
from transformers import AutoFeatureExtractor, HfArgumentParser

from mimi_bridge.cli.loading import load_model
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.settings import DTYPES
from mimi_bridge.data.streaming import open_stream
from mimi_bridge.data.teachers.statistics import stored_statistics
from mimi_bridge.data.undecoded import undecoded
from mimi_bridge.training import MimiBridgeTrainer, MimiBridgeTrainingArguments, TrainingTeachers
from mimi_bridge.training.checkpoints import newest_checkpoint
from mimi_bridge.training.guards import HeadCollapsedError
from mimi_bridge.training.recipes import CONFIG_CHANGES, DEFAULT_RECIPE, RECIPES, model_with, recipe_named


@dataclass
class DataArguments:
    """What to train, and on what."""

    model: str = field(metadata={"help": "folder that the conversion wrote, or an id on the Hub"})
    train_dataset: str = field(metadata={"help": "folder of a data set; with --streaming, what open_stream takes"})
    streaming: bool = field(default=False, metadata={"help": "read rows while training; needs --max_steps"})
    train_config: str | None = field(default=None, metadata={"help": "of a data set on the Hub that has several"})
    train_split: str = field(default="train", metadata={"help": "of a data set on the Hub"})
    shuffle_buffer: int = field(default=256, metadata={"help": "rows that a reader of a stream draws from"})
    eval_dataset: str | None = field(default=None, metadata={"help": "folder of another, of other speakers"})
    recipe: str = field(default=DEFAULT_RECIPE, metadata={"help": f"defaults of the rest: {', '.join(RECIPES)}"})
    content_layers: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    prosody_layers: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    content_delay: int | None = field(default=None, metadata={"help": "of the model; default: the recipe's"})
    crop_seconds: float | None = field(default=4.0, metadata={"help": "longest stretch of a recording in a batch"})
    text_teacher: str | None = field(default=None, metadata={"help": "language model to compute while training"})
    speech_teacher: str | None = field(default=None, metadata={"help": "speech model to compute while training"})
    text_layer: int | None = field(default=None, metadata={"help": "0 is the embeddings; default: the last"})
    final_norm: bool = field(default=True, metadata={"help": "take the last layer's states after its norm"})
    speech_layer: str | None = field(default=None, metadata={"help": "or 'mean'; default: the model's output"})
    teacher_dtype: str = field(default="auto", metadata={"help": "of the teachers' computation"})
    teacher_context_seconds: float | None = field(
        default=None, metadata={"help": "what the speech model hears on each side of a crop; default: all"}
    )
    traceback: bool = field(default=False, metadata={"help": "of an error, show where it was raised"})


OF_STREAMS = ("train_config", "train_split", "shuffle_buffer")
OF_TEACHERS = {
    "text_teacher": ("text_layer", "final_norm"),
    "speech_teacher": ("speech_layer", "teacher_context_seconds"),
}


def check_arguments(data: DataArguments, args: MimiBridgeTrainingArguments) -> None:
    """Refuse arguments that nothing would read.

    Raises:
        ValueError: Naming the argument, and what it is of.
    """
    defaults = {one.name: one.default for one in fields(DataArguments)}

    def refuse(names: Iterable[str], owner: str) -> None:
        for name in names:
            if getattr(data, name) != defaults[name]:
                raise ValueError(f"--{name} {getattr(data, name)} is read with {owner} alone; give that, or leave it.")

    if data.streaming and args.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps, since a stream has no end; give the number of steps.")
    if not data.streaming:
        refuse(OF_STREAMS, "--streaming")
    for teacher, names in OF_TEACHERS.items():
        if getattr(data, teacher) is None:
            refuse(names, f"--{teacher}")
    if data.text_teacher is None and data.speech_teacher is None:
        refuse(["teacher_dtype"], "--text_teacher or --speech_teacher")
    if data.teacher_dtype not in DTYPES:
        raise ValueError(f"--teacher_dtype must be one of {', '.join(DTYPES)}, got {data.teacher_dtype!r}.")


def rows_of(folder: str) -> Dataset:
    """A data set on disk, its audio as it is stored."""
    return undecoded(load_from_disk(folder)).with_format("numpy")


def checkpoint_of(args: MimiBridgeTrainingArguments) -> str | None:
    """The folder that training goes on from, if it does; of True, the newest in `output_dir`."""
    found, output = args.resume_from_checkpoint, str(args.output_dir)
    if found in (None, "False"):
        return None
    if found == "True":
        found = newest_checkpoint(output)
    if found is None:
        raise ValueError(f"{output} has no checkpoint to go on from; leave --resume_from_checkpoint out.")
    return found


def teachers_of(data: DataArguments, checkpoint: str | None) -> TrainingTeachers | None:
    """The teachers that are to be computed while training; those of a checkpoint, where training goes on from one."""
    if data.text_teacher is None and data.speech_teacher is None:
        return None
    layer = data.speech_layer
    return TrainingTeachers(
        data.text_teacher,
        data.speech_teacher,
        data.text_layer,
        data.final_norm,
        int(layer) if layer is not None and layer.isdigit() else layer,
        data.teacher_dtype,
        data.teacher_context_seconds,
        checkpoint=checkpoint,
    )


def main() -> None:
    """Train, evaluate if there is something to evaluate on, and save the model."""
    parser = HfArgumentParser((DataArguments, MimiBridgeTrainingArguments))  # type: ignore[arg-type]  # any is right
    recipe = recipe_named(parser.parse_args().recipe)
    parser.set_defaults(**recipe.arguments)  # what is given on the command line wins
    data, args = parser.parse_args_into_dataclasses()
    check_arguments(data, args)
    given = {name: getattr(data, name) for name in CONFIG_CHANGES if getattr(data, name) is not None}
    model = model_with(load_model(data.model), recipe.config | given, args.seed)
    train_dataset = (
        open_stream(data.train_dataset, data.train_config, data.train_split, args.seed, data.shuffle_buffer)
        if data.streaming
        else rows_of(data.train_dataset)
    )
    eval_dataset = rows_of(data.eval_dataset) if data.eval_dataset else None
    checkpoint = checkpoint_of(args)
    in_loop = {"qwen": data.text_teacher, "wavlm": data.speech_teacher}
    stored = stored_statistics(data.train_dataset)
    statistics = {name: stored[name] for name in stored if in_loop[name] is None}
    trainer = MimiBridgeTrainer(
        model,
        args,
        MimiBridgeCollator.for_model(model.config, data.crop_seconds, seed=args.seed),
        train_dataset,
        teacher_statistics=statistics,
        teachers=teachers_of(data, checkpoint),
        eval_dataset=eval_dataset,
        processing_class=AutoFeatureExtractor.from_pretrained(data.model),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ArithmeticError, ImportError, HeadCollapsedError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"finetune: {error}")
