"""Correct headers of AU, AIFF, SVX, CAF, RF64 and FLAC that declare fewer samples than the file holds.

A recorder that is interrupted or writes to a pipe leaves such headers, and libsndfile stops where they end. Data after
the declared end count as samples only if they are not another chunk.

Source: the AU, AIFF and CAF specifications of Sun and Apple; EBU Tech 3306 (RF64); RFC 9639 (FLAC).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from .byte_streams import Part, bytes_at

MIN_UNCLAIMED = 4096  # bytes after the declared samples that count as samples; fewer may be another program's data
SAYS_LESS = "its header says that it holds fewer samples than there are; all were read"
FLAC_COUNT = 18  # bytes before the rate, the channels and the number of samples
FLAC_BITS = 36  # of the number of samples


@dataclass(frozen=True)
class _Size:
    # A size field in a header: its place, and where the data that it counts begin.
    place: int
    width: int
    order: Literal["big", "little"]
    begin: int
    least: int = 0  # its value in a recording without samples
    chunk_width: int = 0  # bytes of the size field of a chunk that may follow; 0 if none may
    refused: bool = False  # whether libsndfile refuses a size that is too high, or unknown


def with_true_size(file: BinaryIO, start: int, end: int) -> Part:
    """Bytes `start` to `end` of a file of one of these formats, with a header that declares all samples."""
    magic = bytes_at(file, start, 4)
    if magic == b"fLaC":
        return _flac(file, start, end)
    find: Callable[[BinaryIO, int, int], _Size | None] = SIZES.get(magic, lambda *_: None)
    size = find(file, start, end)
    if size is None:
        return Part(file, start, end)
    said = int.from_bytes(bytes_at(file, size.place, size.width), size.order)
    there = end - size.begin
    is_unknown = said == 2 ** (8 * size.width) - 1
    unclaimed = there - said
    goes_on = unclaimed >= (MIN_UNCLAIMED if said > size.least else 1) and not _chunk_follows(file, size, said, end)
    if not (goes_on or (size.refused and unclaimed < 0)):
        return Part(file, start, end)
    head = bytes_at(file, start, size.place - start) + there.to_bytes(size.width, size.order)
    head += bytes_at(file, size.place + size.width, size.begin - size.place - size.width)
    part = Part(file, size.begin, end, head, SAYS_LESS if goes_on else None)
    if not (goes_on or is_unknown) and there > size.least:
        part.declared_share = (said - size.least) / (there - size.least)
    return part


def _flac(file: BinaryIO, start: int, end: int) -> Part:
    # Without a count in the header, libsndfile reads to the end.
    count = int.from_bytes(bytes_at(file, start + FLAC_COUNT, 8), "big")
    declared = count % 2**FLAC_BITS
    if declared == 0:
        return Part(file, start, end)
    head = bytes_at(file, start, FLAC_COUNT) + (count - declared).to_bytes(8, "big")
    part = Part(file, start + len(head), end, head)
    part.declared_count = declared
    return part


def _au(file: BinaryIO, start: int, end: int) -> _Size | None:
    offset = int.from_bytes(bytes_at(file, start + 4, 4), "big")
    return _Size(start + 8, 4, "big", start + offset) if 12 <= offset < end - start else None


def _iff(file: BinaryIO, start: int, end: int) -> _Size | None:
    for name, least in ((b"SSND", 8), (b"BODY", 0)):  # of AIFF, of SVX
        place = _chunk(file, start + 12, end, name, 4, "big")
        if place is not None:
            return _Size(place + 4, 4, "big", place + 8, least, chunk_width=4)
    return None


def _caf(file: BinaryIO, start: int, end: int) -> _Size | None:
    place = _chunk(file, start + 8, end, b"data", 8, "big")
    return None if place is None else _Size(place + 4, 8, "big", place + 12, least=4, chunk_width=8, refused=True)


def _rf64(file: BinaryIO, start: int, end: int) -> _Size | None:
    place = _chunk(file, start + 12, end, b"data", 4, "little")
    if place is None or bytes_at(file, place + 4, 4) != b"\xff" * 4:
        return None
    return _Size(start + 28, 8, "little", place + 8, chunk_width=4)


SIZES = {b".snd": _au, b"FORM": _iff, b"caff": _caf, b"RF64": _rf64}


def _chunk(
    file: BinaryIO, position: int, end: int, name: bytes, width: int, order: Literal["big", "little"]
) -> int | None:
    while position + 4 + width <= end:
        header = bytes_at(file, position, 4 + width)
        if header[:4] == name:
            return position
        length = int.from_bytes(header[4:], order)
        position += 4 + width + length + (length % 2 if width == 4 else 0)
    return None


def _chunk_follows(file: BinaryIO, size: _Size, said: int, end: int) -> bool:
    position = size.begin + said
    if not size.chunk_width or position >= end:
        return False
    position += said % 2 if size.chunk_width == 4 else 0
    header = bytes_at(file, position, 4 + size.chunk_width)
    length = int.from_bytes(header[4:], size.order)
    return header[:4].isascii() and header[:4].decode("ascii").isprintable() and position + len(header) + length <= end
