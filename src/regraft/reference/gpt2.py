"""GPT-2 from its files: learned positions, pre-norm blocks, packed query/key/value, the head tied to the
embedding.

After "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019). Every stage is yielded as
it is computed.
Shapes: B texts, T tokens, D width, H heads, K width of a head, F neurons, V vocabulary.
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
MARK = "h.0.attn.c_attn.weight"
TOKENS, POSITIONS = "wte.weight", "wpe.weight"
PREFIX = "transformer."
GENERATES = True


@dataclass(frozen=True)
class Gpt2Settings:
    """What the configuration says that the tensors' shapes do not."""

    blocks: int
    heads: int
    epsilon: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Gpt2Settings:
        """From config.json.

        Raises:
            ValueError: a variant of GPT-2 that is not rebuilt here.
        """
        usual = {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        }
        for name, value in usual.items():
            if config.get(name, value) != value:
                raise ValueError(f"this GPT-2 has {name} = {config[name]!r}; only {value!r} is rebuilt")
        return cls(config["n_layer"], config["n_head"], config.get("layer_norm_epsilon", 1e-5))


def stages(w: Mapping[str, Tensor], s: Gpt2Settings, inputs: Mapping[str, Tensor]) -> Stages:
    """Every named tensor from the token ids to the logits, in order."""
    ids_BT = inputs["input_ids"]
    tokens_BTD = w["wte.weight"][ids_BT]
    yield "embed.tokens", tokens_BTD
    positions_1TD = w["wpe.weight"][: ids_BT.shape[1]].unsqueeze(0)
    yield "embed.positions", positions_1TD
    resid_BTD = tokens_BTD + positions_1TD
    yield "embed.sum", resid_BTD
    sees_BTT = who_sees_whom(inputs)
    for i in range(s.blocks):
        resid_BTD = yield from block(w, s, i, resid_BTD, sees_BTT)
    final_BTD = layer_norm(resid_BTD, w["ln_f.weight"], w["ln_f.bias"], s.epsilon)
    yield "final_norm", final_BTD
    yield "logits", final_BTD @ w.get("lm_head.weight", w["wte.weight"]).T


def block(w: Mapping[str, Tensor], s: Gpt2Settings, i: int, resid_BTD: Tensor, sees_BTT: Tensor) -> Steps:
    """Attention, then MLP; each reads a normed stream and adds to it."""
    B, T, D = resid_BTD.shape
    normed_BTD = layer_norm(resid_BTD, w[f"h.{i}.ln_1.weight"], w[f"h.{i}.ln_1.bias"], s.epsilon)
    yield f"{i}.attn_norm", normed_BTD
    qkv_BT3D = conv1d(normed_BTD, w[f"h.{i}.attn.c_attn.weight"], w[f"h.{i}.attn.c_attn.bias"])
    yield f"{i}.qkv", qkv_BT3D
    q_BHTK, k_BHTK, v_BHTK = (
        x.view(B, T, s.heads, D // s.heads).transpose(1, 2) for x in qkv_BT3D.split(D, dim=2)
    )
    scores_BHTT = (q_BHTK @ k_BHTK.transpose(2, 3)) * (D // s.heads) ** -0.5
    scores_BHTT = scores_BHTT.masked_fill(~sees_BTT[:, None], lowest(scores_BHTT))
    yield f"{i}.scores", scores_BHTT
    probs_BHTT = scores_BHTT.softmax(dim=-1)
    yield f"{i}.probs", probs_BHTT
    heads_BTD = (probs_BHTT @ v_BHTK).transpose(1, 2).reshape(B, T, D)
    yield f"{i}.heads", heads_BTD
    attn_BTD = conv1d(heads_BTD, w[f"h.{i}.attn.c_proj.weight"], w[f"h.{i}.attn.c_proj.bias"])
    yield f"{i}.attn_out", attn_BTD
    resid_BTD = attn_BTD + resid_BTD
    yield f"{i}.resid_mid", resid_BTD
    normed_BTD = layer_norm(resid_BTD, w[f"h.{i}.ln_2.weight"], w[f"h.{i}.ln_2.bias"], s.epsilon)
    yield f"{i}.mlp_norm", normed_BTD
    inner_BTF = conv1d(normed_BTD, w[f"h.{i}.mlp.c_fc.weight"], w[f"h.{i}.mlp.c_fc.bias"])
    yield f"{i}.mlp_in", inner_BTF
    act_BTF = gelu_tanh(inner_BTF)
    yield f"{i}.mlp_act", act_BTF
    mlp_BTD = conv1d(act_BTF, w[f"h.{i}.mlp.c_proj.weight"], w[f"h.{i}.mlp.c_proj.bias"])
    yield f"{i}.mlp_out", mlp_BTD
    resid_BTD = resid_BTD + mlp_BTD
    yield f"{i}.resid_post", resid_BTD
    return resid_BTD


def who_sees_whom(inputs: Mapping[str, Tensor]) -> Tensor:
    """True where a token (row) may look: at itself and before, and never at padding; (B, T, T)."""
    mask_BT = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    causal_TT = torch.ones(mask_BT.shape[1], mask_BT.shape[1], dtype=torch.bool).tril()
    return causal_TT & mask_BT[:, None, :]


def lowest(scores: Tensor) -> float:
    """The lowest number rather than minus infinity: a row of padding that may look nowhere stays finite."""
    return torch.finfo(scores.dtype).min


def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the width, then scaled and shifted."""
    return torch.nn.functional.layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, epsilon)


def conv1d(x_BTI: Tensor, weight_IO: Tensor, bias_O: Tensor) -> Tensor:
    """GPT-2 keeps its matrices inputs first."""
    return torch.addmm(bias_O, x_BTI.flatten(0, 1), weight_IO).unflatten(0, x_BTI.shape[:2])


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation, written out as GPT-2 does."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
