"""Recorded steps: what a recording reads and writes, with a stand-in that runs the step again instead of a GPU."""

import pytest
import torch

from mimi_bridge.runtime import steps as stream_steps

FRAME = 1920


@pytest.fixture
def recordings(monkeypatch) -> list[torch.device]:
    """Record without a GPU: a replay runs the step again and puts the result where the first one was."""
    made = []

    def record(run, device):
        made.append(device)
        result = run()
        return lambda: result.copy_(run()), result

    monkeypatch.setattr(stream_steps, "record", record)
    return made


@pytest.fixture
def model(tiny_model):
    """The tiny model, whose streams may record on a CPU, too."""

    def stream(*arguments, **options):
        opened = type(tiny_model).stream(tiny_model, *arguments, **options)
        opened._recorder = stream_steps.StepRecorder()
        return opened

    tiny_model.recording_stream = stream
    return tiny_model


@pytest.fixture(scope="module")
def sound(speech) -> torch.Tensor:
    return torch.stack([speech[:, 110_000 * row :][:, : 30 * FRAME] for row in range(3)])


def run(stream, sound, num_frames=1, masks=None):
    """Codes and audio of a sound, some frames a call."""
    codes, audio = [], []
    for number, chunk in enumerate(sound.split(num_frames * FRAME, dim=-1)):
        mask = None if masks is None else masks[number]
        codes.append(stream.encode(chunk, mask))
        audio.append(stream.decode(codes[-1], mask))
    return torch.cat(codes, dim=-1), torch.cat(audio, dim=-1)


def assert_same(found, expected) -> None:
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() <= 1e-6


def test_recorded_steps_give_what_a_stream_gives_and_are_recorded_once_each(model, sound, recordings):
    with model.stream(3) as plain, model.recording_stream(3) as recorded:
        assert_same(run(recorded, sound), run(plain, sound))
    assert recordings == [torch.device("cpu")] * 2


def test_rows_pause_and_begin_again_in_recorded_steps(model, sound, recordings):
    masks = list(torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) < 0.7)
    with model.stream(3) as plain, model.recording_stream(3) as recorded:
        for _ in range(2):
            assert_same(run(recorded, sound, masks=masks), run(plain, sound, masks=masks))
            for stream in (plain, recorded):
                stream.reset(rows=[1])
    assert len(recordings) == 2


def test_calls_of_many_frames_in_between_go_on_from_the_same_state(model, sound, recordings):
    def in_turns(stream):
        results = [
            run(stream, part, count) for part, count in zip(sound.split(10 * FRAME, -1), (1, 5, 1), strict=True)
        ]
        return [torch.cat(each, dim=-1) for each in zip(*results, strict=True)]

    with model.stream(3) as plain, model.recording_stream(3) as recorded:
        assert_same(in_turns(recorded), in_turns(plain))
    assert len(recordings) == 2


def test_two_recording_streams_do_not_meet(model, sound, recordings):
    with model.recording_stream() as one, model.recording_stream() as other, model.stream() as plain:
        expected = [run(plain, sound[row : row + 1]) for row in range(2) if plain.reset() is None]
        found = [[], []]
        for chunks in zip(*(sound[row : row + 1].split(FRAME, dim=-1) for row in range(2)), strict=True):
            for row, stream in enumerate((one, other)):
                codes = stream.encode(chunks[row])
                found[row].append((codes, stream.decode(codes)))
    for row in range(2):
        assert_same([torch.cat(each, dim=-1) for each in zip(*found[row], strict=True)], expected[row])


def test_a_state_is_saved_and_taken_up_by_a_recording_stream(model, sound, recordings):
    with model.recording_stream(3) as first, model.recording_stream(3) as second, model.stream(3) as plain:
        expected = run(plain, sound)
        begun = run(first, sound[..., : 12 * FRAME])
        second.load_state_dict(first.state_dict())
        run(first, sound[..., : 5 * FRAME])  # goes on, and its memory with it
        ended = run(second, sound[..., 12 * FRAME :])
    assert_same([torch.cat(each, dim=-1) for each in zip(begun, ended, strict=True)], expected)


def change_a_weight(model) -> None:
    with torch.no_grad():
        model.encoder.encoder_seanet.layers[0].conv.weight.mul_(1.5)


def replace_a_codebook(model) -> None:
    store = model.quantizer.head_prosody.vq_codebooks[0]
    store.embed = store.embed.flip(1)


def move_the_residual_weight(model) -> None:
    model.quantizer.residual_weight = 0.5


def move_the_residual_weight_of_the_config(model) -> None:
    model.config.residual_weight = 0.5


@pytest.mark.parametrize(
    "change",
    [change_a_weight, replace_a_codebook, move_the_residual_weight, move_the_residual_weight_of_the_config],
)
def test_a_recording_is_made_again_when_what_it_was_made_with_is_another(model, sound, recordings, change):
    with model.stream(3) as plain, model.recording_stream(3) as recorded:
        for stream in (plain, recorded):
            run(stream, sound[..., : 3 * FRAME])
        before = len(recordings)
        change(model)
        assert_same(run(recorded, sound), run(plain, sound))
    assert len(recordings) > before


def test_a_call_that_fails_has_not_happened_in_a_recording_stream(model, sound, recordings):
    with model.stream(3) as plain, model.recording_stream(3) as recorded:
        run(recorded, sound[..., :FRAME])
        broken = sound[..., :FRAME].clone()
        broken[1, 0, 7] = torch.nan
        with pytest.raises(ValueError, match="row 1 of the chunk holds NaN"):
            recorded.encode(broken)
        run(plain, sound[..., :FRAME])
        assert_same(run(recorded, sound[..., FRAME:]), run(plain, sound[..., FRAME:]))


def test_graphs_are_refused_where_there_is_no_gpu(model):
    with pytest.raises(ValueError, match="cuda_graphs needs the model on a GPU, but it is on cpu"):
        model.stream(cuda_graphs=True)


@pytest.mark.gpu
def test_on_a_gpu_a_recorded_stream_gives_the_codes_of_a_plain_one(tiny_model, sound):
    model, sound = tiny_model.cuda(), sound.cuda()
    with model.stream(3) as plain, model.stream(3, cuda_graphs=True) as recorded:
        found, expected = run(recorded, sound), run(plain, sound)
    assert (found[0] == expected[0]).double().mean() > 0.999
    assert (found[1] - expected[1]).abs().median() <= 1e-5
