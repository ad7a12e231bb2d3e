"""Streams: any chunks, rows that live on their own, resumed elsewhere, and what must not harm them."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mimi_bridge import MimiBridgeModel
from mimi_bridge.runtime.quantizer import PackedQuantizer
from mimi_bridge.runtime.stream import PAD_CODE
from reference_path import reference_path
from ties import share_equal_but_for_ties

FRAME = 1920
ROUNDING = 3e-6  # of the peak: by either path, float32 audio of this random decoder lies 1.2e-6 from float64's


@pytest.fixture(scope="module")
def model(_tiny_model) -> MimiBridgeModel:
    """The tiny model, window 25 steps (a second); leave it as it is."""
    return _tiny_model


@pytest.fixture(scope="module")
def sound(speech) -> torch.Tensor:
    """Four different recordings of 60 frames, `(4, 1, samples)`: almost five windows."""
    return torch.stack([speech[:, 110_000 * row :][:, : 60 * FRAME] for row in range(4)])


@pytest.fixture(scope="module")
def expected(model, sound):
    """Codes and audio of the recordings, each alone and at once, by transformers' modules."""
    model.use_fast_path = False
    with torch.no_grad():
        codes = torch.cat([model.encode(row[None]).audio_codes for row in sound])
        audio = torch.cat([model.decode(row[None]).audio_values for row in codes])
    del model.use_fast_path
    assert min(len(codebook.unique()) for codebook in codes.unbind(dim=1)) >= 20  # of 64: equality means much
    return codes, audio


def close(result, audio) -> bool:
    peak = max(1.0, float(audio.detach().abs().max())) if audio.numel() else 1.0
    return result.shape == audio.shape and bool(((result - audio).abs() <= ROUNDING * peak).all())


def random_lengths(total: int, longest: int, seed: int) -> list[int]:
    """Lengths that add up to `total`, 0 among them."""
    generator, lengths = torch.Generator().manual_seed(seed), []
    while sum(lengths) < total:
        length = int(longest ** float(torch.rand(1, generator=generator))) - 1
        lengths.append(min(length, total - sum(lengths)))
    return lengths


# Exactness


@pytest.mark.parametrize("num_frames", [1, 5, 25, 60])
def test_chunks_of_whole_frames_give_the_codes_and_the_audio_of_the_whole(model, sound, expected, num_frames):
    with model.stream(batch_size=4) as stream:
        codes = torch.cat([stream.encode(chunk) for chunk in sound.split(num_frames * FRAME, dim=-1)], dim=-1)
        audio = torch.cat([stream.decode(chunk) for chunk in codes.split(num_frames, dim=-1)], dim=-1)
    assert torch.equal(codes, expected[0])
    assert close(audio, expected[1])


def check_random_chunks(model, sound, expected, seed):
    row = seed % 4
    with model.stream() as stream:
        lengths = random_lengths(60 * FRAME, 40 * FRAME if seed % 2 else 4 * FRAME, seed)
        codes = torch.cat([stream.encode(chunk) for chunk in sound[row : row + 1].split(lengths, dim=-1)], dim=-1)
        counts = random_lengths(60, 40 if seed % 3 else 6, seed)
        audio = torch.cat([stream.decode(chunk) for chunk in codes.split(counts, dim=-1)], dim=-1)
    assert torch.equal(codes, expected[0][row : row + 1])
    assert close(audio, expected[1][row : row + 1])


@pytest.mark.parametrize("seed", range(20))
def test_random_chunks_give_the_codes_and_the_audio_of_the_whole(model, sound, expected, seed):
    check_random_chunks(model, sound, expected, seed)


@pytest.mark.usefixtures("_row_by_row")
@pytest.mark.parametrize("seed", range(4))
def test_on_a_cpu_a_stream_s_audio_is_that_of_the_whole_to_the_bit(model, sound, seed):
    with torch.no_grad():
        codes = model.encode(sound[:1]).audio_codes
        whole = model.decode(codes).audio_values
        with model.stream() as stream:
            audio = [stream.decode(chunk) for chunk in codes.split(random_lengths(60, 40, seed), dim=-1)]
    assert torch.equal(torch.cat(audio, dim=-1), whole)


