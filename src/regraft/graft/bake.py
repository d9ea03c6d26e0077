"""A byte embedding baked back into an ordinary table: a plain Hugging Face folder with the graft's outputs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import nn

from regraft.graft.byte_embedding import ByteEmbedding
from regraft.graft.folder import read_about, read_certificate
from regraft.graft.placing import placed
from regraft.model.forward import without_cache
from regraft.model.load import quiet_transformers, read_checkpoint
from regraft.model.opened import Model
from regraft.model.selfcheck import LENGTH, sample_ids
from regraft.model.structure import largest_difference
from regraft.runs import check_empty, whole_folder

EQUAL = 1e-6


def bake(model: Model, graft: ByteEmbedding, source: Path, target: Path) -> str:
    """Write the model with the graft's table in place of its own; a tied head keeps the old matrix as its own.

    The folder is read again and its outputs compared with the graft's before it is kept. Returns one sentence.

    Raises:
        CheckpointError: the graft was not certified.
        RunFolderError: the target is not empty.
        ValueError: what was written gives other outputs than the graft.
    """
    certificate = read_certificate(source)
    check_empty(target, "--save")
    ids = torch.tensor([sample_ids(model.table_rows, LENGTH, seed=3)], device=model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.two_stacks else {})}
    with placed(model.hf, model.parts.embedding, graft), torch.no_grad():
        wanted = model.hf(**inputs, **without_cache(model.hf))[0]
    changed = with_table(model, graft)
    with whole_folder(target) as fresh, quiet_transformers():
        changed.save_pretrained(fresh)
        model.tokenizer.save_pretrained(fresh)
        read = read_checkpoint(fresh, str(model.device), model.dtype, model.attention)
        with torch.no_grad():
            found = read(**inputs, **without_cache(read))[0]
        difference = largest_difference(found, wanted) / max(1.0, float(wanted.abs().max()))
        if not difference <= EQUAL:
            raise ValueError(f"the baked model's outputs differ from the graft's by {difference:.1e}: it is not written")
        (fresh / "README.md").write_text(card(model, source, certificate, difference), encoding="utf-8")
    head = ", and its head keeps the old matrix as its own" if model.parts.tied else ""
    return f"{target} opens with transformers and gives the graft's outputs (largest difference {difference:.1g}){head}"


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


def card(model: Model, source: Path, certificate: xr.Dataset, difference: float) -> str:
    """The model card: what was baked, and the certificate."""
    about = read_about(source)
    rows = [
        f"| {name} | {float(one.bits_per_byte_before):.4f} | {float(one.bits_per_byte_after):.4f} | {float(one.kl):.4f} | "
        f"{float(one.top1):.1%} | {float(one.top5):.1%} |"
        for name, one in ((str(d), certificate.sel(domain=d)) for d in certificate.domain.values)
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [regraft]",
            "---",
            f"# {model.name}, its token embedding computed from bytes and baked into a table",
            "",
            f"Made by regraft from {model.name} (weights sha256 `{model.weights_sha256}`). The embedding was computed by "
            f"{about['parameters']:,} parameters in place of {model.parts.embedding.weight.numel():,}; read back, the outputs "
            f"differ from the graft's by at most {difference:.1g}.",
            "",
            "| text | bits per byte before | after | divergence, nats per token | same first token | of the first five |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "```json",
            json.dumps(certificate.attrs, indent=1, sort_keys=True, default=str),
            "```",
            "",
        ]
    )
