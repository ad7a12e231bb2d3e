"""Before the first step: what the teachers' numbers look like, and where a new content head begins.

Both are read off many batches of the training data. A content head begins at the k-means centres of what it gets to
see; or in the teacher's own space: by least squares, the directions in which the latents tell the teacher become its
projection in, and the bridge reads them off.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..alignment_targets import align_tokens_to_frames, delay_targets, features_at_frames
from ..data.streaming import StreamedRows
from ..data.teachers.statistics import RunningStatistics
from ..distillation import WITHOUT_FLOAT64, TeacherBridge
from ..modeling_mimi_bridge import MimiBridgeModel
from ..quantizer import CausalBridgeQuantizer
from .codebooks import fill_from_data
from .reference import is_fresh
from .terms import batch_frame_mask, in_precision_of

ROWS_AT_ONCE = 8
MAX_PASSES = 10  # over the data, when its recordings are cropped
RIDGES = tuple(10.0**power for power in range(-4, 3))  # of the latents' mean variance, to choose from
HELD_OUT = 5  # every so many blocks of frames are kept aside to choose it
BLOCK = 500  # frames: some recordings
FIRST_SHARE = 0.05  # of the latents' deviation: how loud a content head from least squares begins


@dataclass
class InitFrames:
    """Frames of many batches: latents, and what the teachers say of them.

    Attributes:
        latents: `(frames, codec_dim)`.
        teachers: By name, `qwen` and `wavlm`: their vectors `(targets, dim)`, and which frames these belong to,
            `(targets,)`.
        frames_per_row: Mean frames of a recording, or of a crop.
    """

    latents: Tensor
    teachers: dict[str, tuple[Tensor, Tensor]]
    frames_per_row: float

    def to(self, device: torch.device | str) -> "InitFrames":
        """The same elsewhere."""
        teachers = {name: (told.to(device), places.to(device)) for name, (told, places) in self.teachers.items()}
        return InitFrames(self.latents.to(device), teachers, self.frames_per_row)


@torch.no_grad()
def collect_init_frames(
    model: MimiBridgeModel,
    dataset: Any,
    collate: Callable[[list], dict[str, Tensor]],
    num_frames: int,
    seed: int,
    device: torch.device,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> InitFrames:
    """Look at a data set: the same on every process, however it is divided among them.

    Args:
        model: Computes latents where the data set holds audio.
        dataset: With or without a length.
        collate: Makes a batch of rows.
        num_frames: To look at, if there are so many.
        seed: Of the order.
        device: Where the model is.
        complete: Puts into a batch what teachers say, where rows do not hold it.

    Raises:
        ValueError: If there is no frame at all.
    """
    was_training = model.training
    model.eval()
    sizes = model.config.frame_rate, model.config.content_delay
    taker = InitFrameCollector(*sizes)
    enough = max(num_frames, model.config.codebook_size)

    def frames_of(rows: list) -> InitFrames:
        collated = collate(rows) if complete is None else complete(collate(rows))
        tensors = {name: value for name, value in collated.items() if isinstance(value, Tensor)}
        batch = in_precision_of(model, {name: value.to(device) for name, value in tensors.items()})
        latents = batch.get("latents")
        if latents is None:
            latents = model.get_latents(batch["input_values"], batch.get("padding_mask"))
        found = InitFrameCollector(*sizes)
        found.add(latents, batch_frame_mask(batch, model), batch)
        return found.collected()

    for block in _of_all_processes(_rows(dataset, collate, seed), frames_of, device):
        taker.extend(block)
        if taker.num_frames >= enough:
            break
    model.train(was_training)
    if taker.num_frames == 0:
        raise ValueError("the training data has no frame; give at least one recording that is not empty.")
    return taker.collected()


def _of_all_processes(
    blocks: Iterator[list], frames_of: Callable[[list], InitFrames], device: torch.device
) -> Iterator[InitFrames]:
    # Each process computes its blocks, and all have them in one order.
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        yield from map(frames_of, blocks)
        return
    while True:
        rows = next(blocks, None)
        ours = None if rows is None else frames_of(rows).to("cpu")
        found: list[InitFrames | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, ours)
        there = [block for block in found if block is not None]
        if not there:
            return
        yield from (block.to(device) for block in there)


def _rows(dataset: Any, collate: Any, seed: int) -> Iterator[list]:
    # A few rows at a time, of this process; if they are cropped, several passes, each with other crops.
    rank, num_processes = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if isinstance(dataset, StreamedRows):  # which is a process's own
        rank, num_processes = 0, 1
    return islice(_blocks(dataset, collate, seed), rank, None, num_processes)


def _blocks(dataset: Any, collate: Any, seed: int) -> Iterator[list]:
    passes = MAX_PASSES if getattr(collate, "crop_frames", None) else 1
    for epoch in range(passes):
        if hasattr(collate, "set_epoch"):
            collate.set_epoch(epoch)
        if hasattr(dataset, "__len__"):
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
            rows: Iterator[Any] = (dataset[int(index)] for index in order)
        elif isinstance(dataset, StreamedRows):
            rows = dataset.read_by(collate).one_pass(epoch)
        else:
            rows = iter(dataset)
        while block := list(islice(rows, ROWS_AT_ONCE)):
            yield block


class InitFrameCollector:
    """Collects frames batch by batch.

    Args:
        frame_rate: Frames a second (Hz).
        content_delay: Frames by which content answers late.
    """

    def __init__(self, frame_rate: float, content_delay: int = 0):
        self._frame_rate, self._content_delay = frame_rate, content_delay
        self.num_frames = self._num_rows = 0
        self._latents: list[Tensor] = []
        self._targets: dict[str, list[Tensor]] = {"qwen": [], "wavlm": []}
        self._places: dict[str, list[Tensor]] = {"qwen": [], "wavlm": []}

    def add(self, latents: Tensor, frame_mask: Tensor, batch: dict[str, Tensor]) -> None:
        """Take the real frames of a batch."""
        if "qwen_hidden" in batch:
            places = (batch.get(name) for name in ("durations", "token_spans", "token_mask"))
            laid_out = align_tokens_to_frames(batch["qwen_hidden"].float(), frame_mask, self._frame_rate, *places)
            targets, mask = delay_targets(*laid_out, self._content_delay, frame_mask)
            self._add_targets("qwen", targets, mask, frame_mask)
        if "wavlm_features" in batch:
            known = features_at_frames(batch["wavlm_features"].float(), frame_mask, batch.get("wavlm_mask"))
            self._add_targets("wavlm", *known, frame_mask)
        self._latents.append(latents[frame_mask].float())
        self.num_frames += int(frame_mask.sum())
        self._num_rows += len(frame_mask)

    def extend(self, frames: InitFrames) -> None:
        """Take what another has collected."""
        for name, (targets, places) in frames.teachers.items():
            self._targets[name].append(targets)
            self._places[name].append(places + self.num_frames)
        self._latents.append(frames.latents)
        self.num_frames += len(frames.latents)
        self._num_rows += round(len(frames.latents) / frames.frames_per_row)

    def collected(self) -> InitFrames:
        """All that was taken."""
        teachers = {
            name: (torch.cat(targets), torch.cat(self._places[name]))
            for name, targets in self._targets.items()
            if targets
        }
        return InitFrames(torch.cat(self._latents), teachers, self.num_frames / self._num_rows)

    def _add_targets(self, name: str, targets: Tensor, mask: Tensor, frame_mask: Tensor) -> None:
        self._targets[name].append(targets[mask])
        self._places[name].append(mask[frame_mask].nonzero()[:, 0] + self.num_frames)


def set_teacher_statistics(
    quantizer: CausalBridgeQuantizer,
    init_frames: InitFrames | None,
    stored: Mapping[str, RunningStatistics] | None = None,
) -> None:
    """Put each teacher's mean and deviation over its frames into its bridge.

    Stored ones are always taken; those of `init_frames` where there are none and the bridge has none yet.

    Raises:
        ValueError: If stored ones are of another teacher's size.
    """
    for name, bridge in bridges_of(quantizer).items():
        if stored and name in stored:
            mean, std = stored[name].mean, stored[name].std
        elif init_frames and not has_statistics(bridge) and len(init_frames.teachers.get(name, ([], []))[0]) > 1:
            targets = _doubles(init_frames.teachers[name][0])
            mean, std = targets.mean(dim=0), targets.std(dim=0)
        else:
            continue
        if has_statistics(bridge) or not is_fresh(quantizer):
            _move_statistics(bridge, mean.float(), std.float())
        else:
            bridge.set_statistics(mean.float(), std.float())


def bridges_of(quantizer: CausalBridgeQuantizer) -> dict[str, TeacherBridge]:
    """The bridges by their teacher's name."""
    return {"qwen": quantizer.proj_qwen, "wavlm": quantizer.proj_wavlm}


