"""The Hub files: what a checkpoint carries so that it loads where this package is not installed."""

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import mimi_bridge

PACKAGE = Path(mimi_bridge.__file__).parent
HUB_FILES = (  # each may import only those before it
    "configuration_mimi_bridge",
    "frames",
    "waveform",
    "offloading",
    "distillation",
    "quantizer_settings",
    "bridges",
    "linear_map",
    "nearest_on_cpu",
    "lookup",
    "codebook_learning",
    "heads",
    "time_major",
    "attention",
    "inference",
    "checkpoint",
    "decoder_cache",
    "outputs",
    "quantizer",
    "watch",
    "layout",
    "packing",
    "fast_path",
    "stream_steps",
    "streaming",
    "swapping",
    "modeling_mimi_bridge",
)
ALLOWED = {
    "__future__",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "inspect",
    "math",
    "os",
    "pathlib",
    "shutil",
    "numbers",
    "operator",
    "re",
    "threading",
    "types",
    "typing",
    "huggingface_hub",
    "safetensors",
    "torch",
    "transformers",
    "vector_quantize_pytorch",
}


def imports(name: str) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize(("position", "name"), list(enumerate(HUB_FILES)))
def test_hub_file_imports_only_files_listed_before_it(position, name):
    relative = [node for node in imports(name) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module in HUB_FILES[:position] for node in relative)


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_file_imports_only_packages_that_a_checkpoint_may_demand(name):
    modules = {
        module.split(".")[0]
        for node in imports(name)
        if not getattr(node, "level", 0)
        for module in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert modules <= ALLOWED


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_file_has_no_prose_that_transformers_would_take_for_an_import(name):
    # save_pretrained reads the files as text: a line of a docstring that starts like an import is followed, and fails
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    real = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate((PACKAGE / f"{name}.py").read_text().splitlines(), start=1)
    assert [line for number, line in lines if line.strip().startswith("from .") and number not in real] == []


def test_saved_model_carries_exactly_the_hub_files(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.py")} == set(HUB_FILES)


def test_saved_model_loads_with_the_same_codes_where_the_package_is_not_installed(tiny_model, voiced_audio, tmp_path):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    torch.save(voiced_audio, tmp_path / "audio.pt")
    program = textwrap.dedent(
        """
        import json, sys, torch

        class NotInstalled:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "mimi_bridge":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, NotInstalled())
        from transformers import AutoConfig, AutoModel

        folder, audio = sys.argv[1], torch.load(sys.argv[2])
        torch.set_num_threads(1)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        finite = all(bool(torch.isfinite(buffer.float()).all()) for buffer in model.buffers())
        model.save_pretrained(folder + "-again")
        again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True)
        codes = model.encode(audio).audio_codes
        print(json.dumps({
            "module": type(model).__module__, "finite": finite, "codes": codes.tolist(),
            "heads": config.num_quantizers,
            "again": torch.equal(again.encode(audio).audio_codes, codes),
        }))
        """
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "audio.pt")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["module"].startswith("transformers_modules.")
    assert answer["finite"] and answer["again"] and answer["heads"] == 9
    assert answer["codes"] == tiny_model.encode(voiced_audio).audio_codes.tolist()
