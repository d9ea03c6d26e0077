"""T5 from its files: an encoder and a decoder with one relative bias each, RMSNorm, and no division by the
root of K.

After "Exploring the Limits of Transfer Learning" (Raffel et al., 2019). Every stage is yielded as it is
computed.
Shapes: B texts, S tokens read, T tokens written, Q and P any of the two, D width, H heads, K width of a head,
F neurons, V vocabulary.
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
MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
TOKENS, POSITIONS = "shared.weight", ""
PREFIX = ""
GENERATES = True


@dataclass(frozen=True)
class T5Settings:
    """What the configuration says that the tensors' shapes do not."""

    encoder_blocks: int
    decoder_blocks: int
    heads: int
    epsilon: float
    buckets: int
    farthest: int
    activation: str
    scales_head: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> T5Settings:
        """From config.json.

        Raises:
            ValueError: a variant of T5 that is not rebuilt here.
        """
        activation = config.get("feed_forward_proj", "relu")
        if activation not in ("relu", "gated-gelu"):
            raise ValueError(
                f"this T5 has feed_forward_proj = {activation!r}; only 'relu' and 'gated-gelu' are rebuilt"
            )
        blocks = config["num_layers"]
        return cls(
            blocks,
            config.get("num_decoder_layers") or blocks,
            config["num_heads"],
            config.get("layer_norm_epsilon", 1e-6),
            config.get("relative_attention_num_buckets", 32),
            config.get("relative_attention_max_distance", 128),
            activation,
            config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)),
        )


def stages(w: Mapping[str, Tensor], s: T5Settings, inputs: Mapping[str, Tensor]) -> Stages:
    """Every named tensor from the token ids to the logits, in order: the encoder's, then the decoder's."""
    read_BS, written_BT = inputs["input_ids"], inputs["decoder_input_ids"]
    reads_BS = inputs.get("attention_mask", torch.ones_like(read_BS)).bool()
    T = written_BT.shape[1]
    memory_BSD = yield from stack(w, s, "encoder", w["shared.weight"][read_BS], reads_BS[:, None, :])
    causal_1TT = torch.ones(1, T, T, dtype=torch.bool).tril()
    cross = memory_BSD, reads_BS[:, None, :]
    final_BTD = yield from stack(w, s, "decoder", w["shared.weight"][written_BT], causal_1TT, cross)
    if s.scales_head:
        final_BTD = final_BTD * final_BTD.shape[-1] ** -0.5
        yield "scaled", final_BTD
    yield "logits", final_BTD @ w.get("lm_head.weight", w["shared.weight"]).T


def stack(
    w: Mapping[str, Tensor], s: T5Settings, side: str, resid_BQD: Tensor, sees_BQQ: Tensor, cross: Any = None
) -> Steps:
    """All blocks of the encoder or the decoder; the first one's relative bias serves them all."""
    yield f"{side}.embed.tokens", resid_BQD
    bias_QQH = relative_bias(w, s, side, resid_BQD.shape[1])
    yield f"{side}.relative_bias", bias_QQH
    bias_1HQQ = bias_QQH.permute(2, 0, 1).unsqueeze(0)
    for i in range(s.decoder_blocks if cross else s.encoder_blocks):
        name, p = f"{side}.{i}", f"{side}.block.{i}.layer."
        resid_BQD = yield from attend(
            w, s, f"{name}.", f"{p}0", "SelfAttention", resid_BQD, sees_BQQ, bias_1HQQ
        )
        if cross:
            memory_BSD, reads = cross
            arguments = (f"{name}.cross_", f"{p}1", "EncDecAttention", resid_BQD, reads, None, memory_BSD)
            resid_BQD = yield from attend(w, s, *arguments)
        resid_BQD = yield from mlp(w, s, name, f"{p}{2 if cross else 1}", resid_BQD)
    final_BQD = rms_norm(resid_BQD, w[f"{side}.final_layer_norm.weight"], s.epsilon)
    yield f"{side}.final_norm", final_BQD
    return final_BQD


