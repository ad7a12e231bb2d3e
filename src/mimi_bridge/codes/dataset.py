"""A folder of recordings as one data set of their codes, in shards that are written atomically.

A row is a recording: `id`, its name in the folder; `audio_codes`, `(codebooks, frames)`; `num_samples`, its length.
`plan.json` beside the shards has the sampling rate and the fingerprints of codebooks and encoder.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..audio.folders import find_recordings
from ..data.prepare.shards import ShardedDataset, ShardNote
from .distributed import DistributedContext, progress_bar
from .extractor import CodeExtractor, in_batches
from .folder import FolderReport

RECORDINGS_PER_SHARD = 1000


def encode_to_dataset(
    extractor: CodeExtractor,
    folder: Path,
    output: Path,
    context: DistributedContext,
    *,
    batch_size: int = 1,
    recordings_per_shard: int = RECORDINGS_PER_SHARD,
) -> FolderReport | None:
    """Write a data set of the codes of every recording below a folder; resumes an interrupted one.

    Args:
        extractor: Encodes the recordings.
        folder: Of recordings.
        output: Folder of the data set.
        context: The processes that share the shards.
        batch_size: Recordings encoded at once, of similar length.
        recordings_per_shard: Of all but the last shard.

    Returns:
        None on all processes but the first.

    Raises:
        FileExistsError: If something else is at the output.
        FileNotFoundError: If there is no recording.
        ModuleNotFoundError: If the package datasets is not installed.
        ValueError: If an interrupted data set had other settings, or no recording can be read.
    """
    try:
        from datasets import Features, Sequence, Value
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data sets need the package datasets; run pip install 'mimi-bridge[train]'."
        ) from error
    features = Features(
        {"id": Value("string"), "audio_codes": Sequence(Sequence(Value("int32"))), "num_samples": Value("int64")}
    )
    paths, left_out = find_recordings(folder)
    names = [str(path.relative_to(folder)) for path in paths]
    plan = {
        "recordings": sha256("\n".join(names).encode()).hexdigest(),
        "recordings_per_shard": recordings_per_shard,
        "codebooks_sha256": extractor.codebooks_sha256,
        "encoder_sha256": extractor.encoder_sha256,
        "num_quantizers": extractor.num_quantizers,
        "sampling_rate": extractor.model.config.sampling_rate,
    }
    dataset = ShardedDataset(output, plan, -(-len(paths) // recordings_per_shard))
    if not dataset.is_finished():
        dataset.begin()
        missing = dataset.missing()
        context.wait()  # so that all processes see the same missing shards
        ours = missing[context.index :: context.count]
        total = sum(len(_recordings_of(shard, paths, recordings_per_shard)) for shard in ours)
        with progress_bar(total, 0, context) as progress:
            for shard in ours:
                batches = in_batches(_recordings_of(shard, paths, recordings_per_shard), batch_size)
                note = ShardNote()
                dataset.write(shard, _rows(extractor, batches, folder, note, progress), features, note, {})
        context.wait()
        if context.index == 0:
            _finish(dataset, folder, left_out)
    if context.index > 0:
        return None
    return FolderReport(**dataset.report())


def _recordings_of(shard: int, paths: list[Path], recordings_per_shard: int) -> list[Path]:
    return paths[shard * recordings_per_shard : (shard + 1) * recordings_per_shard]


def _rows(
    extractor: CodeExtractor, batches: list[list[Path]], folder: Path, note: ShardNote, progress: Any
) -> Iterator[dict[str, Any]]:
    for path, codes in extractor.encode_files(batches):
        name = str(path.relative_to(folder))
        progress.update()
        if isinstance(codes, Exception):
            note.dropped.append((name, " ".join(str(codes).split())))
            continue
        note.seconds += codes.num_samples / codes.sampling_rate
        if codes.remark is not None:
            note.remarks.append((name, codes.remark))
        yield {"id": name, "audio_codes": codes.audio_codes.cpu().tolist(), "num_samples": codes.num_samples}


def _finish(dataset: ShardedDataset, folder: Path, left_out: list[tuple[str, str]]) -> None:
    total = dataset.total()
    failed = sorted([*left_out, *map(tuple, total.dropped)])
    if total.num_rows == 0:
        dataset.discard()
        raise ValueError(f"none of the {len(failed)} recordings of {folder} can be read; the first: {failed[0][1]}")
    found = {"done": total.num_rows, "kept": 0, "seconds": total.seconds, "failed": failed, "remarks": total.remarks}
    dataset.finish(found)
