"""Which tensor of the official model each stage of a rebuilt one is: a module's input or output, or an
attention's softmax.

A place is written `module>` (its output), `>module` (its input), `module~in` and `module~out` (what the
softmax inside it was given and returned). {i} is a block's number. Module paths are those inside the base
model, without its prefix.
"""

from __future__ import annotations

GPT2 = {
    "embed.tokens": "wte>",
    "embed.positions": "wpe>",
    "embed.sum": ">h.0",
    "{i}.attn_norm": "h.{i}.ln_1>",
    "{i}.qkv": "h.{i}.attn.c_attn>",
    "{i}.scores": "h.{i}.attn~in",
    "{i}.probs": "h.{i}.attn~out",
    "{i}.heads": ">h.{i}.attn.c_proj",
    "{i}.attn_out": "h.{i}.attn.c_proj>",
    "{i}.resid_mid": ">h.{i}.ln_2",
    "{i}.mlp_norm": "h.{i}.ln_2>",
    "{i}.mlp_in": "h.{i}.mlp.c_fc>",
    "{i}.mlp_act": ">h.{i}.mlp.c_proj",
    "{i}.mlp_out": "h.{i}.mlp.c_proj>",
    "{i}.resid_post": "h.{i}>",
    "final_norm": "ln_f>",
    "logits": "lm_head>",
}

QWEN3 = {
    "embed.tokens": "embed_tokens>",
    "rope.cos": "rotary_emb>0",
    "rope.sin": "rotary_emb>1",
    "{i}.attn_norm": "layers.{i}.input_layernorm>",
    **{f"{{i}}.{name}": f"layers.{{i}}.self_attn.{name}_proj>" for name in "qkv"},
    "{i}.q_norm": "layers.{i}.self_attn.q_norm>",
    "{i}.k_norm": "layers.{i}.self_attn.k_norm>",
    "{i}.scores": "layers.{i}.self_attn~in",
    "{i}.probs": "layers.{i}.self_attn~out",
    "{i}.heads": ">layers.{i}.self_attn.o_proj",
    "{i}.attn_out": "layers.{i}.self_attn.o_proj>",
    "{i}.resid_mid": ">layers.{i}.post_attention_layernorm",
    "{i}.mlp_norm": "layers.{i}.post_attention_layernorm>",
    "{i}.mlp_gate": "layers.{i}.mlp.gate_proj>",
    "{i}.mlp_up": "layers.{i}.mlp.up_proj>",
    "{i}.mlp_act": ">layers.{i}.mlp.down_proj",
    "{i}.mlp_out": "layers.{i}.mlp.down_proj>",
    "{i}.resid_post": "layers.{i}>",
    "final_norm": "norm>",
    "logits": "lm_head>",
}

BERT = {
    "embed.tokens": "embeddings.word_embeddings>",
    "embed.types": "embeddings.token_type_embeddings>",
    "embed.positions": "embeddings.position_embeddings>",
    "embed.sum": ">embeddings.LayerNorm",
    "embed.norm": "embeddings.LayerNorm>",
    "{i}.q": "encoder.layer.{i}.attention.self.query>",
    "{i}.k": "encoder.layer.{i}.attention.self.key>",
    "{i}.v": "encoder.layer.{i}.attention.self.value>",
    "{i}.scores": "encoder.layer.{i}.attention.self~in",
    "{i}.probs": "encoder.layer.{i}.attention.self~out",
    "{i}.heads": ">encoder.layer.{i}.attention.output.dense",
    "{i}.attn_out": "encoder.layer.{i}.attention.output.dense>",
    "{i}.attn_norm": "encoder.layer.{i}.attention.output.LayerNorm>",
    "{i}.mlp_in": "encoder.layer.{i}.intermediate.dense>",
    "{i}.mlp_act": ">encoder.layer.{i}.output.dense",
    "{i}.mlp_out": "encoder.layer.{i}.output.dense>",
    "{i}.resid_post": "encoder.layer.{i}.output.LayerNorm>",
    "pooler": "pooler>",
    "head.dense": "cls.predictions.transform.dense>",
    "head.norm": "cls.predictions.transform.LayerNorm>",
    "logits": "cls.predictions.decoder>",
}


def _t5_attention(side: str, name: str, layer: int, kind: str) -> dict[str, str]:
    path = f"{side}.block.{{i}}.layer.{layer}"
    return {
        f"{name}attn_norm": f"{path}.layer_norm>",
        **{f"{name}{one}": f"{path}.{kind}.{one}>" for one in "qkv"},
        f"{name}scores": f"{path}.{kind}~in",
        f"{name}probs": f"{path}.{kind}~out",
        f"{name}heads": f">{path}.{kind}.o",
        f"{name}attn_out": f"{path}.{kind}.o>",
        f"{name}resid_mid": f"{path}>",
    }


def _t5_stack(side: str, last: int) -> dict[str, str]:
    path, name = f"{side}.block.{{i}}.layer.{last}", f"{side}.{{i}}"
    cross = _t5_attention(side, f"{name}.cross_", 1, "EncDecAttention") if last == 2 else {}
    return {
        f"{side}.embed.tokens": f">{side}.block.0",
        f"{side}.relative_bias": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias>",
        **_t5_attention(side, f"{name}.", 0, "SelfAttention"),
        **cross,
        f"{name}.mlp_norm": f"{path}.layer_norm>",
        f"{name}.mlp_in": f"{path}.DenseReluDense.wi>",
        f"{name}.mlp_gate": f"{path}.DenseReluDense.wi_0>",
        f"{name}.mlp_up": f"{path}.DenseReluDense.wi_1>",
        f"{name}.mlp_act": f">{path}.DenseReluDense.wo",
        f"{name}.mlp_out": f"{path}.DenseReluDense.wo>",
        f"{name}.resid_post": f"{path}>",
        f"{side}.final_norm": f"{side}.final_layer_norm>",
    }


T5 = {**_t5_stack("encoder", 1), **_t5_stack("decoder", 2), "scaled": ">lm_head", "logits": "lm_head>"}
PAIRS = {"gpt2": GPT2, "qwen3": QWEN3, "bert": BERT, "t5": T5}
