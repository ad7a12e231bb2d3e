"""A text teacher against a plain forward pass of its model."""

import pytest
import torch
from transformers import AutoTokenizer, BertModel, Qwen2ForCausalLM, Qwen2Model

from mimi_bridge.data.teachers.text import QwenTeacher
from tiny_teachers import SENTENCES, write_tiny_bert, write_tiny_qwen

TEXTS = ["fox", "", SENTENCES[0], "the sea shells", SENTENCES[1], "a 😀 shell", "Wood."]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    return write_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return QwenTeacher(qwen_folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@torch.no_grad()
def plain_pass(folder: str, text: str, model_class: type = Qwen2Model):
    model = model_class.from_pretrained(folder).eval()
    return model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"), output_hidden_states=True)


def test_states_are_those_of_a_plain_forward_pass_in_a_batch_and_alone(qwen, qwen_folder):
    together = qwen.states(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        if text:
            expected = plain_pass(qwen_folder, text).last_hidden_state[0]
            torch.testing.assert_close(states.hidden, expected, **CLOSE)
            torch.testing.assert_close(qwen.states([text])[0].hidden, expected, **CLOSE)


def test_states_of_an_encoder_do_not_see_the_padding_of_their_batch(bert_folder):
    together = QwenTeacher(bert_folder).states(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        expected = plain_pass(bert_folder, text, BertModel).last_hidden_state[0]
        torch.testing.assert_close(states.hidden, expected, **CLOSE)


@pytest.mark.parametrize("batch_tokens", [1, 20, 40, 10_000])
def test_states_come_in_the_order_given_whatever_a_batch_may_hold(qwen_folder, qwen, batch_tokens):
    divided = QwenTeacher(qwen_folder, batch_tokens=batch_tokens).states(TEXTS * 3)
    for text, states in zip(TEXTS * 3, divided, strict=True):
        alone = qwen.states([text])[0]
        assert states.token_ids == alone.token_ids
        torch.testing.assert_close(states.hidden, alone.hidden, **CLOSE)


def test_no_forward_pass_holds_more_than_a_batch_may(qwen_folder, monkeypatch):
    teacher, shapes = QwenTeacher(qwen_folder, batch_tokens=60), []
    forward = teacher._forward
    monkeypatch.setattr(teacher, "_forward", lambda ids: shapes.append((len(ids), max(map(len, ids)))) or forward(ids))
    lengths = [len(states.token_ids) for states in teacher.states(TEXTS * 3)]
    assert all(rows == 1 or rows * longest <= 60 for rows, longest in shapes)
    assert len(shapes) < sum(length > 0 for length in lengths)


def test_token_ids_are_the_tokenizers(qwen, qwen_folder):
    tokenizer = AutoTokenizer.from_pretrained(qwen_folder)
    assert [states.token_ids for states in qwen.states(TEXTS)] == tokenizer(TEXTS).input_ids


def test_special_token_that_stands_in_a_text_is_read_as_characters(qwen):
    (states,) = qwen.states(["a<|endoftext|>b"])
    assert 0 not in states.token_ids and states.offsets[:3] == [(0, 1), (1, 2), (2, 3)]


def test_empty_text_has_no_tokens(qwen):
    (states,) = qwen.states([""])
    assert states.token_ids == states.offsets == [] and states.hidden.shape == (0, 16)


def test_no_texts_give_no_states(qwen):
    assert qwen.states([]) == []


def test_empty_text_of_a_tokenizer_that_adds_tokens_has_those(bert_folder):
    (states,) = QwenTeacher(bert_folder).states([""])
    assert states.token_ids == [2, 3] and states.offsets == [(0, 0), (0, 0)] and len(states.hidden) == 2


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_the_one_that_was_chosen(qwen_folder, layer):
    states = QwenTeacher(qwen_folder, layer=layer).states(TEXTS)
    torch.testing.assert_close(states[2].hidden, plain_pass(qwen_folder, TEXTS[2]).hidden_states[layer][0], **CLOSE)


@torch.no_grad()
def test_states_before_the_final_norm_lead_to_those_after_it(qwen_folder):
    before, after = (QwenTeacher(qwen_folder, final_norm=norm).states(TEXTS)[2].hidden for norm in (False, True))
    assert not torch.allclose(before, after, atol=0.1)
    norm = Qwen2Model.from_pretrained(qwen_folder).norm
    by_hand = before / (before.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight
    torch.testing.assert_close(by_hand, after, **CLOSE)


@torch.no_grad()
def test_states_before_the_final_norm_are_what_the_last_layer_gives(qwen_folder):
    model, given = Qwen2Model.from_pretrained(qwen_folder).eval(), []
    model.layers[-1].register_forward_hook(lambda _, __, output: given.append(output))
    model(**AutoTokenizer.from_pretrained(qwen_folder)(TEXTS[2], return_tensors="pt"))
    last = given[0][0] if isinstance(given[0], torch.Tensor) else given[0][0][0]
    torch.testing.assert_close(QwenTeacher(qwen_folder, final_norm=False).states(TEXTS)[2].hidden, last, **CLOSE)


def test_number_of_the_last_layer_means_the_last(qwen_folder, qwen):
    for final_norm in (True, False):
        by_number = QwenTeacher(qwen_folder, layer=3, final_norm=final_norm).states(TEXTS)
        by_default = QwenTeacher(qwen_folder, final_norm=final_norm).states(TEXTS)
        assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(by_number, by_default, strict=True))


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_that_there_is_not_is_an_error(qwen_folder, layer):
    with pytest.raises(ValueError, match=rf"layer must be 0 \(embeddings\) to 3 for .*, got {layer}"):
        QwenTeacher(qwen_folder, layer=layer)


def test_states_before_a_norm_that_there_is_not_are_an_error(bert_folder):
    with pytest.raises(ValueError, match="has no final norm by any of the names norm, ln_f"):
        QwenTeacher(bert_folder, final_norm=False)


def test_text_longer_than_the_model_takes_is_an_error_that_names_it(qwen):
    assert qwen.max_tokens == 128
    with pytest.raises(ValueError, match=r"text 1 \('qqqq.*has 129 tokens, but this model takes at most 128"):
        qwen.states(["fox", "q" * 129])
    assert len(qwen.states(["q" * 128])[0].hidden) == 128


def test_number_format_is_the_checkpoints_own_unless_another_is_asked_for(tmp_path):
    folder = write_tiny_qwen(tmp_path)
    Qwen2ForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(folder)
    rounded, own, precise = (
        QwenTeacher(folder, **given).states(TEXTS)[2].hidden
        for given in ({"dtype": "bfloat16"}, {}, {"dtype": torch.float32})
    )
    assert torch.equal(own, rounded) and own.dtype == torch.float32
    assert not torch.equal(own, precise)


def test_teacher_without_a_fast_tokenizer_is_an_error(qwen_folder, monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: Slow())
    with pytest.raises(ValueError, match="has no fast tokenizer, which alone can tell the characters"):
        QwenTeacher(qwen_folder)


def test_teacher_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        QwenTeacher(str(tmp_path / "nothing"))


UNICODE = {
    "an emoji": "the 😀 fox",
    "a family of emoji": "a 👨‍👩‍👧‍👦 dog",
    "a flag": "go 🇩🇪!",
    "Chinese": "你好，世界 the",
    "an accent of its own": "cafe\u0301 ole\u0301s",
    "two accents of one letter": "q\u0301\u0323 z\u0323\u0301.",
    "a composed letter": "café",
    "letters of Hangul, apart": "\u1100\u1161\u11a8 \u1100\u1161",
    "Thai": "ก็ที่ x",
    "Arabic with marks": "السَّلامُ عليكم",
    "a mark before any letter": "\u0301a",
    "white space": "  a \t\n b  ",
}


@pytest.mark.parametrize("text", UNICODE.values(), ids=UNICODE.keys())
def test_offsets_cover_every_character_of_the_text_in_order(qwen, text):
    (states,) = qwen.states([text])
    covered = {place for first, last in states.offsets for place in range(first, last)}
    assert covered == set(range(len(text)))
    assert states.offsets == sorted(states.offsets) and len(states.offsets) == len(states.hidden)


def test_tokens_of_a_part_of_a_character_each_cover_all_of_it(qwen):
    (states,) = qwen.states(["a😀b"])
    assert states.offsets == [(0, 1)] + 4 * [(1, 2)] + [(2, 3)]


def test_tokens_of_a_composed_letter_cover_its_accent(qwen):
    (states,) = qwen.states(["e\u0301t"])  # é is two bytes, each a token
    assert states.offsets == [(0, 2), (0, 2), (2, 3)]


def test_what_follows_a_rare_character_is_not_shifted(qwen):
    text = "😀 cafe\u0301 你 the shells"
    places = qwen.states([text])[0].offsets
    assert "".join(text[first:last] for first, last in places if first >= text.index(" the")) == " the shells"


def test_tokens_cover_no_white_space_that_the_tokenizer_dropped(bert_folder):
    assert QwenTeacher(bert_folder).states(["The  fox "])[0].offsets == [(0, 0), (0, 3), (5, 8), (0, 0)]
