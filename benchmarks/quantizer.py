"""What nine codebooks cost, to look up and to train: python benchmarks/quantizer.py

Ours against the modules of vector-quantize-pytorch with the same projections, weights and losses, and, in inference,
against transformers' `MimiSplitResidualVectorQuantizer`. kyutai/mimi's sizes, one thread, alternated in one process,
medians of CPU time. λ is 0 and the content head silent, as after conversion, so that all three must give the same
codes; entries are drawn from latents, so that they are many different ones.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiSplitResidualVectorQuantizer
from vector_quantize_pytorch import VectorQuantize

from mimi_bridge.heads import QuantizerHead
from mimi_bridge.quantizer import CausalBridgeQuantizer
from stopwatch import Timing, alternate, machine, mib, print_table

INFERENCE_FRAMES = (1, 125, 750, 6000)
TRAINING_FRAMES = (125, 750, 6000)
OURS, LIBRARY, TRANSFORMERS = "ours", "vector-quantize-pytorch", "transformers"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="of each; many more of one frame (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few frames, one round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 1 if arguments.quick else arguments.rounds
    mixing = torch.randn(64, 512) / 8
    quantizer = fitted_quantizer(make_latents(mixing, 8192))
    print(f"{machine()}\n")
    compare_inference(quantizer, mixing, INFERENCE_FRAMES[:2] if arguments.quick else INFERENCE_FRAMES, rounds)
    compare_training(quantizer, mixing, TRAINING_FRAMES[:1] if arguments.quick else TRAINING_FRAMES, rounds)


def make_latents(mixing: Tensor, num_frames: int) -> Tensor:
    """Latents `(1, frames, 512)` that vary most in 64 directions."""
    return torch.randn(1, num_frames, len(mixing)) @ mixing + 0.1 * torch.randn(1, num_frames, mixing.shape[1])


@torch.no_grad()
def fitted_quantizer(latents: Tensor) -> CausalBridgeQuantizer:
    """Ours, λ = 0, a silent content head, entries drawn from what each codebook gets to see of the latents."""
    quantizer = CausalBridgeQuantizer(residual_weight=0.0).eval()
    for head in quantizer.heads.values():
        residual = head.project_in(latents.transpose(1, 2))[0].T
        for store in head.vq_codebooks:
            entries = 0.5 * residual[torch.randperm(len(residual))[: store.codebook_size]]
            entries += 0.05 * residual.std() * torch.randn_like(entries)
            store.embed[0], store.embed_avg[0] = entries, entries
            residual = residual - entries[torch.cdist(residual, entries).argmin(dim=-1)]
    quantizer.head_content.project_out.weight.zero_()
    return quantizer


def transformers_quantizer(quantizer: CausalBridgeQuantizer) -> MimiSplitResidualVectorQuantizer:
    """Transformers' quantizer of nine codebooks, the first eight of them our prosody and acoustic ones."""
    theirs = MimiSplitResidualVectorQuantizer(MimiConfig(num_quantizers=9)).eval()
    semantic, acoustic = theirs.semantic_residual_vector_quantizer, theirs.acoustic_residual_vector_quantizer
    for chain, head in ((semantic, quantizer.head_prosody), (acoustic, quantizer.acoustic_residual)):
        chain.input_proj.weight.data.copy_(head.project_in.weight)
        for layer, entries in zip(chain.layers, [*head.codebooks, head.codebooks[-1]], strict=False):
            layer.codebook.embed_sum.copy_(entries)
            layer.codebook.cluster_usage.fill_(1.0)
    return theirs


