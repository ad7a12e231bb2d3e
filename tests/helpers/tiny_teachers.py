"""Teachers of the real classes, tiny, with random weights; a tokenizer of Qwen's kind, trained on the spot."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure.",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
]
QWEN_WORDS = (  # how Qwen divides text before its tokens are looked up
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,  # so that every token tells in every later one
}
SPEECH_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.2,
}


def write_tiny_qwen(folder: Path, tokens: int = 320, texts: Iterable[str] = SENTENCES, **changes) -> str:
    """A Qwen2 of 3 layers, 16-d; its byte-level BPE is as Qwen's, of so many tokens. Returns the folder's name."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"vocab_size": len(fast), "num_key_value_heads": 1, "max_position_embeddings": 128}
        model = Qwen2ForCausalLM(Qwen2Config(**(TEXT_SIZES | sizes | changes)))
        model.model.norm.weight.data.uniform_(0.5, 2.0)
        model.save_pretrained(folder)
    return str(folder)


def write_tiny_bert(folder: Path) -> str:
    """A BERT of 3 layers, 16-d, that sees to both sides and has a tokenizer of whole words and [CLS], [SEP]."""
    words = sorted({word for sentence in SENTENCES for word in sentence.lower().split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, tokenizer_class=None, **TEXT_SIZES)
        BertModel(config).save_pretrained(folder)
    return str(folder)


def write_tiny_wavlm(folder: Path, norm: str = "layer", **changes) -> str:
    """A WavLM of 3 layers, 16-d: as WavLM-large (`norm="layer"`) or WavLM-base (`"group"`); the folder's name."""
    return _write_speech_model(folder, WavLMModel, WavLMConfig, norm, changes)


def write_tiny_hubert(folder: Path, norm: str = "layer", **changes) -> str:
    """A HuBERT of 3 layers, 16-d; returns the folder's name."""
    return _write_speech_model(folder, HubertModel, HubertConfig, norm, changes)


def _write_speech_model(folder: Path, model_class: type, config_class: type, norm: str, changes: dict) -> str:
    large = norm == "layer"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = SPEECH_SIZES | {"feat_extract_norm": norm, "do_stable_layer_norm": large} | changes
        model_class(config_class(**sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=large, return_attention_mask=large).save_pretrained(folder)
    return str(folder)


def write_tiny_whisper(folder: Path) -> str:
    """A Whisper of 2 + 1 layers, 16-d, of 80 bands; returns the folder's name."""
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    sizes |= {"encoder_layers": 3, "decoder_layers": 1, "decoder_ffn_dim": 32, "vocab_size": 64, "init_std": 0.2}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        WhisperModel(WhisperConfig(**sizes, **tokens)).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


def write_tiny_w2v_bert(folder: Path) -> str:
    """A w2v-BERT 2 of 3 layers, 16-d; returns the folder's name."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Wav2Vec2BertModel(Wav2Vec2BertConfig(**sizes, initializer_range=0.2)).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return str(folder)
