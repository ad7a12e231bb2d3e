"""What happens between the steps of a run: λ moves, codebooks move, and crops change with the epoch.

Each is a callback of its own, for transformers' plain `Trainer` as for `MimiBridgeTrainer`, which has all three.
"""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..modeling_mimi_bridge import MimiBridgeModel
from .arguments import MimiBridgeTrainingArguments
from .learners import install_learners, move_codebooks, remove_learners
from .optimizer import part_of

MAKE_CODES = ("encoder", "content", "prosody", "acoustic")  # the parts of the model that codes depend on
DEFAULTS = MimiBridgeTrainingArguments  # whose fields hold them


class ResidualWeightSchedule(TrainerCallback, ExportableState):
    """Moves the model's λ in a line, from where it is as training begins.

    Where it began is in the checkpoints' `trainer_state.json`, so that training goes on along the same line.

    Args:
        end: λ at the end; None: 1, or what it is where nothing learns that codes depend on.
        warmup_ratio: Share of the steps over which it moves; 0: at once.

    Attributes:
        start: λ at the beginning, once training has begun.
    """

    def __init__(
        self,
        end: float | None = DEFAULTS.residual_weight_end,
        warmup_ratio: float = DEFAULTS.residual_weight_warmup_ratio,
    ):
        self.end, self.warmup_ratio = end, warmup_ratio
        self.start: float | None = None

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` holds."""
        arguments = {"end": self.end, "warmup_ratio": self.warmup_ratio}
        return {"args": arguments, "attributes": {"start": self.start}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Find the beginning, and put λ where it belongs after so many steps."""
        stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        start = stored["attributes"]["start"] if state.global_step else None
        self.start = float(model.config.residual_weight) if start is None else start
        self._move(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Put λ where it belongs after so many steps."""
        self._move(model, state)

    def _move(self, model: MimiBridgeModel, state: Any) -> None:
        assert self.start is not None
        steps = self.warmup_ratio * state.max_steps
        share = min(1.0, state.global_step / steps) if steps else 1.0
        model.set_residual_weight(self.start + share * (self._end(model) - self.start))

    def _end(self, model: MimiBridgeModel) -> float:
        if self.end is not None:
            return self.end
        assert self.start is not None
        learns = any(p.requires_grad and part_of(name) in MAKE_CODES for name, p in model.named_parameters())
        return 1.0 if learns else self.start


class CodebookUpdates(TrainerCallback):
    """Moves codebooks once a step, by what all its batches on all processes asked for.

    Without it every forward in training mode moves them. They are moving averages, those of all heads.

    Args:
        decay: Of the moving averages; None: the model's.
        revive_every: Steps between two looks for entries of the content head that are hardly used; 0 never looks.
        revive_below: An entry is replaced if it is used less than this share of the mean.
        installs: Whether heads get their learners as training begins. `MimiBridgeTrainer` gives them itself, to the
            heads that learn, at their own rates.
    """

    def __init__(
        self,
        decay: float | None = DEFAULTS.codebook_decay,
        revive_every: int = DEFAULTS.revive_every,
        revive_below: float = DEFAULTS.revive_below,
        installs: bool = True,
    ):
        self.decay, self.revive_every, self.revive_below, self.installs = decay, revive_every, revive_below, installs

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Let all heads leave their codebooks to this callback."""
        heads = model.quantizer.heads
        if self.installs:
            install_learners(model.quantizer, dict.fromkeys(heads, 1.0), usual=1.0, decay=self.decay)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Move the codebooks."""
        move_codebooks(model.quantizer, state.global_step, args.seed, self.revive_every, self.revive_below)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Give the heads their codebooks back."""
        remove_learners(model.quantizer)


class CropsOfEpoch(TrainerCallback):
    """Tells the collator the epoch, which then takes other crops."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Tell the collator."""
        collate: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collate, "set_epoch"):
            collate.set_epoch(int(state.epoch or 0))
