"""The streams of an audio file, each as a file that libsndfile reads to its end.

libsndfile reads one stream a file, and no more samples than the header declares, or than it guesses where the header
has no count. Interrupted recorders, pipes and `cat a.mp3 b.mp3` leave headers that declare too few, so the containers
are scanned here, from header to header, without decoding samples.

Source: RFC 3533 (Ogg), the IBM and Microsoft specification of 1991 (WAV).
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from .byte_streams import Part, after_tag, bytes_at, find
from .mp3 import mp3_frame, mp3_parts
from .sizes import MIN_UNCLAIMED, SAYS_LESS, with_true_size

FIRST, LAST = 0x02, 0x04  # flags of an Ogg page
SIGNATURES = {
    name: re.compile(signature, re.DOTALL)
    for name, signature in {
        b"fLaC": rb"fLaC[\x00\x80]\x00\x00\x22",  # with the size of what must follow
        b"FORM": rb"FORM....(?:AIF[FC](?:COMM|FVER)|(?:8SVX|16SV)VHDR)",
        b"riff": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",  # Wave64
        b"RF64": rb"RF64\xff{4}WAVEds64",
        b"NIST": rb"NIST_1A\n   \d{4}\n",
        b"caff": rb"caff\x00\x01\x00\x00desc",
        b".snd": rb"\.snd\x00\x00...{4}\x00\x00\x00[\x01-\x1b]\x00",
    }.items()
}  # of whole files, by their first four bytes
OGG = re.compile(rb"OggS\x00")
WAV_CHUNKS = (
    b"LIST id3  ID3  bext cue  smpl inst iXML PEAK JUNK PAD  FLLR fact afsp acid DISP cart axml chna _PMX umid"
)


def parts_of(file: BinaryIO) -> list[Part]:
    """The streams of a file, in order; one, if its format is unknown.

    Args:
        file: Open, and seekable.
    """
    size = file.seek(0, io.SEEK_END)
    start = after_tag(file, 0)
    magic = bytes_at(file, start, 12)
    parts: list[Part] = []
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        parts = list(_wav_parts(file, start, size))
    elif magic[:4] == b"OggS":
        parts = list(_ogg_parts(file, start, size))
    elif magic[:4] in SIGNATURES:
        parts = list(_joined_parts(file, start, size, SIGNATURES[magic[:4]]))
    elif start > 0 or mp3_frame(magic[:4]) is not None:
        parts = list(mp3_parts(file, start, size))
    return parts or [Part(file, 0, size)]


def _joined_parts(file: BinaryIO, start: int, size: int, signature: re.Pattern[bytes]) -> Iterator[Part]:
    # Concatenated files of one format.
    while (following := find(file, signature, start + 4)) is not None:
        yield with_true_size(file, start, following)
        start = following
    yield with_true_size(file, start, size)


def _ogg_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    # A page of the flag FIRST after one without begins the next link of a chain.
    flags, ended, position = FIRST, False, start

    def part(end: int) -> Part:
        return Part(file, start, end, remark=None if ended else "a stream in it has no end, so it may be cut short")

    while position < size:
        page = bytes_at(file, position, 27 + 255)
        if page[:5] != b"OggS\x00" or len(page) < 27 + page[26]:
            position = find(file, OGG, position + 1) or size
            continue
        if page[5] & FIRST and not flags & FIRST:
            yield part(position)
            start, ended = position, False
        flags = page[5]
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
        ended = (ended or bool(flags & LAST)) and position <= size
    yield part(size)


def _wav_parts(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    # A size that is too small is corrected.
    while (data := _chunk(file, start + 12, size, b"data")) is not None:
        declared = int.from_bytes(bytes_at(file, data + 4, 4), "little")
        end = min(size, data + 8 + declared + declared % 2)
        following = bytes_at(file, end, 12)
        if following[:4] == b"RIFF" and following[8:] == b"WAVE":
            yield Part(file, start, end)
            start = end
            continue
        unclaimed = size - (data + 8 + declared)
        if unclaimed >= (MIN_UNCLAIMED if declared else 1) and not _is_chunk(file, end, size):
            riff_size, data_size = (min(size - place - 8, 0xFFFFFFFF).to_bytes(4, "little") for place in (start, data))
            head = b"RIFF" + riff_size + bytes_at(file, start + 8, data - start - 4) + data_size
            yield Part(file, data + 8, size, head, SAYS_LESS)
            return
        break
    yield Part(file, start, size)


def _chunk(file: BinaryIO, position: int, size: int, name: bytes) -> int | None:
    while position + 8 <= size:
        header = bytes_at(file, position, 8)
        if header[:4] == name:
            return position
        length = int.from_bytes(header[4:], "little")
        position += 8 + length + length % 2
    return None


def _is_chunk(file: BinaryIO, position: int, size: int) -> bool:
    # Or a tag that some programs put at the end.
    header = bytes_at(file, position, 8)
    if header[:3] == b"TAG" or header == b"APETAGEX" or header[:4] in WAV_CHUNKS:
        return True
    length = int.from_bytes(header[4:], "little")
    return header[:4].isascii() and header[:4].decode("ascii").isprintable() and position + 8 + length <= size
