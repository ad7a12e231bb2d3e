"""A file in Kyutai's native layout, converted, computes what Kyutai's own code computes from the same file."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from converter import convert
from key_map import KYUTAI_KEY_MAP, QUERY_KEY_VALUE, renamed


def split_rotary_halves(weight, num_heads=8):
    """transformers' order of a query's or key's rows to Kyutai's: halves become neighbours."""
    rows, columns = weight.shape
    halves = weight.view(num_heads, 2, rows // num_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def native_tensor(key, flat):
    target = renamed(key, KYUTAI_KEY_MAP)
    if not target.endswith(QUERY_KEY_VALUE):
        return flat[target]
    query, keys, values = (flat[target.replace(QUERY_KEY_VALUE, f"{name}_proj.weight")] for name in "qkv")
    return torch.cat([split_rotary_halves(query), split_rotary_halves(keys), values])


@pytest.fixture(scope="module")
def loaders():
    """Kyutai's own code; first in a test's arguments, so that a skip comes before what is expensive."""
    return pytest.importorskip("moshi.models.loaders")


@pytest.fixture
def native_file(loaders, full_size_folder, tmp_path):
    """The full-size Mimi as Kyutai would release it: one file, in the layout and with the names of theirs.

    random_mimi draws entries so close to each other that rounding chooses between them; noise parts them.
    """
    flat = load_file(full_size_folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key in [key for key in flat if key.endswith("codebook.embed_sum")]:
        usage = flat[key.replace("embed_sum", "cluster_usage")]
        flat[key] += usage[:, None] * torch.randn(flat[key].shape, generator=generator)
    native = {}
    for key, value in loaders.get_mimi(None).state_dict().items():
        released = key.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight")
        native[released] = native_tensor(key, flat).reshape(value.shape)
    save_file(native, tmp_path / "tokenizer.safetensors")
    yield tmp_path / "tokenizer.safetensors"
    (tmp_path / "tokenizer.safetensors").unlink()  # 385 MB


@pytest.fixture
def bridge(native_file, speech_file, tmp_path):
    """The native file, converted and loaded."""
    convert(str(native_file), tmp_path / "bridge", speech=str(speech_file))
    yield AutoModel.from_pretrained(tmp_path / "bridge").eval()
    (tmp_path / "bridge" / "model.safetensors").unlink()  # 361 MB


@pytest.mark.full_size
@torch.no_grad()
def test_converted_native_file_computes_what_moshi_computes(loaders, native_file, bridge, best_speech):
    moshi = loaders.get_mimi(native_file, num_codebooks=8)
    expected = moshi.encode(best_speech[None])
    codes = bridge.encode(best_speech[None]).audio_codes
    equal = (codes[:, 1:] == expected).double().mean(dim=(0, 2))
    difference = (bridge.decode(codes).audio_values - moshi.decode(expected)).abs().max().item()
    in_use = [len(codebook.unique()) for codebook in expected.unbind(dim=1)]
    print(f"against Kyutai's own code: codes equal {equal.tolist()}, waveform {difference:.1e}, codes in use {in_use}")
    assert equal.tolist() == [1.0] * 8
    assert difference <= 1e-5
    assert min(in_use) >= 50  # of 2,048: equality means much
