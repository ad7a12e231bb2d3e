"""Reading a Mimi: both layouts and the Hub, and one sentence for everything that is no whole Mimi."""

import fnmatch
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

import source
from source import ConversionError, from_kyutai_layout, read_source

SEMANTIC_CODEBOOK = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook"
COMMIT = "89a0e53c1fd5f3a4f5a2c4bb7c6f6dd9a2f3b4c5"
EMPTY_RESPONSE = SimpleNamespace(headers={}, request=None)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.fixture
def sprung(tmp_path):
    """The file that exists once a trap was unpickled."""
    return tmp_path / "sprung"


@pytest.fixture
def trap(sprung):
    """A pickle that does harm when loaded, shown to do it."""
    pickled = pickle.dumps(Trap(sprung))
    pickle.loads(pickled)
    sprung.unlink()
    return pickled


@pytest.fixture
def change_config(source_folder):
    """Change fields of `source_folder`'s config.json."""

    def change(**fields):
        file = source_folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


# A folder in transformers' layout


def test_folder_gives_the_tensors_of_its_file(mimi_folder, mimi_tensors):
    found = read_source(str(mimi_folder)).tensors
    assert found.keys() == mimi_tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in mimi_tensors.items())


def test_folder_is_called_by_the_last_part_of_its_path(mimi_folder):
    assert read_source(str(mimi_folder)).name == "tiny-mimi"


def test_folder_gives_the_digest_of_its_file(mimi_folder):
    digest = hashlib.sha256((mimi_folder / "model.safetensors").read_bytes()).hexdigest()
    assert read_source(str(mimi_folder)).sha256 == {"model.safetensors": digest}


def test_sharded_folder_gives_the_tensors_of_all_its_files(source_folder, source_tensors):
    keys = sorted(source_tensors)
    (source_folder / "model.safetensors").unlink()
    for number, part in enumerate((keys[:50], keys[50:]), start=1):
        save_file(
            {key: source_tensors[key] for key in part}, source_folder / f"model-0000{number}-of-00002.safetensors"
        )
    shards = {key: f"model-0000{1 if key in keys[:50] else 2}-of-00002.safetensors" for key in keys}
    (source_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = read_source(str(source_folder))
    assert sorted(found.tensors) == keys
    assert len(found.sha256) == 2


def test_folder_with_a_broken_index_is_refused(source_folder):
    (source_folder / "model.safetensors").unlink()
    (source_folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"model\.safetensors\.index\.json of spoilt-mimi is no index of shards"):
        read_source(str(source_folder))


def test_weights_beside_the_checkpoint_are_left_alone(source_folder, source_tensors):
    key = "downsample.conv.weight"
    save_file({key: source_tensors[key] + 1}, source_folder / "model_ema.safetensors")
    assert torch.equal(read_source(str(source_folder)).tensors[key], source_tensors[key])


def test_half_precision_weights_are_read_as_float32(source_folder, source_tensors):
    halved = {key: tensor.bfloat16() for key, tensor in source_tensors.items()}
    save_file(halved, source_folder / "model.safetensors")
    assert {tensor.dtype for tensor in read_source(str(source_folder)).tensors.values()} == {torch.float32}


def test_build_gives_the_source_itself(mimi_folder, tiny_mimi, speech):
    built = read_source(str(mimi_folder)).build()
    expected = tiny_mimi.encode(speech[None]).audio_codes
    assert torch.equal(built.encode(speech[None]).audio_codes, expected)


# A file in Kyutai's native layout


def test_native_query_and_key_lose_their_interleaving_and_value_stays():
    fused = torch.arange(24.0)[:, None]  # query 0 to 7, key 8 to 15, value 16 to 23; two heads of four rows
    key = "encoder_transformer.transformer.layers.3.self_attn.in_proj_weight"
    converted = from_kyutai_layout({key: fused}, num_heads=2)
    assert {key: tensor[:, 0].tolist() for key, tensor in converted.items()} == {
        "encoder_transformer.layers.3.self_attn.q_proj.weight": [0, 2, 1, 3, 4, 6, 5, 7],
        "encoder_transformer.layers.3.self_attn.k_proj.weight": [8, 10, 9, 11, 12, 14, 13, 15],
        "encoder_transformer.layers.3.self_attn.v_proj.weight": [16, 17, 18, 19, 20, 21, 22, 23],
    }


def rotate_neighbours(states, angles):
    """Kyutai's rotary: pairs (0, 1), (2, 3) and so on; `(positions, heads, dim)`, angles `(positions, dim / 2)`."""
    real, imaginary = states[..., 0::2], states[..., 1::2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)


def rotate_halves(states, angles):
    """transformers' rotary: pairs (0, dim / 2), (1, dim / 2 + 1) and so on."""
    real, imaginary = states.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)