@pytest.mark.slow
def test_a_thousand_random_chunkings_give_the_codes_and_the_audio_of_the_whole(model, sound, expected):
    for seed in range(20, 1020):
        check_random_chunks(model, sound, expected, seed)


def test_codes_come_as_soon_as_a_frame_is_whole_and_audio_is_as_long_as_its_codes(model):
    with model.stream() as stream:
        counts = [
            stream.encode(torch.zeros(1, 1, length)).shape[-1] for length in (FRAME - 1, 1, 0, 3 * FRAME + 5, 1915)
        ]
        assert counts == [0, 1, 0, 3, 1]
        assert stream.num_waiting_samples.tolist() == [0]
        assert stream.decode(torch.zeros(1, 9, 3, dtype=torch.long)).shape == (1, 1, 3 * FRAME)
        assert stream.decode(torch.zeros(1, 9, 0, dtype=torch.long)).shape == (1, 1, 0)


def test_flush_gives_the_last_frame_as_the_whole_recording_does(model, sound):
    recording = sound[:1, :, : 10 * FRAME + 700]
    with model.stream() as stream:
        codes = torch.cat([stream.encode(recording), stream.flush()], dim=-1)
        assert stream.flush().shape == (1, 9, 0)
    assert torch.equal(codes, model.encode(recording).audio_codes)


@pytest.mark.parametrize("num_quantizers", [1, 2, 5])
def test_first_codebooks_only_are_encoded_and_decoded(model, sound, expected, num_quantizers):
    with model.stream(4, num_quantizers) as stream:
        codes = stream.encode(sound[..., : 10 * FRAME])
        audio = stream.decode(codes)
    assert torch.equal(codes, expected[0][:, :num_quantizers, :10])
    assert close(audio, model.decode(codes).audio_values)


def test_several_streams_on_one_model_do_not_touch_each_other(model, sound, expected):
    streams = [model.stream() for _ in range(4)]
    codes = [[] for _ in streams]
    for chunk in sound[..., : 20 * FRAME].split(FRAME, dim=-1):
        for row, stream in enumerate(streams):
            codes[row].append(stream.encode(chunk[row : row + 1]))
    assert torch.equal(torch.cat([torch.cat(row, dim=-1) for row in codes]), expected[0][..., :20])


def test_stream_gives_the_same_in_and_out_of_inference_mode(model, sound, expected):
    with model.stream(4) as stream:
        with torch.inference_mode():
            first = stream.encode(sound[..., : 7 * FRAME])
        second = stream.encode(sound[..., 7 * FRAME : 9 * FRAME])
        with torch.inference_mode():
            third = stream.encode(sound[..., 9 * FRAME : 60 * FRAME])
    assert torch.equal(torch.cat([first, second, third], dim=-1), expected[0])


def test_stream_goes_on_with_new_weights(tiny_model, sound):
    stream = tiny_model.stream()
    stream.encode(sound[:1, :, : 5 * FRAME])
    state = stream.state_dict()
    optimizer = torch.optim.AdamW(tiny_model.encoder.parameters(), lr=0.01, fused=True)
    tiny_model.train()(sound[:1, :, :FRAME]).loss.backward()
    optimizer.step()
    tiny_model.eval()
    fresh = tiny_model.stream()
    fresh.load_state_dict(state)
    assert torch.equal(stream.encode(sound[:1, :, 5 * FRAME :]), fresh.encode(sound[:1, :, 5 * FRAME :]))


def test_state_of_a_stream_stays_as_large_as_it_is(model, sound):
    with model.stream(2) as stream:
        sizes = {name: value.shape for name, value in stream.state_dict().items()}
        for _ in range(8):  # 8 * 25 frames: 16 windows
            stream.decode(stream.encode(sound[:2, :, : 25 * FRAME]))
        assert {name: value.shape for name, value in stream.state_dict().items()} == sizes
        assert stream.state_dict()["encoder.positions"].tolist() == [400, 400]


