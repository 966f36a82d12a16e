"""The model that live clusters of tests serve: random, small, and the same tokens everywhere."""

import shutil
from pathlib import Path

from tests.oracle import make_checkpoint

MODEL_NAME = "tiny"
MODEL_OPTIONS = (
    *("--served-model-name", MODEL_NAME, "--dtype", "float32", "--deterministic"),
    *("--kv-cache-memory", "16MiB", "--num-threads", "1"),
)
"""Options with which every replica gives the same tokens, whatever runs beside a request."""


def make_model(folder: Path, tokenizer_folder: Path) -> Path:
    """Save it to `folder`, with the tokenizer that lies in the other one; return `folder`.

    Its widths are such that the compiled kernels, which deterministic mode needs, run it, also by
    two ranks.
    """
    make_checkpoint(
        folder,
        "llama",
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        eos_token_id=2,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder)
    return folder
