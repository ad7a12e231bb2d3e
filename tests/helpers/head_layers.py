"""Models whose heads have layers of their own."""

from copy import deepcopy

import torch

from mimi_bridge import CausalBridgeQuantizer, MimiBridgeModel
from mimi_bridge.heads import HeadContext


@torch.no_grad()
def stir(model: MimiBridgeModel | CausalBridgeQuantizer) -> None:
    """Fill the ways out of the heads' layers, which begin as zero, so that the layers count."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, HeadContext):
            module.out.weight.copy_(0.1 * torch.randn(module.out.weight.shape, generator=generator))


def with_layers(model: MimiBridgeModel, content_layers: int = 2, prosody_layers: int = 1) -> MimiBridgeModel:
    """A model of the same weights whose heads have new layers."""
    config = deepcopy(model.config)
    config.content_layers, config.prosody_layers = content_layers, prosody_layers
    torch.manual_seed(3)
    other = MimiBridgeModel(config).eval()
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(".context." in key for key in missing)
    return other