def attention_scores(query_weight, key_weight, rotate):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(5, 16, generator=generator)
    angles = torch.arange(5)[:, None] * 10_000 ** (-torch.arange(0, 8, 2) / 8)
    query = rotate((latents @ query_weight.T).view(5, 2, 8), angles)
    key = rotate((latents @ key_weight.T).view(5, 2, 8), angles)
    return torch.einsum("ihd,jhd->hij", query, key)


def test_attention_scores_of_a_native_weight_stay_when_it_is_converted():
    native = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    query, key, _ = native.chunk(3)
    prefix = "encoder_transformer.layers.0.self_attn"
    converted = from_kyutai_layout(
        {"encoder_transformer.transformer.layers.0.self_attn.in_proj_weight": native}, num_heads=2
    )
    found = attention_scores(converted[f"{prefix}.q_proj.weight"], converted[f"{prefix}.k_proj.weight"], rotate_halves)
    torch.testing.assert_close(found, attention_scores(query, key, rotate_neighbours))


def test_native_file_with_foreign_keys_is_refused(tmp_path):
    save_file({"text_emb.weight": torch.zeros(4, 4)}, tmp_path / "moshi.safetensors")
    with pytest.raises(
        ConversionError,
        match=r"moshi\.safetensors is not in Kyutai's native layout: 'text_emb\.weight' matches 0 lines",
    ):
        read_source(str(tmp_path / "moshi.safetensors"))


def test_weight_file_of_a_transformers_checkpoint_is_refused_with_a_hint_to_its_folder(mimi_folder):
    with pytest.raises(ConversionError, match="for a checkpoint of transformers give its folder"):
        read_source(str(mimi_folder / "model.safetensors"))


def test_native_file_with_a_misshapen_projection_is_refused(tmp_path):
    key = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    save_file({key: torch.zeros(30, 10)}, tmp_path / "native.safetensors")
    with pytest.raises(ConversionError, match=rf"native\.safetensors .*{key}"):
        read_source(str(tmp_path / "native.safetensors"))


def test_native_tensors_under_both_of_their_names_are_refused(tmp_path):
    prefix = "encoder_transformer.transformer.layers.0.self_attn"
    twice = {f"{prefix}.in_proj_weight": torch.zeros(48, 16), f"{prefix}.in_projs.0.weight": torch.ones(48, 16)}
    with pytest.raises(KeyError, match=r"in_projs?[._]"):
        from_kyutai_layout(twice)


# The Hub


def test_hub_source_records_the_commit_it_came_from(mimi_folder, tmp_path, monkeypatch):
    snapshot = shutil.copytree(mimi_folder, tmp_path / COMMIT)
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: str(snapshot))
    assert read_source("kyutai/mimi").revision == COMMIT


def test_hub_source_is_called_by_its_id(mimi_folder, monkeypatch):
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: str(mimi_folder))
    assert read_source("kyutai/mimi").name == "kyutai/mimi"


def test_hub_is_asked_for_the_revision_given(mimi_folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(source, "snapshot_download", lambda name, **rest: asked.update(rest) or str(mimi_folder))
    read_source("kyutai/mimi", revision="v1")
    assert asked["revision"] == "v1"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "modeling_mimi.py"])
