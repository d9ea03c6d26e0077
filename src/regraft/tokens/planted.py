"""A model with its new vocabulary as a plain Hugging Face folder, read again and compared before it is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from regraft.graft.placing import all_placed
from regraft.model.forward import without_cache
from regraft.model.load import quiet_transformers, read_checkpoint
from regraft.model.opened import Model
from regraft.model.selfcheck import LENGTH, sample_ids
from regraft.runs import check_empty, whole_folder
from regraft.tokens.transplant import Transplant

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def write_model(done: Transplant, certificate: xr.Dataset, target: Path) -> str:
    """Write the model with its new tables and tokenizer; returns one sentence.

    Raises:
        RunFolderError: the target is not empty.
        ValueError: the target is the source model, or the folder, read again, gives other outputs.
    """
    check_target(done.model, target)
    wanted = outputs(done)
    changed = planted(done)
    with whole_folder(target) as fresh, quiet_transformers():
        changed.save_pretrained(fresh)
        done.new.tokenizer.save_pretrained(fresh)
        (fresh / "certificate.json").write_text(json.dumps(certificate.to_dict(), indent=1, default=str) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(card(done, certificate), encoding="utf-8")
        read: Any = read_checkpoint(fresh, str(done.model.device), done.model.dtype, done.model.attention)
        found = _outputs(read.eval(), done)
        if not torch.equal(found, wanted):
            raise ValueError("read again, the folder's outputs differ from the model's: it is not kept")
    return f"{target} opens in plain transformers with its new tokenizer; read again, its outputs are equal to the bit"


def check_target(model: Model, target: Path) -> None:
    """Make sure that a folder can be written without touching the source.

    Raises:
        RunFolderError: it is not empty.
        ValueError: it is the source model.
    """
    if model.folder is not None and target.resolve() == model.folder.resolve():
        raise ValueError(f"{target} is the source model itself: choose another folder with --save")
    check_empty(target, "--save")


def planted(done: Transplant) -> Any:
    """A copy of the model with the new modules in place, its config and generation config saying so."""
    with all_placed(done.model.hf, done.swaps):
        changed: Any = copy.deepcopy(done.model.hf)
    rows, tokenizer = done.tables.rows, done.new.tokenizer
    for config in (changed.config, changed.config.get_text_config()):
        config.vocab_size = rows
    for module in changed.modules():
        if isinstance(getattr(module, "vocab_size", None), int):
            module.vocab_size = rows
    _say_specials(changed.config, tokenizer, done)
    if changed.generation_config is not None:
        _say_specials(changed.generation_config, tokenizer, done)
    return changed


def _say_specials(config: Any, tokenizer: Any, done: Transplant) -> None:
    """Special ids of the new tokenizer; other ids of tokens that a config names are carried over where the token was."""
    for name in SPECIAL_IDS:
        if getattr(config, name, None) is not None or name in ("bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
    start = getattr(config, "decoder_start_token_id", None)
    if start is not None:
        found = (done.matching.source_V == start).nonzero()[0]
        if not len(found):
            raise ValueError("the decoder's start token has no counterpart in the new tokenizer: give it a token of that role")
        config.decoder_start_token_id = int(found[0])


def outputs(done: Transplant) -> Tensor:
    """What the model with its new modules gives on some ids."""
    with all_placed(done.model.hf, done.swaps):
        return _outputs(done.model.hf, done)


@torch.no_grad()
def _outputs(hf: nn.Module, done: Transplant) -> Tensor:
    ids = torch.tensor([sample_ids(len(done.new.table), LENGTH, seed=5)], device=done.model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if done.model.two_stacks else {})}
    return hf(**inputs, **without_cache(hf))[0]


def card(done: Transplant, certificate: xr.Dataset) -> str:
    """The text of a model card in Markdown."""
    rows = []
    for name in map(str, certificate.domain.values):
        bits, length = (certificate[one].sel(domain=name).values for one in ("bits_per_byte", "bytes_per_token"))
        rows.append(f"| {name} | {bits[0]:.4f} | {bits[1]:.4f} | {length[0]:.3f} | {length[1]:.3f} |")
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [regraft, tokenizer-transplant]",
            "---",
            f"# {done.model.name} with another tokenizer",
            "",
            f"Made by regraft from {done.model.name} (weights sha256 `{done.model.weights_sha256}`), method "
            f"{certificate.attrs['method']}. {done.sentence}.",
            "",
            "| text | bits per byte before | after | bytes per token before | after |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "```json",
            json.dumps(certificate.attrs, indent=1, sort_keys=True, default=str),
            "```",
            "",
        ]
    )
