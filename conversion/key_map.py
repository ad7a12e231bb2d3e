"""Where every tensor of a Mimi checkpoint goes: two tables, and the rule that a key matches exactly one line of each.

`KYUTAI_KEY_MAP` leads from Kyutai's native layout to the flat one that kyutai/mimi has on the Hub; `KEY_MAP` leads
from there to Mimi Bridge. A key that matches no line, or two, stops the conversion: no tensor is lost in silence.

Source: the native names are moshi's `models/compression.py`, `modules/transformer.py`, `quantization/`; the flat ones
transformers' `models/mimi/modeling_mimi.py`.
"""

import re
from collections.abc import Sequence

LEFT = ""  # target of a key that is deliberately not carried over

_NUMBER = r"(\d+)"
_SEMANTIC = r"quantizer\.semantic_residual_vector_quantizer"
_ACOUSTIC = r"quantizer\.acoustic_residual_vector_quantizer"

KEY_MAP: Sequence[tuple[str, str]] = (
    # encoder and decoder stay as they are
    (r"(encoder|decoder)\.layers\.(.+)", r"\1.layers.\2"),
    (r"(encoder|decoder)_transformer\.(.+)", r"\1_transformer.\2"),
    (r"(downsample|upsample)\.(.+)", r"\1.\2"),
    # codebook 0 becomes the prosody head
    (rf"{_SEMANTIC}\.(in|out)put_proj\.weight", r"quantizer.head_prosody.project_\1.weight"),
    (rf"{_SEMANTIC}\.layers\.0\.codebook\.embed_sum", r"quantizer.head_prosody.vq._codebook.embed_avg"),
    (rf"{_SEMANTIC}\.layers\.0\.codebook\.cluster_usage", r"quantizer.head_prosody.vq._codebook.cluster_size"),
    # codebooks 1 and on become the acoustic head
    (rf"{_ACOUSTIC}\.(in|out)put_proj\.weight", r"quantizer.acoustic_residual.project_\1.weight"),
    (
        rf"{_ACOUSTIC}\.layers\.{_NUMBER}\.codebook\.embed_sum",
        r"quantizer.acoustic_residual.vq.layers.\1._codebook.embed_avg",
    ),
    (
        rf"{_ACOUSTIC}\.layers\.{_NUMBER}\.codebook\.cluster_usage",
        r"quantizer.acoustic_residual.vq.layers.\1._codebook.cluster_size",
    ),
    # a flag that says the codebooks were initialised from data, as all are once released
    (rf"quantizer\.\w+\.layers\.{_NUMBER}\.codebook\.initialized", LEFT),
)

# In a checkpoint of Mimi Bridge, but in no Mimi: made new, or computed from what was moved.
FRESH_KEYS: Sequence[str] = (
    r"quantizer\.head_content\..+",
    r"quantizer\.head_prosody\.context\..+",
    r"quantizer\.proj_(qwen|wavlm)\.(weight|bias|mean|std)",
    r"quantizer\..+\._codebook\.initted",
)
DERIVED_KEYS: Sequence[str] = (r"quantizer\.(head_prosody|acoustic_residual)\.vq\..*_codebook\.embed",)

QUERY_KEY_VALUE = "|qkv"  # marks a target that is split in three, with its rotary halves brought together

KYUTAI_KEY_MAP: Sequence[tuple[str, str]] = (
    (rf"(encoder|decoder)\.model\.{_NUMBER}\.(?:conv\.conv|convtr\.convtr)\.(weight|bias)", r"\1.layers.\2.conv.\3"),
    (
        rf"(encoder|decoder)\.model\.{_NUMBER}\.block\.{_NUMBER}\.conv\.conv\.(weight|bias)",
        r"\1.layers.\2.block.\3.conv.\4",
    ),
    (r"downsample\.conv\.conv\.conv\.weight", r"downsample.conv.weight"),
    (r"upsample\.convtr\.convtr\.convtr\.weight", r"upsample.conv.weight"),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.self_attn\.(?:in_proj_weight|in_projs\.0\.weight)",
        rf"\1_transformer.layers.\2.self_attn.{QUERY_KEY_VALUE}",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.self_attn\.(?:out_proj|out_projs\.0)\.weight",
        r"\1_transformer.layers.\2.self_attn.o_proj.weight",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.norm1\.(weight|bias)",
        r"\1_transformer.layers.\2.input_layernorm.\3",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.norm2\.(weight|bias)",
        r"\1_transformer.layers.\2.post_attention_layernorm.\3",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.linear([12])\.weight",
        r"\1_transformer.layers.\2.mlp.fc\3.weight",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.layer_scale_1\.scale",
        r"\1_transformer.layers.\2.self_attn_layer_scale.scale",
    ),
    (
        rf"(\w+)_transformer\.transformer\.layers\.{_NUMBER}\.layer_scale_2\.scale",
        r"\1_transformer.layers.\2.mlp_layer_scale.scale",
    ),
    (
        r"quantizer\.rvq_first\.(in|out)put_proj\.weight",
        r"quantizer.semantic_residual_vector_quantizer.\1put_proj.weight",
    ),
    (
        r"quantizer\.rvq_rest\.(in|out)put_proj\.weight",
        r"quantizer.acoustic_residual_vector_quantizer.\1put_proj.weight",
    ),
    (
        rf"quantizer\.rvq_first\.vq\.layers\.{_NUMBER}\._codebook\.embedding_sum",
        r"quantizer.semantic_residual_vector_quantizer.layers.\1.codebook.embed_sum",
    ),
    (
        rf"quantizer\.rvq_first\.vq\.layers\.{_NUMBER}\._codebook\._?(cluster_usage|initialized)",
        r"quantizer.semantic_residual_vector_quantizer.layers.\1.codebook.\2",
    ),
    (
        rf"quantizer\.rvq_rest\.vq\.layers\.{_NUMBER}\._codebook\.embedding_sum",
        r"quantizer.acoustic_residual_vector_quantizer.layers.\1.codebook.embed_sum",
    ),
    (
        rf"quantizer\.rvq_rest\.vq\.layers\.{_NUMBER}\._codebook\._?(cluster_usage|initialized)",
        r"quantizer.acoustic_residual_vector_quantizer.layers.\1.codebook.\2",
    ),
)


def renamed(key: str, key_map: Sequence[tuple[str, str]]) -> str:
    """The target of a key by the one line of a table that matches it whole.

    Raises:
        KeyError: If no line matches, or more than one.
    """
    targets = [match.expand(target) for pattern, target in key_map if (match := re.fullmatch(pattern, key))]
    if len(targets) != 1:
        raise KeyError(f"{key!r} matches {len(targets)} lines of the key table, expected exactly 1")
    return targets[0]


def matches_any(key: str, patterns: Sequence[str]) -> bool:
    """Whether a key is described by one of some whole-key patterns."""
    return any(re.fullmatch(pattern, key) for pattern in patterns)
