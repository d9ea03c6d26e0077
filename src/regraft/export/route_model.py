"""A route made permanent: measured, then written as a plain Hugging Face checkpoint that gives the same
logits.

Blocks are copied, never moved; the model at hand stays as it is. Shapes: B prompts, T positions, V
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from regraft.core.files import check_empty, expanded, keeping
from regraft.data.evaluation import Evaluation, Texts
from regraft.export.block_config import adjusted, check_expressible
from regraft.export.card import card, table
from regraft.export.readback import probe_ids
from regraft.export.verified_folder import CARD, Probe, Verified, Writing, write_verified
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.summary import weigh
from regraft.model.wrappers import refuse_adapters
from regraft.sweeps.executor import route_logits, route_stream
from regraft.sweeps.metrics import kl_to_clean, loss, top1_agreement
from regraft.sweeps.provenance import provenance, sweep_attributes
from regraft.sweeps.routes import Route, Stop
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

Writer = Callable[[Any, Path], None]
"""Puts a changed model into a new folder."""


def route_of(model: Model, blocks: Sequence[Block | nn.Module], places: Sequence[int]) -> Route:
    """The whole model's route with these blocks in its last stack; a donor's module is called as the block in
    its place."""
    stack = model.parts.stacks[-1]
    before = [Stop(i) for i in range(stack.first)]
    own = [
        Stop(b.index) if isinstance(b, Block) else Stop(stack.first + p, b)
        for b, p in zip(blocks, places, strict=True)
    ]
    return Route((*before, *own))


def measured_route(
    model: Model, text: Evaluation | Texts, route: Route, blocks: Sequence[Block | nn.Module]
) -> xr.Dataset:
    """Loss, divergence, agreement, parameters and bytes of a model with another sequence of blocks, beside
    the whole one.

    A model that writes no text has no loss: there it is the distance of its last stream.
    """
    if isinstance(text, Texts):
        return _by_distance(model, text, route, blocks)
    result = sweep(text.recordings, [Variant(route=route)], [loss(), kl_to_clean(), top1_agreement()])
    clean = result.clean_mean("loss")
    return xr.Dataset(
        {
            "loss": ("state", [clean, float(result.mean("loss")[0])], {"units": "nats per token"}),
            **_weights_of(model, blocks),
            "kl": (
                "state",
                [0.0, float(result.mean("kl_to_clean")[0])],
                {"units": "nats from the whole model"},
            ),
            "agreement": (
                "state",
                [1.0, float(result.mean("top1_agreement")[0])],
                {"units": "share of tokens with the whole model's top-1"},
            ),
        },
        coords={"state": ["before", "after"]},
        attrs={**sweep_attributes(result), **text.attributes, "saved": ""},
    )


def _by_distance(model: Model, text: Texts, route: Route, blocks: Sequence[Block | nn.Module]) -> xr.Dataset:
    """The same for a model that writes no text: how far the stream behind its last block is from the whole
    model's."""
    distances, worst = [], 0.0
    for recording in text.recordings:
        clean, real = recording.post(len(model.blocks) - 1), recording.mask_BT
        own = Route(tuple(Stop(block.index) for block in model.blocks))
        for stream, kept in (
            (route_stream(recording, own), None),
            (route_stream(recording, route), distances),
        ):
            away = ((stream - clean).norm(dim=-1) / clean.norm(dim=-1))[real]
            worst = max(worst, float(away.max())) if kept is None else worst
            distances += [] if kept is None else away.tolist()
    units = {"units": "share of the whole model's last stream, mean over all tokens"}
    return xr.Dataset(
        {"distance": ("state", [0.0, float(np.mean(distances))], units), **_weights_of(model, blocks)},
        coords={"state": ["before", "after"]},
        attrs={"control_deviation": worst, **text.attributes, "saved": ""},
    )


def _weights_of(model: Model, blocks: Sequence[Block | nn.Module]) -> dict[str, Any]:
    """Parameters and bytes of the whole model and of the one with these blocks in its last stack."""
    own = [weigh(block.module) for block in model.parts.stacks[-1].blocks]
    put = [weigh(b.module if isinstance(b, Block) else b) for b in blocks]
    before = weigh(model.hf)
    after = [total - sum(o[i] for o in own) + sum(p[i] for p in put) for i, total in enumerate(before)]
    return {
        "parameters": ("state", [before[0], after[0]], {"units": "parameters"}),
        "bytes": ("state", [before[1], after[1]], {"units": "bytes in memory"}),
    }


def check_save(folder: str) -> None:
    """Make sure, before anything is measured, that a model can be written to a folder, if one is named.

    Raises:
        RunFolderError: it is not empty, or closed.
    """
    if folder:
        check_empty(folder, "--save")


