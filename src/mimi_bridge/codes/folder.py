"""Folders of recordings to folders of codes files, and back, with the same inner folders and a report.

Results are written atomically and kept, so that an interrupted run is resumable. Files that cannot be read are left
out and named. Every recording is encoded alone, unless batches are requested, so that its codes are those that
`mimi-bridge encode` gives it alone. Under `torchrun` or `accelerate launch` the processes share the work.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..atomic_files import write_whole
from ..audio.files import save_audio, written_format
from ..audio.folders import files_below, find_recordings
from ..modeling_mimi_bridge import MimiBridgeModel
from ..paths import printable
from .distributed import DistributedContext, progress_bar
from .extractor import FILE_ERRORS, CodeExtractor, check_fit, decode_codes, in_batches
from .file import Codes, decoder_fingerprint, fingerprint, load_codes, save_codes

CODES_SUFFIX, REPORT = ".safetensors", "report.json"
DECODED_BY = ".decoded_by"  # a file beside the recordings that says what decoder made them


@dataclass
class FolderReport:
    """Result of encoding or decoding a folder.

    Attributes:
        done: Results written by this run.
        kept: Results that existed before.
        seconds: Of audio in all of them.
        failed: Name in the folder, and reason, of each file that was left out.
        remarks: Name in the folder, and remark, of each odd file that is done or kept.
    """

    done: int = 0
    kept: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: Path, folder: Path, codes: Codes) -> None:
        """Add a recording's duration and remark."""
        self.seconds += codes.num_samples / codes.sampling_rate
        if codes.remark is not None:
            self.remarks.append((_name(path, folder), codes.remark))


def encode_folder(
    extractor: CodeExtractor,
    folder: Path,
    output: Path,
    context: DistributedContext,
    *,
    batch_size: int = 1,
    overwrite: bool = False,
) -> FolderReport | None:
    """Write a codes file for every recording below a folder, in the same inner folders of `output`, with a report.

    Args:
        extractor: Encodes the recordings.
        folder: Of recordings; hidden files are ignored.
        output: Folder to write.
        context: The processes that share the work.
        batch_size: Recordings of similar length that are encoded at once.
        overwrite: Encode recordings again whose codes exist; else the codes are kept.

    Returns:
        None on all processes but the first.

    Raises:
        FileNotFoundError: If there is no recording.
        ValueError: If codes exist that this extractor would not have made, or another `report.json`.
        OSError: If the output cannot be written.
    """
    _refuse_other_report(output)
    recordings, left_out = find_recordings(folder)
    report = FolderReport(failed=left_out if context.index == 0 else [])
    pairs = dict(_pairs(recordings, folder, output, CODES_SUFFIX, context, report))
    for path, target in [] if overwrite else [pair for pair in pairs.items() if pair[1].is_file()]:
        try:
            there = load_codes(target)
        except FILE_ERRORS as error:
            report.failed.append((_name(path, folder), f"{_sentence(error)} Delete it, or pass --overwrite."))
            continue
        if not _would_make(extractor, there):
            raise ValueError(
                f"{target} was made by another model, or with more or fewer codebooks; choose another --output, or "
                "pass --overwrite."
            )
        report.kept += 1
        report.add(path, folder, there)
    missing = [path for path, target in pairs.items() if overwrite or not target.is_file()]
    with progress_bar(len(pairs), report.kept, context) as progress:
        for path, codes in extractor.encode_files(in_batches(missing, batch_size)):
            if isinstance(codes, Exception):
                report.failed.append((_name(path, folder), _sentence(codes)))
            else:
                save_codes(pairs[path], codes)
                report.done += 1
                report.add(path, folder, codes)
            progress.update()
    return _summed(report, output, context)