@pytest.mark.slow
@pytest.mark.full_size
@torch.no_grad()
def test_streams_at_full_size_give_the_codes_and_the_audio_of_the_reference(full_size_model, best_speech):
    model, sound = full_size_model, best_speech[None, :, : best_speech.shape[-1] // FRAME * FRAME]
    with reference_path(model):
        codes = model.encode(sound).audio_codes
        audio = model.decode(codes).audio_values
        latents = model.get_latents(sound)
    whole, whole_codes = model.decode(codes).audio_values, model.encode(sound).audio_codes
    in_use = min(len(codebook.unique()) for codebook in codes.unbind(dim=1))
    print(f"{sound.shape[-1] / 24_000:.1f} s, {in_use} codes in use of each codebook")
    assert in_use >= 30
    for num_frames in (1, 5, 25, 125):
        with model.stream() as stream:
            found = torch.cat([stream.encode(chunk) for chunk in sound.split(num_frames * FRAME, dim=-1)], dim=-1)
            decoded = torch.cat([stream.decode(chunk) for chunk in codes.split(num_frames, dim=-1)], dim=-1)
        equal = share_equal_but_for_ties(model, latents, found, codes)
        difference = ((decoded - audio).abs().max() / audio.abs().max()).item()
        print(
            f"{num_frames} frames a call: codes equal {equal}, audio {difference:.1e} of the reference's peak, "
            f"{(decoded - whole).abs().max().item():.1e} from the fast path's whole"
        )
        assert torch.equal(found, whole_codes)
        assert equal >= 0.998 and difference <= 4e-6  # 1.6e-6 on one processor, 2.5e-6 on another: both paths round


# Rows


def lone_run(model, audio):
    """Codes and audio of one row's samples, in a stream of its own."""
    with model.stream() as stream:
        codes = stream.encode(audio[None])
        return codes[0], stream.decode(codes)[0]


def real(codes):
    """A row's codes without the places where it had no frame."""
    return codes[:, codes[0] != PAD_CODE]


def check_rows_that_live_on_their_own(model, sound, seed):
    generator, num_rows = torch.Generator().manual_seed(seed), len(sound)
    stream = model.stream(num_rows)
    lives: list[list[list[torch.Tensor]]] = [[[]] for _ in range(num_rows)]  # samples, by row, by stream
    codes: list[list[list[torch.Tensor]]] = [[[]] for _ in range(num_rows)]
    decoded: list[list[list[torch.Tensor]]] = [[[]] for _ in range(num_rows)]
    position = 0
    while position < sound.shape[-1] - 1:
        length = int((8 * FRAME) ** float(torch.rand(1, generator=generator)))
        chunk = sound[..., position : position + length].clone()
        position += length
        active = torch.rand(num_rows, generator=generator) < 0.8
        chunk[~active] = torch.nan  # whatever a pausing row holds is not looked at
        found = stream.encode(chunk, None if bool(active.all()) else active)
        audio = stream.decode(found, active if seed % 2 else None)
        assert found[~active].eq(PAD_CODE).all() and audio[~active].eq(0).all()
        for row in active.nonzero()[:, 0].tolist():
            lives[row][-1].append(chunk[row])
            codes[row][-1].append(real(found[row]))
            decoded[row][-1].append(audio[row, :, : real(found[row]).shape[-1] * FRAME])
        ended = (torch.rand(num_rows, generator=generator) < 0.1).nonzero()[:, 0].tolist()
        if ended:
            stream.reset(rows=ended)
        for row in ended:
            for history in (lives, codes, decoded):
                history[row].append([])
    for row in range(num_rows):
        for samples, found, audio in zip(lives[row], codes[row], decoded[row], strict=True):
            if samples:
                expected = lone_run(model, torch.cat(samples, dim=-1))
                assert torch.equal(torch.cat(found, dim=-1), expected[0])
                assert close(torch.cat(audio, dim=-1), expected[1])


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_start_pause_and_end_at_random_get_what_they_get_alone(model, sound, seed):
    check_rows_that_live_on_their_own(model, sound, seed)


@pytest.mark.slow
def test_rows_that_start_pause_and_end_at_random_get_what_they_get_alone_two_hundred_times(model, sound):
    for seed in range(6, 206):
        check_rows_that_live_on_their_own(model, sound, seed)


def test_rows_with_different_rests_are_marked_where_they_have_no_frame(model, sound):
    with model.stream(2) as stream:
        stream.encode(sound[:2, :, :1000])
        stream.reset(rows=[1])
        codes = stream.encode(sound[:2, :, 1000 : FRAME + 500])
        assert codes.shape == (2, 9, 1)
        assert codes[0].ne(PAD_CODE).all() and codes[1].eq(PAD_CODE).all()
        assert stream.num_waiting_samples.tolist() == [500, FRAME - 500]
        audio = stream.decode(codes)
        assert audio[0].ne(0).any() and audio[1].eq(0).all()


def test_flush_leaves_other_rows_waiting(model, sound):
    with model.stream(2) as stream:
        stream.encode(sound[:2, :, :1000])
        codes = stream.flush(torch.tensor([False, True]))
        assert codes[0].eq(PAD_CODE).all() and codes[1].ne(PAD_CODE).all()
        assert stream.num_waiting_samples.tolist() == [1000, 0]


def test_reset_without_rows_begins_all_again(model, sound, expected):
    with model.stream(4) as stream:
        stream.decode(stream.encode(sound[..., : 31 * FRAME + 77]))
        stream.reset()
        codes = stream.encode(sound)
        assert torch.equal(codes, expected[0])
        assert close(stream.decode(codes), expected[1])


# State


def test_stream_saved_by_safetensors_goes_on_in_another_process(model, sound, expected, tmp_path):
    with model.stream(4) as stream:
        first = stream.encode(sound[..., : 30 * FRAME + 123])
        decoded = stream.decode(first)
        save_file(stream.state_dict(), tmp_path / "stream.safetensors")
    model.save_pretrained(tmp_path / "model")
    save_file({"rest": sound[..., 30 * FRAME + 123 :].contiguous()}, tmp_path / "rest.safetensors")
    program = textwrap.dedent(
        """
        import sys, torch
        from safetensors.torch import load_file, save_file
        from mimi_bridge import MimiBridgeModel

        torch.set_num_threads(1)
        folder = sys.argv[1]
        stream = MimiBridgeModel.from_pretrained(folder + "/model").eval().stream(4)
        stream.load_state_dict(load_file(folder + "/stream.safetensors"))
        codes = stream.encode(load_file(folder + "/rest.safetensors")["rest"])
        save_file({"codes": codes, "audio": stream.decode(codes)}, folder + "/result.safetensors")
        """
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300)
    result = load_file(tmp_path / "result.safetensors")
    assert torch.equal(torch.cat([first, result["codes"]], dim=-1), expected[0])
    assert close(torch.cat([decoded, result["audio"]], dim=-1), expected[1])


def test_saved_state_is_a_copy(model, sound, expected):
    with model.stream(4) as stream:
        stream.encode(sound[..., : 5 * FRAME])
        state = stream.state_dict()
        before = {name: value.clone() for name, value in state.items()}
        stream.encode(sound[..., 5 * FRAME : 50 * FRAME])
        assert all(torch.equal(value, before[name]) for name, value in state.items())
        stream.load_state_dict(state)
        assert torch.equal(stream.encode(sound[..., 5 * FRAME :]), expected[0][..., 5:])


def test_stream_moves_its_state(model, sound, expected):
    stream = model.stream(4).to("cpu")
    assert stream.device == torch.device("cpu")
    assert torch.equal(stream.encode(sound[..., : 5 * FRAME]), expected[0][..., :5])


@pytest.mark.gpu
def test_stream_on_a_gpu_gives_the_codes_of_the_cpu(tiny_model, sound, expected):
    with tiny_model.to("cuda").stream(4) as stream:
        codes = [stream.encode(chunk) for chunk in sound.cuda().split(5000, dim=-1)]
        assert (torch.cat(codes, dim=-1).cpu() == expected[0]).float().mean() > 0.99  # rounding moves ties


# Bad input


@pytest.fixture
def begun(model, sound):
    """A stream of two rows in the middle of its life, and a check that nothing in it has changed."""
    stream = model.stream(2)
    stream.decode(stream.encode(sound[:2, :, : 30 * FRAME + 500]))
    before = stream.state_dict()

    def is_unharmed():
        return all(torch.equal(value, before[name]) for name, value in stream.state_dict().items())

    return stream, is_unharmed


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (torch.zeros(3, 1, 100), r"must be \(2, 1, samples\) in this stream, got \(3, 1, 100\)"),
        (torch.zeros(2, 2, 100), r"must be \(2, 1, samples\)"),
        (torch.zeros(2, 100), r"must be \(2, 1, samples\)"),
        (torch.zeros(2, 1, 100, dtype=torch.float64), "must be torch.float32 on cpu.*got torch.float64"),
        (torch.zeros(2, 1, 100, dtype=torch.int16), "got torch.int16"),
        (torch.tensor([0.0, torch.nan]).view(2, 1, 1), "row 1 of the chunk holds NaN"),
        (torch.tensor([torch.inf, 0.0]).view(2, 1, 1), "row 0 of the chunk holds NaN or infinity"),
    ],
)
def test_a_bad_chunk_is_refused_and_harms_no_row(begun, chunk, message):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match=message):
        stream.encode(chunk)
    assert is_unharmed()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 9, 1), "must be integers, got torch.float32"),
        (torch.zeros(3, 9, 1).long(), r"must be \(2, 1 to 9 codebooks, frames\) in this stream, got \(3, 9, 1\)"),
        (torch.zeros(2, 10, 1).long(), "1 to 9 codebooks"),
        (torch.zeros(2, 9).long(), "1 to 9 codebooks"),
        (torch.tensor([0, 64]).view(2, 1, 1).expand(2, 9, 2), "row 1 holds 64 in codebook 0"),
        (torch.tensor([-2, 5]).view(2, 1, 1).expand(2, 9, 2), "row 0 holds -2"),
        (torch.tensor([[0] * 9, [0] * 8 + [-1]]).view(2, 9, 1), "row 1 holds -1 in codebook 8"),
    ],
)
def test_bad_codes_are_refused_and_harm_no_row(begun, codes, message):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match=message):
        stream.decode(codes)
    assert is_unharmed()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_codes_of_any_whole_numbers_are_decoded_alike(model, expected, dtype):
    codes = expected[0][:1, :, :4]
    assert torch.equal(model.stream().decode(codes.to(dtype)), model.stream().decode(codes))


