"""Recordings are read to their end, whatever their headers say, and what is short of them is remarks."""

import io
import logging

import numpy as np
import pytest
import soundfile

from mimi_bridge.audio import reading as audio_reading
from mimi_bridge.audio.files import load_audio, read_audio
from mimi_bridge.audio.mp3 import mp3_frame

RATE = 24_000
SECONDS = 6.0
JOINED = ["wav", "flac", "ogg", "opus", "mp3", "aiff", "caf", "w64", "rf64", "sph", "au"]
FORMATS = {"opus": ("OGG", "OPUS"), "sph": ("NIST", None)}


@pytest.fixture(scope="module")
def noise():
    """Quiet at first, so that an MP3 of it has small frames at first."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE)).astype(np.float32)
    samples[: len(samples) // 2] *= 1e-3
    return samples


def encoded(samples, suffix, rate=RATE, **options):
    name, subtype = FORMATS.get(suffix, (suffix.upper(), None))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=name, subtype=subtype, **options)
    return file.getvalue()


def read(content, **options):
    """Its samples at its own rate, and what is remarks of it."""
    remarks = []
    samples, _ = read_audio(io.BytesIO(content), "it", tell=remarks.append, **options)
    return samples, remarks


def without_length(mp3):
    """An MP3 without the frame that says how many follow."""
    size = mp3_frame(mp3[:4]).size
    assert b"Xing" in mp3[:size] or b"Info" in mp3[:size]
    return mp3[size:]


def flac_without_length(flac):
    """The last 36 bits before the checksum are the number of samples."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def wav_that_says(wav, num_bytes):
    place = wav.index(b"data") + 4
    return wav[:place] + num_bytes.to_bytes(4, "little") + wav[place + 4 :]


@pytest.mark.parametrize("suffix", JOINED)
def test_a_recording_that_is_whole_is_read_as_libsndfile_reads_it(noise, suffix):
    content = encoded(noise, suffix)
    samples, remarks = read(content)
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert np.array_equal(samples, file.read(dtype="float32"))
    assert remarks == []


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_of_variable_rate_without_a_length_is_read_to_its_end(rate, channels):
    samples = np.random.default_rng(0).normal(0, 0.2, (2 * rate, channels))
    samples[:rate] *= 1e-3
    whole = encoded(samples, "mp3", rate)
    with soundfile.SoundFile(io.BytesIO(without_length(whole))) as file:
        assert file.frames < 2 * rate  # what libsndfile believes
    found, remarks = read(without_length(whole))
    assert 2 * rate <= len(found) < 2 * rate + 2 * 1152
    expected = read(whole)[0]
    delay = len(found) - len(expected) - 400  # of the encoder, which nobody tells now
    shift = max(range(max(0, delay - 1200), delay + 1200), key=lambda n: _likeness(found[n:], expected))
    assert _likeness(found[shift:], expected) > 0.999
    assert remarks == []


def _likeness(samples, others):
    length = min(len(samples), len(others)) - 3000
    return float(np.corrcoef(samples[1000:length], others[1000:length])[0, 1])


def test_an_mp3_whose_length_libsndfile_guesses_right_is_read_as_it_reads_it():
    content = without_length(encoded(np.zeros(3 * RATE), "mp3"))  # all of its frames are of one size
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert np.array_equal(read(content)[0], file.read(dtype="float32"))


def test_an_mp3_of_the_size_of_a_tag_is_read_behind_it(noise):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 5]) + bytes(2 * 128 + 5)
    content = tag + without_length(encoded(noise, "mp3")) + b"TAG" + bytes(125)
    assert len(read(content)[0]) / RATE == pytest.approx(SECONDS, abs=0.06)


@pytest.mark.parametrize("suffix", JOINED)
def test_joined_recordings_are_read_one_after_the_other(noise, suffix):
    first, second = noise[: 2 * RATE], noise[-RATE:]
    contents = [encoded(part, suffix) for part in (first, second)]
    samples, remarks = read(b"".join(contents))
    assert np.array_equal(samples, np.concatenate([read(content)[0] for content in contents]))
    assert len(samples) == 3 * RATE
    assert remarks == []


