"""What may be asked of a trainer, and what cannot be done: each refused by one sentence, before training begins."""

import os
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import nn

from ..data.streaming import StreamedRows
from ..data.teachers.statistics import RunningStatistics
from ..quantizer import CausalBridgeQuantizer
from .arguments import READOUT_WEIGHTS, MimiBridgeTrainingArguments
from .callbacks import CodebookUpdates, CropsOfEpoch, ResidualWeightSchedule
from .content_init import bridges_of
from .optimizer import CODEC
from .readout_columns import loss_weights

GROUPS_BY_LENGTH = ("group_by_length", "batch_rebalance")
ACOUSTIC_CHANGES = ("acoustic_dropout", "acoustic_shift")
OF_AUDIO = ("mel_weight", "adversarial_weight", "timbre_weight", *ACOUSTIC_CHANGES)
OWN_CALLBACKS = (CodebookUpdates, CropsOfEpoch, ResidualWeightSchedule)


def check_options(args: MimiBridgeTrainingArguments, options: Mapping[str, Any]) -> None:
    """Refuse options of transformers' `Trainer` that would be passed by.

    Raises:
        ValueError: Naming the option, and what to do instead.
    """
    if options.get("compute_loss_func") is not None:
        raise ValueError(
            "compute_loss_func is not supported here: the losses are the model's own. Give them other weights "
            "(qwen_weight and so on), or override compute_loss."
        )
    for callback in options.get("callbacks") or ():
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, OWN_CALLBACKS):
            raise ValueError(
                f"callbacks holds {kind.__name__}, which MimiBridgeTrainer has already; leave it out, and set what it "
                "does by the arguments (residual_weight_end, revive_every and so on)."
            )
    given: dict[str, Any] = (options.get("optimizer_cls_and_kwargs") or (None, {}))[1]
    for name, value in (("lr", args.learning_rate), ("weight_decay", args.weight_decay)):
        if given.get(name, value) != value:
            where = "learning_rate or head_learning_rates" if name == "lr" else name
            raise ValueError(
                f"optimizer_cls_and_kwargs gives {name}={given[name]}, but every part of the model has its own; give "
                f"it as {where} in the arguments instead."
            )
    if (options.get("optimizers") or (None,))[0] is not None:
        of_readouts = ((name, 0.0) for name in READOUT_WEIGHTS)
        for name, default in (("head_learning_rates", None), ("codebook_update", "ema"), *of_readouts):
            if getattr(args, name) != default:
                raise ValueError(
                    f"optimizers holds an optimizer of your own, whose groups say what learns and how fast, so {name} "
                    f"cannot be {getattr(args, name)!r}; leave one of them out, or pass optimizer_cls_and_kwargs."
                )


def named_data_sets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """A trainer's data sets by the name that messages give them; those that there are none of are None."""
    several = eval_dataset.items() if isinstance(eval_dataset, dict) else [("", eval_dataset)]
    return {"train_dataset": train_dataset} | {f"eval_dataset {name}".rstrip(): one for name, one in several}


def check_data_set(dataset: Any, name: str, args: MimiBridgeTrainingArguments, processing_class: Any) -> None:
    """Refuse a data set that is a path or several, that is empty, or whose lengths are asked for and not known.

    Raises:
        ValueError: Naming the data set.
    """
    if isinstance(dataset, str | os.PathLike):
        raise ValueError(
            f"{name} must be rows, such as a datasets.Dataset, got the path {os.fspath(dataset)!r}; load it, by "
            "datasets.load_from_disk."
        )
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"{name} must be one data set, got several by name: {', '.join(map(str, dataset))}; take one."
        )
    if isinstance(dataset, StreamedRows) and name.startswith("eval_dataset"):
        raise ValueError(
            f"{name} is a stream, which has no end, so evaluating it would have none; give rows with a length, such "
            "as a datasets.Dataset."
        )
    if not isinstance(dataset, Sized):
        if dataset is not None and args.train_sampling_strategy in GROUPS_BY_LENGTH:
            raise ValueError(
                f"train_sampling_strategy={args.train_sampling_strategy!r} needs the length of every row, and {name} "
                "is read row by row; leave it out, or give a data set with a length."
            )
        return
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty; give at least one recording.")
    if args.train_sampling_strategy not in GROUPS_BY_LENGTH:
        return
    inferred_from = processing_class.model_input_names[0] if processing_class is not None else "input_ids"
    if args.length_column_name not in getattr(dataset, "column_names", ()) and inferred_from not in dataset[0]:  # type: ignore[index]
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} needs the length of every row in the column "
            f"{args.length_column_name!r} of a datasets.Dataset, and {name} has none; add it, or name another by "
            "length_column_name."
        )


