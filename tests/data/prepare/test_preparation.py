"""A data set against plain forward passes, read by the collator; the same from one process and from two."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, load_from_disk
from transformers import AutoModel, AutoTokenizer, EncodecFeatureExtractor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from commands import start_command
from mimi_bridge.alignment_targets import align_tokens_to_frames, pool_to_frames
from mimi_bridge.audio.espeak import VOICES, synthesize
from mimi_bridge.audio.files import load_audio
from mimi_bridge.data.alignment.pocketsphinx import PocketsphinxAligner
from mimi_bridge.data.alignment.tokens import token_spans
from mimi_bridge.data.collator import MimiBridgeCollator
from mimi_bridge.data.latents import OriginalLatents
from mimi_bridge.data.prepare.run import Report, prepare
from mimi_bridge.data.settings import Settings
from mimi_bridge.data.teachers.statistics import RunningStatistics
from tiny_ctc import write_tiny_ctc
from tiny_teachers import write_tiny_qwen, write_tiny_wavlm

TEXTS = (
    "Fresh snow fell, and fell.",
    "Why walk?",
    "Bread, honey and two lemons!",
    "Please, the blue folder.",
    "Nobody noticed the judge.",
)
MIN_SCORE = -60.0  # espeak-ng does not speak as the aligner likes it
HALF = {"atol": 4e-3, "rtol": 2e-3}  # half precision, and how a batch rounds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five recordings of two speakers, and their transcripts, at 24 kHz."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, text in enumerate(TEXTS):
        path = folder / f"speaker{number % 2}" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, synthesize(text, VOICES[number])[0].numpy(), 24_000)
        path.with_suffix(".txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "text_teacher": write_tiny_qwen(folder / "qwen"),
        "speech_teacher": write_tiny_wavlm(folder / "wavlm"),
    }


@pytest.fixture(scope="module")
def settings(folder, teachers) -> Settings:
    return Settings(str(folder), **teachers, recordings_per_shard=2, min_score=MIN_SCORE)


@pytest.fixture(scope="module")
def prepared(settings, tmp_path_factory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("prepared") / "data"
    report = prepare(settings, output)
    assert report is not None
    return output, report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_of(folder: Path) -> Dataset:
    return load_from_disk(str(folder)).with_format("numpy")


@torch.no_grad()
def test_states_are_those_of_a_plain_forward_pass_of_each_text_alone(prepared, teachers):
    tokenizer = AutoTokenizer.from_pretrained(teachers["text_teacher"])
    model = AutoModelForCausalLM.from_pretrained(teachers["text_teacher"]).eval()
    for row, text in zip(rows_of(prepared[0]), np.array(TEXTS)[[0, 2, 4, 1, 3]], strict=True):
        plain = model(**tokenizer(str(text), return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0]
        assert row["text"] == text and len(plain) > 1
        assert row["token_ids"].tolist() == tokenizer(str(text))["input_ids"]
        torch.testing.assert_close(torch.from_numpy(row["qwen_hidden"]), plain, **HALF)


@torch.no_grad()
def test_features_are_those_of_a_plain_forward_pass_of_each_recording_alone(prepared, teachers):
    model = AutoModel.from_pretrained(teachers["speech_teacher"]).eval()
    for row in rows_of(prepared[0]):
        samples = load_audio(str(row["audio_path"]), 16_000)[0]
        samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        padded = torch.nn.functional.pad(samples, (0, -len(samples) % 1280))[None]
        plain = pool_to_frames(model(padded).last_hidden_state, torch.ones(1, int(row["num_frames"])).bool())[0]
        torch.testing.assert_close(torch.from_numpy(row["wavlm_features"]), plain, **HALF)


def test_tokens_have_the_place_that_the_aligner_gives_their_words(prepared, teachers):
    tokenizer = AutoTokenizer.from_pretrained(teachers["text_teacher"])
    for row in rows_of(prepared[0]):
        text = str(row["text"])
        found = PocketsphinxAligner().align(load_audio(str(row["audio_path"]), 24_000), 24_000, text)
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert row["alignment_score"] == pytest.approx(found.score)
        assert [word["word"] for word in row["words"]] == [word.label for word in found.words]
        np.testing.assert_allclose(row["token_spans"], token_spans(text, offsets, found.words), atol=1e-6)
        assert [phone["phone"] for phone in row["phones"]] == [phone.label for phone in found.phones]
        np.testing.assert_allclose([p["start"] for p in row["phones"]], [p.start for p in found.phones], atol=1e-6)
        assert (row["token_spans"][:, 1] > row["token_spans"][:, 0]).sum() > 1


def test_recordings_come_in_order_with_speaker_and_length(prepared, folder):
    rows, report = rows_of(prepared[0]), prepared[1]
    assert list(rows["id"]) == [f"speaker{n % 2}/{n}.wav" for n in (0, 2, 4, 1, 3)]
    assert list(rows["speaker"]) == [f"speaker{n % 2}" for n in (0, 2, 4, 1, 3)]
    lengths = [soundfile.info(folder / str(name)).frames for name in rows["id"]]
    assert rows["num_frames"][:].tolist() == [-(-length // 1920) for length in lengths]
    assert report.hours == pytest.approx(sum(lengths) / 24_000 / 3600)
    assert (report.num_recordings, report.num_with_tokens, report.dropped) == (5, 5, [])
    assert json.loads((prepared[0] / "report.json").read_text())["num_recordings"] == 5


def test_collator_reads_the_data_set_as_it_is(prepared):
    rows = [rows_of(prepared[0])[index] for index in range(5)]
    batch = MimiBridgeCollator(24_000, 1920)(rows)
    num_frames = max(int(row["num_frames"]) for row in rows)
    assert batch["input_values"].shape == (5, 1, 1920 * num_frames)
    expected = load_audio(str(rows[3]["audio_path"]), 24_000)[0]
    assert torch.equal(batch["input_values"][3, 0, : len(expected)], expected)
    assert batch["wavlm_features"].shape == (5, num_frames, 16) and batch["wavlm_mask"].sum() < 5 * num_frames
    assert batch["qwen_hidden"].shape[0::2] == (5, 16)
    assert torch.equal(batch["token_spans"][0, : len(rows[0]["token_spans"])], torch.tensor(rows[0]["token_spans"]))


def test_statistics_are_those_of_the_frames_that_training_sees(prepared):
    targets: dict[str, list] = {"qwen": [], "wavlm": []}
    for row in rows_of(prepared[0]):
        mask = torch.ones(1, int(row["num_frames"])).bool()
        hidden, spans = (torch.from_numpy(row[name])[None] for name in ("qwen_hidden", "token_spans"))
        laid_out, has_target = align_tokens_to_frames(hidden, mask, 12.5, spans=spans)
        targets["qwen"].append(laid_out[has_target])
        targets["wavlm"].append(torch.from_numpy(row["wavlm_features"]))
    for name, parts in targets.items():
        expected, statistics = (
            torch.cat(parts).double(),
            RunningStatistics.load(prepared[0] / f"{name}_statistics.safetensors"),
        )
        assert statistics.weight == len(expected) > 10
        torch.testing.assert_close(statistics.mean, expected.mean(dim=0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(statistics.std, expected.std(dim=0, unbiased=False), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_two_processes_make_the_same_data_set_as_one(prepared, settings, tmp_path, num_proc):
    """A pool of two; and two as `torchrun` starts them."""
    arguments = [
        "prepare",
        settings.source,
        "-o",
        tmp_path / "data",
        "--recordings-per-shard",
        2,
        "--min-score",
        MIN_SCORE,
    ]
    arguments += ["--text-teacher", settings.text_teacher, "--speech-teacher", settings.speech_teacher]
    if num_proc == 2:
        processes = [start_command(*arguments, "--num-proc", 2, log=tmp_path / "log")]
    else:
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": unused_port()}
        ranks = ({"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
        processes = [start_command(*arguments, log=tmp_path / "log", environment=world | rank) for rank in ranks]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert contents(tmp_path / "data") == contents(prepared[0])
    assert (tmp_path / "log").read_text().count("5 recordings, 5 of them with tokens") == 1


def unused_port() -> str:
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return str(unused.getsockname()[1])


def test_latents_of_a_model_in_half_precision_are_computed_in_single(folder, tiny_model, tmp_path):
    torch.nn.init.zeros_(tiny_model.quantizer.head_content.project_out.weight)
    tiny_model.half().save_pretrained(tmp_path / "model")
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path / "model")
    settings = Settings(
        str(folder / "speaker1"), text_teacher=None, speech_teacher=None, latents_model=str(tmp_path / "model")
    )
    assert prepare(settings, tmp_path / "data").num_recordings == 2
    assert all(row["latents"].dtype == np.float32 for row in rows_of(tmp_path / "data"))


def test_data_set_is_prepared_with_its_samples_and_perhaps_latents(folder, teachers, tiny_model, tmp_path):
    paths = [str(folder / f"speaker{n % 2}" / f"{n}.wav") for n in (1, 3)]
    source = Dataset.from_dict({"audio": paths, "sentence": [TEXTS[1], None]}).cast_column("audio", Audio())
    source.save_to_disk(tmp_path / "source")
    torch.nn.init.zeros_(tiny_model.quantizer.head_content.project_out.weight)
    tiny_model.save_pretrained(tmp_path / "model")
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path / "model")
    settings = Settings(
        str(tmp_path / "source"), **teachers, latents_model=str(tmp_path / "model"), min_score=MIN_SCORE
    )
    report = prepare(settings, tmp_path / "data")
    assert report.num_with_tokens == 1 and report.remarks == [["00000001", "without tokens: it has no transcript"]]
    rows = [rows_of(tmp_path / "data")[index] for index in range(2)]
    assert rows[1]["qwen_hidden"] is None and "audio_path" not in rows[1]
    latents, target = OriginalLatents(tiny_model)(load_audio(paths[1], 24_000))
    torch.testing.assert_close(torch.from_numpy(rows[1]["latents"]), latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.from_numpy(rows[1]["target_latents"]), target, atol=1e-3, rtol=1e-3)
    collate = MimiBridgeCollator(24_000, 1920)
    assert collate(rows)["latents"].shape[0] == 2
    batch = collate([{name: value for name, value in row.items() if "latents" not in name} for row in rows])
    expected = load_audio(paths[1], 24_000)[0]
    assert (batch["input_values"][1, 0, : len(expected)] - expected).abs().max() <= 2**-15


def test_recordings_score_and_features_do_not_depend_on_those_before(prepared, settings, tmp_path):
    prepare(replace(settings, recordings_per_shard=1), tmp_path / "data")
    for row, alone in zip(rows_of(prepared[0]), rows_of(tmp_path / "data"), strict=True):
        assert row["alignment_score"] == alone["alignment_score"]
        assert np.array_equal(row["token_spans"], alone["token_spans"])
        np.testing.assert_allclose(row["wavlm_features"], alone["wavlm_features"], atol=4e-3, rtol=2e-3)


def test_alignment_that_comes_with_a_recording_is_taken_unless_it_is_to_be_made_again(settings, tmp_path, folder):
    for name in ("0.wav", "0.txt"):
        (tmp_path / name).symlink_to(folder / "speaker0" / name)
    line = "{} 1 {} 0.2 {}\n".format
    words = ("fresh", "snow", "fell", "and", "fell")
    (tmp_path / "0.ctm").write_text("".join(line(0, 0.1 + 0.3 * n, word) for n, word in enumerate(words)))
    given = replace(settings, source=str(tmp_path), aligner="given")
    assert prepare(given, tmp_path / "given").num_with_tokens == 1
    row = rows_of(tmp_path / "given")[0]
    np.testing.assert_allclose([word["start"] for word in row["words"]], [0.1, 0.4, 0.7, 1.0, 1.3], atol=1e-6)
    assert row["token_spans"][0, 0] == pytest.approx(0.1) and np.isnan(row["alignment_score"])
    prepare(replace(settings, source=str(tmp_path), realign=True), tmp_path / "again")
    assert rows_of(tmp_path / "again")[0]["words"][1]["start"] != pytest.approx(0.4)
    bare = prepare(replace(settings, aligner="given"), tmp_path / "bare")
    assert bare.num_with_tokens == 0 and bare.remarks[0][1].endswith("it has no alignment, and aligner is 'given'")


def test_words_may_be_placed_by_a_ctc_model(settings, tmp_path):
    pytest.importorskip("torchaudio")
    report = prepare(replace(settings, aligner=write_tiny_ctc(tmp_path / "ctc")), tmp_path / "data")
    assert report.num_with_tokens == 5
    row = rows_of(tmp_path / "data")[0]
    assert [word["word"].lower().strip(",.") for word in row["words"]] == ["fresh", "snow", "fell", "and", "fell"]
    assert row["token_spans"].max() <= row["num_frames"] / 12.5


def test_list_of_recordings_that_changed_is_refused_not_mixed(settings, tmp_path, folder):
    (tmp_path / "0.wav").symlink_to(folder / "speaker0/0.wav")
    alone = replace(settings, source=str(tmp_path), text_teacher=None)
    assert prepare(alone, tmp_path / "data").num_recordings == 1
    (tmp_path / "1.wav").symlink_to(folder / "speaker1/1.wav")
    with pytest.raises(FileExistsError, match=r"exists already .recordings '1, \w{16}', now '2, \w{16}'."):
        prepare(alone, tmp_path / "data")


def test_threads_of_the_caller_are_as_they_were(settings, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare(replace(settings, text_teacher=None, max_seconds=1.9), tmp_path / "data")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_teacher": None, "speech_teacher": None}, "nothing to prepare"),
        ({"text_teacher": None, "require_tokens": True}, "tokens cannot be required without a text teacher"),
        ({"audio": "flac"}, "audio must be one of auto, path, samples, none, got 'flac'"),
        ({"audio": "none"}, "audio must be 'path' or 'samples' where no latents are stored"),
        ({"aligner": "given", "realign": True}, "realign needs an aligner"),
        ({"speech_layer": "last"}, "speech_layer must be a number or 'mean', got 'last'"),
        ({"min_seconds": 9, "max_seconds": 3}, "0 <= min <= max, got 9 and 3"),
        ({"recordings_per_shard": 0}, "recordings_per_shard must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings("here", **changes)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"text_layer": 9}, ValueError, "layer must be 0 .embeddings. to 3"),
        ({"speech_teacher": "/nowhere"}, OSError, "nowhere"),
        ({"aligner": "/nowhere/ctc"}, OSError, "nowhere"),
        ({"max_seconds": 0.1}, ValueError, "none of the 5 recordings of .* is of use; the first, speaker0/0.wav, is"),
    ],
)
def test_what_makes_every_recording_useless_stops_it_at_once(settings, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(replace(settings, **changes), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_run_that_found_nothing_of_use_leaves_nothing_in_the_way(settings, tmp_path):
    with pytest.raises(ValueError, match="none of the 5 recordings"):
        prepare(replace(settings, max_seconds=0.1), tmp_path / "data")
    assert not list(tmp_path.iterdir())


# --- phones, pitch and level ---


def test_phones_are_stored_without_a_language_model_where_they_are_wanted(settings, prepared, teachers, tmp_path):
    bare = replace(settings, text_teacher=None, phones=True)
    report = prepare(bare, tmp_path / "data")
    assert report is not None and report.dropped == report.remarks == []
    for row, expected in zip(rows_of(tmp_path / "data"), rows_of(prepared[0]), strict=True):
        assert [*row["phones"]] == [*expected["phones"]] and [*row["words"]] == [*expected["words"]]
        assert row["alignment_score"] == expected["alignment_score"] and "token_spans" not in row


def test_recording_whose_phones_cannot_be_found_is_kept_and_named(settings, tmp_path):
    bare = replace(settings, text_teacher=None, speech_teacher=None, phones=True, min_score=0.0, audio="samples")
    report = prepare(bare, tmp_path / "data")
    assert report is not None and report.num_recordings == len(TEXTS) == len(report.remarks)
    assert all("without phones: its alignment has the score" in remark for _, remark in report.remarks)
    assert {row["phones"] is None for row in rows_of(tmp_path / "data")} == {True}


def test_pitch_and_level_of_every_ten_milliseconds_are_stored_where_they_are_wanted(settings, prepared, tmp_path):
    pytest.importorskip("parselmouth")
    assert {"f0_hz", "level_db"}.isdisjoint(rows_of(prepared[0]).column_names)
    prepare(replace(settings, prosody=True), tmp_path / "data")
    rows = rows_of(tmp_path / "data")
    for row in rows:
        samples = load_audio(str(row["audio_path"]), 24_000)[0]
        assert len(row["f0_hz"]) == len(row["level_db"]) == -(-len(samples) // 240)
        power = samples[1680:1920].square().mean().item()
        assert row["level_db"][7] == pytest.approx(10 * np.log10(power), abs=1e-3)
        voiced = row["f0_hz"][row["f0_hz"] > 0]
        assert len(voiced) > 20 and 50 < np.median(voiced) < 400
    collate = MimiBridgeCollator(24_000, 1920).with_frame_targets(["phones", "prosody", "speaker"], {"speaker1": 0})
    batch = collate([rows[number] for number in range(len(rows))])
    assert (batch["phone_ids"] > 0).float().mean() > 0.3 and batch["prosody_mask"][..., 0].float().mean() > 0.2
    assert sorted(batch["speaker_ids"].tolist()) == [-100, -100, -100, 0, 0]
