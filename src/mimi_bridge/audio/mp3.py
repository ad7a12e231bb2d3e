"""MP3 files without a frame count, with a wrong one, or concatenated: as parts whose number of frames is known.

An MP3 has no header other than its frames'. Where the first frame does not give their number, libsndfile guesses from
the bit rate, which is wrong where the rate varies. Frames are counted here; where the number is missing or wrong, a
frame with the right one is put before them.

Source: ISO/IEC 11172-3 and 13818-3 (frames); the Xing header, as LAME writes it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import soundfile

from .byte_streams import Part, after_tag, bytes_at, find

MP3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # of MPEG 1, and of 2 and 2.5, by the index in a frame's header
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version


@dataclass(frozen=True)
class Mp3Frame:
    """The header of a frame."""

    header: bytes
    mpeg: int  # version, as the header codes it: 3 is 1, 2 is 2, 0 is 2.5
    rate: int  # Hz
    is_mono: bool
    size: int  # bytes
    kind: tuple[int, int, bool]  # the same for all frames of a stream

    @property
    def tag_offset(self) -> int:
        """Offset in bytes of the Xing header in a frame."""
        sizes = {(3, False): 32, (3, True): 17, (2, False): 17, (2, True): 9, (0, False): 17, (0, True): 9}
        return 4 + sizes[self.mpeg, self.is_mono]

    @property
    def num_samples(self) -> int:
        """Samples in a frame."""
        return 1152 if self.mpeg == 3 else 576


@lru_cache(maxsize=1024)  # a recording has few different ones
def mp3_frame(header: bytes) -> Mp3Frame | None:
    """Parse the header of a layer III frame, its first four bytes; None if it is not one, or has no bit rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    mpeg, layer, bits, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    if mpeg == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    hertz, is_first = RATES[mpeg][rate], mpeg == 3
    size = (144 if is_first else 72) * 1000 * KILOBITS[is_first][bits] // hertz + (header[2] >> 1 & 1)
    is_mono = header[3] >> 6 == 3
    return Mp3Frame(header, mpeg, hertz, is_mono, size, (mpeg, hertz, is_mono))


@dataclass
class _Run:
    # Contiguous frames of one kind, perhaps after an information frame that gives their number.
    start: int
    frame: Mp3Frame
    end: int = 0
    count: int = 0
    info_size: int = 0  # bytes of the information frame
    declared: int = 0
    is_cut: bool = False

    def add(self, size: int, declared: int | None) -> None:
        self.end = (self.end or self.start) + size
        if declared is None:
            self.count += 1
        else:
            self.info_size, self.declared = size, declared

    @property
    def is_trusted(self) -> bool:
        """Whether libsndfile can use the declared number: it is right (with or without the information frame), or the
        file ends early.
        """
        return self.declared == self.count or self.declared > self.count + 1

    def part(self, file: BinaryIO) -> Part:
        remark = "it ends within a frame, so it may be cut short" if self.is_cut else None
        if self.is_trusted:
            return Part(file, self.start, self.end, remark=remark)
        return Part(file, self.start + self.info_size, self.end, self._head(), remark)

    def _head(self) -> bytes:
        # An information frame with the number of frames; 128 or 64 kbit/s leave room for it.
        header = self.frame.header
        bits = 9 if self.frame.mpeg == 3 else 8
        frame = mp3_frame(bytes([0xFF, header[1] | 1, bits << 4 | header[2] & 0x0C, header[3]]))
        assert frame is not None
        xing = b"Xing" + (1).to_bytes(4, "big") + self.count.to_bytes(4, "big")
        return (frame.header.ljust(frame.tag_offset, b"\x00") + xing).ljust(frame.size, b"\x00")


def mp3_parts(file: BinaryIO, start: int, size: int) -> list[Part]:
    """The parts of an MP3; none if frames are less than half of the file, which then is not an MP3.

    Args:
        file: Open, and seekable.
        start: Position after an ID3 tag.
        size: Of the file, in bytes.
    """
    runs = [run for run in _mp3_runs(file, start, size) if run.count]
    if sum(run.end - run.start for run in runs) < (size - start) / 2:
        return []
    if len(runs) == 1 and not runs[0].is_cut:
        whole = Part(file, 0, size)
        if runs[0].is_trusted or soundfile.info(whole).frames == runs[0].count * runs[0].frame.num_samples:
            return [Part(file, 0, size)]
    return [run.part(file) for run in runs]


def _mp3_runs(file: BinaryIO, position: int, size: int) -> Iterator[_Run]:
    run: _Run | None = None
    while position < size:
        content = bytes_at(file, position, 64)
        frame = mp3_frame(content[:4])
        follows = frame is not None and run is not None and (run.end, run.frame.kind) == (position, frame.kind)
        if frame is None or not (follows or _ends_well(file, position + frame.size, size, frame)):
            after = after_tag(file, position) if content[:3] == b"ID3" else position + 1
            position = find(file, MP3, after) or size
            continue
        if position + frame.size > size:
            if run is not None:
                run.is_cut = True
            break
        declared = _declared_frames(frame, content)
        if run is None or not follows or declared is not None:
            if run is not None:
                yield run
            run = _Run(position, frame)
        run.add(frame.size, declared)
        position = run.end
    if run is not None:
        yield run


def _ends_well(file: BinaryIO, position: int, size: int, frame: Mp3Frame) -> bool:
    # A frame ends at another frame of its kind, at a tag, or at the end of the file; a false match seldom does.
    following = bytes_at(file, position, 4)
    other = mp3_frame(following)
    return (
        position == size
        or following[:3] in (b"ID3", b"TAG", b"APE")
        or (other is not None and other.kind == frame.kind)
    )


def _declared_frames(frame: Mp3Frame, content: bytes) -> int | None:
    # The number of frames in an information frame, 0 if it is missing; None if the frame holds sound.
    offset = frame.tag_offset + (0 if content[1] & 1 else 2)  # after a checksum
    if content[offset : offset + 4] in (b"Xing", b"Info") and not any(content[6:offset]):
        return int.from_bytes(content[offset + 8 : offset + 12], "big") if content[offset + 7] & 1 else 0
    return 0 if content[36:40] == b"VBRI" else None
