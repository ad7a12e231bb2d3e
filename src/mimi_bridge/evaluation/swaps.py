"""Head swaps: content and prosody of one recording with the acoustic codes of another, and which of them it follows.

Each swap is compared with both recordings decoded by the same model, so that the codec's own distortion counts for
neither side. 0 is the recording that gave content and prosody, 1 the one that gave the acoustic codes.

- words: does the first's transcript fit the swapped sound better than those of ten others (pocketsphinx)?
- pitch: where the swap's mean log F0 lies between those of the two, and its contour's correlation with the first's;
- timbre: where the swap's mean log mel spectrum lies between those of the two, along the line from one to the other;
  what lies across it, such as the spectrum of the words themselves, is of neither voice;
- with a speech recognizer, the word error of the swap and of the first decoded; with a speaker encoder, how like the
  swap's voice is to those of the two.

Beside pitch, timbre and voice stands what another recording of the voice itself has: no swap can be expected to be
more like the voice than its speaker is when saying something else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..audio.sound import Sound
from ..losses.reconstruction import mean_spectrum
from ..modeling_mimi_bridge import MimiBridgeModel
from .intelligibility import best_fitting_transcript, like_sized_transcripts
from .intervals import mean_with_interval
from .metrics import Metric

MIN_OCTAVES = 1 / 12  # between two voices; nearer ones do not show which of them a pitch follows
MIN_NEPERS = 0.9  # between their mean spectra: as far as those of two recordings of one voice are apart on average
MIN_STEPS = 20  # voiced in both recordings, for a correlation of their contours
OTHER_TRANSCRIPTS = 9
TIMBRE_WINDOW, TIMBRE_BANDS = 512, 16  # too coarse to see harmonics


@dataclass(frozen=True)
class Swap:
    """Two recordings decoded, and one with the heads of both.

    Attributes:
        content: Decoded from all heads of the recording that gives content and prosody, with its text.
        voice: Decoded from all heads of the other.
        swapped: As long as `content`.
        another: Decoded from all heads of another recording of the voice's speaker, if there is one.
    """

    content: Sound
    voice: Sound
    swapped: Sound
    another: Sound | None = None


@dataclass(frozen=True)
class CodedSpeech:
    """A recording as its codes, `(codebooks, frames)`, with its length in samples and its transcript."""

    codes: Tensor
    num_samples: int
    text: str | None


def decoded_swap(
    model: MimiBridgeModel,
    content: CodedSpeech,
    voice: CodedSpeech,
    another: CodedSpeech | None,
    decode: Callable[[Tensor, int], Tensor],
) -> Swap:
    """Both recordings decoded, and content and prosody of the one with the acoustic codes of the other.

    Args:
        model: Whose codes they are.
        content: Gives content and prosody.
        voice: Gives the acoustic codes.
        another: Also said by the voice's speaker, to compare with.
        decode: From codes and a number of samples to audio, `(1, samples)`.
    """
    mixed = model.swap_heads(content.codes[None], voice.codes[None])[0]
    coded = [content, voice, CodedSpeech(mixed, content.num_samples, None), *([another] if another else [])]
    rate = model.config.sampling_rate
    return Swap(*(Sound(decode(each.codes, each.num_samples), rate, each.text) for each in coded))


def chosen_pairs(recordings: list[tuple[str, float | None]], count: int) -> list[tuple[int, int]]:
    """Pairs of different speakers, far apart in pitch.

    Args:
        recordings: Speaker and mean log2 F0 of each, the latter None if unknown.
        count: Pairs wanted.

    Returns:
        Indices of the recordings that give content and voice; no recording gives either twice.
    """
    known = [pitch for _, pitch in recordings if pitch is not None]
    middle = sum(known) / len(known) if known else 0.0
    pitches = [middle if pitch is None else pitch for _, pitch in recordings]
    pairs: list[tuple[int, int]] = []
    for place in range(count):
        content = round(place * (len(recordings) - 1) / max(1, count - 1))
        taken = {voice for _, voice in pairs}
        others = [n for n in range(len(recordings)) if recordings[n][0] != recordings[content][0] and n not in taken]
        if others and content not in {first for first, _ in pairs}:
            distance = {n: abs(pitches[n] - pitches[content]) for n in others}
            pairs.append((content, max(others, key=lambda n: (distance[n], -n))))
    return pairs


def another_recording(speakers: list[str], voice: int) -> int | None:
    """Index of another recording of the same speaker, None if there is none."""
    return next((n for n, speaker in enumerate(speakers) if speaker == speakers[voice] and n != voice), None)


def swap_numbers(swap: Swap, aligner: Any = None, transcripts: list[str] | None = None) -> dict[str, float]:
    """Which recording a swapped sound follows; numbers that cannot be measured are left out.

    Args:
        swap: The three sounds.
        aligner: A `PocketsphinxAligner`, for `words_kept`.
        transcripts: Of other recordings, that of the voice among them.
    """
    numbers: dict[str, float] = {}
    if aligner is not None and swap.content.text and transcripts:
        numbers |= _words(swap, aligner, transcripts)
    numbers |= _place_between_voices(swap, swap.swapped)
    if swap.another is not None:
        between = _place_between_voices(swap, swap.another)
        numbers |= {name.replace("follows_voice", "of_same_voice"): value for name, value in between.items()}
    tracks = [sound.f0_hz for sound in (swap.content, swap.voice, swap.swapped)]
    for name, track in zip(("content", "voice", "swapped"), tracks, strict=True):
        if (track > 0).any():
            numbers[f"f0_{name}_hz"] = 2 ** _mean_octave(track)
    both = (tracks[0] > 0) & (tracks[2] > 0)
    if int(both.sum()) >= MIN_STEPS:
        contours = torch.stack([tracks[0][both].log2(), tracks[2][both].log2()])
        correlation = torch.corrcoef(contours)[0, 1].item()
        numbers |= {"f0_contour_correlation": correlation} if correlation == correlation else {}
    return numbers


def listener_numbers(listeners: Mapping[str, Metric], swap: Swap) -> dict[str, float]:
    """What listeners (`word_error`, `speaker_similarity`) hear in a swapped sound, as far as they hear anything."""
    pairs: dict[str, tuple[str, Sound, Sound]] = {}
    if "word_error" in listeners:
        pairs |= {"word_error": ("word_error", swap.swapped, swap.content)}
        pairs |= {"word_error_before": ("word_error", swap.content, swap.content)}
    if "speaker_similarity" in listeners:
        pairs |= {"voice_like_voice": ("speaker_similarity", swap.swapped, swap.voice)}
        pairs |= {"voice_like_content": ("speaker_similarity", swap.swapped, swap.content)}
        if swap.another is not None:
            pairs |= {"same_voice_like_voice": ("speaker_similarity", swap.another, swap.voice)}
    found = {number: listeners[name].measure(decoded, other) for number, (name, decoded, other) in pairs.items()}
    return {number: value for number, value in found.items() if value is not None}


def swap_summary(swaps: list[dict[str, float]]) -> dict[str, dict]:
    """Mean and interval of each number that is a share or a correlation, over swaps."""
    names = (
        "words_kept",
        "words_kept_before",
        "words_follow_voice",
        "f0_follows_voice",
        "f0_contour_correlation",
        "f0_of_same_voice",
        "timbre_follows_voice",
        "timbre_of_same_voice",
        "word_error",
        "word_error_before",
        "voice_like_voice",
        "voice_like_content",
        "same_voice_like_voice",
    )
    values = {name: [numbers[name] for numbers in swaps if name in numbers] for name in names}
    return {name: mean_with_interval(found) for name, found in values.items() if found}


def _words(swap: Swap, aligner: Any, transcripts: list[str]) -> dict[str, float]:
    from ..data.alignment.pocketsphinx import normalized_words

    text, theirs = swap.content.text, swap.voice.text
    assert text is not None
    unlike = {" ".join(normalized_words(other)) for other in (*transcripts, theirs or "")}
    unlike -= {" ".join(normalized_words(text)), ""}
    texts = [text, *like_sized_transcripts(text, sorted(unlike), min(OTHER_TRANSCRIPTS, len(unlike)))]
    spoken = " ".join(normalized_words(theirs or ""))
    if spoken in unlike and spoken not in texts:
        texts.append(spoken)
    if len(texts) < 2:
        return {}
    after, before = (
        best_fitting_transcript(aligner, sound.audio, sound.sampling_rate, texts)
        for sound in (swap.swapped, swap.content)
    )
    figures = {"words_kept": float(after == 0), "words_kept_before": float(before == 0)}
    if spoken in texts:
        figures["words_follow_voice"] = float(after is not None and texts[after] == spoken)
    return figures


def _place_between_voices(swap: Swap, sound: Sound) -> dict[str, float]:
    """Where a sound lies between the first, 0, and the voice, 1, in pitch and in timbre, where these differ enough."""
    places = {}
    tracks = [each.f0_hz for each in (swap.content, swap.voice, sound)]
    if all((track > 0).any() for track in tracks):
        content, voice, ours = map(_mean_octave, tracks)
        if abs(voice - content) >= MIN_OCTAVES:
            places["f0_follows_voice"] = (ours - content) / (voice - content)
    spectra = [_mean_spectrum(each) for each in (swap.content, swap.voice, sound)]
    line, way = spectra[1] - spectra[0], spectra[2] - spectra[0]
    if line.norm() >= MIN_NEPERS:
        places["timbre_follows_voice"] = ((way @ line) / (line @ line)).item()
    return places


def _mean_octave(track: Tensor) -> float:
    return track[track > 0].log2().mean().item()


def _mean_spectrum(sound: Sound) -> Tensor:
    return mean_spectrum(sound.audio[None], sound.sampling_rate, TIMBRE_WINDOW, TIMBRE_BANDS)[0]
