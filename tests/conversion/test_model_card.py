"""The card of a converted model: every figure is the report's, and what it tells the reader to type works."""

import re
from copy import deepcopy

import pytest
from huggingface_hub import ModelCard

from model_card import model_card


@pytest.fixture
def report(converted):
    """A report, to change as the test likes."""
    return deepcopy(converted.report)


@pytest.fixture(scope="module")
def card(converted):
    """The card in the converted folder."""
    return (converted.folder / "README.md").read_text()


def test_card_in_the_folder_is_the_card_of_its_report(card, converted):
    assert card == model_card(converted.report, converted.folder.name)


def test_card_has_the_heads_figures_in_the_order_of_the_source_codebooks(card, converted):
    proof = converted.report["proof"]
    pattern = r"^\| ((?:prosody|acoustic).*?) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$"
    rows, default = re.findall(pattern, card, flags=re.MULTILINE), proof["default_path"]["codes_equal"]
    assert rows == [
        (name, str(number), f"{share:.4f}", f"{default[name]:.4f}", str(proof["codes_in_use"][name]))
        for number, (name, share) in enumerate(proof["codes_equal"].items())
    ]
    assert len(rows) == 8


def test_card_tells_a_share_that_is_not_whole(report):
    report["proof"]["codes_equal"]["acoustic 3"] = 0.9876
    assert re.search(r"^\| acoustic 3 \| 3 \| 0\.9876 \|", model_card(report, "bridge"), flags=re.MULTILINE)


@pytest.mark.parametrize(
    "figure, value, sentence",
    [
        ("seconds", 23.456, "23.456 s of speech"),
        ("speech", "my-voice.wav", "s of speech (my-voice.wav)"),
        ("residual_weight", 0.25, "residual weight λ = 0.25"),
        ("waveform_max_abs_difference", 0.0625, "max |Δ| = 0.0625 from end to end"),
        ("waveform_max_abs_difference_same_codes", 0.125, "0.125 from the same codes"),
        ("waveform_peak", 0.4321, "(peak 0.432)"),
    ],
)
def test_card_has_the_proofs_figure(figure, value, sentence, report):
    report["proof"][figure] = value
    assert sentence in model_card(report, "bridge")


def test_card_has_the_default_path_s_figures_and_how_near_both_paths_are_to_float64(report):
    report["proof"]["default_path"] |= {
        "codes_differing": 2,
        "codes_compared": 2400,
        "waveform_max_abs_difference_same_codes": 2.1e-7,
    }
    report["proof"]["float64"] = {
        "reference_path": {"codes_equal": 0.998, "waveform_max_abs_difference": 3e-7},
        "default_path": {"codes_equal": 0.999, "waveform_max_abs_difference": 4e-7},
    }
    card = " ".join(model_card(report, "bridge").split())
    assert "2 of 2400 codes differ there, where a latent lies on the boundary between two entries" in card
    assert "the waveform differs by at most 2.1e-07" in card
    assert "gives 0.998000 of its own codes and 0.999000 of the default path's" in card
    assert "lies 3e-07 from its own in float32 and 4e-07 from the default path's" in card


def test_card_counts_the_tensors_of_the_report(card, converted):
    counts = {kind: len(keys) for kind, keys in converted.report["keys"].items()}
    expected = "{moved} moved, {derived} derived, {fresh} fresh, {left} left behind"
    assert f"Tensors: {expected.format(**counts)}." in card


def test_card_names_source_digest_and_versions(card, converted):
    report = converted.report
    assert f"`{report['source']['sha256']['model.safetensors']}` (model.safetensors)" in card
    assert ", ".join(f"{name} {version}" for name, version in report["versions"].items()) in card
    assert "Source: tiny-mimi, revision none (local), transformers layout" in " ".join(card.split())


def test_card_says_which_codebooks_the_heads_hold(card):
    assert "acoustic (codebooks 2 to 8, Mimi's codebooks 1 to 7)" in " ".join(card.split())


def test_card_says_exact_for_the_parallel_split_only(card, converted_residual):
    sentence = "computes exactly what its source computes"
    assert sentence in card
    assert sentence not in (converted_residual.folder / "README.md").read_text()


def test_header_of_the_card_is_one_that_the_hub_reads(card):
    data = ModelCard(card).data
    assert (data.library_name, data.license, data.base_model) == ("transformers", "cc-by-4.0", None)


def test_header_of_the_card_names_a_source_on_the_hub(report):
    report["source"] |= {"name": "kyutai/mimi", "revision": "89a0e53c"}
    card = model_card(report, "bridge")
    assert ModelCard(card).data.base_model == "kyutai/mimi"
    assert "Source: kyutai/mimi, revision 89a0e53c," in card


def test_code_on_the_card_runs_as_it_is_written(card, converted, voiced_audio, monkeypatch):
    monkeypatch.chdir(converted.folder.parent)
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL).group(1)
    names = {"audio": voiced_audio[0, 0].numpy()}
    exec(code, names)
    assert tuple(names["codes"].shape) == (1, 9, 25)  # 2 s
    assert tuple(names["audio_values"].shape) == (1, 1, 48_000)
