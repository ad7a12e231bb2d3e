"""Readouts: small maps that the trainer owns, each reading from one head's share of the latents what that head is for.

The gradient of what a readout gets wrong passes the lookup and reaches the head, so that its entries come to carry
it: content the phone and the speech model's features, prosody pitch, level and voicing. The speaker is read from
content by a readout whose gradient is reversed on its way to the head. Readouts are in the optimizer and in the
trainer's checkpoints, never in the model; a run without their weights has none.

Source: frame phones on the entries of a codebook, PAST (arXiv:2505.14470); prosody's targets and the reversal, FACodec
(arXiv:2403.03100); gradient reversal, Ganin and Lempitsky 2015 (arXiv:1409.7495).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.collator import MimiBridgeCollator
from ..data.frame_targets import PHONES, PROSODY, UNKNOWN
from ..distillation import TeacherBridge, constant_distance
from ..heads import without_autocast
from ..losses.characters import LABELS_PER_FRAME, NUM_LABELS, character_loss, constant_character_loss
from ..outputs import MimiBridgeOutput
from ..quantizer import CausalBridgeQuantizer
from .readout_columns import COLLATED, check_columns, speakers_of
from .readout_targets import Targets
from .terms import Term

SPEAKER_WIDTH = 128  # of the hidden layer that reads the speaker
GROUP = "readouts"  # of the optimizer


@dataclass(frozen=True)
class Baseline:
    """Sums of a readout's targets, and the loss of a constant predictor on them.

    Attributes:
        size: Of the sums.
        distance: Of the sums, and of those on which the constant is fitted.
    """

    size: int
    distance: Callable[[Tensor, Tensor], float]


def teacher_baseline(bridge: TeacherBridge) -> Baseline:
    """That of the distance to a teacher, whose sums are `TeacherDistance.target_sums`."""
    return Baseline(bridge.out_features + 2, lambda sums, fitted: constant_distance(bridge.distance, sums, fitted))


class Readouts(nn.Module):
    """The readouts of one run.

    Args:
        weights: Of the arguments in `readout_columns.NEEDS`, by name; a readout of weight 0 is not there.
        codec_dim: Size of the latents.
        bridge: To the speech model, which is read from content alone in the same space, by the same distance.
        speakers: To tell apart, numbered.
        seed: Of the readouts' weights; the caller's random numbers stay what they are.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        codec_dim: int,
        bridge: TeacherBridge,
        speakers: Mapping[str, int],
        seed: int,
    ):
        super().__init__()
        self._bridge = (bridge,)  # in a tuple: it is the model's, and no part of this
        self.speakers = dict(speakers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if weights["phone_weight"]:
                self.phone = nn.Linear(codec_dim, len(PHONES))
            if weights["character_weight"]:
                self.character = nn.Linear(codec_dim, LABELS_PER_FRAME * NUM_LABELS)
            if weights["speech_content_weight"]:
                self.speech_content = nn.Linear(codec_dim, bridge.out_features)
            if weights["prosody_weight"]:
                self.prosody = nn.Linear(codec_dim, len(PROSODY))
            if weights["speaker_reversal_weight"]:
                hidden = nn.Linear(codec_dim, SPEAKER_WIDTH)
                self.speaker = nn.Sequential(hidden, nn.ReLU(), nn.Linear(SPEAKER_WIDTH, len(speakers)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the readouts that are there."""
        return tuple(name for name, _ in self.named_children())

    def forward(self, outputs: MimiBridgeOutput, targets: Targets) -> tuple[dict[str, Term], dict[str, Tensor]]:
        """The readouts' losses by name, and the sums of their targets for `baselines`.

        A batch may lack the targets of a readout, since rows may; see `readout_columns.raise_if_nothing_to_read`.

        Args:
            outputs: Of the model.
            targets: Of `readout_targets`.
        """
        assert outputs.content is not None and outputs.prosody is not None
        with without_autocast(outputs.content.device.type):
            content, prosody = outputs.content.float(), outputs.prosody.float()
            terms, sums = {}, {}
            for name in self.names:
                for target in PROSODY if name == "prosody" else (name,):
                    if target in targets:
                        read = prosody if name == "prosody" else content
                        terms[target], sums[target] = self._term(target, read, *targets[target])
        return terms, sums

    def _term(self, name: str, latents: Tensor, targets: Tensor, mask: Tensor) -> tuple[Term, Tensor]:
        num_frames = mask.sum()
        if name == "speech_content":
            (bridge,) = self._bridge
            found = bridge.compare_predicted(self.speech_content(latents), targets, mask)
            return Term(found.loss, found.num_frames), found.target_sums
        if name == "character":
            return self._characters(latents, targets, mask)
        latents, targets = latents[mask], targets[mask]
        if name in PROSODY:
            read = self.prosody(latents)[:, PROSODY.index(name)]
            losses, sums = _voicing(read, targets) if name == "voicing" else _deviation(read, targets)
        else:
            latents = _Reversed.apply(latents) if name == "speaker" else latents
            read = self.get_submodule(name)(latents)
            losses = nn.functional.cross_entropy(read, targets, reduction="none")
            sums = torch.bincount(targets, minlength=read.shape[-1])
        return Term(losses.sum() / num_frames.clamp(min=1), num_frames), sums

    def _characters(self, latents: Tensor, targets: Tensor, mask: Tensor) -> tuple[Term, Tensor]:
        num_frames, sizes = mask.sum(), mask.sum(dim=1)
        read = [latents[row][known] for row, known in enumerate(mask)]
        labels = self.character(nn.utils.rnn.pad_sequence(read, batch_first=True))
        if labels.shape[1] == 0:  # no row has words
            return Term(labels.sum(), num_frames), latents.new_zeros(2)
        labels = labels.unflatten(-1, (LABELS_PER_FRAME, NUM_LABELS)).flatten(1, 2).log_softmax(dim=-1)
        written = sizes, targets, ((targets != UNKNOWN) & (sizes > 0)[:, None]).sum(dim=1)
        loss = character_loss(labels, *written).sum()
        constant = torch.stack([constant_character_loss(*written).sum(), num_frames])
        return Term(loss / num_frames.clamp(min=1), num_frames), constant

    def baselines(self) -> dict[str, Baseline]:
        """The constant predictor's loss, by the name of each loss."""
        (bridge,) = self._bridge
        sizes = {"phone": len(PHONES), "voicing": 2, "speaker": len(self.speakers)}
        found = {name: Baseline(size, frequency_entropy) for name, size in sizes.items()}
        found |= {name: Baseline(2, _mean_of_sums) for name in ("pitch", "level", "character")}
        found["speech_content"] = teacher_baseline(bridge)
        names = {target for name in self.names for target in (PROSODY if name == "prosody" else (name,))}
        return {name: found[name] for name in sorted(names)}

    def collator(self, collate: Any) -> Any:
        """A `MimiBridgeCollator` whose batches hold what is to be read; another makes them itself."""
        if not isinstance(collate, MimiBridgeCollator):
            return collate
        return collate.with_frame_targets([COLLATED[name] for name in self.names if name in COLLATED], self.speakers)

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds of them; their place in the optimizer is in its own."""
        return {"names": list(self.names), "speakers": self.speakers, "weights": self.state_dict()}

    def optimizer_group(self, learning_rate: float) -> dict[str, Any]:
        """The readouts' group for an optimizer; their weights do not decay."""
        return {"params": [*self.parameters()], "lr": learning_rate, "weight_decay": 0.0, "name": GROUP}

    def share_gradients(self, accelerator: Accelerator, max_norm: float) -> None:
        """Before a step: the mean gradient of all processes, cut to a norm of its own, 0 for none."""
        parameters = list(self.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if accelerator.num_processes > 1:
            flat = accelerator.reduce(nn.utils.parameters_to_vector(gradients), "mean")
            nn.utils.vector_to_parameters(flat, gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if max_norm:
            nn.utils.clip_grad_norm_(parameters, max_norm)


def new_readouts(
    weights: Mapping[str, float],
    dataset: Any,
    collate: Any,
    quantizer: CausalBridgeQuantizer,
    seed: int,
    computed: Collection[str] = (),
) -> Readouts | None:
    """The readouts that have a weight, for a data set and what collates it; None if none has.

    Columns that teachers compute while training need not be there.

    Raises:
        ValueError: If the data set lacks what is to be read.
    """
    if not any(weights.values()):
        return None
    speakers = speakers_of(dataset) if weights["speaker_reversal_weight"] else {}
    if isinstance(collate, MimiBridgeCollator):
        check_columns(weights, dataset, computed)
    return Readouts(weights, quantizer.codec_dim, quantizer.proj_wavlm, speakers, seed)


def load_readouts(readouts: Readouts | None, state: dict[str, Any] | None, checkpoint: str) -> None:
    """Go on with the readouts of a checkpoint.

    Raises:
        ValueError: If it has others than this run, or distinguished other speakers.
    """
    here, there = list(readouts.names) if readouts else [], state["names"] if state else []
    if readouts is None and state is None:
        return
    if readouts is None or state is None or here != there:
        raise ValueError(
            f"{checkpoint} was trained with readouts of {', '.join(there) or 'nothing'}, but this run has readouts of "
            f"{', '.join(here) or 'nothing'}; give the weights (phone_weight and so on) that it was begun with."
        )
    if readouts.speakers != state["speakers"]:
        raise ValueError(
            f"{checkpoint} was trained to tell {len(state['speakers'])} speakers apart, but this data set has "
            f"{len(readouts.speakers)}, or others; go on with the data that it was begun with."
        )
    readouts.load_state_dict(state["weights"])


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return -gradients[0]


def _voicing(read: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses = nn.functional.binary_cross_entropy_with_logits(read, targets, reduction="none")
    return losses, torch.stack([(1 - targets).sum(), targets.sum()])


def _deviation(read: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses = nn.functional.smooth_l1_loss(read, targets, reduction="none")
    constant = nn.functional.smooth_l1_loss(torch.zeros_like(targets), targets, reduction="sum")
    return losses, torch.stack([constant, targets.new_tensor(len(targets))])


def _mean_of_sums(sums: Tensor, fitted: Tensor) -> float:
    # No fit: the constant is 0 for what is less its recording's mean, each stretch's own frequencies for characters.
    return (sums[0] / sums[1].clamp(min=1)).item()


def frequency_entropy(counts: Tensor, fitted: Tensor) -> float:
    """The cross-entropy of classes, in nats, that always says how often each was in `fitted`.

    A class that is not in `fitted` counts as if it had been there once.
    """
    known = torch.where((fitted == 0) & (counts > 0), 1.0, fitted.double())
    chosen = counts > 0
    log_shares = (known[chosen] / known.sum()).log()
    return (-(counts[chosen] * log_shares).sum() / counts.sum()).item()
