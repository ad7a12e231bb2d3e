"""Names and prose use the field's terms: words of our own that have one are found in no code and no page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "lab", "benchmarks", "examples", "conversion", "docs", "tests")
PAGES = ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
SUFFIXES = (".py", ".md", ".html", ".js", ".toml")
# What is not to be found, as a pattern of whole words, parts of a name among them, and what is used in its place.
WORDS = {
    r"pulled toward": "distilled from",
    r"MOST_\w+|FEWEST_\w+|(?<!AT_)LEAST_\w+|least_score|most_seconds": "MAX_, MIN_, min_score, max_seconds",
    r"constant_(qwen|wavlm)|a constant would": "baseline_, constant predictor",
    r"\w*opinions?|judg(es|ed|ing|ements?)|JUDG\w+": "mos, adversarial loss, scored",
    r"\w*Workbench|Journal|_Goal": "RecordingEvaluator, ResultsLog, _ProbeTask",
    r"\w*(TELEPHONE|telephone)\w*|narrow[ _-]band": "wideband",
    r"[Tt]okeniser": "CodeExtractor",
    r"so-manieth": "every N-th",
    r"(is|are) not to be had": "not available",
    r"anew": "again",
    r"whole or not at all": "atomic",
    r"(was|is) killed (and )?goes on|whispers|the voice pays|codebooks that live": "resumable, unvoiced, cost",
    r"without a word": "silently, without host synchronisation",
    r"attractions?|\w+\.stores": "codebook_loss, vq_codebooks",
    r"(Encoder|Decoder)Half|near_audio\w*|near_transformer\w*": "EncoderRuntime, DecoderRuntime, waveform_layers",
    r"learner\.(note|gathered|move|forget)": "accumulate, statistics, apply_update, reset",
    r"lay_out_tokens|way_in|way_out": "align_tokens_to_frames, w_in, w_out",
    r"[Ss]urveys?|[Tt]ally": "init frames, TrainingMetrics",
    r"SHARES|hold_frozen_parts_still|residual_weight_ratio": "LR_SCALES, set_frozen_modules_to_eval, warmup",
    r"NO_CODE|conversations?": "PAD_CODE, batch slots",
    r"told|heard|believed": "distilled, predicted, named, decoded, accepted",
    r"like_transformers|finds_all_as_it_was": "(gone)",
}
# Where a word is meant literally: a file, and a part of the word.
EXCEPTIONS = {
    ("tests/test_words.py", ""),  # the words themselves
    ("src/mimi_bridge/audio/espeak.py", "told"),  # in sentences that are spoken
    ("tests/data/alignment/test_pocketsphinx_aligner.py", "told"),
    ("benchmarks/alignment.py", "heard"),
}


def files() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted([*below, *(ROOT / page for page in PAGES)])


@pytest.mark.parametrize(("pattern", "instead"), WORDS.items(), ids=WORDS.values())
def test_word_of_our_own_is_nowhere(pattern, instead):
    word = re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])")  # an underscore, too, is where a word ends
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := word.search(line)) and not is_excepted(str(path.relative_to(ROOT)), match[0])
    ]
    assert not found, f"write {instead}: " + "; ".join(found)


def is_excepted(path: str, word: str) -> bool:
    return any(path == file and part in word for file, part in EXCEPTIONS)
