"""A sound, with its pitch and its samples at 16 kHz, which several metrics need; each is computed once.

The pitch is Praat's, by autocorrelation: 75 to 600 Hz, a step of 10 ms, so that 8 steps are one frame at 12.5 Hz.

Source: Boersma 1993, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a
sampled sound".
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import soxr
import torch
from torch import Tensor

WIDEBAND_RATE = 16_000  # Hz
PITCH_RATE = 100  # steps a second
LOWEST_HZ, HIGHEST_HZ = 75.0, 600.0


def f0_or_none(audio: Tensor, sampling_rate: int) -> np.ndarray:
    """`Sound.f0_hz` of a recording `(1, samples)`, `(steps,)`; 0 throughout where it is too short to have a pitch.

    Raises:
        ModuleNotFoundError: If praat-parselmouth is not installed.
    """
    try:
        return Sound(audio, sampling_rate).f0_hz.numpy()
    except ValueError:
        return np.zeros(-(-audio.shape[-1] * PITCH_RATE // sampling_rate), np.float32)


@dataclass(frozen=True, eq=False)
class Sound:
    """One recording, original or decoded.

    Attributes:
        audio: `(1, samples)`.
        sampling_rate: Hz.
        text: Its transcript, or None if it is unknown.
    """

    audio: Tensor
    sampling_rate: int
    text: str | None = None

    @cached_property
    def samples(self) -> np.ndarray:
        """`(samples,)`, float64."""
        return self.audio[0].detach().cpu().double().numpy()

    @cached_property
    def wideband(self) -> np.ndarray:
        """`(samples,)` at 16 kHz, float32."""
        return soxr.resample(self.samples.astype(np.float32), self.sampling_rate, WIDEBAND_RATE)

    @cached_property
    def f0_hz(self) -> Tensor:
        """Pitch at 100 Hz, `(steps,)`, 0 where there is none; step `i` begins at `i` / 100 s.

        Raises:
            ModuleNotFoundError: If praat-parselmouth is not installed.
            ValueError: If the sound is too short to have a pitch.
        """
        import parselmouth

        sound = parselmouth.Sound(self.samples, self.sampling_rate)
        try:
            pitch = sound.to_pitch(time_step=1 / PITCH_RATE, pitch_floor=LOWEST_HZ, pitch_ceiling=HIGHEST_HZ)
        except parselmouth.PraatError as error:
            raise ValueError(f"the sound has no pitch to be found: {str(error).splitlines()[0]}") from error
        steps = torch.zeros(-(-len(self.samples) * PITCH_RATE // self.sampling_rate))
        # Praat centres its steps in the sound: all lie equally far into ours, and no two in the same one.
        places = torch.from_numpy(np.floor(pitch.xs() * PITCH_RATE + 1e-6).astype(np.int64)).clamp(0, len(steps) - 1)
        steps[places] = torch.from_numpy(pitch.selected_array["frequency"]).float()
        return steps
