"""What levers.py finds: what each head's codes tell, what is left of the sound, and what a swap of heads follows."""

from pathlib import Path

import torch

from mimi_bridge import MimiBridgeConfig, MimiBridgeModel
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.evaluation.code_statistics import phone_information
from mimi_bridge.evaluation.probe_matrix import ahead, head_features, probe_matrix
from mimi_bridge.evaluation.swaps import (
    CodedSpeech,
    another_recording,
    chosen_pairs,
    decoded_swap,
    swap_numbers,
    swap_summary,
)
from mimi_bridge.losses.reconstruction import multi_scale_mel_distance
from phone_reader import phone_errors, phone_sequence, train_reader

COLUMNS = {
    "phone": ("content", "prosody", "acoustic"),
    "speaker": ("content", "prosody", "acoustic"),
    "pitch_in_speaker": ("content", "prosody"),
    "energy": ("content", "prosody"),
}
SWAPPED = {  # by the column's title
    "swap: words kept": "words_kept",
    "F0 follows voice": "f0_follows_voice",
    "timbre follows voice": "timbre_follows_voice",
    "timbre of the same voice": "timbre_of_same_voice",
}


@torch.inference_mode()
def measure(model: MimiBridgeModel, spoken: list[dict]) -> dict:
    """Probes of every head's codes, and the mel distance of the decoded recordings, by their frames."""
    quantizer, config = model.quantizer, model.config
    entries = [codebook for head in quantizer.heads.values() for codebook in head.codebooks]
    levels = {"content": range(1), "prosody": range(1, 2), "acoustic": range(2, len(entries))}
    distance, num_frames, content_codes = 0.0, 0.0, []
    for each in spoken:
        latents, audio = each["latents"][None], each["audio"]
        codes = quantizer.encode(latents)
        features = {name: head_features(codes[0], entries, [levels[name]]) for name in levels}
        features["content"] = ahead(features["content"], config.content_delay)
        content_codes.append(ahead(codes[0, 0], config.content_delay))
        each["recording"].features = features
        decoded = model.decode(codes).audio_values
        padded = torch.nn.functional.pad(audio, (0, decoded.shape[-1] - audio.shape[-1]))
        distance += float(multi_scale_mel_distance(decoded, padded[None], config.sampling_rate)) * codes.shape[-1]
        num_frames += codes.shape[-1]
    with torch.inference_mode(False):
        matrix, _ = probe_matrix([each["recording"] for each in spoken], {n: n for n in levels}, config.frame_rate)
    phones = [phone for each in spoken for phone in each["recording"].labels.phone]
    return {
        "probes": matrix,
        "mel": distance / num_frames,
        "pnmi": phone_information(torch.cat(content_codes), phones),
    }


@torch.inference_mode()
def swapped(model: MimiBridgeModel, spoken: list[dict], count: int) -> dict:
    """What swaps of pairs of real speakers follow: content and prosody of one, acoustic codes of the other."""
    aligner = PocketsphinxAligner()
    speakers = [each["recording"].speaker for each in spoken]
    pairs = chosen_pairs([(each["recording"].speaker, each["pitch"]) for each in spoken], count)
    transcripts, swaps = [each["text"] for each in spoken if each["text"]], []

    def decode(codes: torch.Tensor, num_samples: int) -> torch.Tensor:
        return model.decode(codes[None]).audio_values[0, :, :num_samples]

    def coded(place: int) -> CodedSpeech:
        each = spoken[place]
        return CodedSpeech(model.quantizer.encode(each["latents"][None])[0], each["audio"].shape[-1], each["text"])

    for content, voice in pairs:
        other = another_recording(speakers, voice)
        another = None if other is None else coded(other)
        swap = decoded_swap(model, coded(content), coded(voice), another, decode)
        swaps.append(swap_numbers(swap, aligner, transcripts))
    return swap_summary(swaps)


@torch.inference_mode()
def read(model: MimiBridgeModel, data: dict, num_steps: int) -> tuple[float, float]:
    """Phone error rate of a reader of content's codes, on held-out real speakers and made voices."""
    (entries,), delay = model.quantizer.heads["content"].codebooks, model.config.content_delay

    def readable(rows: list[dict]) -> list[tuple[torch.Tensor, list[int]]]:
        codes = [model.quantizer.encode(row["latents"][None].float())[0, 0] for row in rows]
        said = [phone_sequence(phone["phone"] for phone in row["phones"] or ()) for row in rows]
        pairs = [(ahead(entries[own], delay), phones) for own, phones in zip(codes, said, strict=True) if phones]
        return [(own.float().clone(), phones) for own, phones in pairs]

    train, real, made = (readable(data[part]) for part in ("rows", "held_out", "made"))
    with torch.inference_mode(False):
        reader = train_reader([(own.clone(), phones) for own, phones in train], num_steps)
    return phone_errors(reader, real), phone_errors(reader, made) if made else float("nan")


def delay_of(config: MimiBridgeConfig) -> float:
    """Milliseconds that content waits, beyond the frame itself."""
    return 1000 * config.content_delay / config.frame_rate


def table(found: list[dict]) -> str:
    """What each head's codes tell, and the decoded speech."""
    titles = [f"{what}: {head}" for what, heads in COLUMNS.items() for head in heads]
    heads = ["lever", "delay, ms", *titles, "PNMI (shuffled)", "phone errors, real", "made", "mel", *SWAPPED]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(line_of, found)]
    attributes = found[0]["probes"]["attributes"]
    chances = [
        f"{attributes[what]['chance']:.2f}" if what in attributes else "-"
        for what, heads in COLUMNS.items()
        for _ in heads
    ]
    return "\n".join([*lines, f"| *chance* | | {' | '.join([*chances, *[''] * (4 + len(SWAPPED))])} |"]) + "\n"


def line_of(result: dict) -> str:
    """One line of the table: of linear probes, with the interval over speakers."""
    scores = result["probes"]["scores"]
    probed = (scores.get(head, {}).get(what) for what, heads in COLUMNS.items() for head in heads)
    cells = [_score(score and score["linear"]) for score in probed]
    information, shuffled = result["pnmi"]
    errors = [f"{error:.2f}" for error in result.get("errors", ())] or ["-", "-"]
    cells += [f"{information:.2f} ({shuffled:.2f})", *errors, f"{result['mel']:.3f}"]
    cells += [_score(result.get("swaps", {}).get(name)) for name in SWAPPED.values()]
    return f"| {result['name']} | {result['milliseconds']:.0f} | {' | '.join(cells)} |"


def _score(score: dict | None) -> str:
    return "-" if score is None else f"{score['mean']:.2f} ({score['low']:.2f}–{score['high']:.2f})"


def draw(found: list[dict], path: Path) -> None:
    """Phones read from content's codes against its delay: by a linear probe, with its interval, and by the reader."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = sorted(found, key=lambda result: result["milliseconds"])
    delays = [result["milliseconds"] for result in found]
    scores = [result["probes"]["scores"]["content"]["phone"]["linear"] for result in found]
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axis.plot(delays, [score["mean"] for score in scores], marker="o", label="phone of a frame, linear probe")
    axis.fill_between(delays, [s["low"] for s in scores], [s["high"] for s in scores], alpha=0.2)
    for place, voices in enumerate(("real speakers", "made voices")):
        right = [1 - result["errors"][place] for result in found]
        axis.plot(delays, right, marker="o", linestyle="--", label=f"1 - phone error rate of a reader, {voices}")
    axis.set(xlabel="content_delay, ms", ylim=(0, 1))
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
