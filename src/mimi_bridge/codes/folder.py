"""Folders of recordings to codes, and back: a result beside a result, in the order and the folders of what was given.

A recording counts once its result is there whole, so that a run that was killed goes on where it was. What cannot be
read is left out and named. Every recording is encoded alone, unless batches are asked for, so its codes are those that
`mimi-bridge encode` gives it alone. Under `torchrun` or `accelerate launch` the processes share the work.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from ..atomic_files import write_whole
from ..audio.files import files_below, find_recordings, load_audio, printable, save_audio, written_format
from ..modeling_mimi_bridge import MimiBridgeModel
from .file import Codes, fingerprint, load_codes, save_codes

CODES_SUFFIX, REPORT = ".safetensors", "report.json"
OF_ONE_FILE = (
    OSError,
    ValueError,
    RuntimeError,
    MemoryError,
)  # what is wrong with a file, or too much of it for the memory
PROCESSES_WAIT = timedelta(days=7)  # for the slowest of them


@dataclass
class FolderReport:
    """What became of a folder.

    Attributes:
        done: Results written by this run.
        kept: Results that were there.
        seconds: Of audio in all of them.
        failed: Name in the folder, and reason, of what was left out.
        remarks: Name in the folder of what is done or kept, and what is odd about it.
    """

    done: int = 0
    kept: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: Path, folder: Path, codes: Codes) -> None:
        """Count what a recording's codes say of it."""
        self.seconds += codes.num_samples / codes.sampling_rate
        if codes.remark is not None:
            self.remarks.append((_name(path, folder), codes.remark))


