"""A file in Kyutai's native layout, converted, computes what Kyutai's own code computes from the same file."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import convert_kyutai
from key_map import KYUTAI_KEY_MAP, QUERY_KEY_VALUE, renamed

SECONDS = 12


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


@pytest.mark.full_size
@torch.no_grad()
def test_converted_native_file_computes_what_moshi_computes(loaders, full_size_folder, speech, speech_file, tmp_path):
    native_file, folder = tmp_path / "tokenizer.safetensors", tmp_path / "bridge"
    flat = load_file(full_size_folder / "model.safetensors")
    native = {
        key: native_tensor(key, flat).reshape(value.shape)
        for key, value in loaders.get_mimi(None).state_dict().items()
    }
    released = {
        key.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight"): value
        for key, value in native.items()
    }
    save_file(released, native_file)

    report = convert_kyutai.convert(str(native_file), folder, speech=str(speech_file))
    moshi, model = loaders.get_mimi(native_file, num_codebooks=8), AutoModel.from_pretrained(folder).eval()
    native_file.unlink()  # 385 MB
    (folder / "model.safetensors").unlink()  # 361 MB, on the disk until pytest forgets this run

    audio = speech[None, :, : SECONDS * 24_000]
    expected = moshi.encode(audio)
    assert torch.equal(model.encode(audio).audio_codes[:, 1:], expected)
    codes = torch.cat([torch.zeros_like(expected[:, :1]), expected], dim=1)
    torch.testing.assert_close(model.decode(codes).audio_values, moshi.decode(expected), rtol=0, atol=1e-5)
    assert min(len(codebook.unique()) for codebook in expected.unbind(dim=1)) >= 50
    assert report["source"]["layout"] == "kyutai"
