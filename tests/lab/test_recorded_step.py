"""A training step that a GPU records; PyTorch's CUDA graph is played by one that calls the function again."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from codec_training.recorded_step import EAGER_STEPS, RecordedGradientStep


class PlayedGraph:
    """Remembers what wrote into which tensors while it recorded, and does that again."""

    def __init__(self) -> None:
        self.replays = 0
        self.again: Any = None

    def replay(self) -> None:
        self.replays += 1
        self.again()


class Adder:
    """Adds a tensor to a weight in place, and gives the sum."""

    def __init__(self) -> None:
        self.weight, self.calls = torch.zeros(()), 0

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        self.weight.add_(inputs["value"])
        return {"sum": self.weight.clone()}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[PlayedGraph]:
    """The graphs that were made."""
    made: list[PlayedGraph] = []

    def make() -> PlayedGraph:
        made.append(PlayedGraph())
        return made[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    return made


@pytest.fixture
def adder(graphs, monkeypatch) -> tuple[Adder, RecordedGradientStep]:
    adder = Adder()
    recorded = RecordedGradientStep(adder, records=True)

    @contextmanager
    def graph(made: PlayedGraph, capture_error_mode: str) -> Iterator[None]:
        before = adder.weight.clone()
        yield
        adder.weight.copy_(before)  # a GPU does nothing while it records

        def again() -> None:
            adder.weight.add_(recorded._inputs["value"])
            recorded._outputs["sum"].copy_(adder.weight)

        made.again = again

    monkeypatch.setattr(torch.cuda, "graph", graph)
    return adder, recorded


def called(recorded: RecordedGradientStep, values: range, key: object = 0) -> list[float]:
    outputs = [recorded({"value": torch.tensor(float(value))}, key)["sum"] for value in values]
    return [output.item() for output in outputs]  # read after all: no replay may overwrite an earlier answer


def test_step_is_called_each_time_where_nothing_is_recorded():
    adder = Adder()
    assert called(RecordedGradientStep(adder, records=False), range(1, 8)) == [1, 3, 6, 10, 15, 21, 28]
    assert adder.calls == 7


def test_recorded_step_gives_what_calls_give(adder, graphs):
    adder, recorded = adder
    assert called(recorded, range(1, 8)) == [1, 3, 6, 10, 15, 21, 28]
    assert adder.calls == EAGER_STEPS + 1  # the last of them is the recording
    assert [graph.replays for graph in graphs] == [7 - EAGER_STEPS]


def test_another_key_is_recorded_again(adder, graphs):
    adder, recorded = adder
    called(recorded, range(1, 6))
    assert called(recorded, range(6, 12), key=1) == [21, 28, 36, 45, 55, 66]
    assert [graph.replays for graph in graphs] == [5 - EAGER_STEPS, 6 - EAGER_STEPS]


def test_forgotten_step_is_recorded_again(adder, graphs):
    adder, recorded = adder
    called(recorded, range(1, 6))
    recorded.forget()
    assert called(recorded, range(6, 12)) == [21, 28, 36, 45, 55, 66]
    assert len(graphs) == 2