def attend(
    w: Mapping[str, Tensor], s: T5Settings, name: str, layer: str, kind: str, resid_BQD: Tensor,
    sees_BQP: Tensor,
    bias_1HQP: Tensor | None, memory_BPD: Tensor | None = None,
) -> Steps:  # fmt: skip
    """Self-attention, or attention to the encoder's output; read normed and added to the stream."""
    B, Q, _ = resid_BQD.shape
    normed_BQD = rms_norm(resid_BQD, w[f"{layer}.layer_norm.weight"], s.epsilon)
    yield f"{name}attn_norm", normed_BQD
    source_BPD = normed_BQD if memory_BPD is None else memory_BPD
    split = {}
    for one, x in (("q", normed_BQD), ("k", source_BPD), ("v", source_BPD)):
        flat = x @ w[f"{layer}.{kind}.{one}.weight"].T
        yield f"{name}{one}", flat
        split[one] = flat.view(B, x.shape[1], s.heads, -1).transpose(1, 2)
    scores_BHQP = split["q"] @ split["k"].transpose(2, 3)
    if bias_1HQP is not None:
        scores_BHQP = scores_BHQP + bias_1HQP
    scores_BHQP = scores_BHQP.masked_fill(~sees_BQP[:, None], lowest(scores_BHQP))
    yield f"{name}scores", scores_BHQP
    probs_BHQP = scores_BHQP.softmax(dim=-1)
    yield f"{name}probs", probs_BHQP
    heads_BQX = (probs_BHQP @ split["v"]).transpose(1, 2).reshape(B, Q, -1)
    yield f"{name}heads", heads_BQX
    attn_BQD = heads_BQX @ w[f"{layer}.{kind}.o.weight"].T
    yield f"{name}attn_out", attn_BQD
    resid_BQD = resid_BQD + attn_BQD
    yield f"{name}resid_mid", resid_BQD
    return resid_BQD


def mlp(w: Mapping[str, Tensor], s: T5Settings, name: str, layer: str, resid_BQD: Tensor):
    """ReLU, or a gated GELU in later versions."""
    normed_BQD = rms_norm(resid_BQD, w[f"{layer}.layer_norm.weight"], s.epsilon)
    yield f"{name}.mlp_norm", normed_BQD
    p = f"{layer}.DenseReluDense."
    if s.activation == "relu":
        inner_BQF = normed_BQD @ w[f"{p}wi.weight"].T
        yield f"{name}.mlp_in", inner_BQF
        act_BQF = inner_BQF.relu()
    else:
        gate_BQF, up_BQF = normed_BQD @ w[f"{p}wi_0.weight"].T, normed_BQD @ w[f"{p}wi_1.weight"].T
        yield f"{name}.mlp_gate", gate_BQF
        yield f"{name}.mlp_up", up_BQF
        act_BQF = gelu_tanh(gate_BQF) * up_BQF
    yield f"{name}.mlp_act", act_BQF
    mlp_BQD = act_BQF @ w[f"{p}wo.weight"].T
    yield f"{name}.mlp_out", mlp_BQD
    resid_BQD = resid_BQD + mlp_BQD
    yield f"{name}.resid_post", resid_BQD
    return resid_BQD


def relative_bias(w: Mapping[str, Tensor], s: T5Settings, side: str, length: int) -> Tensor:
    """What each head adds to a score for the distance of the two tokens, (Q, Q, H): looked up by bucket of
    distance."""
    position_Q = torch.arange(length)
    distance_QQ = position_Q[None, :] - position_Q[:, None]
    bucket_QQ = buckets_of(distance_QQ, s.buckets, s.farthest, both_ways=side == "encoder")
    return w[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][bucket_QQ]


def buckets_of(distance_QQ: Tensor, count: int, farthest: int, both_ways: bool) -> Tensor:
    """Bucket of each distance: near ones exactly, farther ones on a logarithmic scale; an encoder's halves
    tell the sides."""
    offset_QQ = torch.zeros_like(distance_QQ)
    if both_ways:
        count //= 2
        offset_QQ = (distance_QQ > 0).long() * count
        distance_QQ = distance_QQ.abs()
    else:
        distance_QQ = (-distance_QQ).clamp(min=0)
    exact = count // 2
    stretch = torch.log(distance_QQ.float() / exact) / math.log(farthest / exact) * (count - exact)
    far_QQ = (exact + stretch.clamp(min=0).long()).clamp(max=count - 1)
    return offset_QQ + torch.where(distance_QQ < exact, distance_QQ, far_QQ)


def lowest(scores: Tensor) -> float:
    """The lowest number rather than minus infinity: a row of padding that may look nowhere stays finite."""
    return torch.finfo(scores.dtype).min


def rms_norm(x_BQD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Length 1 per channel on average over the width, then scaled; no mean is taken away."""
    return weight_D * (x_BQD * torch.rsqrt(x_BQD.pow(2).mean(-1, keepdim=True) + epsilon))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of later versions."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
