"""What `import mimi_bridge` does."""

import os
import subprocess
import sys

import pytest

import mimi_bridge

REASONS = {
    "another build": 'OSError("Could not load this library: torchaudio/lib/_torchaudio.so")',
    "another CUDA": 'RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")',
}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
def test_torchaudio_that_does_not_fit_torch_is_named_with_its_remedy(tmp_path, reason):
    pytest.importorskip("torchaudio")  # transformers asks for the installed version before it imports
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {reason}")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", "import mimi_bridge"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "ImportError: transformers imports torchaudio where it is installed" in result.stderr
    assert "pip uninstall torchaudio" in result.stderr.splitlines()[-1]


def test_what_trains_is_imported_only_when_asked_for():
    program = (
        "import sys, mimi_bridge; assert 'mimi_bridge.training' not in sys.modules; "
        "from mimi_bridge import MimiBridgeTrainer, MimiBridgeTrainingArguments, MimiBridgeCollator; "
        "assert mimi_bridge.EvaluationCallback.__module__.startswith('mimi_bridge.training')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_name_that_is_none_of_the_package_s_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'MimiBridgeTrainr'"):
        mimi_bridge.MimiBridgeTrainr  # noqa: B018
