"""Alignment by CTC: the arithmetic on made-up letters in time, and the real classes of transformers, tiny."""

import builtins

import pytest
import torch

from mimi_bridge.data.alignment.ctc import CtcAligner
from mimi_bridge.data.alignment.tokens import token_spans
from tiny_ctc import LETTERS, MODELS, write_tiny_ctc

pytest.importorskip("torchaudio")
RATE, STRIDE, REACH = 16_000, 320, 400  # Hz, samples, samples: of wav2vec 2.0


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    return CtcAligner(write_tiny_ctc(tmp_path_factory.mktemp("ctc")))


@pytest.fixture
def noise():
    return torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0)) / 10


def hears(monkeypatch, aligner, signs: str, letters: str = LETTERS, sure: float = 0.99) -> torch.Tensor:
    """Let the aligner hear one sign a frame ("-" for blank), whatever the audio; returns audio of so many frames."""
    known = {"-": 0, "|": 4} | {letter: number for number, letter in enumerate(letters, start=5)}
    probabilities = torch.full((len(signs), 5 + len(letters)), (1 - sure) / (4 + len(letters)))
    for frame, sign in enumerate(signs):
        probabilities[frame, known[sign]] = sure
    monkeypatch.setattr(aligner, "_log_probabilities", lambda samples: probabilities.log())
    return torch.zeros(1, (len(signs) - 1) * STRIDE + REACH)


def edge(frame: int) -> float:
    """Where a frame begins, in seconds: 2.5 ms after its stride, in the middle of what it and the last one hear."""
    return (frame * STRIDE + 40) / RATE


def labels(alignment) -> list[str]:
    return [word.label for word in alignment.words]


def times(alignment) -> list[float]:
    return [time for word in alignment.words for time in (word.start, word.end)]


def test_word_reaches_from_its_first_letters_frame_to_its_lasts(monkeypatch, aligner):
    audio = hears(monkeypatch, aligner, "--H-E-LL-LO--|--YO-U---")
    found = aligner.align(audio, RATE, "Hello, you!")
    assert labels(found) == ["Hello", "you"]
    assert times(found) == pytest.approx([edge(2), edge(11), edge(16), edge(20)])


def test_score_is_the_mean_log_probability_of_a_frame(monkeypatch, aligner):
    audio = hears(monkeypatch, aligner, "-H-I-|-YO-U-", sure=0.9)
    assert aligner.align(audio, RATE, "hi you").score == pytest.approx(torch.tensor(0.9).log().item(), abs=1e-5)
    other = aligner.align(audio, RATE, "we go")
    assert other.score < aligner.min_score < -0.2


