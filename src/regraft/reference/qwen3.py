"""Qwen3, and by their configurations Llama, Mistral-like and Qwen2 models: RoPE, grouped queries, RMSNorm,
SwiGLU.

After "Qwen3 Technical Report" (2025) and "LLaMA" (Touvron et al., 2023). What a checkpoint has decides: norms
of queries and keys, biases, a head of its own. Every stage is yielded as it is computed.
Shapes: B texts, T tokens, D width, H query heads, G key/value heads, K width of a head, F neurons, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Stages = Iterator[tuple[str, Tensor]]
Steps = Generator[tuple[str, Tensor], None, Tensor]
"""Stages of a part, by name, and the stream behind it."""
MARK = "layers.0.self_attn.q_proj.weight"
TOKENS, POSITIONS = "embed_tokens.weight", ""
PREFIX = "model."
GENERATES = True


@dataclass(frozen=True)
class Qwen3Settings:
    """What the configuration says that the tensors' shapes do not; `window` holds each block's reach, 0 for
    all."""

    blocks: int
    heads: int
    groups: int
    epsilon: float
    rope: Mapping[str, Any]
    window: tuple[int, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Qwen3Settings:
        """From config.json.

        Raises:
            ValueError: a variant that is not rebuilt here.
        """
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
        kind = rope.setdefault("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"positions of the kind {kind!r} are not rebuilt, only default and llama3")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"this model has hidden_act = {config['hidden_act']!r}; only 'silu' is rebuilt")
        usual = {
            "embedding_multiplier": 1,
            "residual_multiplier": 1,
            "logits_scaling": 1,
            "logit_scale": 1,
            "clip_qkv": None,
        }
        usual |= {"partial_rotary_factor": 1, "final_logit_softcapping": None, "attn_logit_softcapping": None}
        for name, value in usual.items():
            stated = rope.get(name, config.get(name, value))
            if stated not in (value, None):
                raise ValueError(f"this model has {name} = {stated!r}; only {value!r} is rebuilt")
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if config.get("attention_multiplier") not in (None, width**-0.5):
            raise ValueError(
                f"this model has attention_multiplier = {config['attention_multiplier']!r}; only"
                f" 1/√{width} is rebuilt"
            )
        if not all(config.get("no_rope_layers") or [1]):
            raise ValueError(
                "this model has blocks without rotary positions (no_rope_layers), which are not rebuilt"
            )
        blocks, heads = config["num_hidden_layers"], config["num_attention_heads"]
        kinds = config.get("layer_types") or ["full_attention"] * blocks
        strange = set(kinds) - {"full_attention", "sliding_attention"}
        if strange:
            raise ValueError(f"blocks of the kind {', '.join(sorted(strange))} are not rebuilt here")
        reach = config.get("sliding_window") or 0
        if not config.get("layer_types") and reach and config.get("use_sliding_window", True):
            kinds = ["sliding_attention"] * blocks
        window = tuple(reach if kind == "sliding_attention" else 0 for kind in kinds)
        groups = config.get("num_key_value_heads") or heads
        return cls(blocks, heads, groups, config.get("rms_norm_eps", 1e-6), rope, window)


def stages(w: Mapping[str, Tensor], s: Qwen3Settings, inputs: Mapping[str, Tensor]) -> Stages:
    """Every named tensor from the token ids to the logits, in order."""
    resid_BTD = w["embed_tokens.weight"][inputs["input_ids"]]
    yield "embed.tokens", resid_BTD
    width = w[MARK].shape[0] // s.heads
    cos_TK, sin_TK = rotations(s.rope, width, resid_BTD.shape[1])
    yield "rope.cos", cos_TK.unsqueeze(0)
    yield "rope.sin", sin_TK.unsqueeze(0)
    turn = cos_TK.to(resid_BTD.dtype), sin_TK.to(resid_BTD.dtype)
    for i in range(s.blocks):
        sees_BTT = who_sees_whom(inputs, s.window[i])
        resid_BTD = yield from block(w, s, i, resid_BTD, turn, sees_BTT)
    final_BTD = rms_norm(resid_BTD, w["norm.weight"], s.epsilon)
    yield "final_norm", final_BTD
    yield "logits", final_BTD @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


def block(
    w: Mapping[str, Tensor],
    s: Qwen3Settings,
    i: int,
    resid_BTD: Tensor,
    turn: tuple[Tensor, Tensor],
    sees_BTT: Tensor,
) -> Steps:
    """Attention, then the gated MLP; each reads a normed stream and adds to it."""
    p = f"layers.{i}."
    normed_BTD = rms_norm(resid_BTD, w[f"{p}input_layernorm.weight"], s.epsilon)
    yield f"{i}.attn_norm", normed_BTD
    attn_BTD = yield from attention(w, s, i, normed_BTD, turn, sees_BTT)
    resid_BTD = resid_BTD + attn_BTD
    yield f"{i}.resid_mid", resid_BTD
    normed_BTD = rms_norm(resid_BTD, w[f"{p}post_attention_layernorm.weight"], s.epsilon)
    yield f"{i}.mlp_norm", normed_BTD
    gate_BTF = linear(normed_BTD, w, f"{p}mlp.gate_proj")
    yield f"{i}.mlp_gate", gate_BTF
    up_BTF = linear(normed_BTD, w, f"{p}mlp.up_proj")
    yield f"{i}.mlp_up", up_BTF
    act_BTF = torch.nn.functional.silu(gate_BTF) * up_BTF
    yield f"{i}.mlp_act", act_BTF
    mlp_BTD = linear(act_BTF, w, f"{p}mlp.down_proj")
    yield f"{i}.mlp_out", mlp_BTD
    resid_BTD = resid_BTD + mlp_BTD
    yield f"{i}.resid_post", resid_BTD
    return resid_BTD


def attention(
    w: Mapping[str, Tensor],
    s: Qwen3Settings,
    i: int,
    normed_BTD: Tensor,
    turn: tuple[Tensor, Tensor],
    sees_BTT: Tensor,
) -> Steps:
    """Grouped-query attention over rotated queries and keys."""
    B, T, _ = normed_BTD.shape
    p = f"layers.{i}.self_attn."
    split = {}
    for name, heads in (("q", s.heads), ("k", s.groups), ("v", s.groups)):
        flat_BTX = linear(normed_BTD, w, f"{p}{name}_proj")
        yield f"{i}.{name}", flat_BTX
        split[name] = flat_BTX.view(B, T, heads, -1)
        if f"{p}{name}_norm.weight" in w:
            split[name] = rms_norm(split[name], w[f"{p}{name}_norm.weight"], s.epsilon)
            yield f"{i}.{name}_norm", split[name]
    q_BHTK, k_BGTK, v_BGTK = (split[name].transpose(1, 2) for name in "qkv")
    q_BHTK, k_BGTK = rotated(q_BHTK, *turn), rotated(k_BGTK, *turn)
    k_BHTK, v_BHTK = (x.repeat_interleave(s.heads // s.groups, dim=1) for x in (k_BGTK, v_BGTK))
    scores_BHTT = (q_BHTK @ k_BHTK.transpose(2, 3)) * q_BHTK.shape[-1] ** -0.5
    scores_BHTT = scores_BHTT.masked_fill(~sees_BTT[:, None], lowest(scores_BHTT))
    yield f"{i}.scores", scores_BHTT
    probs_BHTT = scores_BHTT.softmax(dim=-1)
    yield f"{i}.probs", probs_BHTT
    heads_BTX = (probs_BHTT @ v_BHTK).transpose(1, 2).reshape(B, T, -1)
    yield f"{i}.heads", heads_BTX
    attn_BTD = linear(heads_BTX, w, f"{p}o_proj")
    yield f"{i}.attn_out", attn_BTD
    return attn_BTD


def rotations(rope: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, (T, K) each, in float32 as the models were trained."""
    exponent_J = torch.arange(0, width, 2, dtype=torch.float32) / width
    speed_J = 1.0 / (rope["rope_theta"] ** exponent_J)
    if rope["rope_type"] == "llama3":
        speed_J = llama3_speeds(speed_J, rope)
    angle_TJ = torch.arange(length, dtype=torch.float32)[:, None] * speed_J
    angle_TK = torch.cat([angle_TJ, angle_TJ], dim=-1)
    return angle_TK.cos(), angle_TK.sin()


