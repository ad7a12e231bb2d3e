"""What the tests share: tiny models with many different codes, a voiced sound, and real speech where there is some."""

import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import MimiConfig, set_seed
from transformers.utils import logging as transformers_logging

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.audio.espeak import SENTENCES, sample_speech, synthesize
from mimi_bridge.audio.folders import SPEECH_VARIABLE, load_speech
from random_mimi import random_mimi
from tiny import TINY, TINY_TEACHERS

collect_ignore_glob = ["*conftest.py"]  # they hold no doctests, and two of one name cannot be collected together
OF_TRANSFORMERS_SUITE = ["accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"]
OF_TRANSFORMERS_SUITE += ["torch_compile_test", "torch_export_test", "generate"]


def pytest_configure(config: pytest.Config) -> None:
    for name in OF_TRANSFORMERS_SUITE:
        config.addinivalue_line("markers", f"{name}: a mark of transformers' own tests")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # workers share the cores; idle threads of one slow the other


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # what has been imported stays; each `train()` of accelerate would search it for garbage


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers in every run, whether alone or after others."""
    set_seed(0)


@pytest.fixture
def small_files() -> Callable[[], AbstractContextManager[None]]:
    """While what it gives is entered, no file grows beyond 20,000 bytes, as if the disk were full."""

    @contextmanager
    def limited() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def speech() -> torch.Tensor:
    """24 s of synthetic speech in several voices, `(1, samples)` at 24 kHz."""
    return sample_speech(seconds=24)


@pytest.fixture(scope="session")
def fitting_speech() -> torch.Tensor:
    """48 s of other synthetic speech, to fit codebooks on, `(1, samples)` at 24 kHz."""
    return torch.cat([synthesize(text, "en-gb-scotland+m4", words_per_minute=190) for text in SENTENCES], dim=-1)


REAL_SPEECH = Path(os.environ.get(SPEECH_VARIABLE) or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def real_speech() -> torch.Tensor:
    """26 s of real speech, `(1, samples)` at 24 kHz; tests that need it skip where there is none."""
    if not REAL_SPEECH.exists():
        pytest.skip(f"no real speech: set {SPEECH_VARIABLE} to a recording or a folder of them")
    full_band = REAL_SPEECH / "kathleen"
    return load_speech(full_band if full_band.exists() else REAL_SPEECH, 24_000, seconds=26)


@pytest.fixture(scope="session")
def best_speech(request: pytest.FixtureRequest) -> torch.Tensor:
    """26 s of speech, real where there is some, else 24 s of synthetic, `(1, samples)` at 24 kHz."""
    return request.getfixturevalue("real_speech" if REAL_SPEECH.exists() else "speech")


@pytest.fixture(scope="session")
def _row_by_row() -> None:
    """Skip where the libraries under torch, asked for a few rows, compute them in another order than many."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((300, 512), (256, 512)))
    keys = torch.randn(1, 4, 272, 64, generator=generator)

    def product(rows):
        return torch.nn.functional.linear(rows, weight)

    def attention(rows):
        query = rows.view(1, -1, 4, 128).transpose(1, 2)[..., :64]
        return torch.nn.functional.scaled_dot_product_attention(query, keys, keys).transpose(1, 2)[0]

    for compute, longest in ((product, 300), (attention, 16)):
        together = compute(x[:longest])
        if not all(torch.equal(compute(x[:count]), together[:count]) for count in (4, 5, 7, 16)):
            pytest.skip("the libraries under torch compute a row of few in another order than a row of many")


@pytest.fixture
def voiced_audio() -> torch.Tensor:
    """Two seconds of a gliding voiced sound, `(1, 1, samples)` at 24 kHz."""
    seconds = torch.arange(48_000) / 24_000
    phase = 2 * torch.pi * (110 * seconds + 35 * seconds**2)
    harmonics = sum(torch.sin(number * phase) / number for number in range(1, 12))
    return (0.2 * harmonics * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * seconds)))[None, None]


@pytest.fixture(scope="session")
def _tiny_mimi(fitting_speech):
    return random_mimi(MimiConfig(**TINY, num_quantizers=12), fitting_speech)


@pytest.fixture
def tiny_mimi(_tiny_mimi):
    """A tiny `MimiModel` of 12 codebooks fitted to speech, in eval mode."""
    return deepcopy(_tiny_mimi)


@pytest.fixture
def tiny_config() -> MimiBridgeConfig:
    """The configuration of `tiny_model`."""
    return MimiBridgeConfig(**TINY, **TINY_TEACHERS)


@pytest.fixture(scope="session")
def _tiny_model(fitting_speech):
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig(**TINY, **TINY_TEACHERS)).eval()
    fit_codebooks(model, fitting_speech)
    return model


@pytest.fixture
def tiny_model(_tiny_model):
    """A tiny `MimiBridgeModel`, λ = 1, with kyutai/mimi's frame size and codebooks fitted to speech, in eval mode; a
    copy, to do with as the test likes."""
    return deepcopy(_tiny_model)


@pytest.fixture(scope="session")
def full_size_model(fitting_speech):
    """A `MimiBridgeModel` of kyutai/mimi's sizes, λ = 1, its codebooks fitted to speech; leave it as it is."""
    torch.manual_seed(0)
    model = MimiBridgeModel(MimiBridgeConfig()).eval()
    fit_codebooks(model, fitting_speech)
    return model


@torch.no_grad()
def fit_codebooks(model: MimiBridgeModel, speech: torch.Tensor) -> None:
    """Draw every head's entries from what it gets to quantize, shrunk toward the mean so that many are used."""
    quantizer = model.quantizer
    rest = model.get_latents(speech[None])
    for head in (quantizer.head_content, quantizer.head_prosody, quantizer.acoustic_residual):
        head.project_out.weight.copy_(head.project_in.weight.transpose(0, 1) / 4)
        residual = head.project_in(rest.transpose(1, 2))[0].T
        for layer in head.layers:
            codebook = layer._codebook
            chosen = residual[torch.randint(len(residual), (layer.codebook_size,))]
            mean, shrink = residual.mean(dim=0), torch.empty(layer.codebook_size, 1).uniform_(0.3, 0.7)
            codebook.embed.copy_((mean + shrink * (chosen - mean))[None])
            codebook.embed_avg.copy_(codebook.embed)
            residual = residual - codebook.embed[0][torch.cdist(residual, codebook.embed[0]).argmin(dim=-1)]
        rest = rest - head(rest).quantized
