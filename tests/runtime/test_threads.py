"""Several threads: on one model from its first call on, and on one stream."""

import sys
import threading
from copy import deepcopy

import pytest
import torch

from mimi_bridge.runtime import packing
from mimi_bridge.runtime.stream import PAD_CODE

FRAME = 1920
NUM_THREADS = 4


@pytest.fixture(autouse=True)
def _threads_that_change_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def sound(speech) -> torch.Tensor:
    """Four different recordings of 12 frames, `(4, 1, samples)`."""
    return torch.stack([speech[:, 110_000 * row :][:, : 12 * FRAME] for row in range(4)])


def at_once(*calls):
    """What calls return that threads of their own make at the same moment; raises what the first of them raised."""
    barrier, results, errors = threading.Barrier(len(calls)), [None] * len(calls), []

    def run(number):
        try:
            barrier.wait()
            results[number] = calls[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return results


# One model


def check_first_calls(model, sound, rounds):
    model.requires_grad_(False)  # gradients are switched off by thread
    audio = sound[:1, :, : 2 * FRAME]
    codes = model.encode(audio).audio_codes
    decoded, latents = model.decode(codes).audio_values, model.get_latents(audio)
    calls = (
        lambda: model.encode(audio).audio_codes,
        lambda: model.decode(codes).audio_values,
        lambda: model.get_latents(audio),
        lambda: model.stream().encode(audio),
    )
    for _ in range(rounds):
        model.train().eval()
        model.packed.clear()
        found = at_once(*calls)
        for result, expected in zip(found, (codes, decoded, latents, codes), strict=True):
            assert torch.equal(result, expected)


def test_first_calls_of_several_threads_give_what_one_thread_gets(tiny_model, sound):
    check_first_calls(tiny_model, sound, 30)


@pytest.mark.slow
def test_first_calls_of_several_threads_give_what_one_thread_gets_a_thousand_times(tiny_model, sound):
    check_first_calls(tiny_model, sound, 1000)


def test_first_calls_of_several_threads_after_loading_give_what_one_thread_gets(tiny_model, sound, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    expected = tiny_model.encode(sound[:1]).audio_codes
    for _ in range(3):
        loaded = type(tiny_model).from_pretrained(tmp_path).eval()
        found = at_once(*[lambda model=loaded: model.encode(sound[:1]).audio_codes] * NUM_THREADS)
        assert all(torch.equal(codes, expected) for codes in found)


def test_a_mode_that_is_set_while_other_threads_encode_changes_no_code(tiny_model, sound):
    expected, ended = tiny_model.encode(sound[:1]).audio_codes, threading.Event()

    def set_modes():
        while not ended.is_set():
            tiny_model.train().eval()

    def encode():
        try:
            for _ in range(10):
                assert torch.equal(tiny_model.encode(sound[:1]).audio_codes, expected)
        finally:
            ended.set()

    at_once(set_modes, encode)


def test_first_calls_of_several_threads_pack_a_half_once(tiny_model, sound, monkeypatch):
    made, lay_out = [], packing.lay_out
    monkeypatch.setattr(packing, "lay_out", lambda *given: made.append(given[0]) or lay_out(*given))
    at_once(*[lambda: tiny_model.encode(sound[:1])] * NUM_THREADS)
    assert made == ["encoder"]


# One stream


def rows_in_threads(stream, sound):
    """Codes and audio of each row, by a thread of its own that lets the other rows pause."""

    def row_by_row(row):
        mask = torch.arange(len(sound)) == row
        codes, decoded = [], []
        for chunk in sound.split(1500 + 700 * row, dim=-1):
            codes.append(stream.encode(chunk, exec_mask=mask))
            decoded.append(stream.decode(codes[-1], exec_mask=mask)[row])
        codes.append(stream.flush(mask))
        decoded.append(stream.decode(codes[-1], mask)[row])
        found = torch.cat([each[row] for each in codes if each.shape[-1]], dim=-1)
        return found[:, found[0] != PAD_CODE], torch.cat(decoded, dim=-1)

    return at_once(*(lambda row=row: row_by_row(row) for row in range(len(sound))))


def test_a_thread_for_each_row_of_one_stream_gets_that_row_s_codes_and_audio(tiny_model, sound):
    codes = tiny_model.encode(sound).audio_codes
    with torch.no_grad():
        decoded = tiny_model.decode(codes).audio_values
    for row, (found, audio) in enumerate(rows_in_threads(tiny_model.stream(len(sound)), sound)):
        assert torch.equal(found, codes[row])
        assert (audio[:, : decoded.shape[-1]] - decoded[row]).abs().max() <= 3e-6 * decoded.abs().max()


def test_rows_begin_again_and_states_are_read_while_other_threads_stream(tiny_model, sound):
    stream, expected = tiny_model.stream(2), tiny_model.encode(sound[:1]).audio_codes
    first, ended = torch.tensor([True, False]), threading.Event()

    def disturb():
        while not ended.is_set():
            stream.encode(sound[:2, :, :5000], ~first)
            stream.reset(rows=[1])
            state = stream.state_dict()
            assert state["encoder.positions"][1] == 0 and state["num_waiting"][1] == 0
            stream.to("cpu")

    def encode():
        try:
            return torch.cat([stream.encode(chunk, first)[:1] for chunk in sound[:2].split(3 * FRAME, dim=-1)], dim=-1)
        finally:
            ended.set()

    assert torch.equal(at_once(disturb, encode)[1], expected)


def test_a_stream_that_is_closed_by_another_thread_says_so(tiny_model, sound):
    stream = tiny_model.stream()

    def encode():
        while True:
            stream.encode(sound[:1, :, :FRAME])

    with pytest.raises(ValueError, match="this stream is closed"):
        at_once(encode, stream.close)


def test_a_copy_of_a_stream_goes_on_by_itself(tiny_model, sound):
    stream = tiny_model.stream()
    stream.encode(sound[:1, :, : 5 * FRAME + 100])
    copied = deepcopy(stream)
    rest = sound[:1, :, 5 * FRAME + 100 :]
    assert torch.equal(copied.encode(rest), stream.encode(rest))