@torch.inference_mode()
def decode_folder(
    model: MimiBridgeModel,
    folder: Path,
    output: Path,
    context: DistributedContext,
    *,
    suffix: str,
    overwrite: bool = False,
) -> FolderReport | None:
    """Write a recording for every codes file below a folder: the reverse of `encode_folder`.

    Args:
        model: In eval mode.
        folder: Of codes files.
        output: Folder to write.
        context: The processes that share the work.
        suffix: Of the recordings, such as `.wav`.
        overwrite: Decode codes again whose recording exists; else the recording is kept, if it is no older.

    Raises:
        FileNotFoundError: If there is no codes file.
        ValueError: If recordings exist that this model has not decoded, or another `report.json`.
        OSError: If the output cannot be written.
    """
    written_format(output / f"x{suffix}")
    _refuse_other_report(output)
    report, codebooks = FolderReport(), fingerprint(model)
    decoder = decoder_fingerprint(model, codebooks)
    below = sorted(files_below(folder))
    if context.index == 0:
        report.failed += [(_name(path, folder), problem) for path, problem in below if problem is not None]
    paths = [path for path, problem in below if problem is None and path.suffix == CODES_SUFFIX]
    if not paths:
        raise FileNotFoundError(f"no codes file ({CODES_SUFFIX}) at {folder}")
    pairs = _pairs(paths, folder, output, suffix, context, report)
    stamp = output / DECODED_BY
    if not (stamp.is_file() and stamp.read_text() == decoder):
        if not overwrite and (there := [target for _, target in pairs if target.exists()]):
            raise ValueError(
                f"another model may have decoded {printable(there[0])}; choose another --output, or pass --overwrite."
            )
        stamp.unlink(missing_ok=True)  # what is there is of two models until all is overwritten
        if not overwrite:
            _write_stamp(stamp, decoder)
    with progress_bar(len(pairs), 0, context) as progress:
        for path, target in pairs:
            try:
                codes = load_codes(path)
                check_fit(model, codes, codebooks)  # of what is kept, too: another model would have given other audio
                is_kept = not overwrite and target.is_file() and target.stat().st_mtime >= path.stat().st_mtime
                audio = None if is_kept else decode_codes(model, codes, codebooks)
            except FILE_ERRORS as error:
                report.failed.append((_name(path, folder), _sentence(error)))
            else:
                if audio is not None:
                    save_audio(target, audio, codes.sampling_rate)
                report.kept, report.done = report.kept + is_kept, report.done + (not is_kept)
                report.seconds += codes.num_samples / codes.sampling_rate
            progress.update()
    total = _summed(report, output, context)
    if total is not None:
        _write_stamp(stamp, decoder)
    return total


def _would_make(extractor: CodeExtractor, there: Codes) -> bool:
    # Codes of a file that does not say what encoder made it are known by their codebooks alone.
    if there.encoder_sha256 not in (None, extractor.encoder_sha256):
        return False
    return (there.codebooks_sha256, len(there.audio_codes)) == (extractor.codebooks_sha256, extractor.num_quantizers)


def _write_stamp(stamp: Path, decoder: str) -> None:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    write_whole(stamp, decoder.encode())


def _pairs(
    paths: list[Path], folder: Path, output: Path, suffix: str, context: DistributedContext, report: FolderReport
) -> list[tuple[Path, Path]]:
    # This process's files, each with its place; of several with the same place, the first gets it.
    places: dict[Path, Path] = {}
    for path in paths:
        place = output / path.relative_to(folder).with_suffix(suffix)
        if place not in places:
            places[place] = path
        elif context.index == 0:
            name, other = (_name(each, folder) for each in (path, places[place]))
            report.failed.append((name, f"{place.name} is the result of {other}; give one of them another name."))
    ours = [(path, place) for place, path in list(places.items())[context.index :: context.count]]
    problems = {path: problem for path, place in ours if (problem := _problem_of(place)) is not None}
    report.failed += [(_name(path, folder), problem) for path, problem in problems.items()]
    return [(path, place) for path, place in ours if path not in problems]


def _problem_of(place: Path) -> str | None:
    # Why nothing can be written to a place, as far as its name tells.
    try:
        place.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{printable(place.name)} cannot be written ({error.strerror}); give it another name."
    return f"a folder is in the place of {printable(place.name)}; move it away." if place.is_dir() else None


def _refuse_other_report(output: Path) -> None:
    path = output / REPORT
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.keys() != asdict(FolderReport()).keys():
        raise ValueError(
            f"{printable(path)} is none of an earlier run and would be replaced; move it away, or choose another "
            "--output."
        )


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _summed(report: FolderReport, output: Path, context: DistributedContext) -> FolderReport | None:
    # The sum of all processes' reports, written by the first.
    output.mkdir(parents=True, exist_ok=True)
    parts = [output / f".{REPORT}.{index}-of-{context.count}" for index in range(context.count)]
    write_whole(parts[context.index], json.dumps(asdict(report)).encode())
    context.wait()
    if context.index > 0:
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