def has_statistics(bridge: TeacherBridge) -> bool:
    """Whether a bridge knows its teacher's mean and deviation; a new one has 0 and 1."""
    return bool(bridge.mean.any()) or bool((bridge.std != 1).any())


@torch.no_grad()
def _move_statistics(bridge: TeacherBridge, mean: Tensor, std: Tensor) -> None:
    # A bridge that has learned says the same in the teacher's own space before and after.
    old_mean, old_std = bridge.mean.clone(), bridge.std.clone()
    bridge.set_statistics(mean, std)
    scale = old_std / bridge.std
    bridge.weight.mul_(scale[:, None])
    bridge.bias.mul_(scale).add_((old_mean - bridge.mean) / bridge.std)


def _doubles(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type in WITHOUT_FLOAT64 else values).double()


def begin_with_k_means(
    quantizer: CausalBridgeQuantizer, init_frames: InitFrames, frames_per_step: int, generator: torch.Generator
) -> float:
    """Fill the content head's codebook with the centres of what it gets to see.

    Returns:
        The perplexity of the codes.

    """
    return fill_from_data(quantizer.head_content, init_frames.latents, frames_per_step, generator)[0]


@torch.no_grad()
def begin_with_least_squares(
    quantizer: CausalBridgeQuantizer, init_frames: InitFrames, frames_per_step: int, generator: torch.Generator
) -> float:
    """Put the content head into the language model's space, then fill its codebook with centres.

    Latents are fitted to the standardised teacher; the leading directions of the fit become the projection in, and the
    bridge reads the teacher off them. The way out begins at a small share of the latents' loudness.

    Returns:
        The perplexity of the codes.

    Raises:
        ValueError: If frames have no language model's states, or all the same, or the codebook is wider than the
            latents.
    """
    head, bridge = quantizer.head_content, quantizer.proj_qwen
    targets, places = init_frames.teachers.get("qwen", (torch.zeros(0), torch.zeros(0)))
    if len(targets) == 0 or not bool((targets != targets[0]).any()):
        raise ValueError(
            "content_init='least-squares' needs frames of the training data with different qwen_hidden, and has none; "
            "use 'k-means'."
        )
    dim = head.project_in.weight.shape[0]
    if dim > quantizer.codec_dim:
        raise ValueError(
            f"content_init='least-squares' needs a codebook_dim of at most {quantizer.codec_dim}, the latents' size, "
            f"got {dim}; use 'k-means'."
        )
    x = _doubles(init_frames.latents[places])
    mean = x.mean(dim=0)
    x = x - mean
    y = _doubles(bridge.standardise(targets))
    fit = ridge_regression(x, y)
    _, strengths, directions = torch.linalg.svd(x @ fit, full_matrices=False)
    kept = directions[:dim].T  # (teacher_dim, codebook_dim), fewer if the teacher is smaller
    size = kept.shape[1]
    w_in = x.new_zeros(dim, x.shape[1])
    w_in[:size] = (fit @ kept).T
    w_out = torch.linalg.qr(torch.randn(x.shape[1], dim, dtype=x.dtype, generator=generator))[0].to(x.device)
    loudness = (strengths[:size].square().sum() / len(x)).sqrt()
    scale = FIRST_SHARE * x.square().sum(dim=1).mean().sqrt() / loudness
    readout = x.new_zeros(bridge.out_features, dim)
    readout[:, :size] = kept
    head.project_in.weight.copy_(w_in[:, :, None])
    head.project_out.weight.copy_((scale * w_out)[:, :, None])
    bridge.weight.copy_(readout @ w_out.T / scale)
    bridge.bias.copy_(-readout @ (w_in @ mean))
    return begin_with_k_means(quantizer, init_frames, frames_per_step, generator)


def ridge_regression(x: Tensor, y: Tensor) -> Tensor:
    """The linear map from `x` to `y` that does best on frames it was not fitted to.

    Args:
        x: `(frames, dim)`, of mean 0.
        y: `(frames, targets)`.

    Returns:
        `(dim, targets)`, fitted to all frames with the ridge that did best when a fifth of them was kept aside.
    """
    block = max(1, min(BLOCK, len(x) // (2 * HELD_OUT)))
    aside = torch.arange(len(x), device=x.device) // block % HELD_OUT == HELD_OUT - 1
    if not aside.any():
        return _ridge_fit(x, y, RIDGES[-1])
    trained = [_ridge_fit(x[~aside], y[~aside], ridge) for ridge in RIDGES]
    errors = [float((y[aside] - x[aside] @ fit).square().mean()) for fit in trained]
    return _ridge_fit(x, y, RIDGES[errors.index(min(errors))])


def _ridge_fit(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    floor = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.T @ x / len(x) + floor, x.T @ y / len(x))