def test_hub_is_not_asked_for_files_that_can_run_code(name, mimi_folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(source, "snapshot_download", lambda _, **rest: asked.update(rest) or str(mimi_folder))
    read_source("kyutai/mimi")
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    "error",
    [
        HFValidationError("Repo id must be in the form 'repo_name' or 'namespace/repo_name'"),
        RepositoryNotFoundError("404 Client Error.", response=EMPTY_RESPONSE),
        GatedRepoError("403 Client Error.", response=EMPTY_RESPONSE),
        RevisionNotFoundError("404 Client Error.", response=EMPTY_RESPONSE),
        LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name or service not known"),
        ConnectionResetError("Connection reset by peer"),
        HTTPError("The read operation timed out"),  # httpx's own, as snapshot_download lets a ProxyError through
    ],
    ids=lambda error: type(error).__name__,
)
def test_source_that_the_hub_does_not_give_is_refused_in_one_line(error, monkeypatch):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(source, "snapshot_download", snapshot_download)
    with pytest.raises(
        ConversionError, match=r"^'nobody/mimi' is no local path, and the Hub did not give it: .+file\.$"
    ):
        read_source("nobody/mimi")


def test_source_is_refused_when_the_hub_is_out_of_reach(unreachable_hub):
    with pytest.raises(
        ConversionError, match=r"the Hub did not give it: .*ConnectError.*Check the name and the network"
    ):
        read_source("nobody/mimi")


def test_source_is_refused_when_the_hub_is_switched_off(unreachable_hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match=r"the Hub did not give it: .*outgoing traffic has been disabled"):
        read_source("nobody/mimi")


def test_revision_of_a_local_source_is_refused(mimi_folder):
    with pytest.raises(ConversionError, match=r"--revision is for a source on the Hub, but .*tiny-mimi is local"):
        read_source(str(mimi_folder), revision="main")


# Files that run code when they are opened


def test_folder_with_pickled_weights_only_is_refused_unopened(source_folder, trap, sprung):
    (source_folder / "model.safetensors").unlink()
    (source_folder / "pytorch_model.bin").write_bytes(trap)
    with pytest.raises(ConversionError, match=r"spoilt-mimi/pytorch_model\.bin must be unpickled, .*so it is refused"):
        read_source(str(source_folder))
    assert not sprung.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".th"])
def test_pickled_file_is_refused_unopened(suffix, tmp_path, trap, sprung):
    file = tmp_path / f"tokenizer{suffix}"
    file.write_bytes(trap)
    with pytest.raises(ConversionError, match=rf"tokenizer\{suffix} must be unpickled, .*so it is refused"):
        read_source(str(file))
    assert not sprung.exists()


def test_pickle_with_the_name_of_a_safetensors_file_is_refused_unopened(tmp_path, trap, sprung):
    file = tmp_path / "tokenizer.safetensors"
    file.write_bytes(trap)
    with pytest.raises(ConversionError, match=r"tokenizer\.safetensors is no whole safetensors file"):
        read_source(str(file))
    assert not sprung.exists()


def test_folder_whose_safetensors_file_is_a_pickle_is_refused_unopened(source_folder, trap, sprung):
    (source_folder / "model.safetensors").write_bytes(trap)
    with pytest.raises(ConversionError, match=r"model\.safetensors is no whole safetensors file"):
        read_source(str(source_folder))
    assert not sprung.exists()


# What is no Mimi, or not whole


def test_folder_without_a_config_is_refused(source_folder):
    (source_folder / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"spoilt-mimi has no config\.json, so it is no transformers checkpoint"):
        read_source(str(source_folder))


def test_folder_without_weights_is_refused(source_folder):
    (source_folder / "model.safetensors").unlink()
    with pytest.raises(
        ConversionError, match=r"spoilt-mimi holds no model\.safetensors; download the checkpoint whole"
    ):
        read_source(str(source_folder))