def test_codes_before_any_audio_can_be_decoded(model, expected):
    with model.stream(4) as stream:
        assert close(stream.decode(expected[0][..., :5]), expected[1][..., : 5 * FRAME])


@pytest.mark.parametrize("rows", [[2], [-1], [0, 5]])
def test_reset_of_a_row_that_does_not_exist_is_refused_and_harms_no_row(begun, rows):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match="rows must be 0 to 1 in this stream"):
        stream.reset(rows)
    assert is_unharmed()


@pytest.mark.parametrize("mask", [torch.tensor([1, 0]), torch.tensor([True]), torch.ones(2, 1).bool()])
def test_bad_exec_mask_is_refused(begun, mask):
    stream, is_unharmed = begun
    for call in (lambda: stream.encode(torch.zeros(2, 1, FRAME), mask), lambda: stream.flush(mask)):
        with pytest.raises(ValueError, match="exec_mask must be bool with one value for each of the 2 rows"):
            call()
    assert is_unharmed()


@pytest.mark.parametrize("mask", [[True, False], (True, False), np.array([True, False]), True], ids=str)
def test_exec_mask_that_is_no_tensor_is_refused(begun, mask):
    stream, is_unharmed = begun
    for call in (lambda: stream.encode(torch.zeros(2, 1, FRAME), mask), lambda: stream.flush(mask)):
        with pytest.raises(TypeError, match="exec_mask must be a tensor, got"):
            call()
    assert is_unharmed()


