"""CTC models of the real classes, tiny, with random weights."""

import json
from pathlib import Path

import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
MODELS = {"wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2Config), "hubert": (HubertForCTC, HubertConfig)}
MODELS["wavlm"] = (WavLMForCTC, WavLMConfig)


def write_tiny_ctc(folder: Path, kind: str = "wav2vec2", letters: str = LETTERS, **changes) -> str:
    """A CTC model of one letter a sign, 16-d, random; returns the folder's name."""
    signs = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({sign: number for number, sign in enumerate(signs)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
        "initializer_range": 0.2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    }  # fmt: skip
    model_class, config_class = MODELS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config_class(**(sizes | {"vocab_size": len(signs), "pad_token_id": 0} | changes))).save_pretrained(
            folder
        )
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)
