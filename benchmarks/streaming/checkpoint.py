"""A checkpoint of Qwen3's kind with random weights, written shard by shard: never more than one block in
memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config

QWEN3_4B = {
    "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0, "max_position_embeddings": 40_960, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
"""The shape of Qwen3-4B, after its published configuration."""


def write_checkpoint(folder: Path, shape: dict[str, object], dtype: torch.dtype = torch.bfloat16) -> int:
    """Write a folder that transformers opens; returns the bytes of its weights. One that is there stays."""
    config = Qwen3Config(**shape, architectures=["Qwen3ForCausalLM"], dtype=str(dtype)[6:])  # pyright: ignore[reportArgumentType]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return int(json.loads(index.read_text())["metadata"]["total_size"])
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    total, count = 0, config.num_hidden_layers + 1
    for number in range(count):
        block = number - 1
        tensors = _outer(config) if number == 0 else _block(config, block)
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        made = {key: _numbers(size, draw, dtype) for key, size in tensors.items()}
        save_file(made, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(made, name)
        total += sum(t.numel() * t.element_size() for t in made.values())
    config.save_pretrained(folder)
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def _numbers(shape: tuple[int, ...], draw: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Normal numbers that keep a stream's size about as it is; ones for norms."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=draw).mul_(shape[-1] ** -0.5 * 0.3).to(dtype)


def _outer(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    table = (config.vocab_size, config.hidden_size)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table, "model.norm.weight": table[1:]}
    return found if config.tie_word_embeddings else {**found, "lm_head.weight": table}


def _block(config: Qwen3Config, number: int) -> dict[str, tuple[int, ...]]:
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width), "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    return {f"model.layers.{number}.{name}.weight": shape for name, shape in shapes.items()}
