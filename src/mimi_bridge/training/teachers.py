"""Teachers in the training loop: features are computed batch by batch on the training device, and stored nowhere.

They are the classes that `mimi-bridge prepare` uses, frozen and in eval mode, no part of the model, its wrapper, the
optimizer or a checkpoint. A checkpoint records which they were, so that training goes on with the same or not at all.

Source: Moshi technical report (arXiv:2410.00037), section 3.3.2, where WavLM runs while Mimi trains.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_mimi_bridge import MimiBridgeConfig
from ..data.collator import MimiBridgeCollator
from ..data.row_audio import AUDIO_KEYS
from ..data.teacher_inputs import TeacherInputs
from ..data.teachers.revision import digest_of, revision_of
from ..data.teachers.speech import WavLMTeacher
from ..data.teachers.text import QwenTeacher
from .teacher_record import record_in

logger = logging.get_logger(__name__)

MAX_NAMED = 20  # rows that lost a teacher
ROWS_COMPARED = 4  # whose tokens are made again, to see that they are the teacher's
Layer = int | str | list[int] | None


class TrainingTeachers:
    """The teachers of a run.

    Args:
        text: Name or folder of a language model, as in `QwenTeacher`; None: rows store `qwen_hidden`, if any.
        speech: Name or folder of a speech model, as in `WavLMTeacher`; None: rows store `wavlm_features`, if any.
        text_layer: As in `QwenTeacher`.
        final_norm: As in `QwenTeacher`.
        speech_layer: As in `WavLMTeacher`.
        dtype: Of the teachers' computation, as in `from_pretrained`.
        context_seconds: Of the recording on each side of a crop that the speech model hears; None: all of it, as far
            as `max_seconds` allow, which is what `mimi-bridge prepare` computes features from.
        max_seconds: The longest stretch that the speech model hears.
        checkpoint: Folder of a checkpoint to go on from; the same revisions are loaded.

    Raises:
        OSError: If a model, or the checkpoint's revision of it, is not available.
        ValueError: If no teacher is named, or one has no such layer.
    """

    def __init__(
        self,
        text: str | None = None,
        speech: str | None = None,
        text_layer: int | None = None,
        final_norm: bool = True,
        speech_layer: Layer = None,
        dtype: torch.dtype | str = "auto",
        context_seconds: float | None = None,
        max_seconds: float = 60.0,
        checkpoint: str | None = None,
    ):
        if text is None and speech is None:
            raise ValueError("teachers must name a text teacher, a speech teacher or both; leave them out for none.")
        recorded = record_in(checkpoint) if checkpoint is not None else {}
        self.text: QwenTeacher | None = None
        self.speech: WavLMTeacher | None = None
        self._record: dict[str, dict[str, Any]] = {}
        self._num_lost = 0
        if text is not None:
            layers: dict[str, Any] = {"layer": text_layer, "final_norm": final_norm}
            self.text = _load(QwenTeacher, "text", text, recorded, dtype=dtype, **layers)
            self._note("text", text, self.text, dtype, layers)
        if speech is not None:
            layers = {"layer": speech_layer}
            self.speech = _load(
                WavLMTeacher, "speech", speech, recorded, dtype=dtype, max_seconds=max_seconds, **layers
            )
            self._note("speech", speech, self.speech, dtype, layers | {"context_seconds": context_seconds})
        speech_input = None if self.speech is None else self.speech.input
        self.inputs = TeacherInputs(speech_input, self.text is not None, context_seconds)

    def begin(self, config: MimiBridgeConfig, data_sets: Mapping[str, Any], device: torch.device | str) -> None:
        """Check every data set, by its name, and move the models."""
        for name, dataset in data_sets.items():
            self.check(config, dataset, name)
        self.to(device)

    def to(self, device: torch.device | str) -> "TrainingTeachers":
        """Move the models."""
        for teacher in (self.text, self.speech):
            if teacher is not None:
                teacher.model.to(device)
        return self

    def collator(self, collate: Any) -> Any:
        """A `MimiBridgeCollator` whose batches hold what the teachers need; another makes them itself."""
        return collate.with_teachers(self.inputs) if isinstance(collate, MimiBridgeCollator) else collate

    def check(self, config: MimiBridgeConfig, dataset: Any, name: str = "train_dataset") -> None:
        """Refuse teachers of another size than the model's, and rows that they cannot be computed from.

        Raises:
            ValueError: Naming the teacher, and the size or the columns.
        """
        pairs = (("text", self.text, "qwen_dim"), ("speech", self.speech, "wavlm_dim"))
        for kind, teacher, field in pairs:
            if teacher is not None and teacher.dim != getattr(config, field):
                raise ValueError(
                    f"the {kind} teacher {self._record[kind]['name']} has vectors of {teacher.dim}, but the model's "
                    f"{field} is {getattr(config, field)}; convert with --{field.replace('_', '-')} {teacher.dim}, or "
                    "take another teacher."
                )
        columns = _columns(dataset)
        if columns is None:
            return
        by_prepare = "make them by mimi-bridge prepare --teachers none"
        if self.text is not None and not ({"token_ids"} <= columns and {"token_spans", "durations"} & columns):
            raise ValueError(
                f"the text teacher needs the columns token_ids and token_spans, but {name} has "
                f"{', '.join(sorted(columns))}; {by_prepare}."
            )
        if self.speech is not None and not {*AUDIO_KEYS} & columns:
            raise ValueError(
                f"the speech teacher needs a column of audio ({', '.join(AUDIO_KEYS)}), but {name} has "
                f"{', '.join(sorted(columns))}; {by_prepare}."
            )
        for teacher, column in ((self.text, "qwen_hidden"), (self.speech, "wavlm_features")):
            if teacher is not None and column in columns:
                logger.warning("%s of %s is not read: a teacher computes it while training", column, name)
        self._check_tokens(dataset, columns, name)

    def record(self) -> dict[str, dict[str, Any]]:
        """Which teachers these are, for a checkpoint: name, revision, layers, and a digest of their weights."""
        return self._record

    def added_to(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Batches with features; of those of the iterator no more are taken than are asked for."""
        return (self.add(batch) for batch in batches)

    @torch.no_grad()
    def add(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of `MimiBridgeCollator.with_teachers` with `wavlm_features` and `qwen_hidden`, on the device.

        A row of which a teacher makes something that is not finite, or whose text it cannot take, loses that teacher
        and is named. A batch that holds nothing for them is given back as it is.
        """
        names = batch.get("teacher_rows")
        if names is None:
            return batch
        rest = {name: value for name, value in batch.items() if not name.startswith("teacher_")}
        if self.speech is not None and "teacher_audio" in batch:
            rest |= self._speech_features(batch, names)
            del rest["wavlm_index"]
        if self.text is not None and "teacher_tokens" in batch:
            rest |= self._text_states(batch, names)
            del rest["token_index"]
        return rest

    def _speech_features(self, batch: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
        assert self.speech is not None
        audio = batch["teacher_audio"].to(self.speech.model.device)
        rows = [row[:length] for row, length in zip(audio, batch["teacher_samples"].tolist(), strict=True)]
        counts = batch["teacher_frames"].tolist()
        taken = [place for place, count in enumerate(counts) if count]
        found = [audio.new_zeros(0, self.speech.dim)] * len(rows)  # of those that are longer than the model takes
        made = self.speech.features_of_inputs([rows[place] for place in taken], [counts[place] for place in taken])
        for place, features in zip(taken, made, strict=True):
            found[place] = features
        fits = batch["teacher_frames"] > 0
        features, kept = self._gathered(found, batch["wavlm_index"] * fits[:, None], names, "speech")
        for place in (~fits).nonzero()[:, 0].tolist():
            self._name(names[place], "speech", f"it takes {self.speech.input.max_seconds:g} s at most")
        kept &= fits.to(kept.device)
        mask = batch["wavlm_mask"].to(features.device) & kept[:, None]
        return {"wavlm_features": features * mask[:, :, None], "wavlm_mask": mask}

    def _text_states(self, batch: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
        assert self.text is not None
        lengths = batch["teacher_num_tokens"].tolist()
        token_ids = [row[:length] for row, length in zip(batch["teacher_tokens"].tolist(), lengths, strict=True)]
        for place, ids in enumerate(token_ids):
            if any(number >= self.text.num_tokens for number in ids):
                raise ValueError(
                    f"token_ids of {names[place]} go up to {max(ids)}, but {self._record['text']['name']} knows "
                    f"{self.text.num_tokens} tokens; prepare the data with its tokenizer."
                )
            if self.text.max_tokens is not None and len(ids) > self.text.max_tokens:
                self._name(names[place], "text", f"it takes {self.text.max_tokens} tokens, not {len(ids)}")
                token_ids[place] = []
        states = self.text.hidden(token_ids)
        hidden, kept = self._gathered(states, batch["token_index"], names, "text")
        kept &= torch.tensor([not length or bool(ids) for length, ids in zip(lengths, token_ids, strict=True)]).to(
            kept
        )
        mask = batch.get("token_mask")
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        mask = mask.to(hidden.device) & kept[:, None]
        if bool(mask.all()) and "token_mask" not in batch:
            return {"qwen_hidden": hidden}
        return {"qwen_hidden": hidden * mask[:, :, None], "token_mask": mask}

    def _gathered(self, found: list[Tensor], index: Tensor, names: list[str], kind: str) -> tuple[Tensor, Tensor]:
        # Vectors of each row where `index` says, (batch, places, dim), and which rows keep them, (batch,).
        together = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        together = torch.nn.functional.pad(together, (0, 0, 0, max(0, 1 - together.shape[1])))
        is_finite = torch.isfinite(together).flatten(1).all(dim=1)
        for place in (~is_finite).nonzero()[:, 0].tolist():
            self._name(names[place], kind, "it gives NaN or infinity")
        together = torch.where(is_finite[:, None, None], together, 0.0)
        index = index.to(together.device)[:, :, None].expand(-1, -1, together.shape[2])
        return together.gather(1, index), is_finite

    def _name(self, row: str, kind: str, why: str) -> None:
        self._num_lost += 1
        if self._num_lost <= MAX_NAMED:
            last = "; further ones are not named" if self._num_lost == MAX_NAMED else ""
            logger.warning("%s trains without the %s teacher: %s%s", row, kind, why, last)

    def _note(self, kind: str, name: str, teacher: Any, dtype: Any, options: dict[str, Any]) -> None:
        self._record[kind] = {
            "name": name,
            "revision": revision_of(teacher.model),
            "dtype": str(dtype).removeprefix("torch."),
            **options,
            "digest": digest_of(teacher.model),
        }

    def _check_tokens(self, dataset: Any, columns: set[str], name: str) -> None:
        if self.text is None or "text" not in columns:
            return
        for row in _first_rows(dataset, ["text", "token_ids"]):
            ids = row.get("token_ids")
            if row.get("text") is None or ids is None or len(ids) == 0:
                continue
            expected = self.text.tokenizer.states([row["text"]])[0].token_ids
            if [int(number) for number in ids] != expected:
                raise ValueError(
                    f"token_ids of {name} are not what {self._record['text']['name']}'s tokenizer makes of the text "
                    f"{row['text'][:40]!r}; prepare the data with --text-teacher {self._record['text']['name']}."
                )


def _load(make: Callable[..., Any], kind: str, name: str, recorded: Mapping[str, Any], **options: Any) -> Any:
    of_kind = recorded.get(kind) or {}
    revision = of_kind.get("revision") if of_kind.get("name") == name else None
    try:
        return make(name, revision=revision, **options)
    except OSError as error:
        if revision is None:
            raise
        raise OSError(
            f"training cannot go on: revision {revision} of the {kind} teacher {name}, with which the checkpoint was "
            f"trained, is not available ({str(error).splitlines()[0]})."
        ) from error


def _columns(dataset: Any) -> set[str] | None:
    # None: nobody knows before rows are read.
    if hasattr(dataset, "column_names"):
        return None if dataset.column_names is None else {*dataset.column_names}
    if isinstance(dataset, list | tuple):
        return {name for row in dataset if isinstance(row, Mapping) for name in row if row[name] is not None}
    return None


def _first_rows(dataset: Any, columns: list[str]) -> list[Mapping[str, Any]]:
    if hasattr(dataset, "select_columns"):
        dataset = dataset.select_columns(columns)
    if hasattr(dataset, "__len__"):
        return [dataset[index] for index in range(min(ROWS_COMPARED, len(dataset)))]
    return [*islice(iter(dataset), ROWS_COMPARED)]
