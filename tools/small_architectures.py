"""Tiny random models of every architecture of transformers that can be made from its configuration's own
field names.

Nothing is written for one architecture but what its configuration demands (`DEMANDS`): numbers of heads that
divide, a rotation that fits a head, kinds of blocks for as many blocks as there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 96
MAPPINGS = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 32),
    "word_embed_proj_dim": 32,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_decoder_layers", "encoder_layers", "decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ["num_experts_per_tok", "moe_topk", "top_k_experts", "expert_layer_period", "num_key_value_heads"], 2
    ),
    **dict.fromkeys(("head_dim", "d_kv", "state_size", "mamba_d_state", "mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "sliding_window"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
}  # fmt: skip
_EVEN = (
    "axk1",
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "minicpm3",
    "youtu",
)
DEMANDS: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in _EVEN},
    **{name: {"rotary_dim": 4} for name in ("codegen", "gptj")},
    "ernie4_5_moe": {"moe_k": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "granite": {"residual_multiplier": 0.22},
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "conv", "conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [3]},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 3},
    **{
        name: {
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }
        for name in ("qwen3_next", "qwen3_5_text")
    },
}


def tiny(kind: str, name: str) -> torch.nn.Module:
    """A random model of an architecture, by the name of its configuration: small in every field that the
    configuration has."""
    config_class = CONFIG_MAPPING[name]
    known = {field for base in config_class.__mro__ for field in getattr(base, "__annotations__", {})}
    renamed: Mapping[str, str] = getattr(config_class, "attribute_map", {})
    wanted = {**SMALL, **DEMANDS.get(name, {})}
    config = config_class(
        **{field: value for field, value in wanted.items() if field in known and field not in renamed}
    )
    if (
        getattr(config, "is_encoder_decoder", False)
        and getattr(config, "decoder_start_token_id", None) is None
    ):
        config.decoder_start_token_id = 1
    model_class = MAPPINGS[kind][type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).eval()
