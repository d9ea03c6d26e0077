"""A byte embedding baked back into an ordinary table: a plain Hugging Face folder with the graft's
outputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.core.files import check_empty
from regraft.export.card import graft_card
from regraft.export.graft_folder import read_certificate
from regraft.export.verified_folder import CARD, Probe, Verified, probe_inputs, write_verified
from regraft.model.model import Model
from regraft.modules.byte_embedding import ByteEmbedding
from regraft.modules.placement import placed

OTHERWISE = "the baked model's outputs differ from the graft's by {gap} of the largest: it is not written"


def bake(model: Model, graft: ByteEmbedding, source: Path, target: Path) -> str:
    """Write the model with the graft's table in place of its own; a tied head keeps the old matrix as its
    own.

    The folder is read again and its outputs compared with the graft's before it is kept. Returns one
    sentence.

    Raises:
        CheckpointError: the graft was not certified.
        RunFolderError: the target is not empty.
        ValueError: what was written gives other outputs than the graft.
    """
    certificate = read_certificate([source])
    check_empty(target, "--save")
    inputs = probe_inputs(model, model.table_rows, seed=3)
    with placed(model.hf, model.parts.embedding, graft), torch.no_grad():
        wanted = model.run(**inputs)[0]

    def texts(fresh: Path, verified: Verified) -> dict[str, str]:
        baked = (
            "It is baked: plain tensors that any transformers opens, whose outputs differ from the graft's"
            f" by at most {verified.difference:.1g} of the largest{verified.rounded}."
        )
        return {CARD: graft_card(model, [graft], certificate, baked)}

    verified = write_verified(
        model, with_table(model, graft), Probe(inputs, wanted, OTHERWISE), target, texts
    )
    head = ", and its head keeps the old matrix as its own" if model.parts.tied else ""
    apart = f"they differ by {verified.difference:.1g} of the largest{verified.rounded}"
    return f"{target} opens with transformers and gives the graft's outputs ({apart}){head}"


def with_table(model: Model, graft: ByteEmbedding) -> Any:
    """A copy of the Hugging Face model whose embedding holds the graft's vectors, its head untied."""
    model.check_whole("a model is written from all its weights")
    changed = copy.deepcopy(model.hf)
    rows = graft.table().to(model.dtype)
    scale = getattr(changed.get_input_embeddings(), "embed_scale", None)
    if scale is not None:
        rows = rows / scale
    head = changed.get_output_embeddings()
    if model.parts.tied and head is not None:
        head.weight = nn.Parameter(head.weight.detach().clone())
        changed.config.tie_word_embeddings = False
    old = changed.get_input_embeddings().weight
    fresh = nn.Parameter(rows)
    for module in changed.modules():
        if isinstance(module, nn.Embedding) and module.weight is old:
            module.weight = fresh
    return changed
