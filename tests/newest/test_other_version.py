"""A checkpoint written under one transformers loads and runs under another, with the package and by its own files.

`make test-newest` names the Python of the pinned environment in `OTHER_PYTHON`; without it this file skips.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from tiny import TINY, TINY_TEACHERS

OTHER = os.environ.get("OTHER_PYTHON")
if not OTHER:
    pytest.skip("OTHER_PYTHON names no Python with another transformers", allow_module_level=True)

WRITE = f"""
import sys, torch
from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
torch.manual_seed(0)
model = MimiBridgeModel(MimiBridgeConfig(**{TINY}, **{TINY_TEACHERS})).eval()
for head in model.quantizer.heads.values():
    torch.nn.init.normal_(head.project_out.weight, std=0.05)
model.save_pretrained(sys.argv[1])
audio = 0.1 * torch.randn(1, 1, 48_000)
codes = model.encode(audio).audio_codes
torch.save((audio, codes, model.decode(codes).audio_values), sys.argv[1] + "/expected.pt")
"""
READ = """
import json, sys, torch, transformers
if sys.argv[2] == "package":
    import mimi_bridge
else:
    class NotInstalled:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "mimi_bridge":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, NotInstalled())
model = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
audio, codes, decoded = torch.load(sys.argv[1] + "/expected.pt")
chunk, caches = model.encode(audio[..., :1920], use_streaming=True), []
second = model.encode(audio[..., 1920:3840], encoder_cache=chunk.encoder_cache, padding_cache=chunk.padding_cache)
forward = model(audio, wavlm_features=torch.zeros(1, 25, 20))
print(json.dumps({
    "module": type(model).__module__,
    "transformers": transformers.__version__,
    "codes": (model.encode(audio).audio_codes == codes).float().mean().item(),
    "streamed": (torch.cat([chunk.audio_codes, second.audio_codes], -1) == codes[..., :2]).float().mean().item(),
    "audio": (model.decode(codes).audio_values - decoded).abs().max().item() / decoded.abs().max().item(),
    "loss": forward.loss.item(),
}))
"""


def run(python, program, *arguments, cache):
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1]) if result.stdout else None


@pytest.fixture(scope="module", params=["written here", "written there"])
def written(request, tmp_path_factory):
    """The folder of a checkpoint, and the Python that did not write it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    writer, reader = (sys.executable, OTHER) if request.param == "written here" else (OTHER, sys.executable)
    run(writer, WRITE, folder, cache=folder / "modules")
    return folder, reader


@pytest.mark.parametrize("way", ["package", "remote code"])
def test_checkpoint_of_one_version_runs_under_the_other(written, way, tmp_path):
    folder, reader = written
    answer = run(reader, READ, folder, way, cache=tmp_path / "modules")
    assert answer["module"].startswith("mimi_bridge" if way == "package" else "transformers_modules")
    assert answer["codes"] >= 0.99 and answer["streamed"] >= 0.99  # two versions of torch may round otherwise
    assert answer["audio"] <= 1e-5 and torch.isfinite(torch.tensor(answer["loss"]))
