"""A stream's steps in ONNX Runtime beside the torch runtime: python benchmarks/onnx_runtime.py MODEL --threads 1

Exports the model, runs 20 s of made speech through both, alternating, and prints milliseconds a frame of 80 ms
(medians of CPU and wall time), the programs' sizes, and whether codes and audio agree. Needs the extra `onnx` and
onnxruntime.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from mimi_bridge.audio.espeak import SENTENCES, synthesize
from mimi_bridge.cli.loading import load_model
from mimi_bridge.cli.main import main as mimi_bridge
from stopwatch import alternate, machine, print_table

NUM_FRAMES = 250
FRAME = 1_920
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Stream:
    """A program and the state of its stream."""

    def __init__(self, path: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_inputs()]

    def __call__(self, given: list[np.ndarray]) -> np.ndarray:
        """Run a stream from its beginning."""
        state = [np.zeros(each.shape, TYPES[each.type]) for each in self.session.get_inputs()[1:]]
        results = []
        for each in given:
            result, *state = self.session.run(None, dict(zip(self.names, [each, *state], strict=True)))
            results.append(result)
        return np.concatenate(results, axis=-1)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder that the conversion wrote")
    parser.add_argument("--threads", type=int, default=1, help="of both; 0 as each chooses (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    speech = torch.cat([synthesize(text) for text in SENTENCES] * 4, dim=1)[None, :, : NUM_FRAMES * FRAME]
    frames = list(speech.split(FRAME, dim=-1))
    codes = list(model.encode(speech).audio_codes.split(1, dim=-1))
    with tempfile.TemporaryDirectory() as folder:
        if mimi_bridge(["export", "--model", arguments.model, "--output", folder]):
            sys.exit(1)
        encode, decode = (Stream(Path(folder) / f"{name}.onnx", arguments.threads) for name in ("encode", "decode"))
    given = [each.numpy() for each in frames], [each.numpy() for each in codes]

    def stream(step: str, chunks: list[torch.Tensor]) -> torch.Tensor:
        with model.stream() as opened:
            return torch.cat([getattr(opened, step)(chunk) for chunk in chunks], dim=-1)

    found = alternate(
        {
            "encode, ONNX Runtime": lambda: encode(given[0]),
            "encode, torch": lambda: stream("encode", frames),
            "decode, ONNX Runtime": lambda: decode(given[1]),
            "decode, torch": lambda: stream("decode", codes),
        },
        arguments.rounds,
    )
    print(f"{machine()}; {arguments.threads or 'default'} threads of ONNX Runtime {onnxruntime.__version__}\n")
    rows = [[name, f"{4 * each.cpu:.1f}", f"{4 * each.wall:.1f}"] for name, each in found.items()]
    print_table(["a frame of 80 ms", "CPU, ms", "wall, ms"], rows)
    sound = torch.from_numpy(decode(given[1]))
    reference = model.decode(torch.cat(codes, dim=-1)).audio_values
    equal = (torch.from_numpy(encode(given[0])) == torch.cat(codes, dim=-1)).double().mean()
    print(
        f"\ncodes of {NUM_FRAMES} frames equal: {equal:.4f}; audio differs by "
        f"{float((sound - reference).abs().max() / reference.abs().max()):.1e} of the peak"
    )


if __name__ == "__main__":
    main()
