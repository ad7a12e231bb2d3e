"""Recordings of a folder: in order, through links, and what cannot be read by name."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mimi_bridge.audio import files as audio_module
from mimi_bridge.audio.files import load_audio
from mimi_bridge.audio.folders import find_recordings, load_speech


@pytest.fixture
def folder(tmp_path, tone):
    """Two recordings, in two folders."""
    for name in ("b.wav", "a/c.flac"):
        write(tmp_path / "speech" / name, tone)
    return tmp_path / "speech"


def write(path, samples, rate=48_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, format=audio_module.FORMATS[path.suffix.lower()])


def names(folder):
    found, left_out = find_recordings(folder)
    return [str(path.relative_to(folder)) for path in found], left_out


def test_find_recordings_gives_a_folders_recordings_in_order(folder):
    (folder / "notes.txt").write_text("no audio")
    assert find_recordings(folder) == ([folder / "a" / "c.flac", folder / "b.wav"], [])
    assert find_recordings(folder / "b.wav") == ([folder / "b.wav"], [])


def test_find_recordings_follows_links_to_folders_and_files(folder, tmp_path, tone):
    write(tmp_path / "elsewhere" / "x" / "d.wav", tone)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "e.wav").symlink_to(tmp_path / "elsewhere" / "x" / "d.wav")
    assert names(folder) == (["a/c.flac", "b.wav", "e.wav", "linked/x/d.wav"], [])


@pytest.mark.parametrize("target", [".", "..", "a", "../.."])
def test_find_recordings_ends_where_links_lead_back(folder, target):
    (folder / "a" / "back").symlink_to(folder / "a" / target)
    (folder / "self").symlink_to(folder / "self")
    found, left_out = names(folder)
    assert {"a/c.flac", "b.wav"} <= set(found)
    assert len(found) <= 3
    assert ("self", "it is a link that leads nowhere") in left_out


def test_find_recordings_skips_hidden_folders_as_it_skips_hidden_files(folder, tone):
    for name in (".trash/x.wav", "a/.cache/y.wav", "a/._c.wav", ".z.m4a"):
        write((folder / name).with_suffix(".wav"), tone)
    assert names(folder) == (["a/c.flac", "b.wav"], [])


def test_find_recordings_reads_a_hidden_folder_that_is_asked_for(folder):
    folder.rename(folder.parent / ".speech")
    assert names(folder.parent / ".speech")[0] == ["a/c.flac", "b.wav"]


@pytest.mark.parametrize(
    "suffix", ["oga", "opus", "w64", "caf", "sph", "au", "snd", "aif", "aiff", "aifc", "rf64", "voc", "WAV"]
)
def test_find_recordings_knows_every_format_that_is_read(tmp_path, tone, suffix):
    write(tmp_path / f"tone.{suffix}", tone)
    found, left_out = find_recordings(tmp_path)
    assert load_audio(*found, 24_000).shape == (1, 12_000)
    assert left_out == []


@pytest.mark.parametrize("suffix", ["m4a", "webm", "amr", "wma", "aac", "mp4", "MP4", "raw"])
def test_find_recordings_names_audio_that_is_not_read(folder, suffix):
    (folder / "a" / f"x.{suffix}").write_bytes(b"...")
    reason = f"libsndfile does not read .{suffix.lower()} files; convert it to wav or flac"
    assert names(folder) == (["a/c.flac", "b.wav"], [(f"a/x.{suffix}", reason)])


def test_find_recordings_passes_by_what_was_converted_to_a_format_that_is_read(folder):
    (folder / "b.m4a").write_bytes(b"...")
    assert names(folder) == (["a/c.flac", "b.wav"], [])


def test_find_recordings_names_a_format_that_this_libsndfile_lacks(folder, monkeypatch):
    monkeypatch.delitem(audio_module.FORMATS, ".flac")
    reason = "libsndfile does not read .flac files; convert it to wav or flac"
    assert names(folder) == (["b.wav"], [("a/c.flac", reason)])


def test_find_recordings_names_links_that_lead_nowhere(folder):
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / "lost.wav").symlink_to(folder / "nothing.wav")
    reason = "it is a link that leads nowhere"
    assert names(folder)[1] == [("gone", reason), ("lost.wav", reason)]


def test_find_recordings_names_a_folder_that_cannot_be_opened(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(folder) == (["b.wav"], [("a", "it cannot be opened (Permission denied)")])


def test_find_recordings_says_that_a_name_is_not_utf8(folder):
    os.rename(folder / "b.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    os.rename(folder / "a", os.fsencode(folder) + b"/\xff")
    reason = "its name is not UTF-8; rename it, or the folder that is called so"
    with pytest.raises(FileNotFoundError, match=r"no recording.*caf\\xe9\.wav: its name is not UTF-8"):
        find_recordings(folder)
    write(folder / "good.wav", np.zeros(10))
    assert names(folder) == (["good.wav"], [("caf\\xe9.wav", reason), ("\\xff/c.flac", reason)])


def test_find_recordings_says_when_there_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recording at"):
        find_recordings(tmp_path)
    (tmp_path / "voice.m4a").write_bytes(b"...")
    with pytest.raises(FileNotFoundError, match=r"left out: voice\.m4a: libsndfile does not read \.m4a files"):
        find_recordings(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such recording or folder"):
        find_recordings(tmp_path / "nothing")


def test_load_speech_joins_recordings_until_there_is_enough(tmp_path, tone):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", tone, 48_000)
    assert load_speech(tmp_path, 24_000, seconds=0.75).shape == (1, 18_000)
    assert load_speech(tmp_path, 24_000, seconds=60).shape == (1, 36_000)


def test_load_speech_passes_by_what_cannot_be_read_with_a_warning(tmp_path, tone, caplog):
    for name in "ac":
        soundfile.write(tmp_path / f"{name}.wav", tone, 48_000)
    (tmp_path / "b.wav").write_text("no sound")
    assert load_speech(tmp_path, 24_000, seconds=60).shape == (1, 24_000)
    assert [message for message in caplog.messages if "left out" in message and "b.wav" in message]
    for name in "ac":
        (tmp_path / f"{name}.wav").unlink()
    with pytest.raises(ValueError, match=r"b\.wav is not audio"):
        load_speech(tmp_path, 24_000, seconds=60)
