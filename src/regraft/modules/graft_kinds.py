"""Every kind of graft: what must be known of one to make it anew, and what stands in the model's place for
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from .byte_embedding import ByteConfig, ByteEmbedding
from .logits_view import LogitsView
from .transcoder import AdaptedMLP, Transcoders, TranscoderShape
from .tree_head import TreeHead, TreeShape

Graft = ByteEmbedding | TreeHead | Transcoders
EMBEDDING, HEAD, TRANSCODER = "byte embedding", "tree head", "transcoder adapters"


def kind_of(graft: Graft) -> str:
    """What a graft is called in files."""
    if isinstance(graft, Transcoders):
        return TRANSCODER
    return EMBEDDING if isinstance(graft, ByteEmbedding) else HEAD


def sizes(graft: Graft) -> dict[str, Any]:
    """Everything that a fresh graft of the same build is made from."""
    if isinstance(graft, ByteEmbedding):
        own = {"width": graft.width, "tokens": graft.num_embeddings, "own": graft.owners}
        return {"kind": EMBEDDING, "config": asdict(graft.config), **own}
    if isinstance(graft, Transcoders):
        return {"kind": TRANSCODER, "shape": asdict(graft.shape)}
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
    if kind == TRANSCODER:
        return Transcoders(TranscoderShape(**rest.pop("shape")), **rest)
    raise ValueError(f"no graft of the kind {kind!r} is known: {EMBEDDING}, {HEAD} or {TRANSCODER}")


def standing(graft: Graft, olds: Sequence[nn.Module]) -> list[nn.Module]:
    """What takes the place of each of a model's parts: the embedding itself, a tree head with the face of an
    output matrix, every MLP with its adapter beside it."""
    if isinstance(graft, Transcoders):
        return [AdaptedMLP(mlp, adapter) for mlp, adapter in zip(olds, graft, strict=True)]
    return [LogitsView(graft) if isinstance(graft, TreeHead) else graft for _ in olds]


def put(graft: Graft, root: nn.Module, places: Sequence[str]) -> list[nn.Module]:
    """Put a graft into a model at the places where it stood when it was written; returns what stands
    there."""
    if isinstance(graft, Transcoders):
        new = standing(graft, [root.get_submodule(place) for place in places])
    else:
        new = standing(graft, [root]) * len(places)
    for place, module in zip(places, new, strict=True):
        parent, _, name = place.rpartition(".")
        setattr(root.get_submodule(parent), name, module)
    return new
