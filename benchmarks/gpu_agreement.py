"""What a GPU computes, against the CPU: precisions, streams, batches and files, training."""

from copy import deepcopy

import torch
from torch import Tensor

from gpu_inputs import training_batch, voice
from gpu_lab import Lab, tf32
from mimi_bridge import MimiBridgeModel
from peers import FRAME, RATE

MIN_EQUAL = 0.99  # share of codes that must be the CPU's, in float32: rounding moves ties only
MAX_LOSS_DIFFERENCE = 1e-3


def equal_share(found: Tensor, expected: Tensor) -> float:
    """Of two tables of codes."""
    return (found.cpu() == expected.cpu()).double().mean().item()


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the peak."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check_precisions(lab: Lab, model: MimiBridgeModel) -> None:
    """Codes and audio in several precisions, of the CPU's float32."""
    audio = voice(2 if lab.quick else 20)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        expected = model.decode(codes).audio_values
    lab.head(
        f"{audio.shape[-1] / RATE:g} s against the CPU's float32; audio of the CPU's codes",
        ("", "equal codes", "of the worst codebook", "audio differs by, of the peak"),
    )
    kinds = [("float32", torch.float32, False), ("float32, TF32", torch.float32, True)]
    kinds += [("bfloat16", torch.bfloat16, False), ("float16", torch.float16, False)]
    for name, dtype, rounds in kinds:
        with lab.record_failure(f"precision {name}"), tf32(rounds), torch.no_grad():
            there = deepcopy(model).to(lab.device, dtype)
            found = there.encode(audio.to(lab.device, dtype)).audio_codes
            share = equal_share(found, codes)
            worst = min(equal_share(*pair) for pair in zip(found[0], codes[0], strict=True))
            differs = difference(there.decode(codes.to(lab.device)).audio_values, expected)
            lab.row(name, f"{share:.4f}", f"{worst:.4f}", f"{differs:.1e}")
            lab.expect(f"equal codes, {name}", share, share >= MIN_EQUAL or name != "float32")


def check_streams(lab: Lab, model: MimiBridgeModel) -> None:
    """Streams, with and without graphs, a frame a step and in odd chunks, against the whole recording's."""
    there = deepcopy(model).to(lab.device)
    audio = torch.cat([voice(1 if lab.quick else 12, seed) for seed in range(3)]).to(lab.device)
    with torch.no_grad():
        codes = there.encode(audio).audio_codes
        expected = there.decode(codes).audio_values
    lab.head("Three streams against the whole recordings", ("", "equal codes", "audio differs by, of the peak"))
    for graphs in (False, True):
        if graphs and not lab.is_cuda:
            lab.leave_out("streams with CUDA graphs", "no CUDA")
            continue
        for size in (FRAME, 5000):
            name = f"{size} samples a call{', CUDA graphs' if graphs else ''}"
            with lab.record_failure(f"stream, {name}"):
                frames = 1 if size == FRAME else 2
                with there.stream(3, cuda_graphs=graphs) as stream:
                    found = [stream.encode(chunk) for chunk in audio.split(size, dim=-1)]
                    found = torch.cat([*found, stream.flush()], dim=-1)
                    sound = torch.cat([stream.decode(piece) for piece in codes.split(frames, dim=-1)], dim=-1)
                share = equal_share(found[..., : codes.shape[-1]], codes)
                lab.row(name, f"{share:.4f}", f"{difference(sound, expected):.1e}")
                lab.expect(f"equal codes, stream, {name}", share, share >= MIN_EQUAL)
        with lab.record_failure(f"stream with a row that pauses, graphs {graphs}"):
            share = _pausing(there, audio[..., : 40 * FRAME], codes, graphs)
            lab.row(f"a row pauses every other call{', CUDA graphs' if graphs else ''}", f"{share:.4f}", "")
            lab.expect(f"equal codes, pausing row, graphs {graphs}", share, share >= MIN_EQUAL)