@dataclass(frozen=True)
class Processes:
    """Those that share the work, as one of them sees it."""

    index: int = 0
    count: int = 1
    device: str = "cpu"
    wait: Callable[[], None] = lambda: None

    @classmethod
    def of_environment(cls, device: str) -> "Processes":
        """As `torchrun` or `accelerate launch` tell; a device of several, such as `cuda`, becomes each process's own.

        Raises:
            ModuleNotFoundError: If there are several, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=device)
        try:
            from accelerate import PartialState
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "several processes need the package accelerate; run pip install 'mimi-bridge[train]'."
            ) from error
        state = PartialState(cpu=device.startswith("cpu"), timeout=PROCESSES_WAIT)
        return cls(
            state.process_index,
            state.num_processes,
            str(state.device) if device == state.device.type else device,
            state.wait_for_everyone,
        )


class Tokeniser:
    """Turns recordings into codes.

    Args:
        model: In eval mode.
        num_quantizers: Keep the first so many codebooks only; None keeps all.

    Raises:
        ValueError: If the model does not have so many.
    """

    def __init__(self, model: MimiBridgeModel, num_quantizers: int | None = None):
        total = model.quantizer.num_quantizers
        self.num_quantizers = total if num_quantizers is None else num_quantizers
        if not 1 <= self.num_quantizers <= total:
            raise ValueError(f"num_quantizers must be 1 to {total} for this model, got {num_quantizers}.")
        self.model, self.codebooks_sha256 = model, fingerprint(model)

    @torch.inference_mode()
    def encode(self, audios: list[Tensor]) -> list[Codes]:
        """Codes of recordings, each `(1, samples)`; several are padded and encoded as one batch."""
        rate, device = self.model.config.sampling_rate, self.model.device
        if len(audios) == 1:
            encoded = self.model.encode(audios[0][None].to(device), num_quantizers=self.num_quantizers)
            audio_codes = [encoded.audio_codes[0]]
        else:
            lengths = torch.tensor([audio.shape[-1] for audio in audios])
            batch = torch.zeros(len(audios), 1, int(lengths.max()))
            for row, audio in zip(batch, audios, strict=True):
                row[:, : audio.shape[-1]] = audio
            mask = torch.arange(batch.shape[-1]) < lengths[:, None]
            encoded = self.model.encode(batch.to(device), mask.to(device), num_quantizers=self.num_quantizers)
            masks = encoded.audio_codes_mask
            audio_codes = [codes[:, is_real] for codes, is_real in zip(encoded.audio_codes, masks, strict=True)]
        return [
            Codes(codes, audio.shape[-1], rate, self.codebooks_sha256)
            for codes, audio in zip(audio_codes, audios, strict=True)
        ]

    def encode_files(self, batches: list[list[Path]]) -> Iterator[tuple[Path, Codes | Exception]]:
        """The codes of each recording, or what is wrong with it."""
        for batch in batches:
            audios: dict[Path, Tensor] = {}
            remarks: dict[Path, list[str]] = {path: [] for path in batch}
            for path in batch:
                try:
                    audios[path] = load_audio(path, self.model.config.sampling_rate, remarks[path].append)
                except OF_ONE_FILE as error:
                    yield path, error
            for path, codes in self._encode_or_blame(audios):
                if isinstance(codes, Codes):
                    codes.remark = "; ".join(remarks[path]) or None
                yield path, codes

    def _encode_or_blame(self, audios: dict[Path, Tensor]) -> Iterator[tuple[Path, Codes | Exception]]:
        try:
            codes = self.encode(list(audios.values())) if audios else []
        except OF_ONE_FILE as error:
            if len(audios) == 1:
                yield from ((path, error) for path in audios)
                return
            for path, audio in audios.items():  # whose it is, they tell one by one
                yield from self._encode_or_blame({path: audio})
            return
        yield from zip(audios, codes, strict=True)


def encode_folder(
    tokeniser: Tokeniser,
    folder: Path,
    output: Path,
    processes: Processes,
    *,
    batch_size: int = 1,
    overwrite: bool = False,
) -> FolderReport | None:
    """Codes files of every recording below a folder, in the same folders under `output`, with a report beside them.

    Args:
        tokeniser: Encodes them.
        folder: Of recordings; hidden ones are none.
        output: Folder to write.
        processes: That share the work.
        batch_size: Recordings encoded at once, of similar length.
        overwrite: Encode again what is there; else it is kept.

    Returns:
        None on all processes but the first.

    Raises:
        FileNotFoundError: If there is no recording.
        ValueError: If codes are there that this tokeniser would not have made.
        OSError: If the output cannot be written.
    """
    recordings, left_out = find_recordings(folder)
    report = FolderReport(failed=left_out if processes.index == 0 else [])
    pairs = dict(_pairs(recordings, folder, output, CODES_SUFFIX, processes, report))
    for path, target in [] if overwrite else [pair for pair in pairs.items() if pair[1].is_file()]:
        try:
            there = load_codes(target)
        except OF_ONE_FILE as error:
            report.failed.append((_name(path, folder), f"{_sentence(error)} Delete it, or pass --overwrite."))
            continue
        if (there.codebooks_sha256, len(there.audio_codes)) != (tokeniser.codebooks_sha256, tokeniser.num_quantizers):
            raise ValueError(
                f"{target} was made with other codebooks, or with more or fewer of them; choose another --output, or "
                "pass --overwrite."
            )
        report.kept += 1
        report.add(path, folder, there)
    missing = [path for path, target in pairs.items() if overwrite or not target.is_file()]
    with progress_bar(len(pairs), report.kept, processes) as progress:
        for path, codes in tokeniser.encode_files(in_batches(missing, batch_size)):
            if isinstance(codes, Exception):
                report.failed.append((_name(path, folder), _sentence(codes)))
            else:
                save_codes(pairs[path], codes)
                report.done += 1
                report.add(path, folder, codes)
            progress.update()
    return _summed(report, output, processes)


@torch.inference_mode()
def decode_folder(
    model: MimiBridgeModel, folder: Path, output: Path, processes: Processes, *, suffix: str, overwrite: bool = False
) -> FolderReport | None:
    """Recordings of every codes file below a folder, as `encode_folder` does the reverse.

    Args:
        model: In eval mode.
        folder: Of codes files.
        output: Folder to write.
        processes: That share the work.
        suffix: Of the recordings, such as `.wav`.
        overwrite: Decode again what is there; else it is kept.
    """
    written_format(output / f"x{suffix}")
    report, codebooks = FolderReport(), fingerprint(model)
    below = sorted(files_below(folder))
    if processes.index == 0:
        report.failed += [(_name(path, folder), problem) for path, problem in below if problem is not None]
    paths = [path for path, problem in below if problem is None and path.suffix == CODES_SUFFIX]
    if not paths:
        raise FileNotFoundError(f"no codes file ({CODES_SUFFIX}) at {folder}")
    pairs = _pairs(paths, folder, output, suffix, processes, report)
    with progress_bar(len(pairs), 0, processes) as progress:
        for path, target in pairs:
            try:
                codes = load_codes(path)
                check_fit(model, codes, codebooks)  # of what is kept, too: another model would have given other audio
                is_kept = target.is_file() and not overwrite
                audio = None if is_kept else decode_codes(model, codes, codebooks)
            except OF_ONE_FILE as error:
                report.failed.append((_name(path, folder), _sentence(error)))
            else:
                if audio is not None:
                    save_audio(target, audio, codes.sampling_rate)
                report.kept, report.done = report.kept + is_kept, report.done + (not is_kept)
                report.seconds += codes.num_samples / codes.sampling_rate
            progress.update()
    return _summed(report, output, processes)


@torch.inference_mode()
def decode_codes(model: MimiBridgeModel, codes: Codes, codebooks_sha256: str) -> Tensor:
    """The audio `(1, samples)` of a recording's codes.

    Raises:
        ValueError: As `check_fit`.
    """
    check_fit(model, codes, codebooks_sha256)
    decoded = model.decode(codes.audio_codes[None].to(model.device))
    return decoded.audio_values[0, :, : codes.num_samples]


def check_fit(model: MimiBridgeModel, codes: Codes, codebooks_sha256: str) -> None:
    """Refuse a recording's codes that this model cannot turn back into it.

    Args:
        model: Of these codebooks.
        codes: Of one recording.
        codebooks_sha256: The fingerprint of the model's codebooks.

    Raises:
        ValueError: If other codebooks made them, or they are of another rate or too few for their recording.
    """
    if codes.codebooks_sha256 != codebooks_sha256:
        raise ValueError(
            "it was made with other codebooks than this model's; decode it with the model that encoded it."
        )
    rate, longest = model.config.sampling_rate, codes.audio_codes.shape[-1] * model.config.frame_size
    if codes.sampling_rate != rate or codes.num_samples > longest:
        raise ValueError(
            f"its codes must be of {rate} Hz and at most {longest} samples, got {codes.sampling_rate} Hz and "
            f"{codes.num_samples} samples; encode the recording again."
        )


def in_batches(paths: list[Path], batch_size: int) -> list[list[Path]]:
    """Recordings in groups of similar length; in their own order if each is alone."""
    if batch_size > 1:
        paths = sorted(paths, key=_duration)
    return [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]


def _duration(path: Path) -> float:
    try:
        return soundfile.info(path).duration
    except OF_ONE_FILE:
        return 0.0  # what is wrong with it is said when it is its turn


def _pairs(
    paths: list[Path], folder: Path, output: Path, suffix: str, processes: Processes, report: FolderReport
) -> list[tuple[Path, Path]]:
    # This process's files, each with its place; of several that would have the same one the first has it.
    places: dict[Path, Path] = {}
    for path in paths:
        place = output / path.relative_to(folder).with_suffix(suffix)
        if place not in places:
            places[place] = path
        elif processes.index == 0:
            name, other = (_name(each, folder) for each in (path, places[place]))
            report.failed.append((name, f"{place.name} is the result of {other}; give one of them another name."))
    ours = list(places.items())[processes.index :: processes.count]
    return [(path, place) for place, path in ours]


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(total: int, initial: int, processes: Processes) -> Any:
    """Of files, drawn by the first process only, and only for people."""
    return tqdm(total=total, initial=initial, unit=" files", disable=None if processes.index == 0 else True)


def _summed(report: FolderReport, output: Path, processes: Processes) -> FolderReport | None:
    # Of all processes, written by the first.
    output.mkdir(parents=True, exist_ok=True)
    parts = [output / f".{REPORT}.{index}-of-{processes.count}" for index in range(processes.count)]
    write_whole(parts[processes.index], json.dumps(asdict(report)).encode())
    processes.wait()
    if processes.index > 0:
        return None
    total = FolderReport()
    for part in parts:
        theirs = FolderReport(**json.loads(part.read_text()))
        part.unlink()
        total.done, total.kept = total.done + theirs.done, total.kept + theirs.kept
        total.seconds += theirs.seconds
        total.failed += [(name, reason) for name, reason in theirs.failed]
        total.remarks += [(name, remark) for name, remark in theirs.remarks]
    total.failed.sort()
    total.remarks.sort()
    write_whole(output / REPORT, json.dumps(asdict(total), indent=1).encode())
    return total
