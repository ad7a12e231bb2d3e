"""What things cost on a GPU, beside the peers: recordings, steps of streams, training steps."""

import importlib.util
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import MimiConfig

from gpu_agreement import equal_share
from gpu_inputs import voice
from gpu_lab import Lab, tf32
from mimi_bridge import MimiBridgeConfig
from peers import FRAME, PEERS, Peer, in_common, write_weights
from tiny import TINY

SMALL = {**TINY, "sliding_window": 250, "layer_scale_initial_scale": 0.01}  # for --quick
FRAME_MS = 80.0


def load_peers(lab: Lab) -> dict[str, Peer]:
    """Ours, transformers' and, where it is installed, moshi's, with the same random weights."""
    names = ["ours", "transformers"]
    if lab.quick or importlib.util.find_spec("moshi") is None:
        lab.leave_out("moshi", "not full size" if lab.quick else "not installed")
    else:
        names.append("moshi")
    folder = lab.folder / "peers"
    folder.mkdir()
    write_weights(
        folder, voice(10 if lab.quick else 48, 9)[0], MimiConfig(**SMALL if lab.quick else {}), "moshi" in names
    )
    peers = {}
    for name in names:
        with lab.record_failure(f"loading {name}"):
            peers[name] = PEERS[name](folder)
            peers[name].model.to(lab.device)
    return peers


@torch.no_grad()
def table_of_recordings(lab: Lab, peers: dict[str, Peer]) -> None:
    """Encode and decode real-time factors by batch."""
    seconds = 0.8 if lab.quick else 10.0  # whole frames: transformers ends others in its own way
    lab.head(
        f"Recordings of {seconds:g} s, seconds of audio a second",
        ("batch", "precision", "", "encode", "decode", "peak memory, MiB", "equal codes, of the first's"),
    )
    kinds = [("float32", torch.float32, False), ("float32, TF32", torch.float32, True)]
    kinds.append(("bfloat16", torch.bfloat16, False))
    for kind, dtype, rounds in kinds:
        firsts: dict[int, Tensor] = {}
        for name, peer in peers.items():
            if _cannot(lab, name, dtype):
                continue
            peer.model.to(dtype)
            for batch in (1, 2) if lab.quick else (32,) if rounds else (1, 8, 32):
                what = f"{name}, {kind}, batch {batch}"
                if not lab.has(3, what):
                    continue
                audio = voice(seconds).expand(batch, -1, -1).contiguous().to(lab.device, dtype)
                with lab.record_failure(what), tf32(rounds):
                    memory: list[str] = []
                    with lab.peak(memory):
                        codes = peer.encode(audio)
                        encoding = lab.median_s(lambda p=peer, a=audio: p.encode(a), 1)
                        decoding = lab.median_s(lambda p=peer, c=codes: p.decode(c))
                    factors = (f"{batch * seconds / each:.0f}" for each in (encoding, decoding))
                    share = equal_share(in_common(peer, codes), firsts.setdefault(batch, in_common(peer, codes)))
                    lab.row(batch, kind, name, *factors, *memory, f"{share:.4f}")
    for peer in peers.values():
        peer.model.float()


def _cannot(lab: Lab, name: str, dtype: torch.dtype) -> bool:
    cannot = name == "transformers" and dtype != torch.float32
    if cannot:
        lab.leave_out(f"transformers in {dtype}", "its codebooks stay float32, so it does not decode")
    return cannot


@torch.no_grad()
def table_of_streams(lab: Lab, peers: dict[str, Peer], kind: str, dtype: torch.dtype) -> None:
    """One-frame steps of streams side by side."""
    lab.head(
        f"Steps of one frame, {kind} (transformers' decoded streams are wrong at the borders)",
        ("streams", "", "encode, ms", "decode, ms", "streams in real time"),
    )
    for batch in (1, 2) if lab.quick else (1, 16, 64, 256):
        for name in ("ours", "ours, CUDA graphs", "transformers", "moshi"):
            peer = peers.get(name.partition(",")[0])
            graphs, what = name.endswith("graphs"), f"{name}, {batch} streams, {kind}"
            if peer is None or _cannot(lab, name, dtype) or (graphs and not lab.is_cuda) or not lab.has(4, what):
                continue
            with lab.record_failure(what), ExitStack() as stack:
                model = peer.model.to(dtype)
                if graphs:
                    stream = stack.enter_context(model.stream(batch_size=batch, cuda_graphs=True))
                    encode, decode = stream.encode, stream.decode
                else:
                    encode, decode = stack.enter_context(peer.stream(batch))
                chunk = voice(1)[..., :FRAME].expand(batch, -1, -1).contiguous().to(lab.device, dtype)
                codes = encode(chunk)
                encoding = 1e3 * lab.median_s(lambda e=encode, c=chunk: e(c), 3, 30)
                decoding = 1e3 * lab.median_s(lambda d=decode, c=codes: d(c), 3, 30)
                together = f"{batch * FRAME_MS / (encoding + decoding):.0f}"
                lab.row(batch, name, f"{encoding:.2f}", f"{decoding:.2f}", together)
    for peer in peers.values():
        peer.model.float()


def table_of_training(lab: Lab) -> None:
    """Optimizer steps a second, with the trainer's own loss."""
    from training import KINDS, SECONDS, step, trainer_of

    batch, teachers = 2 if lab.quick else 16, {"qwen_dim": 1536, "wavlm_dim": 1024}
    config = MimiBridgeConfig(**SMALL, **teachers) if lab.quick else MimiBridgeConfig(**teachers)
    lab.head(
        f"Training steps on {batch} recordings of {SECONDS:g} s",
        ("step", "precision", "steps a second", "peak memory, MiB"),
    )
    whole = {"head_learning_rates": {"codec": 1e-6}}
    kinds = [(KINDS[0], KINDS[0], {}), (KINDS[1], KINDS[1], {}), (KINDS[2], KINDS[2], {})]
    kinds += [("audio, codec learns, too", KINDS[2], whole)]
    kinds += [(f"{name}", kind, changes | {"bf16": True}) for name, kind, changes in kinds if kind != KINDS[1]]
    for name, kind, changes in kinds:
        precision = "bfloat16 autocast" if "bf16" in changes else "float32"
        if not lab.has(6, f"training, {name}, {precision}"):
            continue
        with lab.record_failure(f"training, {name}, {precision}"):
            memory: list[str] = []
            with lab.peak(memory):
                trainer = trainer_of(kind, str(lab.folder), config, batch, use_cpu=not lab.is_cuda, **changes)
                seconds = lab.median_s(lambda trainer=trainer: step(trainer), 2, 5)
            lab.row(name, precision, f"{1 / seconds:.2f}", *memory)
            del trainer