def save_blocks(
    model: Model,
    blocks: Sequence[Block | nn.Module],
    route: Route,
    measured: xr.Dataset,
    folder: str,
    write: Writer | None = None,
) -> str:
    """Write the model with other blocks in its last stack to a folder that plain transformers opens.

    `write` puts the changed model into the new folder. The folder is read again and its logits compared with
    the route's before it takes its place. Returns one sentence.

    Raises:
        NotWrittenError: the disk is full or closed; its `result` is `measured`.
        NotKeptError: this sequence of blocks cannot be said by the model's configuration: the logits of what
            would have been written differ; its `result` is `measured`, too.
        RunFolderError: the folder is not empty.
    """
    target = expanded(folder)
    check_empty(target, "--save")
    with keeping(measured):
        sentence = _saved(model, blocks, route, measured, target, write)
    return f"{folder} opens with transformers and gives the route's logits (largest difference {sentence})"


def _saved(
    model: Model,
    blocks: Sequence[Block | nn.Module],
    route: Route,
    measured: xr.Dataset,
    target: Path,
    write: Writer | None,
) -> Verified:
    """Write the folder and read it again; how far its outputs lie apart from the route's."""
    sample = _sample(model)
    cannot = f"this sequence of blocks cannot be written as a checkpoint of {type(model.hf).__name__}: "
    refusal = cannot + "read back, its logits differ by {gap} (something in it depends on a block's number)"
    probe = Probe(sample.inputs, _route_output(sample, route), refusal, cannot + "{reason}")
    how = Writing(fill=write, types=write is None)

    def texts(fresh: Path, verified: Verified) -> dict[str, str]:
        return {CARD: _card(model, measured, verified, _weight_bytes(fresh))}

    return write_verified(model, rebuilt(model, blocks), probe, target, texts, how)


def _route_output(sample: Recording, route: Route) -> Tensor:
    """The same of a route."""
    if sample.model.parts.head is not None:
        return route_logits(sample, route)
    return sample.hidden(route_stream(sample, route))


def rebuilt(model: Model, blocks: Sequence[Block | nn.Module]) -> Any:
    """A copy of the Hugging Face model with copies of these blocks in its last stack, configuration and
    numbers adjusted.

    As on the route, one of the model's own blocks keeps its kind (window, rotation) wherever it stands, and a
    module in a block's place is of that place's kind.
    """
    model.check_whole("a model is written from all its weights")
    stack = model.parts.stacks[-1]
    modules = [b.module if isinstance(b, Block) else b for b in blocks]
    changed = copy.deepcopy(model.hf)
    owner = changed.get_submodule(stack.path.rpartition(".")[0]) if "." in stack.path else changed
    copies = [copy.deepcopy(module) for module in modules]
    for number, block in enumerate(copies):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", number)  # noqa: B010
    setattr(owner, stack.attribute, nn.ModuleList(copies))
    changed.config = adjusted(changed.config, len(stack.blocks), facts_of(model, blocks), model.two_stacks)
    return changed


def facts_of(model: Model, blocks: Sequence[Block | nn.Module]) -> list[int]:
    """For each place, the number of the block whose facts (its kind, its window) it has."""
    stack = model.parts.stacks[-1]
    kept = [b.index - stack.first if isinstance(b, Block) else place for place, b in enumerate(blocks)]
    return [min(k, len(stack.blocks) - 1) for k in kept]


def check_writable_as(model: Model, blocks: Sequence[Block | nn.Module], folder: str) -> None:
    """Make sure, before anything is measured, that a sequence of blocks can be written to a folder, where one
    is given.

    Raises:
        ValueError: the folder is not empty, an adapter is in effect, or the configuration cannot say this
            sequence.
    """
    check_save(folder)
    if folder:
        refuse_adapters(model)
        check_expressible(model, blocks, facts_of(model, blocks))


def _sample(model: Model) -> Recording:
    """A random text, behind an encoder read by both stacks."""
    ids = probe_ids(model.hf, model.table_rows, seed=2)
    return model.record([ids], [ids[1:]] if model.two_stacks else None, attention_mask="all")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4f}"


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _card(model: Model, measured: xr.Dataset, verified: Verified, size: int) -> str:
    """The model card: what was changed, and the measurements with their provenance."""
    rows = [
        [name, _number(before), _number(after), measured[name].attrs["units"]]
        for name in map(str, measured.data_vars)
        for before, after in [np.asarray(measured[name].values, dtype=float).tolist()]
    ]
    facts = {**provenance(model), **{k: v for k, v in measured.attrs.items() if k not in ("completions",)}}
    facts.pop("self_check", None)
    made = (
        ". Read back by transformers, its logits differ from those of the measured route by at most"
        f" {verified}. The weight files hold {size:,} bytes."
    )
    return card(
        model,
        f"{model.name}, {measured.attrs['change']}",
        made,
        table(["quantity", "before", "after", "unit"], rows),
        facts,
    )