def _pausing(model: MimiBridgeModel, audio: Tensor, codes: Tensor, graphs: bool) -> float:
    found: list[list[Tensor]] = [[], [], []]
    places = [0, 0, 0]
    with model.stream(3, cuda_graphs=graphs) as stream:
        for number in range(audio.shape[-1] // FRAME):
            speaks = torch.tensor([True, number % 2 == 0, True])
            chunk = torch.stack([audio[r, :, places[r] * FRAME : (places[r] + 1) * FRAME] for r in range(3)])
            got = stream.encode(chunk, exec_mask=speaks.to(model.device))
            stream.decode(got, exec_mask=speaks)
            for row in speaks.nonzero()[:, 0].tolist():
                found[row].append(got[row])
                places[row] += 1
    rows = [torch.cat(row, dim=-1) for row in found]
    return min(equal_share(row, whole[:, : row.shape[-1]]) for row, whole in zip(rows, codes, strict=True))


def check_batches_and_files(lab: Lab, model: MimiBridgeModel) -> None:
    """A padded batch against its rows alone, and a model that was saved on the device."""
    there = deepcopy(model).to(lab.device)
    lengths = [4000, 30_000, 48_000] if lab.quick else [50_000, 130_000, 239_000, 240_000]
    rows = [voice(10, seed)[0, 0, :length] for seed, length in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, None].to(lab.device)
    mask = torch.arange(padded.shape[-1]) < torch.tensor(lengths)[:, None]
    lab.head("Batches and files", ("", "equal codes", "audio differs by, of the peak"))
    with lab.record_failure("padded batch"), torch.no_grad():
        together = there.encode(padded, mask.to(lab.device))
        shares, differences = [], []
        audio = there.decode(together.audio_codes, mask.to(lab.device)).audio_values
        for row, length in enumerate(lengths):
            alone = there.encode(padded[row : row + 1, :, :length]).audio_codes
            count = alone.shape[-1]
            shares.append(equal_share(together.audio_codes[row : row + 1, :, :count], alone))
            sound = there.decode(together.audio_codes[row : row + 1, :, :count]).audio_values
            differences.append(difference(audio[row : row + 1, :, :length], sound[..., :length]))
        lab.row("padded batch, of each alone", f"{min(shares):.4f}", f"{max(differences):.1e}")
        lab.expect("equal codes, padded batch", min(shares), min(shares) >= MIN_EQUAL)
    with lab.record_failure("saved on the device"), torch.no_grad():
        there.save_pretrained(lab.folder / "saved")
        again = MimiBridgeModel.from_pretrained(lab.folder / "saved").eval().to(lab.device)
        share = equal_share(again.encode(padded).audio_codes, there.encode(padded).audio_codes)
        lab.row("saved and loaded", f"{share:.4f}", "")
        lab.expect("equal codes, saved and loaded", share, share == 1)


def check_training_step(lab: Lab, model: MimiBridgeModel) -> None:
    """Loss, gradients and moved codebooks of one forward and backward."""
    lab.head("A training step against the CPU's", ("", "value"))
    results = []
    for device in (torch.device("cpu"), lab.device):
        learner = deepcopy(model).to(device).train()
        batch = training_batch(learner, device)
        output = learner(**batch)
        (output.loss + (output.audio_values - batch["input_values"]).abs().mean()).backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in learner.parameters() if p.grad is not None])
        results.append((output, gradients, {name: value.cpu() for name, value in learner.named_buffers()}))
    (expected, gradients, buffers), (found, found_gradients, found_buffers) = results
    for name, loss in expected.losses.items():
        lab.row(f"{name}, of the CPU's {loss.item():.5g}", f"{found.losses[name].item() - loss.item():+.1e}")
    relative = (found_gradients - gradients).norm() / gradients.norm()
    lab.row("gradient's difference, of its length", f"{relative.item():.1e}")
    lab.row("equal codes", f"{equal_share(found.audio_codes, expected.audio_codes):.4f}")
    moved = max((found_buffers[name].double() - value.double()).abs().max().item() for name, value in buffers.items())
    lab.row("codebooks and other buffers differ by", f"{moved:.1e}")
    off = abs(found.loss.item() / expected.loss.item() - 1)
    moved_codes = equal_share(found.audio_codes, expected.audio_codes) < 1  # a tie may change a loss by more
    lab.expect("training loss, relative difference", off, moved_codes or off <= MAX_LOSS_DIFFERENCE)


def check_trainer(lab: Lab, model: MimiBridgeModel) -> None:
    """`MimiBridgeTrainer.train`, and the second half of it again from its checkpoint."""
    from training import KINDS, trainer_of

    folder = str(lab.folder / "run")
    changes = {"use_cpu": not lab.is_cuda, "max_steps": 4, "save_steps": 2, "disable_tqdm": True, "init_frames": 200}
    states = []
    for resume in (None, f"{folder}/checkpoint-2"):
        trainer = trainer_of(KINDS[2], folder, model.config, **changes)
        trainer.train(resume_from_checkpoint=resume)
        states.append({name: value.detach().cpu() for name, value in trainer.model.state_dict().items()})
    whole, resumed = states
    off = max((resumed[name].double() - value.double()).abs().max().item() for name, value in whole.items())
    lab.say(f"\nMimiBridgeTrainer.train() on {trainer.args.device}: 4 steps; resumed after 2, off by {off:.1e}")