@pytest.mark.parametrize("wrong", [np.zeros((2, 1, FRAME), np.float32), [[[0.0]]]], ids=["numpy", "list"])
def test_chunk_and_codes_that_are_no_tensors_are_refused(begun, wrong):
    stream, is_unharmed = begun
    with pytest.raises(TypeError, match="a chunk must be a tensor, got"):
        stream.encode(wrong)
    with pytest.raises(TypeError, match="audio_codes must be a tensor, got .*; pass what encode returned"):
        stream.decode(wrong)
    assert is_unharmed()


NO_NUMBERS = {
    "meta": (lambda given: given.to("meta"), "must hold numbers, but is on the meta device, which holds none"),
    "sparse": (lambda given: given.to_sparse(), r"must be a dense tensor, got .*; convert it by to_dense\(\)"),
}


@pytest.mark.parametrize(("made_of", "message"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_tensors_that_hold_no_numbers_or_are_sparse_are_refused(begun, made_of, message):
    stream, is_unharmed = begun
    mask, chunk, codes = torch.ones(2).bool(), torch.zeros(2, 1, FRAME), torch.zeros(2, 9, 1, dtype=torch.long)
    state = {key: made_of(value) for key, value in stream.state_dict().items()}
    for name, call in {
        "a chunk": lambda: stream.encode(made_of(chunk)),
        "audio_codes": lambda: stream.decode(made_of(codes)),
        "exec_mask": lambda: stream.encode(chunk, made_of(mask)),
        "rows": lambda: stream.reset(made_of(torch.tensor([1]))),
        ".* of the state": lambda: stream.load_state_dict(state),
    }.items():
        with pytest.raises(ValueError, match=f"{name} {message}"):
            call()
    assert is_unharmed()


@torch.no_grad()
def test_a_stream_that_checks_no_input_gives_the_same_and_looks_at_no_value(tiny_model, voiced_audio):
    audio = voiced_audio[..., : 4 * FRAME]
    expected = tiny_model.encode(audio).audio_codes
    stream, checked = tiny_model.stream(check_inputs=False), tiny_model.stream()
    for chunk in audio.split(1500, dim=-1):
        codes = stream.encode(chunk)
        assert torch.equal(codes, checked.encode(chunk))
        assert torch.equal(stream.decode(codes), checked.decode(codes))
    assert torch.equal(tiny_model.stream(check_inputs=False).encode(audio), expected)
    stream.encode(torch.full((1, 1, FRAME), torch.nan))
    with pytest.raises(ValueError, match="a chunk must be"):  # shapes are looked at
        stream.encode(torch.zeros(1, FRAME))


def test_a_state_of_lists_is_refused(begun):
    stream, is_unharmed = begun
    with pytest.raises(TypeError, match=r"of the state must be a tensor, got list; pass what state_dict\(\) gave"):
        stream.load_state_dict({key: value.tolist() for key, value in stream.state_dict().items()})
    assert is_unharmed()


@pytest.mark.parametrize(
    "device", ["nonsense", "", "cuda:99", "privateuseone", 99, None, torch.float16, torch.zeros(2)], ids=str
)
def test_a_stream_stays_where_it_is_if_it_is_sent_to_no_device(begun, device):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match=r"device must be one that is available, as the model's is, got .* \(.*\)\.$"):
        stream.to(device)
    assert is_unharmed()


def test_a_stream_stays_where_it_is_if_it_is_sent_to_the_meta_device(begun):
    stream, is_unharmed = begun
    with pytest.raises(
        ValueError, match="a stream cannot be on the meta device, which holds no numbers; move it where"
    ):
        stream.to("meta")
    assert is_unharmed()


@pytest.mark.parametrize("rows", [1, "01", torch.tensor([False, True]), [True], [0.0]], ids=str)
def test_reset_of_what_are_no_numbers_of_rows_is_refused_and_harms_no_row(begun, rows):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match="rows must be a list of numbers from 0 to 1, got"):
        stream.reset(rows)
    assert is_unharmed()


