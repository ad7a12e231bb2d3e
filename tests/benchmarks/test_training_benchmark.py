"""What the benchmarks of training time is a step: it runs, and the model has learned."""

import pytest
import torch

from mimi_bridge.configuration_mimi_bridge import MimiBridgeConfig
from tiny import TINY, TINY_TEACHERS
from training import KINDS, step, trainer_of


@pytest.mark.parametrize("kind", KINDS)
def test_step_of_each_kind_moves_weights_and_codebooks(tmp_path, kind):
    trainer = trainer_of(kind, str(tmp_path), MimiBridgeConfig(**TINY, **TINY_TEACHERS), batch=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step(trainer)
    step(trainer)
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("head_content" in name and "project" in name for name in moved)
    assert any("embed" in name for name in moved)
