"""Does a live codec stay exact and small for hours? python benchmarks/soak.py --model FOLDER

One stream of hours of speech: its codes and audio are held, chunk by chunk, to those of a second stream that is given
the same speech in other chunks, and its memory is watched. Then many rows are reset at random moments: the output
between two resets is compared with a separate run of that stretch. Any converted model will do, such as the small
codec (`conversion/convert_kyutai.py --source small`).
"""

import argparse
import random
import sys
import time

import torch

from mimi_bridge.audio.espeak import sample_speech
from mimi_bridge.cli.loading import load_model
from stopwatch import machine, memory_mib

CALL_FRAMES = 25  # a call of the first stream, 2 s
OTHER_FRAMES = 50  # of the second
TOLERANCE = 2e-6
RESET_SHARE = 0.05  # of the calls, of each row


def main() -> None:
    """Run both, print, and end with status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a converted model")
    parser.add_argument("--hours", type=float, default=6.0, help="of one stream (default: 6)")
    parser.add_argument("--rows", type=int, default=64, help="side by side (default: 64)")
    parser.add_argument("--row-seconds", type=float, default=60.0, help="of each row (default: 60)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    speech = sample_speech(48.0)
    print(f"{machine()}\n", flush=True)
    with torch.inference_mode():
        right = [
            soak(model, speech, arguments.hours),
            reset_rows(model, speech, arguments.rows, arguments.row_seconds),
        ]
    sys.exit(0 if all(right) else 1)


def soak(model, speech: torch.Tensor, hours: float) -> bool:
    """One stream of hours, against another with other chunks."""
    frame_size, frame_rate = model.config.frame_size, model.config.frame_rate
    loop = speech[:, : speech.shape[-1] // (OTHER_FRAMES * frame_size) * OTHER_FRAMES * frame_size]
    num_calls = round(hours * 3600 * frame_rate / OTHER_FRAMES)
    start, same, worst, memory = time.process_time(), 0, 0.0, []
    with model.stream() as stream, model.stream() as other:
        for call in range(num_calls):
            first = call * OTHER_FRAMES * frame_size % loop.shape[-1]
            chunk = loop[None, :, first : first + OTHER_FRAMES * frame_size]
            codes, expected = (
                [stream.encode(part) for part in chunk.split(CALL_FRAMES * frame_size, -1)],
                other.encode(chunk),
            )
            audio = torch.cat([stream.decode(part) for part in codes], dim=-1)
            same += int(torch.equal(torch.cat(codes, dim=-1), expected))
            worst = max(worst, float((audio - other.decode(expected)).abs().max()))
            if call in (num_calls // 10, num_calls - 1):
                memory.append(memory_mib("VmRSS"))
    print(
        f"{hours:g} hours in one stream: {same} of {num_calls} chunks of {OTHER_FRAMES} frames have equal codes, "
        f"audio differs by at most {worst:.1e}; memory {memory[0]:.0f} MiB after a tenth, {memory[-1]:.0f} MiB at the "
        f"end; {time.process_time() - start:.0f} CPU s.",
        flush=True,
    )
    return same == num_calls and worst <= TOLERANCE


def reset_rows(model, speech: torch.Tensor, num_rows: int, seconds: float) -> bool:
    """Reset rows at random; compare each stretch with a separate run of it."""
    frame_size, frame_rate = model.config.frame_size, model.config.frame_rate
    num_calls, size = round(seconds * frame_rate / CALL_FRAMES), CALL_FRAMES * frame_size
    draw = random.Random(0)
    spoken = torch.cat([speech, speech], dim=-1)
    shifts = [draw.randrange(speech.shape[-1] // 2) for _ in range(num_rows)]
    stretches: list[list[list[torch.Tensor]]] = [[[]] for _ in range(num_rows)]  # of each row: calls since a reset
    with model.stream(batch_size=num_rows) as stream:
        for call in range(num_calls):
            resets = [row for row in range(num_rows) if call and draw.random() < RESET_SHARE]
            stream.reset(resets)
            for row in resets:
                stretches[row].append([])
            places = [(shift + call * size) % speech.shape[-1] for shift in shifts]
            chunk = torch.stack([spoken[:, place : place + size] for place in places])
            codes = stream.encode(chunk)
            audio = stream.decode(codes)
            for row in range(num_rows):
                stretches[row][-1].append((chunk[row], codes[row], audio[row]))
    same = count = 0
    worst = 0.0
    for stretch in (stretch for row in stretches for stretch in row):
        given, codes, audio = (torch.cat(parts, dim=-1) for parts in zip(*stretch, strict=True))
        count += codes.shape[-1]
        alone = model.encode(given[None]).audio_codes
        same += int((alone[0] == codes).all(dim=0).sum())
        worst = max(worst, float((model.decode(codes[None]).audio_values[0] - audio).abs().max()))
    number = sum(len(row) for row in stretches)
    print(
        f"{num_rows} rows of {seconds:g} s, {number - num_rows} resets: {same} of {count} frames have the codes of a "
        f"lone run, audio differs by at most {worst:.1e}."
    )
    return same == count and worst <= TOLERANCE


if __name__ == "__main__":
    main()