@pytest.mark.parametrize("state", [None, [1]])
def test_state_that_is_no_dict_is_refused(begun, state):
    stream, is_unharmed = begun
    with pytest.raises(ValueError, match=r"the state must be a dict, as state_dict\(\) gives it, got"):
        stream.load_state_dict(state)
    assert is_unharmed()


def test_closed_stream_says_so(model):
    with model.stream() as stream:
        pass
    calls = (
        lambda: stream.encode(torch.zeros(1, 1, FRAME)),
        lambda: stream.decode(torch.zeros(1, 9, 1).long()),
        stream.flush,
        stream.reset,
        stream.state_dict,
        lambda: stream.to("cpu"),
    )
    for call in calls:
        with pytest.raises(ValueError, match="this stream is closed"):
            call()


def test_state_of_another_stream_is_refused_and_harms_no_row(begun, model):
    stream, is_unharmed = begun
    with pytest.raises(
        ValueError, match=r"encoder.tails of the state must be .*shape \(2, .*another model or batch size"
    ):
        stream.load_state_dict(model.stream(3).state_dict())
    state = stream.state_dict()
    del state["waiting"]
    with pytest.raises(ValueError, match=r"\['waiting'\] are missing or too many"):
        stream.load_state_dict(state)
    assert is_unharmed()


