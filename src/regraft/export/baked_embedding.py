"""A byte embedding baked back into an ordinary table: a plain Hugging Face folder with the graft's outputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.files import check_empty, whole_folder
from regraft.export.card import card
from regraft.export.graft_folder import read_certificate
from regraft.export.readback import check_generation, check_outputs, check_tensors, probe_ids
from regraft.export.stored_types import rounding_said, settle, stored_types
from regraft.model.block_call import without_cache
from regraft.model.load import quiet_transformers, read_checkpoint
from regraft.model.model import Model
from regraft.modules.byte_embedding import ByteEmbedding
from regraft.modules.placement import placed

OTHERWISE = "the baked model's outputs differ from the graft's by {gap} of the largest: it is not written"


def bake(model: Model, graft: ByteEmbedding, source: Path, target: Path) -> str:
    """Write the model with the graft's table in place of its own; a tied head keeps the old matrix as its own.

    The folder is read again and its outputs compared with the graft's before it is kept. Returns one sentence.

    Raises:
        CheckpointError: the graft was not certified.
        RunFolderError: the target is not empty.
        ValueError: what was written gives other outputs than the graft.
    """
    certificate = read_certificate([source])
    check_empty(target, "--save")
    ids = torch.tensor([probe_ids(model.hf, model.table_rows, seed=3)], device=model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.two_stacks else {})}
    with placed(model.hf, model.parts.embedding, graft), torch.no_grad():
        wanted = model.run(**inputs)[0]
    changed = with_table(model, graft)
    types = stored_types(model)
    rounded, bound = settle(changed, types, lambda: _outputs(changed, inputs), wanted, len(model.blocks), model.width)
    moved = rounding_said(types, check_outputs(rounded, wanted, bound, OTHERWISE))
    with whole_folder(target) as fresh, quiet_transformers():
        changed.save_pretrained(fresh)
        model.tokenizer.save_pretrained(fresh)
        read = read_checkpoint(fresh, str(model.device), model.dtype, model.attention)
        check_tensors(read, changed.state_dict())
        difference = check_outputs(_outputs(read, inputs), rounded, model.rounding, OTHERWISE)
        check_generation(read, model.hf, inputs, model.rounding)
        baked = (
            "It is baked: plain tensors that any transformers opens, whose outputs differ from the graft's by at most "
            f"{difference:.1g} of the largest{moved}."
        )
        (fresh / "README.md").write_text(card(model, [graft], certificate, baked), encoding="utf-8")
    head = ", and its head keeps the old matrix as its own" if model.parts.tied else ""
    apart = f"they differ by {difference:.1g} of the largest{moved}"
    return f"{target} opens with transformers and gives the graft's outputs ({apart}){head}"


@torch.no_grad()
def _outputs(hf: Any, inputs: dict[str, Tensor]) -> Tensor:
    return hf(**inputs, **without_cache(hf))[0]


def with_table(model: Model, graft: ByteEmbedding) -> Any:
    """A copy of the Hugging Face model whose embedding holds the graft's vectors, its head untied."""
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