def check_statistics(statistics: Mapping[str, RunningStatistics], quantizer: CausalBridgeQuantizer) -> None:
    """Refuse statistics that are of no teacher of the model.

    Raises:
        ValueError: If a name is unknown, a size is another one, or nothing was counted.
    """
    bridges = bridges_of(quantizer)
    for name, given in statistics.items():
        if name not in bridges:
            raise ValueError(f"teacher_statistics names {name!r}, but the teachers are {', '.join(bridges)}.")
        if given.dim != bridges[name].out_features:
            raise ValueError(
                f"teacher_statistics of {name} are of vectors of {given.dim}, but the model's {name}_dim is "
                f"{bridges[name].out_features}; are they of another teacher?"
            )
        if given.weight <= 0:
            raise ValueError(f"teacher_statistics of {name} are of no vector at all; leave them out.")


def check_model(args: MimiBridgeTrainingArguments, model: nn.Module) -> None:
    """Refuse a model that lacks what is asked for, or cannot learn.

    Raises:
        ValueError: If a loss of audio needs a decoder that is not there, or codebooks are in half precision.
    """
    for name in OF_AUDIO:
        if getattr(args, name) and getattr(model, "decoder", None) is None:
            raise ValueError(
                f"{name}={getattr(args, name)} needs the decoder, but the model was loaded without it; load it whole, "
                f"or set {name} to 0."
            )
    for name in ACOUSTIC_CHANGES:
        if getattr(args, name) and args.mel_weight == 0 and args.adversarial_weight == 0:
            raise ValueError(
                f"{name}={getattr(args, name)} needs a loss of the decoded audio, but mel_weight and "
                f"adversarial_weight are 0; give one of them a weight, or leave {name} out."
            )
    for half in CODEC:
        rate = (args.head_learning_rates or {}).get(half, 0)  # type: ignore[union-attr]  # parsed by now
        if rate and getattr(model, half, None) is None:
            raise ValueError(
                f"{half} has the learning rate {rate}, but the model was loaded without it; load it whole, or leave "
                f"{half} out of head_learning_rates."
            )
    for head in model.quantizer.heads.values():  # type: ignore[union-attr, operator]
        dtype = head.codebooks[0].dtype
        if dtype != torch.float32:
            raise ValueError(
                f"codebooks must be float32 to learn, got {dtype}, as model.to({dtype}) leaves them; load the model "
                f"by from_pretrained(..., dtype={dtype}), which keeps them, or train with --bf16."
            )


def refuse_losses_of_audio(args: MimiBridgeTrainingArguments, training: bool) -> None:
    """Refuse losses that a batch of latents cannot have.

    Raises:
        ValueError: Naming the argument.
    """
    for name in OF_AUDIO if training else ("mel_weight",):
        weight = getattr(args, name)
        if weight:
            raise ValueError(
                f"{name}={weight} needs audio, but rows hold latents computed before; leave {name} out, or use a "
                "data set of audio."
            )


def weights_of(args: MimiBridgeTrainingArguments, model: Any) -> dict[str, float]:
    """The weight of every loss by its name, or the part of it before the first `_`."""
    weights = {
        name: getattr(model.config, f"{name}_weight")
        if getattr(args, f"{name}_weight") is None
        else getattr(args, f"{name}_weight")
        for name in ("qwen", "wavlm", "commitment")
    }
    mel_weight = 1.0 if model.decoder is not None else 0.0
    return weights | {
        "codebook": model.config.codebook_weight,
        "mel": mel_weight if args.mel_weight is None else args.mel_weight,
        "latents": args.latents_weight,
        "adversarial": args.adversarial_weight,
        "timbre": args.timbre_weight,
        "features": 2 * args.adversarial_weight,
        **loss_weights(args.readout_weights),
    }
