"""Frames of many batches, looked at before the first step: latents, and what teachers say of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..alignment_targets import align_tokens_to_frames, delay_targets, features_at_frames
from ..data.streaming import StreamedRows
from ..modeling_mimi_bridge import MimiBridgeModel
from .terms import batch_frame_mask, in_precision_of

ROWS_AT_ONCE = 8
MAX_PASSES = 10  # over the data, when its recordings are cropped


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
        teachers = {
            name: (features.to(device), places.to(device)) for name, (features, places) in self.teachers.items()
        }
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