class LibraryQuantizer(nn.Module):
    """Our projections and codebooks run by vector-quantize-pytorch, which looks up and, in training, learns."""

    def __init__(self, quantizer: CausalBridgeQuantizer):
        super().__init__()
        self.heads = nn.ModuleList(deepcopy(head) for head in quantizer.heads.values())

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents, codes and the sum of the commitment losses; λ is 0."""
        content, prosody, acoustic = self.heads
        quantized, codes, losses = zip(
            self.run_head(content, latents),
            self.run_head(prosody, latents),
            self.run_head(acoustic, latents),
            strict=True,
        )
        return torch.stack(quantized).sum(dim=0), torch.cat(codes, dim=1), torch.stack(losses).sum()

    @staticmethod
    def run_head(head: QuantizerHead, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One head; the gradient passes straight through the library's lookup."""
        inputs = nn.functional.linear(latents, head.project_in.weight[:, :, 0])
        entries, codes, commitment = head.vq(inputs)
        codes = codes[:, None] if isinstance(head.vq, VectorQuantize) else codes.transpose(1, 2)
        passed_through = entries + (inputs - inputs.detach())
        return nn.functional.linear(passed_through, head.project_out.weight[:, :, 0]), codes, commitment.mean()


@torch.inference_mode()
def compare_inference(quantizer: CausalBridgeQuantizer, mixing: Tensor, lengths: tuple[int, ...], rounds: int) -> None:
    """Latents to codes."""
    library, theirs = LibraryQuantizer(quantizer).eval(), transformers_quantizer(quantizer)
    rows = []
    for num_frames in lengths:
        latents = make_latents(mixing, num_frames)
        channel_first = latents.transpose(1, 2).contiguous()
        rivals: dict[str, Callable[[], Tensor]] = {
            OURS: lambda latents=latents: quantizer.encode(latents),
            LIBRARY: lambda latents=latents: library(latents)[1],
            TRANSFORMERS: lambda latents=channel_first: theirs.encode(latents).transpose(0, 1),
        }
        codes = rivals[OURS]()
        equal = {
            LIBRARY: (rivals[LIBRARY]() == codes).double().mean().item(),
            TRANSFORMERS: (rivals[TRANSFORMERS]()[:, :8] == codes[:, 1:]).double().mean().item(),
        }
        timings = alternate(rivals, rounds * (25 if num_frames == 1 else 1))
        rows += table_rows(num_frames, timings, equal, len(codes[:, 1].unique()))
    print("Inference, latents to codes:\n")
    print_table(COLUMNS, rows)


def compare_training(quantizer: CausalBridgeQuantizer, mixing: Tensor, lengths: tuple[int, ...], rounds: int) -> None:
    """Forward, backward to latents and projections, and the codebooks' moving averages."""
    rows = []
    for num_frames in lengths:
        ours, library = deepcopy(quantizer).train(), LibraryQuantizer(quantizer).train()
        latents = make_latents(mixing, num_frames).requires_grad_()

        def train_ours(ours: CausalBridgeQuantizer = ours, latents: Tensor = latents) -> Tensor:
            output = ours(latents)
            (output.quantized.square().mean() + output.loss).backward()
            return output.codes

        def train_library(library: LibraryQuantizer = library, latents: Tensor = latents) -> Tensor:
            quantized, codes, loss = library(latents)
            (quantized.square().mean() + loss).backward()
            return codes

        codes = train_ours()
        equal = {LIBRARY: (train_library() == codes).double().mean().item()}
        timings = alternate({OURS: train_ours, LIBRARY: train_library}, rounds)
        rows += table_rows(num_frames, timings, equal, len(codes[:, 1].unique()))
    print("\nTraining step, forward and backward, codebooks by moving averages:\n")
    print_table(COLUMNS, rows)


COLUMNS = (
    "frames",
    "",
    "CPU ms",
    "wall ms",
    "ours is faster",
    "peak memory, MiB",
    "codes equal to ours",
    "codes in use",
)


def table_rows(
    num_frames: int, timings: dict[str, Timing], equal: dict[str, float], in_use: int
) -> list[list[object]]:
    """One row a rival."""
    return [
        [
            num_frames,
            name,
            f"{1e3 * timing.cpu:.2f}",
            f"{1e3 * timing.wall:.2f}",
            "" if name == OURS else f"{timing.cpu / timings[OURS].cpu:.2f} x",
            mib(timing.peak_mib),
            "" if name == OURS else f"{equal[name]:.6f}",
            in_use if name == OURS else "",
        ]
        for name, timing in timings.items()
    ]


if __name__ == "__main__":
    main()
