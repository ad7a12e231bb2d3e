"""What the converter's tests share: a tiny Mimi on disk, its conversion, a full-size Mimi, and the command."""

import inspect
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import EncodecFeatureExtractor, MimiConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging as transformers_logging

import convert_kyutai
import converter
from converter import convert
from mimi_bridge import MimiBridgeModel
from mimi_bridge.audio.files import save_audio
from random_mimi import random_mimi
from source import read_source

SAMPLING_RATE = 24_000
FRAME_SIZE = 1_920


@dataclass
class Converted:
    """A result that tests look at and leave as it is."""

    folder: Path
    report: dict

    @property
    def tensors(self):
        return load_file(self.folder / "model.safetensors")


@pytest.fixture(scope="session")
def mimi_folder(_tiny_mimi, tmp_path_factory):
    """A tiny Mimi of 12 codebooks in transformers' layout; leave it as it is."""
    folder = tmp_path_factory.mktemp("source") / "tiny-mimi"
    _tiny_mimi.save_pretrained(folder)
    EncodecFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mimi_tensors(mimi_folder):
    """The tensors of `mimi_folder` by flat key; leave them as they are."""
    return load_file(mimi_folder / "model.safetensors")


@pytest.fixture(scope="session")
def short_speech(speech):
    """Sixty frames of speech, enough for a proof of a tiny model, `(1, samples)` at 24 kHz."""
    return speech[:, : 60 * FRAME_SIZE]


@pytest.fixture(scope="session")
def speech_file(short_speech, tmp_path_factory):
    """`short_speech` as a recording."""
    file = tmp_path_factory.mktemp("speech") / "short-speech.wav"
    save_audio(file, short_speech, SAMPLING_RATE)
    return file


@pytest.fixture(scope="session")
def converted(mimi_folder, speech_file, tmp_path_factory):
    """The tiny Mimi, converted with default options."""
    folder = tmp_path_factory.mktemp("converted") / "tiny-bridge"
    return Converted(folder, convert(str(mimi_folder), folder, speech=str(speech_file)))


@pytest.fixture(scope="session")
def converted_residual(mimi_folder, speech_file, tmp_path_factory):
    """The tiny Mimi, converted with λ = 1."""
    folder = tmp_path_factory.mktemp("converted") / "tiny-residual-bridge"
    report = convert(str(mimi_folder), folder, residual_weight=1.0, speech=str(speech_file))
    return Converted(folder, report)


@pytest.fixture(scope="session")
def result_files():
    """The names of a result's files: the model's, and those of the code that travels with it."""
    modeling_file = inspect.getfile(MimiBridgeModel)
    # What transformers finds by reading the file.
    hub_files = [modeling_file, *get_relative_import_files(modeling_file)]
    others = {"README.md", "config.json", "conversion_report.json", "model.safetensors", "preprocessor_config.json"}
    return {Path(file).name for file in hub_files} | others


@pytest.fixture(scope="session")
def full_size_mimi(fitting_speech):
    """A random Mimi of kyutai/mimi's sizes, its codebooks fitted to 15 s of speech; leave it as it is."""
    return random_mimi(MimiConfig(), fitting_speech[:, : 15 * SAMPLING_RATE])


@pytest.fixture(scope="session")
def full_size_folder(full_size_mimi, tmp_path_factory):
    """`full_size_mimi` in transformers' layout; 385 MB, so removed at the end."""
    folder = tmp_path_factory.mktemp("full_size") / "mimi"
    full_size_mimi.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def output(tmp_path):
    """Where a test lets the command write; its folder holds nothing else."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "bridge"


@pytest.fixture
def old_model(output):
    """A model folder that has the output's name already."""
    output.mkdir()
    (output / "config.json").write_text("{}")
    (output / "notes.txt").write_text("precious")
    return output


@pytest.fixture
def damage_transplant(monkeypatch):
    """Let every transplant go wrong in one acoustic codebook."""

    def damaged(*arguments, **options):
        result = real(*arguments, **options)
        codebook = result.model.quantizer.acoustic_residual.layers[3]._codebook
        codebook.embed.copy_(codebook.embed.flip(1))
        return result

    real = converter.transplant
    monkeypatch.setattr(converter, "transplant", damaged)


@pytest.fixture
def source_folder(mimi_folder, tmp_path):
    """A copy of `mimi_folder`, to spoil."""
    return shutil.copytree(mimi_folder, tmp_path / "spoilt-mimi")


@pytest.fixture
def source_tensors(source_folder):
    """The tensors of `source_folder`, to spoil and save."""
    return load_file(source_folder / "model.safetensors")


@pytest.fixture
def tiny_source(mimi_folder):
    """The tiny Mimi as the converter reads it, to do with as the test likes."""
    return read_source(str(mimi_folder))


@pytest.fixture
def unreachable_hub(tmp_path, monkeypatch):
    """A Hub that refuses every connection, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens on this port
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def run_command(speech_file, capsys):
    """Run the command in this process: exit status and standard error; `--speech` is given, unless the test does."""
    handler, verbosity = signal.getsignal(signal.SIGTERM), transformers_logging.get_verbosity()

    def run(*arguments):
        status = convert_kyutai.main(["--speech", str(speech_file), *map(str, arguments)])
        return status, capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()
