"""Activation patching: put one run's activation into another and see how much of the difference it carries."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from regraft.engine.metric import logit_difference
from regraft.engine.outcome import sweep_attributes
from regraft.engine.sweep import SweepResult, sweep
from regraft.engine.variant import Replace, Variant
from regraft.model.opened import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.site import SiteError, parse_site

METRIC = "logit_difference"


def patch(
    model: Model,
    clean: str = "The time displayed is 9:00 am. Therefore, it is currently the",
    corrupt: str = "The time displayed is 9:00 pm. Therefore, it is currently the",
    answer: str = " morning",
    wrong: str = " night",
    grid: Literal["position", "head", "block"] = "position",
    site: str = "resid_pre",
    direction: Literal["denoise", "noise"] = "denoise",
    map: list[str] | None = None,
) -> xr.Dataset:
    """Patch one run's activations into another, cell by cell, and measure the logit of the answer minus a wrong one's.

    Source: Meng et al., "Locating and editing factual associations in GPT" (2022); Wang et al., "Interpretability in the
    wild" (2022). The normalised effect is (m_patched - m_target) / (m_source - m_target): 0 where the patch does nothing, 1
    where it makes the run like the one that the activation came from.

    Args:
        clean: the prompt whose answer is `answer`.
        corrupt: a prompt of as many tokens whose answer is `wrong`.
        answer: one token.
        wrong: one token.
        grid: block x position, block x head (all positions), or block (all positions).
        site: which activation of a block: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z or mlp_act.
        direction: denoise puts clean activations into the corrupted run, noise the other way round.
        map: for prompts of unequal length, pairs CLEAN:CORRUPT of token positions that belong together, for example 3:4.

    Raises:
        ValueError: prompts of unequal length without a map, a target that is not one token, or a site that no block has.
    """
    runs = {"clean": model.record(clean), "corrupt": model.record(corrupt)}
    pairs = _position_pairs(runs["clean"], runs["corrupt"], map)
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction {direction!r} is not known: choose denoise or noise")
    source, target = (runs["clean"], runs["corrupt"]) if direction == "denoise" else (runs["corrupt"], runs["clean"])
    places = pairs if direction == "denoise" else [(b, a) for a, b in pairs]
    cells, variants, columns = _cells(model, source, grid, site, places)
    metric = logit_difference(answer, wrong, _read_position(model, source, target))
    result = sweep(target, variants, metric)
    source_value = float(sweep(source, [], metric).clean[METRIC])
    return _dataset(model, result, source_value, cells, columns, grid, target, direction, site)


def _position_pairs(clean: Recording, corrupt: Recording, given: list[str] | None) -> list[tuple[int, int]]:
    """Positions (clean, corrupt) that belong together."""
    lengths = [run.inputs["input_ids"].shape[1] for run in (clean, corrupt)]
    if given:
        return [_pair(text, *lengths) for text in given]
    if lengths[0] != lengths[1]:
        model = clean.model
        words = ["|".join(model.token_text(int(i)) for i in run.inputs["input_ids"][0]) for run in (clean, corrupt)]
        raise ValueError(
            f"the prompts are {lengths[0]} and {lengths[1]} tokens long ({words[0]} and {words[1]}): make them equally "
            "long, or map positions with --map CLEAN:CORRUPT"
        )
    return [(p, p) for p in range(lengths[0])]


def _read_position(model: Model, source: Recording, target: Recording) -> int | None:
    """Where the answer is read: at the last position, or at an encoder's one mask token.

    Raises:
        ValueError: an encoder's prompts do not hold one mask token each, at one position.
    """
    if model.causal:
        return None
    mask = getattr(model.tokenizer, "mask_token_id", None)
    found = [(run.ids_BT[0] == mask).nonzero()[:, 0].tolist() if mask is not None else [] for run in (source, target)]
    if len(found[0]) != 1 or found[0] != found[1]:
        raise ValueError(
            f"{model.name} predicts masked tokens: write the mask token {getattr(model.tokenizer, 'mask_token', '')!r} once in "
            "each prompt, at the same position"
        )
    return found[0][0]


def _blocks(model: Model) -> tuple[Block, ...]:
    """The blocks that read the prompt: the only stack's, or the encoder's."""
    return model.parts.stacks[0].blocks


def _pair(text: str, clean: int, corrupt: int) -> tuple[int, int]:
    first, colon, second = text.partition(":")
    if not colon or not first.strip().isdigit() or not second.strip().isdigit():
        raise ValueError(f"{text!r} is no pair of positions: write CLEAN:CORRUPT, for example 3:4")
    a, b = int(first), int(second)
    if a >= clean or b >= corrupt:
        raise ValueError(f"the pair {text} is outside the prompts of {clean} and {corrupt} tokens")
    return a, b


def _cells(model: Model, source: Recording, grid: str, site: str, places: list[tuple[int, int]]):
    """Grid cells (row, column), their variants, and the names of the columns."""
    blocks = _blocks(model)
    addresses = [_address(model, block, site) for block in blocks]
    if grid != "head" and not any(addresses):
        model.site(f"{blocks[0].address}.{site}")
    here = [to for _, to in places]
    if grid == "position":
        value = {a: source[a].flatten(2) for a in addresses if a}
        cells = [(row, column) for row in range(len(blocks)) if addresses[row] for column in range(len(places))]
        variants = [
            Variant([Replace(addresses[row], value[addresses[row]][0, places[c][0]], position=places[c][1])]) for row, c in cells
        ]
        return cells, variants, here
    froms = [a for a, _ in places]
    if grid == "block":
        rows = [(row, 0) for row in range(len(blocks)) if addresses[row]]
        there = [a for a in addresses if a]
        return rows, [Variant([Replace(a, source[a].flatten(2)[0, froms], position=here)]) for a in there], ["all"]
    if grid == "head":
        exists = [model.taps.exists(block.index, "z") for block in blocks]
        heads = [model.tap(f"{block.address}.z").heads if there else 0 for block, there in zip(blocks, exists, strict=True)]
        if max(heads) == 0:
            raise SiteError("the number of heads is not told by this model's blocks, so there is no head grid")
        cells = [(row, head) for row in range(len(blocks)) for head in range(heads[row])]
        variants = []
        for row, head in cells:
            address = f"{blocks[row].address}.head.{head}"
            variants.append(Variant([Replace(address, source[address][0, froms], position=here)]))
        return cells, variants, list(range(max(heads)))
    raise ValueError(f"grid {grid!r} is not known: choose position, head or block")


def _address(model: Model, block: Block, site: str) -> str:
    """The site's address in a block; empty where this block, for a reason, does not have it.

    Raises:
        SiteError: the site is none that is written as a whole.
    """
    address = f"{block.address}.{site}"
    if parse_site(address, model.parts).index is not None or site == "pattern":
        raise SiteError(f"{site} cannot be patched as a whole: choose resid_pre, attn_out, mlp_out, z or another whole site")
    return address if model.taps.exists(block.index, site) else ""


def _dataset(
    model: Model,
    result: SweepResult,
    source_value: float,
    cells,
    columns,
    grid: str,
    target: Recording,
    direction,
    site,
) -> xr.Dataset:
    target_value = float(result.clean[METRIC])
    if source_value == target_value:
        raise ValueError("both prompts give the same logit difference, so there is no effect to carry over")
    blocks = [block.address for block in _blocks(model)]
    values = np.full((len(blocks), len(columns)), np.nan)
    for (row, column), value in zip(cells, result.values[METRIC][:, 0].tolist(), strict=True):
        values[row, column] = value
    name = {"position": "position", "head": "head", "block": "positions"}[grid]
    coords: dict = {"block": blocks, name: columns}
    if grid == "position":
        words = [model.token_text(int(target.inputs["input_ids"][0, p])) for p in columns]
        coords["token"] = (name, words)
    attributes = sweep_attributes(result)
    lacking = [block for row, block in enumerate(blocks) if np.isnan(values[row]).all()]
    if lacking:
        reason = f"{site} does not exist in block {', '.join(lacking)}, whose rows are empty"
        attributes["notes"] = "; ".join(note for note in (attributes["notes"], reason) if note)
    return xr.Dataset(
        {
            METRIC: (("block", name), values, {"units": "logit of the answer minus logit of the wrong one"}),
            "effect": (
                ("block", name),
                (values - target_value) / (source_value - target_value),
                {"units": "share of the difference between the runs"},
            ),
        },
        coords=coords,
        attrs={
            **attributes,
            "source_value": source_value,
            "target_value": target_value,
            "direction": direction,
            "site": "z of one head" if grid == "head" else site,
            "grid": grid,
            "title": {"position": "Activation patching", "head": "Patching heads", "block": "Patching blocks"}[grid],
        },
    )
