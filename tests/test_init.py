"""What `import mimi_bridge` does."""

import os
import subprocess
import sys

import pytest


def test_torchaudio_that_does_not_fit_torch_is_named_with_its_remedy(tmp_path):
    pytest.importorskip("torchaudio")  # transformers asks for the installed version before it imports
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text('raise OSError("Could not load this library: torchaudio/lib/_torchaudio.so")')
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
