"""A route made permanent: measured, then written as a plain Hugging Face checkpoint that gives the same logits.

Blocks are copied, never moved; the model at hand stays as it is. Shapes: B prompts, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from regraft.data.evaluation import Evaluation
from regraft.engine.metric import kl_to_clean, loss, top1_agreement
from regraft.engine.outcome import sweep_attributes
from regraft.engine.replay import route_logits
from regraft.engine.sweep import sweep
from regraft.engine.variant import Route, Stop, Variant
from regraft.experiment import provenance
from regraft.model.anatomy import weigh
from regraft.model.comparison import gap
from regraft.model.files import CheckpointError
from regraft.model.forward import without_cache
from regraft.model.load import quiet_transformers, read_checkpoint
from regraft.model.opened import Model
from regraft.model.parts import Block
from regraft.model.readback import check_generation, check_tensors, probe_ids
from regraft.model.recording import Recording
from regraft.runs import check_empty, whole_folder

CARD = "README.md"


def route_of(model: Model, blocks: Sequence[Block | nn.Module], places: Sequence[int]) -> Route:
    """The whole model's route with these blocks in its last stack; a donor's module is called as the block in its place."""
    stack = model.parts.stacks[-1]
    before = [Stop(i) for i in range(stack.first)]
    own = [Stop(b.index) if isinstance(b, Block) else Stop(stack.first + p, b) for b, p in zip(blocks, places, strict=True)]
    return Route((*before, *own))


def measured_route(model: Model, text: Evaluation, route: Route, blocks: Sequence[Block | nn.Module]) -> xr.Dataset:
    """Loss, divergence, agreement, parameters and bytes of a model with another sequence of blocks, beside the whole one."""
    result = sweep(text.recordings, [Variant(route=route)], [loss(), kl_to_clean(), top1_agreement()])
    own = [weigh(block.module)[0] for block in model.parts.stacks[-1].blocks]
    size = [weigh(block.module)[1] for block in model.parts.stacks[-1].blocks]
    modules = [b.module if isinstance(b, Block) else b for b in blocks]
    parameters, bytes_ = weigh(model.hf)
    after = parameters - sum(own) + sum(weigh(m)[0] for m in modules), bytes_ - sum(size) + sum(weigh(m)[1] for m in modules)
    clean = result.clean_mean("loss")
    return xr.Dataset(
        {
            "loss": ("state", [clean, float(result.mean("loss")[0])], {"units": "nats per token"}),
            "parameters": ("state", [parameters, after[0]], {"units": "parameters"}),
            "bytes": ("state", [bytes_, after[1]], {"units": "bytes in memory"}),
            "kl": ("state", [0.0, float(result.mean("kl_to_clean")[0])], {"units": "nats from the whole model"}),
            "agreement": (
                "state",
                [1.0, float(result.mean("top1_agreement")[0])],
                {"units": "share of tokens with the whole model's top-1"},
            ),
        },
        coords={"state": ["before", "after"]},
        attrs={**sweep_attributes(result), **text.attributes},
    )


def save_blocks(
    model: Model,
    blocks: Sequence[Block | nn.Module],
    route: Route,
    measured: xr.Dataset,
    folder: str,
    write: Callable[[Any, Path], None] | None = None,
) -> str:
    """Write the model with other blocks in its last stack to a folder that plain transformers opens.

    `write` puts the changed model into the new folder. The folder is read again and its logits compared with the
    route's before it takes its place. Returns one sentence.

    Raises:
        ValueError: the folder is not empty, or this sequence of blocks cannot be said by the model's configuration: the
            logits of what would have been written differ.
    """
    target = Path(folder)
    check_empty(target, "--save")
    sample = _sample(model)
    wanted = route_logits(sample, route)
    changed = rebuilt(model, blocks)
    with whole_folder(target) as fresh:
        with quiet_transformers():
            (write or _write_plainly)(changed, fresh)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(fresh)
        read = _read_back(fresh, target, model)
        if write is None:
            check_tensors(read, changed.state_dict())
        with torch.no_grad():
            found = read(**sample.inputs, **without_cache(read)).logits
        difference = gap(found, wanted)
        if not difference <= model.rounding:
            raise ValueError(
                f"this sequence of blocks cannot be written as a checkpoint of {type(model.hf).__name__}: read back, its logits "
                f"differ by {difference:.1e} (something in it depends on a block's number)"
            )
        check_generation(read, model.hf, sample.inputs, model.rounding)
        (fresh / CARD).write_text(_card(model, measured, difference, _weight_bytes(fresh)), encoding="utf-8")
    return f"{folder} opens with transformers and gives the route's logits (largest difference {difference:.1g})"


def _write_plainly(changed: Any, fresh: Path) -> None:
    changed.save_pretrained(fresh)


def _read_back(fresh: Path, target: Path, model: Model) -> nn.Module:
    """The folder that was just written, opened; what is wrong with it is said of the target."""
    try:
        return read_checkpoint(fresh, str(model.device), model.dtype, model.attention)
    except CheckpointError as error:
        told = str(error).replace(fresh.name, target.name)
        raise ValueError(
            f"this sequence of blocks cannot be written as a checkpoint of {type(model.hf).__name__}: {told}"
        ) from error


def rebuilt(model: Model, blocks: Sequence[Block | nn.Module]) -> Any:
    """A copy of the Hugging Face model with copies of these blocks in its last stack, configuration and numbers adjusted.

    As on the route, one of the model's own blocks keeps its kind (window, rotation) wherever it stands, and a module in a
    block's place is of that place's kind.
    """
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
    kept = [b.index - stack.first if isinstance(b, Block) else place for place, b in enumerate(blocks)]
    _adjust(changed.config, len(stack.blocks), [min(k, len(stack.blocks) - 1) for k in kept], decoder=model.two_stacks)
    return changed


def _adjust(config: Any, before: int, kept: list[int], decoder: bool) -> None:
    """The number of layers, and every list that holds one entry for each of them."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before and "layer" in name:
            setattr(config, name, [value[k] for k in kept])
    count = "num_decoder_layers" if decoder and hasattr(config, "num_decoder_layers") else "num_hidden_layers"
    if decoder and hasattr(config, "decoder_layers"):
        count = "decoder_layers"
    setattr(config, count, len(kept))


def _sample(model: Model) -> Recording:
    """A random text, behind an encoder read by both stacks."""
    ids = probe_ids(model.hf, model.table_rows, seed=2)
    return model.record([ids], [ids[1:]] if model.two_stacks else None, attention_mask="all")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4f}"


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _card(model: Model, measured: xr.Dataset, difference: float, size: int) -> str:
    """The model card: what was changed, and the measurements with their provenance."""
    rows = [
        f"| {name} | {_number(before)} | {_number(after)} | {measured[name].attrs['units']} |"
        for name in measured.data_vars
        for before, after in [np.asarray(measured[name].values, dtype=float).tolist()]
    ]
    facts = {**provenance(model), **{k: v for k, v in measured.attrs.items() if k not in ("completions",)}}
    facts.pop("self_check", None)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [regraft]",
            "---",
            f"# {model.name}, {measured.attrs['change']}",
            "",
            f"Made by regraft from {model.name} (weights sha256 `{model.weights_sha256}`). Read back by transformers, its "
            f"logits differ from those of the measured route by at most {difference:.1g}. The weight files hold {size:,} bytes.",
            "",
            "| quantity | before | after | unit |",
            "|---|---|---|---|",
            *rows,
            "",
            "```json",
            json.dumps(facts, indent=1, sort_keys=True, default=str),
            "```",
            "",
        ]
    )
