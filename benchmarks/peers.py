"""Mimi as several packages run it, all with the same random weights: one object each, with the same methods.

transformers' `MimiModel`, Kyutai's own `moshi` (Python) and `rustymimi` (Rust), and ours. The weights are written once
in each one's layout. Theirs give 8 codebooks, ours 9: the content head comes on top.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, MimiConfig, MimiModel

from mimi_bridge.audio.espeak import SENTENCES, sample_speech, synthesize
from mimi_bridge.checkpoint import CACHE

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from key_map import KYUTAI_KEY_MAP, QUERY_KEY_VALUE, renamed
from random_mimi import random_mimi
from source import read_source
from transplant import transplant

NUM_CODEBOOKS = 8  # that the peers are asked for, of 32
RATE, FRAME = 24_000, 1_920
NATIVE, THEIRS, OURS = "native.safetensors", "transformers", "ours"

Step = Callable[[Tensor], Tensor]


def write_weights(
    folder: Path, fitting: Tensor | None = None, config: MimiConfig | None = None, native: bool = True
) -> None:
    """One Mimi, full-size if left out, with random weights and codebooks that fit speech, in all layouts."""
    if fitting is None:
        fitting = torch.cat([synthesize(text, "en-gb-scotland+m4", words_per_minute=190) for text in SENTENCES], dim=1)
    random_mimi(config or MimiConfig(), fitting).save_pretrained(folder / THEIRS)
    transplant(read_source(str(folder / THEIRS))).model.save_pretrained(folder / OURS)
    if native:
        write_native(folder / THEIRS, folder / NATIVE)


def write_native(source: Path, path: Path) -> None:
    """A checkpoint in transformers' layout, in Kyutai's."""
    from moshi.models import loaders

    flat = load_file(source / "model.safetensors")
    native = {}
    for key, value in loaders.get_mimi(None).state_dict().items():
        released = key.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight")
        target = renamed(key, KYUTAI_KEY_MAP)
        if target.endswith(QUERY_KEY_VALUE):
            names = [target.replace(QUERY_KEY_VALUE, f"{name}_proj.weight") for name in "qkv"]
            query, keys, values = (flat[name] for name in names)
            flat[target] = torch.cat([_rotary_neighbours(query), _rotary_neighbours(keys), values])
        native[released] = flat[target].reshape(value.shape).contiguous()
    save_file(native, path)


def _rotary_neighbours(weight: Tensor, num_heads: int = 8) -> Tensor:
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def speech(seconds: float) -> Tensor:
    """Speech made on the spot, over and over, `(1, 1, samples)`."""
    made, wanted = sample_speech(seconds=24), round(seconds * RATE)
    return made.repeat(1, -(-wanted // made.shape[-1]))[None, :, :wanted]


class Transformers:
    """`MimiModel`. Its streams keep both caches of the encoder; its decoder's convolutions keep none."""

    name, streams_batches, decodes_streams = "transformers", True, False

    def __init__(self, folder: Path):
        self.model = MimiModel.from_pretrained(folder / THEIRS).eval()

    def encode(self, audio: Tensor) -> Tensor:
        """Codes `(batch, 8, frames)` of audio `(batch, 1, samples)`."""
        return self.model.encode(audio, num_quantizers=NUM_CODEBOOKS).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of codes."""
        return self.model.decode(codes).audio_values

    @contextmanager
    def stream(self, batch_size: int) -> Iterator[tuple[Step, Step]]:
        """One that encodes the next frames, and one that decodes them (with wrong samples at their borders)."""
        state: dict[str, Any] = {f"encoder_{CACHE}": None, "padding_cache": None}
        keys: dict[str, Any] = {f"decoder_{CACHE}": None}

        def encode(chunk: Tensor) -> Tensor:
            output = self.model.encode(chunk, num_quantizers=NUM_CODEBOOKS, use_streaming=True, **state)
            state.update({key: getattr(output, key) for key in state})
            return output.audio_codes

        def decode(codes: Tensor) -> Tensor:
            output = self.model.decode(codes, use_cache=True, **keys)
            keys[f"decoder_{CACHE}"] = output[f"decoder_{CACHE}"]
            return output.audio_values

        yield encode, decode


class Moshi:
    """Kyutai's own code in Python."""

    name, streams_batches, decodes_streams = "moshi", True, True

    def __init__(self, folder: Path):
        from moshi.models import loaders

        self.model = loaders.get_mimi(folder / NATIVE, num_codebooks=NUM_CODEBOOKS)

    def encode(self, audio: Tensor) -> Tensor:
        """Codes of audio."""
        return self.model.encode(audio)

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of codes."""
        return self.model.decode(codes)

    @contextmanager
    def stream(self, batch_size: int) -> Iterator[tuple[Step, Step]]:
        """Steps of an encoder and a decoder."""
        with self.model.streaming(batch_size):
            yield self.model.encode, self.model.decode


class Rustymimi:
    """Kyutai's own code in Rust."""

    name, streams_batches, decodes_streams = "rustymimi", False, True

    def __init__(self, folder: Path):
        import rustymimi

        self._new = lambda: rustymimi.Tokenizer(str(folder / NATIVE), num_codebooks=NUM_CODEBOOKS)
        self.model = self._new()

    def encode(self, audio: Tensor) -> Tensor:
        """Codes of audio."""
        return torch.from_numpy(self.model.encode(audio.numpy())).long()

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of codes."""
        return torch.from_numpy(self.model.decode(codes.numpy().astype("uint32")))

    @contextmanager
    def stream(self, batch_size: int) -> Iterator[tuple[Step, Step]]:
        """Steps of an encoder and a decoder."""
        self.model.reset()
        yield (
            lambda chunk: torch.from_numpy(self.model.encode_step(chunk.numpy())).long(),
            lambda codes: torch.from_numpy(self.model.decode_step(codes.numpy().astype("uint32"))),
        )
        self.model.reset()


class Ours:
    """`MimiBridgeModel`, converted."""

    name, streams_batches, decodes_streams = "ours", True, True

    def __init__(self, folder: Path):
        import mimi_bridge  # noqa: F401 (AutoModel learns the model type)

        self.model = AutoModel.from_pretrained(folder / OURS).eval()

    def encode(self, audio: Tensor) -> Tensor:
        """Codes `(batch, 9, frames)` of audio."""
        return self.model.encode(audio).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of codes."""
        return self.model.decode(codes).audio_values

    @contextmanager
    def stream(self, batch_size: int) -> Iterator[tuple[Step, Step]]:
        """Steps of an encoder and a decoder."""
        with self.model.stream(batch_size=batch_size) as stream:
            yield stream.encode, stream.decode


Peer = Transformers | Moshi | Rustymimi | Ours
PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Ours, Transformers, Moshi, Rustymimi)}


def in_common(peer: Peer, codes: Tensor) -> Tensor:
    """The codebooks that all of them have."""
    return codes[:, 1:] if isinstance(peer, Ours) else codes