def llama3_speeds(speed_J: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's stretch: slow rotations are slowed by a factor, fast ones kept, those between blended."""
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wave_J = 2 * math.pi / speed_J
    blend_J = (old / wave_J - low) / (high - low)
    slow_J = torch.where(wave_J > old / low, speed_J / factor, speed_J)
    between_J = (1 - blend_J) * slow_J / factor + blend_J * slow_J
    return torch.where((wave_J >= old / high) & (wave_J <= old / low), between_J, slow_J)


def rotated(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Channel j turned against channel j + K/2: the halves are the two coordinates."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat([-second, first], dim=-1) * sin_TK


def who_sees_whom(inputs: Mapping[str, Tensor], window: int) -> Tensor:
    """True where a token (row) may look: at itself and before, within the window, never at padding; (B, T,
    T)."""
    mask_BT = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    position_T = torch.arange(mask_BT.shape[1])
    back_TT = position_T[:, None] - position_T[None, :]
    near_TT = (back_TT >= 0) & (back_TT < window) if window else back_TT >= 0
    return near_TT & mask_BT[:, None, :]


def lowest(scores: Tensor) -> float:
    """The lowest number rather than minus infinity: a row of padding that may look nowhere stays finite."""
    return torch.finfo(scores.dtype).min


def rms_norm(x_BTD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Length 1 per channel on average over the width, then scaled."""
    return weight_D * (x_BTD * torch.rsqrt(x_BTD.pow(2).mean(-1, keepdim=True) + epsilon))


def linear(x_BTI: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """A linear map with its bias, where it has one."""
    return torch.nn.functional.linear(x_BTI, w[f"{name}.weight"], w.get(f"{name}.bias"))
