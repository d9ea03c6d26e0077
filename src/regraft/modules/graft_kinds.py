"""Every kind of graft: what must be known of one to make it anew, and what stands in the model's place for
it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from .byte_embedding import ByteConfig, ByteEmbedding
from .logits_view import LogitsView
from .tree_head import TreeHead, TreeShape

Graft = ByteEmbedding | TreeHead
EMBEDDING, HEAD = "byte embedding", "tree head"


def kind_of(graft: Graft) -> str:
    """What a graft is called in files."""
    return EMBEDDING if isinstance(graft, ByteEmbedding) else HEAD


def sizes(graft: Graft) -> dict[str, Any]:
    """Everything that a fresh graft of the same build is made from."""
    if isinstance(graft, ByteEmbedding):
        own = {"width": graft.width, "tokens": graft.num_embeddings, "own": graft.owners}
        return {"kind": EMBEDDING, "config": asdict(graft.config), **own}
    return {"kind": HEAD, "shape": asdict(graft.shape), "width": graft.width, "neurons": graft.neurons}


def fresh(stated: dict[str, Any]) -> Graft:
    """A graft of given sizes, its tensors not yet read.

    Raises:
        ValueError: the kind is not known, or the sizes do not fit together.
    """
    kind, rest = stated.get("kind"), {name: value for name, value in stated.items() if name != "kind"}
    if kind == EMBEDDING:
        return ByteEmbedding(ByteConfig(**rest.pop("config")), **rest)
    if kind == HEAD:
        return TreeHead(TreeShape(**rest.pop("shape")), **rest)
    raise ValueError(f"no graft of the kind {kind!r} is known: {EMBEDDING} or {HEAD}")


def standing(graft: Graft) -> nn.Module:
    """What is put in the model: the embedding itself, or a tree head with the face of an output matrix."""
    return LogitsView(graft) if isinstance(graft, TreeHead) else graft
