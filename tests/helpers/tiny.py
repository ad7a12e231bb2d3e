"""Sizes of the tiny models: kyutai/mimi's frame size and shape, small everywhere else."""

TINY = {
    "hidden_size": 64,
    "num_filters": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "codebook_size": 64,
    "codebook_dim": 32,
    "vector_quantization_hidden_dimension": 32,
    "upsample_groups": 64,
    "sliding_window": 25,
    "layer_scale_initial_scale": 0.3,  # kyutai/mimi's 0.01 would hide the transformers' part in a random model
}
TINY_TEACHERS = {"qwen_dim": 24, "wavlm_dim": 20}
