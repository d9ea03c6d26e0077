"""Small models that differ in how they mix tokens and in nothing else that could be helped: two blocks,
width 64, as many parameters (within three in a hundred), from transformers' own modelling code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from benchmarks.recall.pairs import FILLERS, KEYS, VALUES

BLOCKS, WIDTH, HEADS, HEAD_WIDTH = 2, 64, 2, 32
PARAMETERS = 76_000
"""What every kind is brought near by the width of its MLPs, or of its state."""
WINDOW = 32
"""Tokens that a windowed block reads."""
_COMMON: dict[str, Any] = {
    "vocab_size": 1 + KEYS + VALUES + FILLERS, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": WIDTH**-0.5,  # the usual 0.02 is for wide models: narrow ones hardly begin with it
}  # fmt: skip
_HEADS: dict[str, Any] = {
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_WIDTH,
    "max_position_embeddings": 1024,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": HEADS, "linear_num_value_heads": HEADS, "linear_key_head_dim": HEAD_WIDTH,
    "linear_value_head_dim": HEAD_WIDTH, "linear_conv_kernel_dim": 4,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "first_k_dense_replace": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "max_position_embeddings": 1024,
}  # fmt: skip
_RECURRENT = ["linear_attention"] * BLOCKS
KINDS: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "full": ("qwen3", _HEADS, "intermediate_size"),
    "windowed": (
        "qwen3",
        {**_HEADS, "use_sliding_window": True, "sliding_window": WINDOW,
         "layer_types": ["sliding_attention"] * BLOCKS},
        "intermediate_size",
    ),
    "latent": ("deepseek_v3", _LATENT, "intermediate_size"),
    "gated delta, then full": (
        "qwen3_5_text",
        {**_HEADS, **_DELTA, "layer_types": ["linear_attention", "full_attention"]},
        "intermediate_size",
    ),
    "gated delta": ("qwen3_5_text", {**_HEADS, **_DELTA, "layer_types": _RECURRENT}, "intermediate_size"),
    "lightning": (
        "minimax",
        {**_HEADS, "layer_types": _RECURRENT, "num_local_experts": 1, "num_experts_per_tok": 1,
         "block_size": 64},
        "intermediate_size",
    ),
    "selective scan": (
        "mamba2",
        {"num_heads": 4, "head_dim": 32, "expand": 2, "n_groups": 1, "chunk_size": 32, "conv_kernel": 4},
        "state_size",
    ),
    "short convolution": (
        "lfm2",
        {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "layer_types": ["conv"] * BLOCKS,
         "block_auto_adjust_ff_dim": False, "conv_L_cache": 3, "max_position_embeddings": 1024},
        "intermediate_size",
    ),
}  # fmt: skip
"""Every kind: whose configuration, what differs from the others, and the field that makes it as large."""


def small(kind: str, seed: int) -> nn.Module:
    """A model of a kind with random weights."""
    _, _, field = KINDS[kind]
    low, high = 4, 1024
    while low < high:  # the first size that is not too small
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _parameters(kind, field, middle) < PARAMETERS else (low, middle)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _built(kind, field, low)
        _remembers(model)
        return model


def _remembers(model: nn.Module) -> None:
    """Step sizes of gated delta rules as their authors draw them, log-uniform between a thousandth and a
    tenth (flash-linear-attention): transformers leaves them at 1.3, for weights that are read from a file,
    and a rule that begins so forgets every token at once."""
    for module in model.modules():
        if type(module).__name__.endswith("GatedDeltaNet"):
            bias = module.get_parameter("dt_bias")
            steps = torch.exp(torch.empty_like(bias).uniform_(math.log(1e-3), math.log(0.1)))
            bias.data.copy_(steps + torch.log(-torch.expm1(-steps)))  # what softplus turns into the steps


def _parameters(kind: str, field: str, size: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in _built(kind, field, size).parameters())


def _built(kind: str, field: str, size: int) -> nn.Module:
    name, special, _ = KINDS[kind]
    config = CONFIG_MAPPING[name](**{**_COMMON, **special, field: size})
    config._experts_implementation = "eager"  # the fused one asks for sizes that others need not have
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
