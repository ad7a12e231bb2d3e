"""Send a recording through a live codec, chunk by chunk: python examples/stream_file.py IN.wav -o OUT.wav --model M

What a microphone would do: chunks of a length that has nothing to do with frames go in, codes of whole frames come
out, and are turned back into sound at once. The result is what encoding and decoding the whole recording gives.
"""

import argparse
import sys
import time

import torch
from transformers import AutoModel

import mimi_bridge  # noqa: F401 (AutoModel learns the model type)
from mimi_bridge.audio.files import load_audio, save_audio


def main(arguments: list[str] | None = None) -> int:
    """Stream one file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", help="wav, flac, mp3 or ogg, any rate")
    parser.add_argument("-o", "--output", required=True, help="recording to write")
    parser.add_argument("--model", required=True, help="folder that the conversion wrote, or an id on the Hub")
    parser.add_argument("--chunk-seconds", type=float, default=0.02, help="of a chunk (default: %(default)s)")
    parser.add_argument("--num-quantizers", type=int, help="use the first so many codebooks only (default: all)")
    options = parser.parse_args(arguments)

    model = AutoModel.from_pretrained(options.model).eval()
    sampling_rate = model.config.sampling_rate
    audio = load_audio(options.recording, sampling_rate)[None]  # (1, 1, samples)
    sounds, num_frames, started = [], 0, time.perf_counter()
    with model.stream(num_quantizers=options.num_quantizers) as stream:
        for chunk in audio.split(max(1, int(options.chunk_seconds * sampling_rate)), dim=-1):
            codes = stream.encode(chunk)  # (1, codebooks, frames): often none yet
            num_frames += codes.shape[-1]
            sounds.append(stream.decode(codes))
        sounds.append(stream.decode(stream.flush()))
    seconds, length = time.perf_counter() - started, audio.shape[-1] / sampling_rate
    save_audio(options.output, torch.cat(sounds, dim=-1)[0, :, : audio.shape[-1]], sampling_rate)
    print(f"{length:.2f} s of audio, {num_frames} whole frames, in {seconds:.2f} s; wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
