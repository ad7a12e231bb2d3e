"""Probes: small classifiers and regressors on codes, trained and tested on different speakers.

The input is the codebook entry of each code, summed over the codebooks of a head, as in the quantizer: a learned
embedding for each of 2,048 codes would need hours of speech. A linear probe, or one with a small hidden layer, sees a
frame with its two neighbours. Every attribute has its own weights; all attributes and folds share batches, so that
they cost one matrix product.

In fold `k`, group `k` is tested, group `k + 1` decides early stopping, and the others are trained on. A probe that is
never better than a constant predictor there predicts the constant.

Source: Alain and Bengio 2016 (arXiv:1610.01644), probes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONTEXT = 1  # frames on either side
HIDDEN = 32
BATCH_FRAMES = 512
LEARNING_RATE = 0.1  # at the first step, divided by the root of the number of inputs; decays linearly to 0
WEIGHT_DECAY = 1e-2
MAX_STEPS = 240
MIN_STEPS_BETWEEN_CHECKS = 15
PATIENCE = 3  # checks without a gain, before a probe stops
MIN_GAIN = 0.005  # relative to the error
MIN_GROUPS = 3


@dataclass
class Attribute:
    """Something that is known of frames.

    Attributes:
        values: One a frame: a class, int64, -1 where unknown; or a number, float32, NaN where unknown.
        num_classes: None for a number.
    """

    values: Tensor
    num_classes: int | None = None

    @property
    def known(self) -> Tensor:
        """True where the value is known, `(frames,)`."""
        return ~self.values.isnan() if self.num_classes is None else self.values >= 0


@dataclass
class Predictions:
    """Predictions for frames outside the training folds.

    Attributes:
        predicted: Log probabilities `(frames, classes)`, or numbers `(frames,)`; NaN where a fold cannot learn.
        constant: Majority class, or mean, of the training frames, `(frames,)`; -1 or NaN where there were none.
    """

    predicted: Tensor
    constant: Tensor


def balanced_groups(units: Sequence[str], num_groups: int) -> dict[str, int]:
    """Deal units (a speaker a frame, say) to groups, the most frequent first, each to the smallest group.

    >>> balanced_groups(["ann", "ann", "bob", "cy", "bob", "ann"], 2)
    {'ann': 0, 'bob': 1, 'cy': 1}
    """
    counts = {unit: 0 for unit in units}
    for unit in units:
        counts[unit] += 1
    sizes, groups = [0] * num_groups, {}
    for unit in sorted(counts, key=lambda unit: (-counts[unit], unit)):
        groups[unit] = min(range(num_groups), key=lambda group: (sizes[group], group))
        sizes[groups[unit]] += counts[unit]
    return groups


def cross_validate(
    features: Tensor,
    recording: Tensor,
    groups: Tensor,
    attributes: dict[str, Attribute],
    hidden: int | None = None,
    seed: int = 0,
) -> dict[str, Predictions]:
    """For each group, train probes on all groups but two and predict that group's frames.

    Args:
        features: `(frames, dim)`, the frames of all recordings, one recording after another.
        recording: Number of each frame's, `(frames,)`: context does not reach beyond it.
        groups: `(frames,)`, 0 to the number of groups less 1; -1 for frames to be left out.
        attributes: What to predict, by name.
        hidden: Units of the hidden layer of each attribute; None for a linear probe.
        seed: Of the weights and the order of frames.

    Raises:
        ValueError: If there are fewer than 3 groups.
    """
    num_groups = int(groups.max()) + 1
    if num_groups < MIN_GROUPS:
        raise ValueError(f"probes need {MIN_GROUPS} groups or more, got {num_groups}.")
    generator = torch.Generator().manual_seed(seed)
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-4)
    neighbours, real = _neighbours(recording)
    folds = torch.arange(num_groups)[:, None]
    used = groups >= 0
    tested, checked = groups == folds, groups == (folds + 1) % num_groups
    trained = used & ~tested & ~checked
    tasks = {name: _ProbeTask(attribute, trained, checked, tested) for name, attribute in attributes.items()}
    sizes = [attribute.num_classes or 1 for attribute in attributes.values()]
    dim = features.shape[1] * neighbours.shape[1]
    probes = _Probes(dim, sizes, num_groups, hidden, generator)
    optimizer = torch.optim.AdamW(probes.parameters(), LEARNING_RATE / dim**0.5, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / MAX_STEPS))

    def answers(rows: Tensor) -> list[Tensor]:
        window = features[neighbours[rows]] * real[rows][:, :, None]
        return probes(window.flatten(1))

    steps = since_check = 0
    frames = used.nonzero()[:, 0]
    while steps < MAX_STEPS and not all(task.is_done for task in tasks.values()):
        for rows in frames[torch.randperm(len(frames), generator=generator)].split(BATCH_FRAMES):
            with torch.enable_grad():
                losses = [
                    task.loss(predicted, rows) for task, predicted in zip(tasks.values(), answers(rows), strict=True)
                ]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
            optimizer.step()
            scheduler.step()
            steps, since_check = steps + 1, since_check + 1
        if since_check >= MIN_STEPS_BETWEEN_CHECKS or steps >= MAX_STEPS:
            since_check = 0
            with torch.no_grad():
                blocks = [answers(rows) for rows in torch.arange(len(features)).split(4096)]
            for task, *predicted in zip(tasks.values(), *blocks, strict=True):
                task.check(torch.cat(predicted))
    return {name: task.predictions() for name, task in tasks.items()}


class _Probes(nn.Module):
    """The probes of all attributes and folds: `(batch, dim)` -> `(batch, folds, outputs)` for each attribute."""

    def __init__(
        self, dim: int, sizes: list[int], num_folds: int, hidden: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes, self.num_folds, self.hidden = sizes, num_folds, hidden
        width = sum(sizes) if hidden is None else len(sizes) * hidden
        scale = 0.01 if hidden is None else 1.0
        first = torch.randn(dim, num_folds * width, generator=generator) * (scale / dim**0.5)
        self.weight, self.bias = nn.Parameter(first), nn.Parameter(torch.zeros(num_folds * width))
        last = [torch.randn(num_folds, hidden or 0, size, generator=generator) * 0.02 for size in sizes]
        self.last = nn.ParameterList(last if hidden else [])
        self.last_bias = nn.ParameterList([torch.zeros(num_folds, size) for size in sizes] if hidden else [])

    def forward(self, window: Tensor) -> list[Tensor]:
        outputs = (window @ self.weight + self.bias).view(len(window), self.num_folds, -1)
        if self.hidden is None:
            return list(outputs.split(self.sizes, dim=2))
        units = torch.relu(outputs).split(self.hidden, dim=2)
        return [
            torch.einsum("bfh,fho->bfo", unit, weight) + bias
            for unit, weight, bias in zip(units, self.last, self.last_bias, strict=True)
        ]


class _ProbeTask:
    """One attribute: its loss, and each fold's predictions at its best check."""

    def __init__(self, attribute: Attribute, trained: Tensor, checked: Tensor, tested: Tensor):
        known = attribute.known
        self.num_classes = attribute.num_classes
        self.trained, self.checked, self.tested = trained & known, checked & known, tested
        self.can_learn = self.trained.any(dim=1)
        num_folds, num_frames = trained.shape
        values = attribute.values.float().nan_to_num() if self.num_classes is None else attribute.values.clamp(min=0)
        counts = self.trained.sum(dim=1).clamp(min=1)
        if self.num_classes is None:
            # Numbers are brought to the mean and spread of the fold's own training frames.
            self.mean = (values * self.trained).sum(dim=1) / counts
            spread = ((values - self.mean[:, None]).square() * self.trained).sum(dim=1) / counts
            self.spread = spread.sqrt().clamp(min=1e-6)
            self.values = (values - self.mean[:, None]) / self.spread[:, None]
        else:
            self.values = values.expand(num_folds, -1)
        shape = (num_frames,) if self.num_classes is None else (num_frames, self.num_classes)
        self.kept = torch.full(shape, torch.nan)
        self.best = torch.full((num_folds,), torch.inf)
        self.checks_since_best = torch.zeros(num_folds, dtype=torch.long)
        self.check(self._constant(num_frames))

    @property
    def is_done(self) -> bool:
        return bool(((self.checks_since_best >= PATIENCE) | ~self.can_learn).all())

    def _constant(self, num_frames: int) -> Tensor:
        # Before anything is learned: the mean, or the classes' shares, of each fold's training frames.
        if self.num_classes is None:
            return torch.zeros(num_frames, len(self.trained), 1)
        folds = zip(self.values, self.trained, strict=True)
        counts = [torch.bincount(values[trained], minlength=self.num_classes) for values, trained in folds]
        return (torch.stack(counts) + 0.5).log().expand(num_frames, -1, -1)

    def _errors(self, predicted: Tensor, values: Tensor) -> Tensor:
        # (frames, folds, outputs), (folds, frames) -> (folds, frames)
        if self.num_classes is None:
            return (predicted[:, :, 0].T - values).square()
        chosen = torch.log_softmax(predicted, dim=2).gather(2, values.T[:, :, None])
        return -chosen[:, :, 0].T

    def loss(self, predicted: Tensor, rows: Tensor) -> Tensor:
        counted = self.trained[:, rows]
        return (self._errors(predicted, self.values[:, rows]) * counted).sum() / counted.sum(dim=1).max().clamp(min=1)

    def check(self, predicted: Tensor) -> None:
        errors = (self._errors(predicted, self.values) * self.checked).sum(dim=1) / self.checked.sum(dim=1).clamp(
            min=1
        )
        # Where nothing can be checked, the last predictions are kept.
        better = ((errors < self.best) | ~self.checked.any(dim=1)) & self.can_learn
        much_better = (errors < self.best * (1 - MIN_GAIN)) | (better & self.best.isinf())
        self.checks_since_best = torch.where(much_better, 0, self.checks_since_best + 1)
        self.best = torch.where(better, errors, self.best)
        for fold in better.nonzero()[:, 0].tolist():
            rows = self.tested[fold]
            if self.num_classes is None:
                self.kept[rows] = predicted[rows, fold, 0] * self.spread[fold] + self.mean[fold]
            else:
                self.kept[rows] = torch.log_softmax(predicted[rows, fold], dim=1)

    def predictions(self) -> Predictions:
        if self.num_classes is None:
            constant = torch.full_like(self.kept, torch.nan)
            for fold in self.can_learn.nonzero()[:, 0].tolist():
                constant[self.tested[fold]] = self.mean[fold]
            return Predictions(self.kept, constant)
        majority = torch.full((len(self.kept),), -1)
        for fold in self.can_learn.nonzero()[:, 0].tolist():
            counts = torch.bincount(self.values[fold][self.trained[fold]], minlength=self.num_classes)
            majority[self.tested[fold]] = int(counts.argmax())
        return Predictions(self.kept, majority)


def _neighbours(recording: Tensor) -> tuple[Tensor, Tensor]:
    # For each frame the rows of its window, and whether they are in the same recording; others count as zero.
    offsets = torch.arange(-CONTEXT, CONTEXT + 1)
    rows = torch.arange(len(recording))[:, None] + offsets
    inside = rows.clamp(0, len(recording) - 1)
    return inside, (rows == inside) & (recording[inside] == recording[:, None])