def test_recording_at_another_rate_has_the_same_times(monkeypatch, aligner):
    audio = hears(monkeypatch, aligner, "--H-I---")
    found = aligner.align(torch.zeros(1, audio.shape[-1] * 3 // 2), 24_000, "hi")
    assert times(found) == pytest.approx([edge(2), edge(5)])


def test_first_and_last_frame_reach_to_the_ends_of_the_recording(monkeypatch, aligner):
    audio = hears(monkeypatch, aligner, "H-I")
    assert times(aligner.align(audio, RATE, "hi")) == pytest.approx([0.0, edge(3)])
    assert edge(3) < audio.shape[-1] / RATE


@pytest.mark.parametrize(
    "text",
    ["say ｈｉ now", "SAY Hí now", "say, “hi” — now...", "🙂 say hi 🙂 now 🙂", "say hi\u0301\nnow", "'say' hi, now'"],
)
def test_case_accents_punctuation_and_emoji_change_no_time(monkeypatch, aligner, text):
    audio = hears(monkeypatch, aligner, "-S-AY-|-H-I-|-N-OW-")
    assert times(aligner.align(audio, RATE, text)) == pytest.approx([edge(f) for f in (1, 5, 8, 11, 14, 18)])


def test_vocabulary_in_lower_case_is_spelled_so(monkeypatch, tmp_path):
    aligner = CtcAligner(write_tiny_ctc(tmp_path, letters=LETTERS.lower()))
    audio = hears(monkeypatch, aligner, "-h-i--", LETTERS.lower())
    assert times(aligner.align(audio, RATE, "HI")) == pytest.approx([edge(1), edge(4)])


@pytest.mark.parametrize("number", ["42", "42%", "4/2", "你好", "€42"])
def test_word_without_a_known_letter_takes_the_speech_between_its_neighbours(monkeypatch, aligner, number):
    letters = "-P-AY-|---F-OR-TY-|--TW-O-----|-N-OW-"
    audio = hears(monkeypatch, aligner, letters)
    found = aligner.align(audio, RATE, f"pay {number} now")
    words = {"4/2": ["4", "2"]}.get(number, [number])
    assert labels(found) == ["pay", *words, "now"]
    start, end = found.words[1].start, found.words[-2].end
    assert (start, end) == pytest.approx((edge(letters.index("F")), edge(letters.index("O-----") + 1)))
    expected = [edge(f) for f in (1, 5, letters.index("N"), letters.index("W-", 30) + 1)]
    assert [*times(found)[:2], *times(found)[-2:]] == pytest.approx(expected)


def test_letters_beside_digits_keep_their_place(monkeypatch, aligner):
    letters = "-M-P-|-TH-REE-|-I-S-"
    found = aligner.align(hears(monkeypatch, aligner, letters), RATE, "mp3 is")
    assert labels(found) == ["mp3", "is"]
    assert times(found) == pytest.approx([edge(1), edge(13), edge(letters.index("I")), edge(len(letters) - 1)])


def test_neighbours_without_a_known_letter_share_their_time(monkeypatch, aligner):
    found = aligner.align(hears(monkeypatch, aligner, "-O-N-|ABCABC|-N-OW-"), RATE, "on 12 3456 now")
    assert labels(found) == ["on", "12", "3456", "now"]
    assert times(found)[2:6] == pytest.approx([edge(6), edge(8), edge(8), edge(12)])


def test_tokens_of_a_text_with_digits_and_emoji_are_not_shifted(monkeypatch, aligner):
    found = aligner.align(hears(monkeypatch, aligner, "-O-N-|ABCABC|-N-OW-"), RATE, "On 42 🙂, now!")
    got = token_spans("On 42 🙂, now!", [(0, 2), (2, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 13)], found.words)
    expected = [(1, 4), (6, 9), (9, 12), None, None, (14, 18), None]
    for span, frames in zip(got.tolist(), expected, strict=True):
        assert span == pytest.approx([edge(f) for f in frames], abs=1e-6) if frames else span[0] == span[1]


def test_text_that_cannot_fit_has_no_alignment(monkeypatch, aligner):
    audio = hears(monkeypatch, aligner, "-HI-")
    assert aligner.align(audio, RATE, "hello") is None
    assert aligner.align(audio, RATE, "aaa") is None  # needs a blank between equal letters


def test_recording_too_long_for_the_search_is_refused(monkeypatch, aligner):
    monkeypatch.setattr(aligner, "_log_probabilities", lambda samples: torch.zeros(60_000, 32))
    with pytest.raises(ValueError, match="a recording of 20 minutes with 17999 letters is too long"):
        aligner.align(torch.zeros(1, 60_000 * STRIDE), RATE, "a " * 9_000)


def test_recording_shorter_than_a_frame_has_no_alignment(aligner):
    assert aligner.align(torch.zeros(1, 72), 24_000, "hi") is None


@pytest.mark.parametrize("text", ["", "...", "🙂", "42", "你好"])
def test_text_without_a_known_letter_is_refused(aligner, text):
    with pytest.raises(ValueError, match="text must hold at least one letter that the model writes"):
        aligner.align(torch.zeros(1, 16_000), RATE, text)


@pytest.mark.parametrize("kind", MODELS)
def test_any_ctc_model_of_transformers_aligns(tmp_path, kind, noise):
    aligner = CtcAligner(write_tiny_ctc(tmp_path, kind))
    found = aligner.align(noise, 24_000, "Hello, you!")
    assert labels(found) == ["Hello", "you"]
    assert times(found) == sorted(times(found)) and 0 <= times(found)[0] and times(found)[-1] <= 1.0
    assert -5 < found.score < 0
    assert aligner.align(noise, 24_000, "Hello, you!") == found


def test_model_of_another_stride_keeps_time(monkeypatch, tmp_path):
    aligner = CtcAligner(write_tiny_ctc(tmp_path, conv_stride=(5, 2, 2, 2, 2, 2, 1)))
    audio = hears(monkeypatch, aligner, "--H-I---")
    # Kernels 10, 3, 3, 3, 3, 2, 2 at these strides reach over 400 samples; frames are 160 apart.
    assert times(aligner.align(audio, RATE, "hi")) == pytest.approx([(f * 160 + 120) / RATE for f in (2, 5)])


@pytest.mark.parametrize("num_samples", [400, 719, 720, 16_000, 40_123])
def test_log_probabilities_are_the_models_own(aligner, num_samples):
    samples = torch.randn(num_samples, generator=torch.Generator().manual_seed(1))
    values = aligner._extractor(samples.numpy(), sampling_rate=RATE, return_tensors="pt")["input_values"]
    expected = aligner._model(values).logits[0].log_softmax(dim=-1)
    assert len(expected) == (num_samples - REACH) // STRIDE + 1
    torch.testing.assert_close(aligner._log_probabilities(samples), expected)


@pytest.mark.parametrize("num_samples", [16_000, 47_999, 48_000, 50_321])
def test_windows_give_what_one_pass_gives_when_the_model_hears_no_further(tmp_path, num_samples):
    # Without attention a frame hears 8 frames to each side.
    whole = CtcAligner(write_tiny_ctc(tmp_path, num_hidden_layers=0), window_seconds=100)
    windows = CtcAligner(str(tmp_path), window_seconds=0.3, context_seconds=0.2)
    samples = torch.randn(num_samples, generator=torch.Generator().manual_seed(2))
    expected, found = whole._log_probabilities(samples), windows._log_probabilities(samples)
    assert expected.std(dim=0).mean() > 0.01  # frames differ
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_model_never_hears_more_than_a_window_and_its_context(monkeypatch, tmp_path):
    aligner = CtcAligner(write_tiny_ctc(tmp_path), window_seconds=0.5, context_seconds=0.2)
    lengths, forward = [], aligner._model.forward
    monkeypatch.setattr(aligner._model, "forward", lambda values: lengths.append(values.shape[-1]) or forward(values))
    aligner.align(torch.randn(1, 160_000), RATE, "hello you")
    assert len(lengths) == 20 and max(lengths) <= 0.9 * RATE + REACH


def test_missing_torchaudio_is_named(monkeypatch, tmp_path):
    real_import = builtins.__import__

    def without_torchaudio(name, *rest):
        if name.startswith("torchaudio"):
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torchaudio)
    with pytest.raises(ModuleNotFoundError, match=r"torch 2.11 to 2.14, both .*pip install 'mimi-bridge\[ctc\]'"):
        CtcAligner(str(tmp_path))


def test_model_that_writes_no_letters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must write single letters, but its signs are"):
        CtcAligner(write_tiny_ctc(tmp_path, letters="ABC"))


def test_model_with_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hear samples"):
        CtcAligner(write_tiny_ctc(tmp_path, add_adapter=True, output_hidden_size=16))