def test_checkpoint_of_another_codec_is_refused(source_folder, change_config):
    change_config(model_type="encodec")
    with pytest.raises(ConversionError, match="spoilt-mimi is a checkpoint of 'encodec', expected 'mimi'"):
        read_source(str(source_folder))


def test_mimi_bridge_itself_is_refused(converted):
    with pytest.raises(ConversionError, match="tiny-bridge is a checkpoint of 'mimi_bridge', expected 'mimi'"):
        read_source(str(converted.folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "mimi", "hidden_size": "large"}'])
def test_folder_with_an_unreadable_config_is_refused(text, source_folder):
    (source_folder / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=r"(?=.*spoilt-mimi)(?=.*config\.json)"):
        read_source(str(source_folder))


def test_folder_with_an_unreadable_preprocessor_config_is_refused(source_folder):
    (source_folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"(?=.*spoilt-mimi)(?=.*preprocessor_config\.json)"):
        read_source(str(source_folder))


def test_truncated_file_is_refused(source_folder):
    file = source_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"model\.safetensors is no whole safetensors file .* it may be cut off"):
        read_source(str(source_folder))


def test_six_codebooks_are_refused(source_folder, source_tensors, change_config):
    beyond = tuple(f"quantizer.acoustic_residual_vector_quantizer.layers.{number}." for number in range(5, 11))
    kept = {key: tensor for key, tensor in source_tensors.items() if not key.startswith(beyond)}
    save_file(kept, source_folder / "model.safetensors")
    change_config(num_quantizers=6)
    with pytest.raises(ConversionError, match="spoilt-mimi has 6 codebooks, expected at least 8"):
        read_source(str(source_folder))


def test_two_semantic_codebooks_are_refused(source_folder, change_config):
    change_config(num_semantic_quantizers=2)
    with pytest.raises(ConversionError, match="spoilt-mimi has 2 semantic codebooks, expected 1"):
        read_source(str(source_folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weight_is_refused_by_its_name(value, source_folder, source_tensors):
    source_tensors["decoder.layers.0.conv.bias"][3] = value
    save_file(source_tensors, source_folder / "model.safetensors")
    with pytest.raises(ConversionError, match=r"spoilt-mimi holds NaN or infinity in decoder\.layers\.0\.conv\.bias"):
        read_source(str(source_folder))


def test_feature_extractor_of_another_rate_is_refused(source_folder):
    (source_folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "feature_size": 1}))
    with pytest.raises(ConversionError, match=r"gives 1 channel.* at 16000 Hz, but the model expects 1 at 24000 Hz"):
        read_source(str(source_folder))


@pytest.mark.parametrize("key", ["encoder.layers.0.conv.weight", f"{SEMANTIC_CODEBOOK}.cluster_usage"])
def test_missing_tensor_is_refused_by_its_name(key, tiny_source):
    del tiny_source.tensors[key]
    shown = re.escape(key.split("layers.")[-1])  # transformers calls the front of some keys otherwise in memory
    with pytest.raises(ConversionError, match=rf"tiny-mimi lacks or misshapes 1 tensor\(s\) of a Mimi \(.*{shown}\)"):
        tiny_source.build()


def test_misshapen_tensor_is_refused(tiny_source):
    tiny_source.tensors["encoder.layers.0.conv.weight"] = torch.zeros(3, 1, 7)
    with pytest.raises(ConversionError, match=r"^tiny-mimi (does not fit its own config|lacks or misshapes)"):
        tiny_source.build()


def test_misshapen_tensor_is_refused_by_its_name(tiny_source):
    tiny_source.tensors["encoder.layers.0.conv.weight"] = torch.zeros(3, 1, 7)
    with pytest.raises(ConversionError, match=r"layers\.0\.conv\.weight"):
        tiny_source.build()


def test_config_of_another_mimi_is_refused(tiny_source):
    tiny_source.config.num_attention_heads = 5
    with pytest.raises(ConversionError, match="tiny-mimi does not fit its own config"):
        tiny_source.build()
