"""BERT and MiniLM from their files: post-norm blocks that see both ways, types of tokens, heads and poolings
they have.

After "BERT" (Devlin et al., 2018) and "Sentence-BERT" (Reimers and Gurevych, 2019). Every stage is yielded as
it is computed.
Shapes: B texts, T tokens, D width, H heads, K width of a head, F neurons, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Stages = Iterator[tuple[str, Tensor]]
Steps = Generator[tuple[str, Tensor], None, Tensor]
"""Stages of a part, by name, and the stream behind it."""
MARK = "encoder.layer.0.attention.self.query.weight"
TOKENS, POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
PREFIX = "bert."
GENERATES = False


@dataclass(frozen=True)
class BertSettings:
    """What the configuration says that the tensors' shapes do not; `pooling` is how texts become one vector,
    if at all."""

    blocks: int
    heads: int
    epsilon: float
    pooling: str = ""
    normalises: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> BertSettings:
        """From config.json, with the folder's pooling under `pooling`.

        Raises:
            ValueError: a variant of BERT that is not rebuilt here.
        """
        usual = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
        for name, value in usual.items():
            if config.get(name, value) != value:
                raise ValueError(f"this BERT has {name} = {config[name]!r}; only {value!r} is rebuilt")
        pooling = config.get("pooling", "")
        if pooling not in ("", "mean", "cls"):
            raise ValueError(f"the pooling {pooling!r} is not rebuilt, only mean and cls")
        return cls(
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config.get("layer_norm_eps", 1e-12),
            pooling,
            config.get("normalises", False),
        )


def stages(w: Mapping[str, Tensor], s: BertSettings, inputs: Mapping[str, Tensor]) -> Stages:
    """Every named tensor from the token ids to the last one that this checkpoint has weights for, in
    order."""
    ids_BT = inputs["input_ids"]
    mask_BT = inputs.get("attention_mask", torch.ones_like(ids_BT)).bool()
    types_BT = inputs.get("token_type_ids", torch.zeros_like(ids_BT))
    tokens_BTD = w["embeddings.word_embeddings.weight"][ids_BT]
    yield "embed.tokens", tokens_BTD
    types_BTD = w["embeddings.token_type_embeddings.weight"][types_BT]
    yield "embed.types", types_BTD
    positions_1TD = w["embeddings.position_embeddings.weight"][: ids_BT.shape[1]].unsqueeze(0)
    yield "embed.positions", positions_1TD
    sum_BTD = tokens_BTD + types_BTD + positions_1TD
    yield "embed.sum", sum_BTD
    resid_BTD = layer_norm(sum_BTD, w, "embeddings.LayerNorm", s.epsilon)
    yield "embed.norm", resid_BTD
    for i in range(s.blocks):
        resid_BTD = yield from block(w, s, i, resid_BTD, mask_BT)
    if "pooler.dense.weight" in w:
        pooled_BD = linear(resid_BTD[:, 0], w, "pooler.dense").tanh()
        yield "pooler", pooled_BD
    if "cls.predictions.transform.dense.weight" in w:
        yield from masked_head(w, s, resid_BTD)
    if s.pooling:
        yield "sentence", sentence(resid_BTD, mask_BT, s)


def block(w: Mapping[str, Tensor], s: BertSettings, i: int, resid_BTD: Tensor, mask_BT: Tensor) -> Steps:
    """Attention, then MLP; the stream itself is normed after each addition."""
    B, T, D = resid_BTD.shape
    p = f"encoder.layer.{i}."
    split = {}
    for name, path in (("q", "query"), ("k", "key"), ("v", "value")):
        flat_BTD = linear(resid_BTD, w, f"{p}attention.self.{path}")
        yield f"{i}.{name}", flat_BTD
        split[name] = flat_BTD.view(B, T, s.heads, D // s.heads).transpose(1, 2)
    scores_BHTT = (split["q"] @ split["k"].transpose(2, 3)) * (D // s.heads) ** -0.5
    scores_BHTT = scores_BHTT.masked_fill(~mask_BT[:, None, None, :], lowest(scores_BHTT))
    yield f"{i}.scores", scores_BHTT
    probs_BHTT = scores_BHTT.softmax(dim=-1)
    yield f"{i}.probs", probs_BHTT
    heads_BTD = (probs_BHTT @ split["v"]).transpose(1, 2).reshape(B, T, D)
    yield f"{i}.heads", heads_BTD
    attn_BTD = linear(heads_BTD, w, f"{p}attention.output.dense")
    yield f"{i}.attn_out", attn_BTD
    resid_BTD = layer_norm(attn_BTD + resid_BTD, w, f"{p}attention.output.LayerNorm", s.epsilon)
    yield f"{i}.attn_norm", resid_BTD
    inner_BTF = linear(resid_BTD, w, f"{p}intermediate.dense")
    yield f"{i}.mlp_in", inner_BTF
    act_BTF = gelu(inner_BTF)
    yield f"{i}.mlp_act", act_BTF
    mlp_BTD = linear(act_BTF, w, f"{p}output.dense")
    yield f"{i}.mlp_out", mlp_BTD
    resid_BTD = layer_norm(mlp_BTD + resid_BTD, w, f"{p}output.LayerNorm", s.epsilon)
    yield f"{i}.resid_post", resid_BTD
    return resid_BTD


def masked_head(w: Mapping[str, Tensor], s: BertSettings, resid_BTD: Tensor) -> Stages:
    """The head that guesses masked tokens; its matrix is the token table, its bias its own."""
    dense_BTD = linear(resid_BTD, w, "cls.predictions.transform.dense")
    yield "head.dense", dense_BTD
    normed_BTD = layer_norm(gelu(dense_BTD), w, "cls.predictions.transform.LayerNorm", s.epsilon)
    yield "head.norm", normed_BTD
    table_VD = w.get("cls.predictions.decoder.weight", w["embeddings.word_embeddings.weight"])
    bias_V = w.get("cls.predictions.decoder.bias", w["cls.predictions.bias"])
    yield "logits", torch.nn.functional.linear(normed_BTD, table_VD, bias_V)


def sentence(resid_BTD: Tensor, mask_BT: Tensor, s: BertSettings) -> Tensor:
    """One vector for each text: the mean over its tokens, or its first token's; of length 1 where the model
    says so."""
    if s.pooling == "cls":
        pooled_BD = resid_BTD[:, 0]
    else:
        kept_BT1 = mask_BT[..., None].to(resid_BTD.dtype)
        pooled_BD = (resid_BTD * kept_BT1).sum(1) / kept_BT1.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(pooled_BD, p=2, dim=1) if s.normalises else pooled_BD


def lowest(scores: Tensor) -> float:
    """The lowest number rather than minus infinity: a row of padding that may look nowhere stays finite."""
    return torch.finfo(scores.dtype).min


def layer_norm(x_BTD: Tensor, w: Mapping[str, Tensor], name: str, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the width, then scaled and shifted."""
    return torch.nn.functional.layer_norm(
        x_BTD, x_BTD.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon
    )


def linear(x_BTI: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """A linear map with its bias."""
    return torch.nn.functional.linear(x_BTI, w[f"{name}.weight"], w[f"{name}.bias"])


def gelu(x: Tensor) -> Tensor:
    """The exact one, by the error function."""
    return torch.nn.functional.gelu(x)
