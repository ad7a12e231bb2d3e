"""The Hub files: what a checkpoint carries so that it loads where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import mimi_bridge
from head_layers import stir, with_layers

PACKAGE = Path(mimi_bridge.__file__).parent
HUB_FILES = (  # each may import only those before it
    "configuration_mimi_bridge",
    "frames",
    "alignment_targets",
    "offloading",
    "distillation",
    "codebook",
    "heads",
    "checkpoint",
    "outputs",
    "quantizer",
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
    guarded = [node for each in ast.walk(tree) if isinstance(each, ast.Try) for node in each.body]  # not demanded
    nodes = [node for node in ast.walk(tree) if node not in guarded]
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


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


@pytest.mark.parametrize("content_layers", [0, 1], ids=["no layers of a head's own", "layers of content's own"])
def test_saved_model_loads_with_the_same_codes_where_the_package_is_not_installed(
    tiny_model, voiced_audio, tmp_path, content_layers
):
    folder = tmp_path / "model"
    if content_layers:
        tiny_model = with_layers(tiny_model, content_layers, 0)
        stir(tiny_model)
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
        context = AutoModel.from_config(config, trust_remote_code=True).quantizer.head_content.context
        of_context = context and (context.out.weight, context.transformer.layers[0].mlp.fc1.weight)
        new = context and [bool(each.any()) for each in of_context]
        try:
            refused = model.stream() is None
        except ImportError as error:
            refused = str(error)
        print(json.dumps({
            "refused": refused,
            "module": type(model).__module__, "finite": finite, "codes": codes.tolist(),
            "heads": config.num_quantizers, "new": new,
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
    assert "stream() needs the package mimi-bridge" in answer["refused"]
    assert answer["finite"] and answer["again"] and answer["heads"] == 9
    assert answer["new"] == ([False, True] if content_layers else None)  # a new way out is zero
    assert answer["codes"] == tiny_model.encode(voiced_audio).audio_codes.tolist()


def test_a_checkpoint_carries_eleven_files_at_most():
    assert len(HUB_FILES) <= 11


def test_a_runtime_of_another_version_is_left_alone_with_a_warning(tiny_model, voiced_audio, tmp_path):
    expected = tiny_model.encode(voiced_audio).audio_codes
    tiny_model.save_pretrained(tmp_path / "model")
    torch.save((voiced_audio, expected), tmp_path / "audio.pt")
    program = textwrap.dedent(
        """
        import sys, torch
        import mimi_bridge.runtime
        mimi_bridge.runtime.VERSION = 0
        sys.argv[1:], folder = sys.argv[2:], sys.argv[1]
        from transformers import AutoModel
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        model = get_class_from_dynamic_module("modeling_mimi_bridge.MimiBridgeModel", folder).from_pretrained(folder)
        audio, expected = torch.load(sys.argv[1])
        assert model.packed is None
        print(torch.equal(model.encode(audio).audio_codes, expected))
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "audio.pt")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.stdout.strip().endswith("True"), result.stderr
    assert "but version 0 is installed; encode and decode run transformers' own modules" in result.stderr
