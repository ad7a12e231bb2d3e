"""The columns of a data set that readouts need, by the argument that weighs each, and the speakers in them."""

from collections.abc import Collection, Mapping
from typing import Any

from ..data.frame_targets import PROSODY

NEEDS = {  # by the argument that weighs a readout, the columns of a row that it needs
    "phone_weight": ("phones",),
    "character_weight": ("words",),
    "speech_content_weight": ("wavlm_features",),
    "prosody_weight": ("f0_hz", "level_db"),
    "speaker_reversal_weight": ("speaker",),
}
COLLATED = {  # by the name of a readout, what the collator lays on frames for it
    "phone": "phones",
    "character": "characters",
    "prosody": "prosody",
    "speaker": "speaker",
}
COUNTED_BY = {  # the kind of frames that a readout needs some of, see `terms.COUNTED`
    "phone_weight": "phone",
    "character_weight": "character",
    "speech_content_weight": "speech_content",
    "prosody_weight": "level",
    "speaker_reversal_weight": "speaker",
}


def loss_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of each readout's loss by its name in the log, of the arguments in `NEEDS`."""
    of_prosody = dict.fromkeys(PROSODY, weights["prosody_weight"])
    return of_prosody | {
        "phone": weights["phone_weight"],
        "character": weights["character_weight"],
        "speech_content": weights["speech_content_weight"],
        "speaker": weights["speaker_reversal_weight"],
    }


def speakers_of(dataset: Any) -> dict[str, int]:
    """The speakers of a data set in the order of their names, numbered.

    Raises:
        ValueError: If there are fewer than two, or the data set cannot be looked through.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            "speaker_reversal_weight numbers the speakers of the whole data set, but the training data has no length; "
            "use one that is not streamed, or set speaker_reversal_weight to 0."
        )
    if hasattr(dataset, "column_names"):
        if "speaker" not in dataset.column_names:
            raise ValueError(_lacks("speaker_reversal_weight", "speaker"))
        found = dataset.with_format(None)["speaker"]
    else:
        found = [dataset[index].get("speaker") for index in range(len(dataset))]
    names = sorted({str(speaker) for speaker in found if speaker is not None})
    if not names:
        raise ValueError(_lacks("speaker_reversal_weight", "speaker"))
    if len(names) == 1:
        raise ValueError(
            f"speaker_reversal_weight needs two speakers or more to tell apart, got {names[0]!r} alone; set it to 0."
        )
    return {name: number for number, name in enumerate(names)}


def check_columns(weights: Mapping[str, float], dataset: Any, computed: Collection[str] = ()) -> None:
    """Refuse a data set that says nothing of what a readout is to read; one that cannot be looked through passes.

    Args:
        weights: Of the readouts, by argument.
        dataset: Rows.
        computed: Columns that teachers compute while training.

    Raises:
        ValueError: Naming the argument and the column.
    """
    for argument, columns in NEEDS.items():
        for column in {*columns} - {*computed} if weights[argument] > 0 else ():
            if hasattr(dataset, "column_names"):
                has_column = dataset.column_names is None or column in dataset.column_names
            else:
                has_column = not isinstance(dataset, list | tuple) or any(
                    isinstance(row, Mapping) and row.get(column) is not None for row in dataset
                )
            if not has_column:
                raise ValueError(_lacks(argument, column))


def raise_if_nothing_to_read(weights: Mapping[str, float], found: Mapping[str, int]) -> None:
    """Refuse to go on with a readout that had no frame in a whole epoch.

    Raises:
        ValueError: Naming the argument and the columns.
    """
    for argument, kind in COUNTED_BY.items():
        if weights[argument] > 0 and not found[kind]:
            columns = " and ".join(NEEDS[argument])
            what = " that is a phone of ARPAbet" if argument == "phone_weight" else ""
            raise ValueError(
                f"{argument} is {weights[argument]}, but no frame of the training data has a target in {columns}{what}"
                f"; add {columns}, or set {argument} to 0."
            )


def _lacks(argument: str, column: str) -> str:
    hint = " by mimi-bridge prepare --prosody" if argument == "prosody_weight" else " by mimi-bridge prepare"
    return (
        f"{argument} needs the column {column}, but the training data has none; add it{hint}, or set {argument} to 0."
    )
