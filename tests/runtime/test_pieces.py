"""Layers in pieces, on one thread and on several: to the bit what they give at once, and nothing left behind."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mimi_bridge.runtime import pieces
from mimi_bridge.runtime.pieces import WaveformLayers
from mimi_bridge.runtime.time_major import Convolution, Residual, Upsampling, convolution_parts, run, with_offsets


@pytest.fixture(autouse=True)
def _inference(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_NUMBERS", 1)  # a frame at a time
    before = torch.get_num_threads()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def convolution(channels: int, out: int, kernel: int, stride: int = 1, upsampling: int = 1, **options) -> Convolution:
    weight = torch.randn(out * upsampling, kernel * channels) / (kernel * channels) ** 0.5
    parts = convolution_parts(weight, torch.randn(out * upsampling), channels, stride)
    return Convolution(parts, channels, kernel=kernel, stride=stride, upsampling=upsampling, **options)


def residual(channels: int) -> Residual:
    inner = convolution(channels, channels // 2, 3, activates=True)
    return Residual([inner, convolution(channels // 2, channels, 1, activates=True)])


def of_an_encoder() -> list:
    return [
        convolution(1, 16, 7, replicates=True),
        residual(16),
        convolution(16, 32, 8, 4, activates=True),
        residual(32),
        convolution(32, 32, 10, 5, activates=True),
    ]


def of_a_decoder() -> list:
    """The first writes over its input."""
    return [
        residual(32),
        convolution(32, 16, 2, upsampling=5, activates=True),
        residual(16),
        Upsampling(torch.randn(2, 4, 16)),
        convolution(16, 1, 3, activates=True),
    ]


KINDS = {"encoder": (of_an_encoder, 1, 80), "decoder": (of_a_decoder, 32, 4)}


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 10], ids="{} pieces".format)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_pieces_give_what_they_give_at_once(kind, batch_size, num_steps, num_threads):
    layers, channels, piece_steps = KINDS[kind]
    layers, size = with_offsets(layers())
    x, before = torch.randn(batch_size, num_steps * piece_steps, channels), torch.randn(batch_size, size)
    is_first, tails = torch.arange(batch_size) % 2 == 0, [before.clone(), before.clone()]
    expected = run(layers, x.clone(), tails[0], is_first)
    torch.set_num_threads(num_threads)
    result = WaveformLayers(layers, piece_steps, expected.shape[-1])(x, tails[1], is_first)
    assert torch.equal(result, expected)
    assert torch.equal(tails[1], tails[0])


def test_a_span_that_begins_before_all_that_the_layers_reach_back_to():
    """Then the tails of the call before are needed, too."""
    layers, size = with_offsets([convolution(1, 16, 301, replicates=True)])
    for is_first in (torch.tensor([True]), torch.tensor([False]), None):
        x, before = torch.randn(1, 320, 1), torch.randn(1, size)
        tails = [before.clone(), before.clone()]
        expected = run(layers, x, tails[0], is_first)
        torch.set_num_threads(4)
        result = WaveformLayers(layers, 80, 16)(x, tails[1], is_first)
        torch.testing.assert_close(result, expected)
        assert torch.equal(tails[1], tails[0])


def test_a_piece_is_of_whole_frames_and_as_long_as_a_cache_holds(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_NUMBERS", 2**19)
    wide, narrow = [convolution(1, 64, 7), residual(64)], [convolution(1, 16, 7), residual(16)]
    assert WaveformLayers(wide, 1920, 64).piece_steps == 4 * 1920
    assert WaveformLayers(narrow, 1920, 16).piece_steps == 17 * 1920
    assert WaveformLayers([convolution(4096, 8, 1)], 1920, 8).piece_steps == 1920
    layers, _ = with_offsets(of_a_decoder())  # its input has a twentieth of the steps
    assert WaveformLayers(layers, 96, 1).piece_steps == pieces.MAX_NUMBERS // (16 * 20 * 96) * 96


def in_pieces(num_pieces: int = 8) -> torch.Tensor:
    layers, size = with_offsets(of_an_encoder())
    return WaveformLayers(layers, 80, 32)(torch.randn(1, 80 * num_pieces, 1), torch.zeros(1, size), None)


def test_as_many_threads_as_before_are_those_of_whoever_called_and_of_new_ones():
    pieces._threads.cache_clear()
    torch.set_num_threads(3)
    in_pieces()
    found = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [3, 3]


def test_several_callers_at_once_get_their_own():
    torch.set_num_threads(2)
    layers, size = with_offsets(of_an_encoder())
    sounds = torch.randn(6, 1, 1600, 1)
    expected = [run(layers, sound, torch.zeros(1, size), None) for sound in sounds]

    def answer(sound):
        torch.set_num_threads(2)
        with torch.no_grad():
            return WaveformLayers(layers, 80, 32)(sound, torch.zeros(1, size), None)

    with ThreadPoolExecutor(6) as callers:
        assert all(map(torch.equal, callers.map(answer, sounds), expected))


def test_an_error_in_a_thread_is_the_caller_s():
    torch.set_num_threads(2)
    layers, size = with_offsets(of_an_encoder())
    with pytest.raises(RuntimeError, match="shape|size|expand"):
        WaveformLayers(layers, 80, 32)(torch.randn(1, 800, 2), torch.zeros(1, size), None)
    assert in_pieces().isfinite().all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    torch.set_num_threads(2)
    in_pieces()  # the parent's threads
    child = os.fork()
    if not child:
        try:
            os._exit(0 if in_pieces().isfinite().all() else 1)
        finally:
            sys.stderr.flush()
            os._exit(2)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("the child waits for threads that it does not have")
    assert status == 0
