"""The tensors of a decoder's checkpoint, by the names that Hugging Face gives them."""

from collections.abc import Iterator

from engine.model_config import ModelConfig
from engine.quantization_config import HEAD
from engine.quantized_checkpoint import tensor_shapes

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"


def expected_tensors(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that the model needs."""
    hidden, ffn = model.hidden_size, model.intermediate_size
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    yield EMBEDDING, (model.vocab_size, hidden)
    yield FINAL_NORM, (hidden,)
    if not model.tie_embeddings:
        yield from _tensors(model, HEAD, model.vocab_size, hidden)
    matrices = (
        ("self_attn.q_proj", q_size, hidden, model.qkv_bias),
        ("self_attn.k_proj", kv_size, hidden, model.qkv_bias),
        ("self_attn.v_proj", kv_size, hidden, model.qkv_bias),
        ("self_attn.o_proj", hidden, q_size, model.output_bias),
        ("mlp.gate_proj", ffn, hidden, model.mlp_bias),
        ("mlp.up_proj", ffn, hidden, model.mlp_bias),
        ("mlp.down_proj", hidden, ffn, model.mlp_bias),
    )
    for i in range(model.num_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        if model.qk_norm:
            yield f"{layer}.self_attn.q_norm.weight", (model.head_dim,)
            yield f"{layer}.self_attn.k_norm.weight", (model.head_dim,)
        for name, num_outputs, num_inputs, has_bias in matrices:
            yield from _tensors(model, f"{layer}.{name}", num_outputs, num_inputs)
            if has_bias:
                yield f"{layer}.{name}.bias", (num_outputs,)


def _tensors(
    model: ModelConfig, name: str, num_outputs: int, num_inputs: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of what stands for a linear layer's weight."""
    if model.quantization is None or not model.quantization.covers(name):
        yield f"{name}.weight", (num_outputs, num_inputs)
        return
    shapes = tensor_shapes(model.quantization.scheme, num_outputs, num_inputs)
    for kind, shape in shapes.items():
        yield f"{name}.{kind}", shape