def test_joined_mp3s_are_read_with_or_without_tags_and_lengths(noise):
    whole = encoded(noise, "mp3")
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 0, 50]) + bytes(50)
    for content in (
        tag + whole + b"TAG" + bytes(125) + tag + whole,
        without_length(whole) * 2,
        whole + without_length(whole),
    ):
        samples, remarks = read(content)
        assert len(samples) / RATE == pytest.approx(2 * SECONDS, abs=0.1)
        assert remarks == []


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "flac"])
def test_joined_recordings_of_other_rates_and_channels_are_brought_to_the_first(noise, suffix):
    other = encoded(np.stack([noise[:48_000]] * 2, axis=1), suffix, 48_000)
    samples, _ = read(encoded(noise[:RATE], suffix) + other)
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.06)


def test_a_part_that_cannot_be_read_loses_those_before_it_not(noise):
    flac = encoded(noise, "flac")
    samples, remarks = read(flac + flac[:60])
    assert len(samples) == len(noise)
    assert remarks[0].startswith("only 1 of its 2 parts can be read")


def test_a_flac_without_a_length_is_read_to_its_end(tmp_path, noise):
    content = flac_without_length(encoded(noise, "flac"))
    assert soundfile.info(io.BytesIO(content)).frames > 2**60
    samples, remarks = read(content)
    assert np.array_equal(samples, read(encoded(noise, "flac"))[0])
    assert remarks == []
    (tmp_path / "pipe.flac").write_bytes(content)
    assert load_audio(tmp_path / "pipe.flac", 16_000).shape[1] == round(SECONDS * 16_000)


@pytest.mark.parametrize("said", [0, RATE])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_says_too_little_is_read_to_its_end(noise, said, subtype):
    file = io.BytesIO()
    soundfile.write(file, noise, RATE, format="WAV", subtype=subtype)
    samples, remarks = read(wav_that_says(file.getvalue(), said))
    assert np.array_equal(samples, read(file.getvalue())[0])
    assert remarks == ["its header says that it holds fewer samples than there are; all were read"]


SIZES = {"au": (".snd", 8, 4, 24), "aiff": ("SSND", 4, 4, 8), "caf": ("data", 4, 8, 4), "rf64": ("ds64", 16, 8, 0)}
SIZES["svx"] = ("BODY", 4, 4, 0)  # what stands before its size, how far on, in how many bytes, what is counted besides


def that_says(content, suffix, num_bytes):
    """A recording whose header says so many bytes of samples."""
    name, offset, width, besides = SIZES[suffix]
    place = content.index(name.encode()) + offset
    order = "little" if suffix == "rf64" else "big"
    said = (num_bytes + (besides if suffix in ("aiff", "caf") else 0)).to_bytes(width, order)
    return content[:place] + said + content[place + width :]


@pytest.mark.parametrize("num_bytes", [0, RATE])
@pytest.mark.parametrize("suffix", SIZES)
def test_a_header_that_says_too_little_is_put_right(noise, suffix, num_bytes):
    content = encoded(noise, suffix)
    samples, remarks = read(that_says(content, suffix, num_bytes))
    assert np.array_equal(samples, read(content)[0])
    assert remarks == ["its header says that it holds fewer samples than there are; all were read"]


@pytest.mark.parametrize("said", [1, RATE, round(SECONDS * RATE) - 1])
def test_a_flac_that_counts_too_few_samples_is_read_to_its_end(noise, said):
    content = encoded(noise, "flac")
    count = int.from_bytes(content[21:26], "big") >> 36 << 36 | said
    samples, remarks = read(content[:21] + count.to_bytes(5, "big") + content[26:])
    assert np.array_equal(samples, read(content)[0])
    assert remarks == ["its header says that it holds fewer samples than there are; all were read"]


def test_a_caf_whose_length_is_not_known_yet_is_whole(noise):
    content = encoded(noise, "caf")
    place = content.index(b"data") + 4
    samples, remarks = read(content[:place] + b"\xff" * 8 + content[place + 8 :])
    assert np.array_equal(samples, read(content)[0])
    assert remarks == []


@pytest.mark.parametrize(
    "suffix, more",
    [
        ("flac", b"TAG" + bytes(125)),
        ("flac", bytes(20_000)),
        ("aiff", b"ID3 " + (8000).to_bytes(4, "big") + bytes(8000)),
        ("caf", b"free" + (8000).to_bytes(8, "big") + bytes(8000)),
        ("rf64", b"LIST" + (8000).to_bytes(4, "little") + bytes(8000)),
        ("au", bytes(100)),
    ],
)
def test_what_other_programs_write_behind_samples_is_no_sound(noise, suffix, more):
    content = encoded(noise, suffix)
    samples, remarks = read(content + more)
    assert np.array_equal(samples, read(content)[0])
    assert remarks == []


