"""Batches of rows that are streamed: each process reads its own share, and none waits for another's end."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.utils import is_datasets_available

from ..data.streaming import StreamedRows
from .arguments import MimiBridgeTrainingArguments


def streamed(dataset: Any, args: MimiBridgeTrainingArguments) -> Any:
    """This process's share of a stream, made of a `datasets.IterableDataset` if it is one; anything else as it is."""
    if is_datasets_available():
        from datasets import IterableDataset

        if isinstance(dataset, IterableDataset):
            dataset = StreamedRows(dataset, seed=args.data_seed if args.data_seed is not None else args.seed)
    if not isinstance(dataset, StreamedRows):
        return dataset
    return dataset.of_process(args.process_index, args.world_size)


def stream_loader(
    rows: StreamedRows, collate: Any, batch_size: int, args: MimiBridgeTrainingArguments, accelerator: Accelerator
) -> DataLoader:
    """The batches of a process's share, on its device."""
    workers = args.dataloader_num_workers
    loader: DataLoader = DataLoader(
        rows.read_by(collate),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        persistent_workers=bool(workers and args.dataloader_persistent_workers),
    )
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
