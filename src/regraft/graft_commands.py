"""What `regraft graft embedding fit | eval | bake` do once their options are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from regraft.data.token_bytes import token_bytes
from regraft.graft.bake import bake
from regraft.graft.byte_embedding import ByteConfig, cut_share, parameters
from regraft.graft.certificate import certify
from regraft.graft.distill import Plan, train
from regraft.graft.embedding_task import EmbeddingTask, Weights, warm_up
from regraft.graft.folder import attach, make_embedding, save_graft, write_certificate
from regraft.graft.windows import Windows, cut, windows
from regraft.model.opened import Model
from regraft.runs import check_empty
from regraft.specimens import almanac

HELD_CHARACTERS = 200_000


def fit_embedding(
    model: Model, texts: list[str], out: Path, config: ByteConfig, plan: Plan, weights: Weights, length: int, warm: int, seed: int
) -> str:
    """Train a byte embedding and write it to `out/graft`; the run's checkpoints and log stand in `out/run`."""
    check_empty(out / "graft", "--out")
    torch.manual_seed(seed)
    graft = make_embedding(model, config)
    table = token_bytes(model.tokenizer, model.table_rows)
    text = windows(model, texts, length, out / "run", seed) if texts else almanac_windows(model, length, 0, 2_000_000)
    started = (out / "run" / "plan.json").is_file()
    errors = [] if started else warm_up(graft, model.parts.embedding.weight.detach(), warm, seed=seed)
    log = train(EmbeddingTask(model, graft, weights=weights), text, plan, out / "run")
    save_graft(graft, model, out / "graft")
    share = parameters([graft]) / model.parts.embedding.weight.numel()
    warmed = f"the warm-up left {errors[-1]:.3f} of the table's mean square, " if errors else ""
    last = np.mean([line["loss"] for line in log[-20:]])
    agreement = np.mean([line.get("agreement", np.nan) for line in log[-20:]])
    return (
        f"{parameters([graft]):,} parameters, {share:.2f} of the table's; {cut_share(table, config.group):.2%} of the tokens "
        f"have more than {config.group} bytes and are cut; {warmed}after {len(log)} steps the loss is {last:.3f}, the same first "
        f"token in {agreement:.1%} of cases. Next: `regraft graft embedding eval --graft {out / 'graft'}`"
    )


def eval_embedding(model: Model, folder: Path, texts: list[str], length: int, most: int) -> xr.Dataset:
    """Certify a graft on text by domain (NAME=PATH), by default on an almanac of the specimens' kind; written beside it."""
    graft = attach(folder, model)
    domains = {name: windows(model, [path], length, folder / "text") for name, path in map(_named, texts)}
    domains = domains or {"almanac": almanac_windows(model, length, 99, HELD_CHARACTERS)}
    table = token_bytes(model.tokenizer, model.table_rows)
    data = certify(model, graft, model.parts.embedding, domains, table, most)
    write_certificate(data, folder)
    return data


def bake_embedding(model: Model, folder: Path, target: Path) -> str:
    """Write the model with the graft's table."""
    return bake(model, attach(folder, model), folder, target)


def _named(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign or not name or not path:
        raise ValueError(f"{text!r} names no domain: write NAME=PATH, for example books=./held-out")
    return name, path


def almanac_windows(model: Model, length: int, seed: int, characters: int) -> Windows:
    """Windows over an almanac made with a seed: sentences whose facts are known, at hand without any file."""
    ids: list[int] = []
    for text in almanac.corpus(characters, seed + 1):
        ids += model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return cut(np.array(ids, dtype=np.uint32), length)


def sentences(data: xr.Dataset) -> Iterable[str]:
    """A certificate in words and as rows."""
    for name in map(str, data.domain.values):
        one: Any = data.sel(domain=name)
        before, after = float(one.bits_per_byte_before), float(one.bits_per_byte_after)
        yield (
            f"{name}: {before:.4f} bits per byte become {after:.4f} ({after - before:+.4f}), {float(one.kl):.3f} nats per token "
            f"of divergence, the same first token in {float(one.top1):.1%}, of the first five {float(one.top5):.1%}"
        )
    count, ours = (int(v) for v in data.part_parameters.values)
    then, now = (float(v) * 1e3 for v in data.forward.values)
    yield f"the part: {count:,} parameters before, {ours:,} after; a forward pass {then:.0f} ms before, {now:.0f} ms after"
    token, context = str(data.token.values[0]), str(data.context.values[0])
    yield f"worst: {token!r} after {context!r} ({float(data.excess.values[0]):+.2f} nats)"