@pytest.mark.parametrize("said", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_written_to_a_pipe_is_whole(noise, said):
    samples, remarks = read(wav_that_says(encoded(noise, "wav"), said))
    assert len(samples) == len(noise)
    assert remarks == []


def test_what_other_programs_write_behind_a_wavs_samples_is_no_sound(noise):
    wav = encoded(noise, "wav")
    for more in (
        b"LIST" + (8000).to_bytes(4, "little") + bytes(8000),
        b"TAG" + bytes(125),
        b"abcd\x04\x00\x00\x00....",
        bytes(100),
    ):
        samples, remarks = read(wav + more)
        assert len(samples) == len(noise)
        assert remarks == []


def test_a_header_of_no_samples_that_cannot_be_put_right_is_named(noise):
    chunk = b"free" + (4000).to_bytes(4, "big") + bytes(4000)
    with pytest.raises(
        ValueError, match="it holds no audio: its header says that it lasts 0 s, though the file is not"
    ):
        read(encoded(noise[:0], "aiff") + chunk)


@pytest.mark.parametrize(
    "suffix", ["wav", "flac", "mp3", "aiff", "au", "w64", "rf64", "sph", "caf", "svx", "avr", "mpc2k"]
)
def test_a_recording_that_is_cut_off_is_read_as_far_as_it_goes_and_remarked(noise, suffix):
    content = encoded(noise, suffix)
    samples, (remarks,) = read(content[: len(content) * 2 // 3])
    whole = read(content)[0]
    assert 0.4 * len(whole) < len(samples) < 0.9 * len(whole)
    assert np.array_equal(samples[:-2000], whole[: len(samples) - 2000])
    assert remarks == f"it ends early: its header says 6.00 s, and {len(samples) / RATE:.2f} s are there"


def test_a_voc_that_is_cut_off_is_remarked(noise):
    content = encoded(noise, "voc")
    samples, remarks = read(content[: len(content) // 2])
    assert len(samples) == pytest.approx(len(noise) / 2, abs=20)
    assert remarks == ["it ends before its header says"]


@pytest.mark.parametrize("suffix", ["sds", "mat4", "mat5"])
def test_a_format_that_is_filled_up_or_shortened_where_it_is_cut_is_refused(noise, suffix):
    whole = encoded(noise, suffix)
    for content in (whole, whole[: len(whole) // 2]):
        with pytest.raises(
            ValueError, match=f"it is of the format {suffix.upper()}, which does not tell where it was"
        ):
            read(content)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_without_an_end_is_remarked(noise, suffix):
    content = encoded(np.tile(noise, 5), suffix)
    samples, remarks = read(content[: len(content) * 2 // 3])
    assert 10 < len(samples) / RATE < 25
    assert remarks == ["a stream in it has no end, so it may be cut short"]


def test_compressed_audio_without_a_length_that_ends_within_a_frame_is_remarked(noise):
    for content in (without_length(encoded(noise, "mp3")), flac_without_length(encoded(noise, "flac"))):
        samples, remarks = read(content[:-300])
        assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.3)
        assert remarks == ["it ends within a frame, so it may be cut short"]


def test_a_recording_that_is_damaged_within_is_refused(noise):
    content = bytearray(encoded(np.tile(noise, 5), "flac"))
    content[50_000:120_000] = bytes(70_000)
    with pytest.raises(ValueError, match="it is not audio that libsndfile reads"):
        read(bytes(content))


def test_what_is_short_is_logged_with_the_name_where_nobody_asks(noise, tmp_path, caplog):
    (tmp_path / "cut.wav").write_bytes(encoded(noise, "wav")[:100_000])
    with caplog.at_level(logging.WARNING):
        load_audio(tmp_path / "cut.wav", RATE)
    assert "cut.wav: it ends early: its header says 6.00 s" in caplog.text


def test_a_longer_recording_is_refused_even_if_its_header_does_not_say_how_long_it_is(noise):
    for content in (
        encoded(noise, "flac"),
        flac_without_length(encoded(noise, "flac")),
        encoded(noise[: 4 * RATE], "ogg") * 2,
    ):
        with pytest.raises(ValueError, match=r"it lasts \d\.\d s, but max_seconds is 5"):
            read(content, max_seconds=5)
        read(content, max_seconds=9)


def test_a_header_that_promises_too_few_samples_loses_none():
    growing, pieces = audio_reading._Growing(), [np.arange(number, dtype=np.float32) for number in (40, 0, 90, 3000)]
    growing.expect(10)
    for piece in pieces:
        growing.append(piece)
    assert np.array_equal(growing.all(), np.concatenate(pieces))
