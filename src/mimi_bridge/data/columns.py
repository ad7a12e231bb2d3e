"""The columns of a prepared data set."""

from typing import Any


def row_columns(
    audio: str,
    text_dim: int | None = None,
    speech_dim: int | None = None,
    latents_dim: int | None = None,
    prosody: bool = False,
    phones: bool = False,
    tokens: bool = False,
) -> Any:
    """The columns, as `datasets.Features`.

    Args:
        audio: `"path"`, `"samples"` or `"none"`.
        text_dim: Size of the language model's states; None leaves them out.
        speech_dim: Size of the speech model's features; None leaves them out.
        latents_dim: Size of the codec's latents; None leaves them out.
        prosody: Whether pitch and level are there.
        phones: Whether words and phones are there without a language model, too.
        tokens: Whether tokens are there without their states, too; with states they always are.
    """
    from datasets import Features, List, Value

    def vectors(dim: int, dtype: str = "float16") -> Any:
        return List(List(Value(dtype), length=dim))

    columns = {name: Value("string") for name in ("id", "speaker", "text")}
    if audio == "samples":
        columns["input_values"] = List(Value("int16"))
    elif audio == "path":
        columns["audio_path"] = Value("string")
    columns |= {"seconds": Value("float64"), "num_frames": Value("int32")}
    if text_dim is not None or phones or tokens:
        word = {"word": Value("string"), "start": Value("float32"), "end": Value("float32")}
        phone = {"phone": Value("string"), "start": Value("float32"), "end": Value("float32")}
        columns |= {"words": List(word), "phones": List(phone), "alignment_score": Value("float32")}
    if text_dim is not None or tokens:
        columns |= {"token_ids": List(Value("int32")), "token_spans": vectors(2, "float32")}
    if text_dim is not None:
        columns["qwen_hidden"] = vectors(text_dim)
    if speech_dim is not None:
        columns["wavlm_features"] = vectors(speech_dim)
    if latents_dim is not None:
        columns |= {name: vectors(latents_dim) for name in ("latents", "target_latents")}
    if prosody:
        columns |= {name: List(Value("float32")) for name in ("f0_hz", "level_db")}
    return Features(columns)