def test_model_cast_in_the_middle_of_a_stream_is_refused(tiny_model):
    stream = tiny_model.stream()
    tiny_model.to(torch.float64)
    with pytest.raises(
        ValueError, match="must be torch.float32 on cpu as when the stream began, but now it is torch.fl"
    ):
        stream.encode(torch.zeros(1, 1, FRAME))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_stream_of_no_rows_is_refused(model, batch_size):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.stream(batch_size)


@pytest.mark.parametrize("num_quantizers", [0, 10])
def test_stream_of_more_codebooks_than_there_are_is_refused(model, num_quantizers):
    with pytest.raises(ValueError, match="num_quantizers must be 1 to 9"):
        model.stream(num_quantizers=num_quantizers)


def test_stream_of_half_a_model_does_its_half(tiny_model, sound, expected):
    tiny_model.decoder = None
    stream = tiny_model.stream(4)
    assert torch.equal(stream.encode(sound[..., : 3 * FRAME]), expected[0][..., :3])
    with pytest.raises(ValueError, match="loaded without its decoder"):
        stream.decode(expected[0])


def test_a_call_that_is_broken_off_has_not_happened(model, sound, expected, monkeypatch):
    stream = model.stream(4)
    stream.encode(sound[..., : 20 * FRAME])

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    for num_frames in (1, 30):
        monkeypatch.setattr(PackedQuantizer, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.encode(torch.randn(4, 1, num_frames * FRAME))
        monkeypatch.undo()
    assert torch.equal(stream.encode(sound[..., 20 * FRAME :]), expected[0][..., 20:])


@pytest.mark.parametrize("waiting", [-1, FRAME])
def test_state_in_which_a_whole_frame_waits_is_refused_and_harms_no_row(begun, waiting):
    stream, is_unharmed = begun
    state = stream.state_dict()
    state["num_waiting"] = torch.full_like(state["num_waiting"], waiting)
    with pytest.raises(ValueError, match=rf"num_waiting of the state must lie in \[0, {FRAME}\)"):
        stream.load_state_dict(state)
    assert is_unharmed()
