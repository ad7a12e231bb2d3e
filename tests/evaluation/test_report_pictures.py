"""Pictures in the page."""

import io
import math

import pytest
import torch
from matplotlib.image import imread

from mimi_bridge.evaluation.report.pictures import (
    NUM_BANDS,
    SAMPLING_RATE,
    band_centre_hz,
    band_levels,
    code_stripes,
    frequency_ticks,
    is_voiced,
    pitch_path,
    pitch_range,
    pitch_ticks,
    png,
    spectrogram,
)


def read(picture: bytes) -> torch.Tensor:
    """`(rows, columns, 3)`, 0 to 255, as matplotlib reads it."""
    return (torch.from_numpy(imread(io.BytesIO(picture), format="png"))[..., :3] * 255).round().int()


def test_png_is_read_back_by_another_program():
    palette = [(0, 0, 0), (255, 0, 0), (1, 2, 3)]
    pixels = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1], [1, 0, 0, 0]])
    assert torch.equal(read(png(pixels, palette)), torch.tensor(palette)[pixels].int())


@pytest.mark.parametrize("hertz", [110, 440, 1_000, 3_500, 9_000])
def test_tone_is_loudest_in_the_band_around_it(hertz):
    tone = 0.1 * torch.sin(2 * torch.pi * hertz * torch.arange(SAMPLING_RATE) / SAMPLING_RATE)
    levels = band_levels(tone, 1.0)
    loudest = int(levels[:, 50].argmax())
    nearest = min(range(NUM_BANDS), key=lambda band: abs(band_centre_hz(band) - hertz))
    assert abs(loudest - nearest) <= 1
    assert band_centre_hz(0) > 50 and band_centre_hz(NUM_BANDS - 1) < SAMPLING_RATE / 2


def test_no_band_is_empty():
    noise = torch.randn(SAMPLING_RATE, generator=torch.Generator().manual_seed(0))
    assert band_levels(noise, 1.0)[:, 10:-10].min() > -60


def test_every_ten_milliseconds_has_a_column_until_there_are_too_many():
    assert band_levels(torch.zeros(SAMPLING_RATE), 1.0).shape == (NUM_BANDS, 101)
    assert band_levels(torch.zeros(10), 60.0).shape[1] <= 1_001


def test_sound_that_ends_early_leaves_the_rest_white():
    noise = torch.randn(SAMPLING_RATE // 2, generator=torch.Generator().manual_seed(0))
    levels = band_levels(noise, 1.0)
    picture = read(spectrogram(levels, float(levels.max())))
    assert picture[:, 60:].min() == 255
    assert picture[:, :40].float().mean() < 100


def test_spectrogram_has_high_frequencies_on_top():
    tone = torch.sin(2 * torch.pi * 9_000 * torch.arange(SAMPLING_RATE) / SAMPLING_RATE)
    levels = band_levels(tone, 1.0)
    dark = (read(spectrogram(levels, float(levels.max())))[:, 50, 0] < 30).nonzero()
    assert 0 < dark.max() < NUM_BANDS // 4


def test_ticks_rise_along_the_axis():
    heights = [share for _, share in frequency_ticks()]
    assert heights == sorted(heights) and 0 < heights[0] and heights[-1] < 1


def test_pitch_is_drawn_on_an_axis_of_octaves():
    assert pitch_path([100.0, 120.0, None, 200.0], (100.0, 400.0)) == "M0 100.0h.1L1 86.8M3 50.0h.1"


def test_pitch_line_breaks_at_a_trackers_octave_error():
    assert pitch_path([100.0, 200.0, 100.0], (50.0, 400.0)).count("M") == 3


def test_range_of_pitch_leaves_out_a_few_wild_values():
    low, high = pitch_range([[100.0 + i for i in range(100)], [None, math.nan, 0.0, 3_000.0]])
    assert 85 < low < 101 and 199 < high < 250


def test_range_of_pitch_is_none_when_nothing_is_voiced():
    assert pitch_range([[None, 0.0, math.nan], []]) is None


def test_pitch_of_one_value_has_a_range_and_ticks_within_it():
    span = pitch_range([[150.0]])
    assert span[0] < 150 < span[1]
    assert [label for label, _ in pitch_ticks(span)] == ["150"]


@pytest.mark.parametrize("hertz, voiced", [(None, False), (0, False), (math.nan, False), (99.5, True)])
def test_only_a_positive_number_is_voiced(hertz, voiced):
    assert is_voiced(hertz) is voiced


def test_equal_codes_have_equal_shades_and_neighbouring_codes_do_not():
    picture = read(code_stripes(torch.tensor([[7, 7, 8, 2_047], [0, 1, 2, 7]]), "content"))
    assert torch.equal(picture[0, 0], picture[0, 1]) and torch.equal(picture[0, 0], picture[1, 3])
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}) == 6


def test_heads_have_different_colours():
    heads = ("content", "prosody", "acoustic", "another")
    pictures = [read(code_stripes(torch.tensor([[5]]), head))[0, 0] for head in heads]
    assert len({tuple(pixel.tolist()) for pixel in pictures}) == 4
