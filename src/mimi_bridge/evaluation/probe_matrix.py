"""The head × attribute matrix: how well probes predict phone, word, pitch, level and speaker from each head's codes.

Every attribute but the speaker is predicted for speakers outside the training set. A speaker must be in the training
set to be recognized: those probes are tested on other recordings of the same speakers, or, of speakers with few
recordings, on other segments of two seconds.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .intervals import ratio_with_interval
from .labels import FrameLabels
from .probes import HIDDEN, MIN_GROUPS, Attribute, Predictions, balanced_groups, cross_validate

MAX_GROUPS = 5
MAX_WORDS = 20
MIN_WORD_SPEAKERS = 3
SEGMENT_SECONDS = 2.0
PROBES: dict[str, int | None] = {"linear": None, "mlp": HIDDEN}
WHAT = {
    "phone": "phone of a frame, unseen speakers",
    "word": f"which of the {MAX_WORDS} most common words, a frame, unseen speakers",
    "pitch": "log F0 of voiced frames, unseen speakers",
    "pitch_in_speaker": "log F0 less the speaker's mean, voiced frames, unseen speakers",
    "energy": "level of a frame in dB, unseen speakers",
    "speaker": "speaker of 2 s, other recordings or parts of recordings of the same people",
}


@dataclass
class ProbedRecording:
    """A recording's labels and features for the probes.

    Attributes:
        speaker: Name of the speaker.
        labels: Of its frames.
        features: By the input's name, `(frames, dim)`.
    """

    speaker: str
    labels: FrameLabels
    features: dict[str, Tensor] = field(default_factory=dict)


def head_features(codes: Tensor, entries: list[Tensor], heads: list[range]) -> Tensor:
    """Codes as the sum of each head's entries: `(codebooks, frames)` -> `(frames, heads * codebook_dim)`.

    Args:
        codes: Of one recording.
        entries: Of each codebook, `(codebook_size, codebook_dim)`.
        heads: Which codebooks belong together.
    """
    shares = [torch.stack([entries[level][codes[level]] for level in head]).sum(dim=0) for head in heads]
    return torch.cat(shares, dim=1).float()


def ahead(values: Tensor, num_frames: int) -> Tensor:
    """Of each frame what a later one has, `(frames, ...)`; the last frames get what the last of all has.

    >>> ahead(torch.tensor([1, 2, 3]), 2).tolist()
    [3, 3, 3]
    """
    num_frames = min(num_frames, len(values))
    return torch.cat([values[num_frames:], values[-1:].expand(num_frames, *values.shape[1:])])


def probe_matrix(
    recordings: list[ProbedRecording],
    inputs: dict[str, str],
    frame_rate: float,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[dict, dict[str, str]]:
    """Probe every input for every attribute.

    Args:
        recordings: With features of each input.
        inputs: Name -> label, in the order of the table.
        frame_rate: Hz.
        seed: Of the probes.
        progress: Called with a message when a step begins.

    Returns:
        `attributes`, `inputs` and `scores` as in docs/evaluation.md, and attributes that could not be probed, with the
        reason.
    """
    numbers = torch.repeat_interleave(
        torch.arange(len(recordings)), torch.tensor([len(r.labels.energy) for r in recordings])
    )
    by_speaker, not_run = _by_speaker(recordings)
    speaker, reason = _within_speaker(recordings, frame_rate)
    rounds = [by_speaker] if by_speaker.attributes else []
    if speaker is None:
        not_run["speaker"] = reason
    else:
        rounds.append(speaker)
    matrix: dict = {"attributes": {}, "inputs": [{"name": n, "label": label} for n, label in inputs.items()]}
    matrix["scores"] = {name: {} for name in inputs}
    if not rounds:
        return matrix, not_run
    done: list[tuple[Tensor, str]] = []
    for name, label in inputs.items():
        features = torch.cat([recording.features[name] for recording in recordings])
        equal = next((other for seen, other in done if torch.equal(seen, features)), None)
        if equal is not None:
            matrix["scores"][name] = matrix["scores"][equal]
            continue
        done.append((features, name))
        for kind, hidden in PROBES.items():
            progress(f"probing {label}, {kind}")
            for questions in rounds:
                predicted = cross_validate(features, numbers, questions.groups, questions.attributes, hidden, seed)
                for attribute, predictions in predicted.items():
                    score, about = questions.score(attribute, predictions)
                    matrix["scores"][name].setdefault(attribute, {})[kind] = score
                    matrix["attributes"][attribute] = about | {"what": WHAT[attribute]}
    return matrix, not_run


@dataclass
class _Questions:
    """Attributes that share one division of the frames into folds."""

    groups: Tensor  # (frames,)
    attributes: dict[str, Attribute]
    speakers: Tensor  # number of each frame's, (frames,)
    segments: Tensor | None = None  # number of each frame's; None: every frame is scored alone

    def score(self, name: str, predictions: Predictions) -> tuple[dict[str, float], dict]:
        attribute = self.attributes[name]
        counted = attribute.known & (self.groups >= 0)
        if attribute.num_classes is None:
            counted &= ~predictions.predicted.isnan() & ~predictions.constant.isnan()
            values = attribute.values
            predicted, constant = (
                self._sums((predicted - values).square().nan_to_num(), counted)
                for predicted in (predictions.predicted, predictions.constant)
            )
            unexplained = ratio_with_interval(predicted, constant)
            score = {"mean": 1 - unexplained["mean"], "low": 1 - unexplained["high"], "high": 1 - unexplained["low"]}
            return score, {"kind": "r2", "chance": 0.0, "count": int(counted.sum())}
        counted &= ~predictions.predicted.isnan().any(dim=1) & (predictions.constant >= 0)
        log_probabilities, values, constant = predictions.predicted, attribute.values, predictions.constant
        speakers = self.speakers
        if self.segments is not None:
            first, place = _first_rows(self.segments[counted])
            kept = counted.nonzero()[:, 0]
            sums = torch.zeros(len(first), log_probabilities.shape[1]).index_add_(0, place, log_probabilities[kept])
            rows = kept[first]
            log_probabilities, values, constant, speakers = sums, values[rows], constant[rows], speakers[rows]
            counted = torch.ones(len(rows), dtype=torch.bool)
        right, lucky, ones = (
            self._sums(answers.double(), counted, speakers)
            for answers in (log_probabilities.nan_to_num().argmax(dim=1) == values, constant == values, counted)
        )
        chance = float(lucky.sum() / ones.sum().clamp(min=1))
        return ratio_with_interval(right, ones), {"kind": "accuracy", "chance": chance, "count": int(ones.sum())}

    def _sums(self, values: Tensor, counted: Tensor, speakers: Tensor | None = None) -> Tensor:
        # Sums by speaker, over the counted frames: the interval resamples speakers.
        speakers = (self.speakers if speakers is None else speakers)[counted]
        unique, place = speakers.unique(return_inverse=True)
        return torch.zeros(len(unique)).double().index_add_(0, place, values[counted].double())


def _by_speaker(recordings: list[ProbedRecording]) -> tuple[_Questions, dict[str, str]]:
    names = [r.speaker for r in recordings for _ in r.labels.energy]
    order = {name: number for number, name in enumerate(sorted(set(names)))}
    speakers = torch.tensor([order[name] for name in names])
    not_run: dict[str, str] = {}
    if len(order) < MIN_GROUPS:
        reason = f"probes by speaker need {MIN_GROUPS} speakers or more, got {len(order)}."
        return _Questions(speakers, {}, speakers), {name: reason for name in WHAT if name != "speaker"}
    groups = balanced_groups(names, min(MAX_GROUPS, len(order)))
    attributes = {
        "phone": _classes([label for r in recordings for label in r.labels.phone]),
        "word": _classes(_common_words(recordings)),
        "pitch": _numbers([value for r in recordings for value in r.labels.pitch]),
        "energy": _numbers([value for r in recordings for value in r.labels.energy]),
    }
    attributes["pitch_in_speaker"] = Attribute(_less_own_mean(attributes["pitch"].values, speakers))
    for name in list(attributes):
        known = attributes[name].known
        if len(speakers[known].unique()) < MIN_GROUPS or attributes[name].num_classes == 1:
            not_run[name] = f"known of too few frames or speakers: {int(known.sum())} frames."
            del attributes[name]
    ordered = {name: attributes[name] for name in WHAT if name in attributes}
    return _Questions(torch.tensor([groups[name] for name in names]), ordered, speakers), not_run


def _within_speaker(recordings: list[ProbedRecording], frame_rate: float) -> tuple[_Questions | None, str]:
    frames = round(SEGMENT_SECONDS * frame_rate)
    counts = Counter(r.speaker for r in recordings)
    segments = Counter[str]()
    for r in recordings:
        segments[r.speaker] += len(r.labels.energy) // frames
    kept = sorted(s for s in counts if counts[s] >= MAX_GROUPS or segments[s] >= MAX_GROUPS)
    if len(kept) < 2:
        return None, (
            f"telling speakers apart needs 2 or more with {MAX_GROUPS} recordings, or {MAX_GROUPS} times "
            f"{SEGMENT_SECONDS:g} s, got {len(kept)}."
        )
    order = {name: number for number, name in enumerate(kept)}
    groups, labels, numbers, total = [], [], [], 0
    seen: Counter[str] = Counter()
    for recording in recordings:
        by_recording = counts[recording.speaker] >= MAX_GROUPS
        for first in range(0, len(recording.labels.energy), frames):
            length = min(frames, len(recording.labels.energy) - first)
            whole = recording.speaker in order and length == frames
            groups += [seen[recording.speaker] % MAX_GROUPS if whole else -1] * length
            labels += [order[recording.speaker] if whole else -1] * length
            numbers += [total] * length
            total += 1
            seen[recording.speaker] += not by_recording and whole
        seen[recording.speaker] += by_recording
    values = torch.tensor(labels)
    questions = _Questions(
        torch.tensor(groups), {"speaker": Attribute(values, len(order))}, values, torch.tensor(numbers)
    )
    return questions, ""


def _common_words(recordings: list[ProbedRecording]) -> list[str | None]:
    said: dict[str, set[str]] = {}
    for recording in recordings:
        for word in recording.labels.word:
            if word is not None:
                said.setdefault(word, set()).add(recording.speaker)
    common = [word for word in said if len(said[word]) >= MIN_WORD_SPEAKERS]
    frames = Counter(word for r in recordings for word in r.labels.word)
    chosen = set(sorted(common, key=lambda word: (-len(said[word]), -frames[word], word))[:MAX_WORDS])
    return [word if word in chosen else None for r in recordings for word in r.labels.word]


def _classes(labels: list[str | None]) -> Attribute:
    order = {name: number for number, name in enumerate(sorted({label for label in labels if label is not None}))}
    values = torch.tensor([-1 if label is None else order[label] for label in labels])
    return Attribute(values, len(order) or 1)


def _numbers(values: list[float | None]) -> Attribute:
    return Attribute(torch.tensor([torch.nan if value is None else value for value in values]))


def _less_own_mean(values: Tensor, speakers: Tensor) -> Tensor:
    means = torch.stack([values[speakers == number].nanmean() for number in range(int(speakers.max()) + 1)])
    return values - means[speakers]


def _first_rows(numbers: Tensor) -> tuple[Tensor, Tensor]:
    # Of each segment its first row, and the place of each row's segment.
    unique, place = numbers.unique(return_inverse=True)
    first = torch.full((len(unique),), len(numbers)).scatter_reduce(0, place, torch.arange(len(numbers)), "amin")
    return first, place
