"""Metrics of training between two logs: mean losses, the constant predictor's losses, and codebook usage.

Everything is a sum, so that it can be accumulated over batches and processes. Sums are kept on the CPU, in float64,
which not every device has.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..outputs import MimiBridgeOutput
from ..quantizer import CausalBridgeQuantizer
from .readouts import Baseline, teacher_baseline
from .terms import LOSSES, Term


class TrainingMetrics:
    """Sums over batches.

    Args:
        quantizer: Whose codes are counted and whose teachers are compared.
        baselines: Of other losses, by name.
    """

    def __init__(self, quantizer: CausalBridgeQuantizer, baselines: Mapping[str, Baseline] | None = None):
        bridges = {"qwen": quantizer.proj_qwen, "wavlm": quantizer.proj_wavlm}
        self._baselines = {name: teacher_baseline(bridge) for name, bridge in bridges.items()} | dict(baselines or {})
        self._num_acoustic = quantizer.num_quantizers - 2
        self._losses = torch.zeros(len(LOSSES), 2, dtype=torch.float64)  # sum, frames
        self._targets = {
            name: torch.zeros(baseline.size, dtype=torch.float64) for name, baseline in self._baselines.items()
        }
        shape = (quantizer.num_quantizers, quantizer.codebook_size)
        self.code_counts = torch.zeros(shape, dtype=torch.float64)

    @torch.no_grad()
    def add(
        self, terms: dict[str, Term], outputs: MimiBridgeOutput, target_sums: Mapping[str, Tensor] | None = None
    ) -> None:
        """Count a batch; `target_sums` are those of the baselines that were given."""
        names = list(LOSSES)
        pairs = [torch.stack([term.value.detach().float(), term.num_frames.float()]) for term in terms.values()]
        for name, pair in zip(terms, _on_cpu(pairs), strict=True):
            value, num_frames = pair
            self._losses[names.index(name)] += torch.stack([value * num_frames, num_frames])
        of_teachers = {name: distance.target_sums for name, distance in (outputs.distances or {}).items()}
        sums = {**of_teachers, **(target_sums or {})}
        for name, sum_of_batch in zip(sums, _on_cpu([*sums.values()]), strict=True):
            self._targets[name] += sum_of_batch
        assert outputs.audio_codes is not None and outputs.audio_codes_mask is not None
        codes = outputs.audio_codes.masked_fill(~outputs.audio_codes_mask[:, None], -1).cpu()
        codes = codes.transpose(0, 1)[:, codes[:, 0] >= 0]
        self.code_counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float64))

    def sums(self) -> Tensor:
        """Everything in one vector, to be added to other processes' and put back by `set_sums`."""
        return torch.cat([part.flatten() for part in self._parts()])

    def set_sums(self, sums: Tensor) -> None:
        """Take over sums of several processes."""
        sizes = [part.numel() for part in self._parts()]
        for part, values in zip(self._parts(), sums.split(sizes), strict=True):
            part.copy_(values.view_as(part))

    def add_targets_of(self, other: "TrainingMetrics") -> None:
        """Add the targets of other metrics, and nothing else of them."""
        for name, sums in other._targets.items():
            self._targets[name] += sums

    def results(self, fitted_on: "TrainingMetrics | None" = None) -> dict[str, float]:
        """By name: `loss_NAME`, `baseline_NAME` of each baseline, `usage_HEAD` and `perplexity_HEAD`.

        Usage is the share of the codes that could have been used (no more than there were frames); the acoustic
        head's are means over its codebooks. Empty if nothing was counted.

        Args:
            fitted_on: The metrics on whose targets the constants are fitted; by default, and if it has none, these.
        """
        results = {}
        for name, (total, num_frames) in zip(LOSSES, self._losses.tolist(), strict=True):
            if num_frames:
                results[f"loss_{name}"] = total / num_frames
        for name, baseline in self._baselines.items():
            sums = self._targets[name]
            fitted = sums if fitted_on is None or not fitted_on._targets[name].any() else fitted_on._targets[name]
            if sums.any():
                results[f"baseline_{name}"] = baseline.distance(sums, fitted)
        num_frames = self.code_counts[0].sum().item()
        if num_frames:
            used, perplexity = self.usage(), self.perplexity()
            for head, levels in (("content", slice(0, 1)), ("prosody", slice(1, 2)), ("acoustic", slice(2, None))):
                results[f"usage_{head}"] = used[levels].mean().item()
                results[f"perplexity_{head}"] = perplexity[levels].mean().item()
        return results

    def usage(self) -> Tensor:
        """Share of the codes that could have been used, of each codebook, `(codebooks,)`."""
        possible = self.code_counts.sum(dim=1).clamp(min=1, max=self.code_counts.shape[1])
        return (self.code_counts > 0).sum(dim=1) / possible

    def perplexity(self) -> Tensor:
        """Of the codes of each codebook, `(codebooks,)`."""
        shares = self.code_counts / self.code_counts.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum(dim=1))

    def _parts(self) -> list[Tensor]:
        return [self._losses, *self._targets.values(), self.code_counts]


def _on_cpu(values: list[Tensor]) -> list[Tensor]:
    # In float64, by one copy if they are on one device: a GPU is waited for at each.
    if len({value.device for value in values}) != 1:
        return [value.detach().cpu().double() for value in values]
    together = torch.cat([value.detach().flatten() for value in values]).cpu().double()
    parts = together.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
