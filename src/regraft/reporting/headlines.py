"""What a chapter found, in one sentence for the top of a page: its number, and how far it spreads where that
was measured.

A chapter without anything that stands out has no headline. The order of the table is the order on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from regraft.reporting.theme import quoted
from regraft.reporting.wording import LEAST_LOSS, capital, counted, differ, highest, lowest, signed

HALF = 0.5
"""Share of the difference between two runs from which on an activation carries it."""
COPIES = 0.3
"""Share of attention from which a head is said to copy what came next."""
Of = Callable[[xr.Dataset], str]


def headline_of(dataset: xr.Dataset) -> str:
    """The headline of a result; nothing where it has none."""
    told = HEADLINES.get(str(dataset.attrs.get("experiment")))
    return told(dataset) if told else ""


def knockout(dataset: xr.Dataset) -> str:
    """The block that is missed most, with the spread over prompts."""
    if "ratio" not in dataset or dataset.ratio.dims != ("block",) or dataset.attrs["clean_loss"] < LEAST_LOSS:
        return ""
    worst = highest(dataset.ratio.values)
    if len(worst) != 1 or dataset.ratio.values[worst[0]] <= 1 or dataset.sizes["block"] < 2:
        return ""
    name, times = dataset.block.values[worst[0]], float(dataset.ratio.values[worst[0]])
    said = f"Without block {name} the loss is {times:.1f} times the clean one"
    spread = _over_prompts(dataset.prompt_loss.values[worst[0]])
    return f"{said} ({float(dataset.loss.values[worst[0]]):.2f} nats per token{spread})."


def _over_prompts(losses: np.ndarray) -> str:
    known = losses[np.isfinite(losses)]
    return f"; single prompts from {known.min():.2f} to {known.max():.2f}" if differ(known) else ""


def patch(dataset: xr.Dataset) -> str:
    """Where the answer's information moves, or which head carries most of it."""
    effect, names = dataset.effect.values, dataset.block.values
    if not np.isfinite(effect).any():
        return ""
    if "head" in dataset.dims:
        row, column = np.unravel_index(highest(effect.ravel())[0], effect.shape)
        share = float(effect[row, column])
        if share < HALF / 5:
            return ""
        return (
            f"Head {dataset['head'].values[column]} of block {names[row]} alone carries {share:.0%} of what"
            f" parts {quoted(_answer(dataset, 'answer'))} from {quoted(_answer(dataset, 'wrong'))}."
        )
    if "token" not in dataset.coords or len(effect) < 2 or not np.isfinite(effect).all():
        return ""
    first, last = int(effect[0].argmax()), int(effect[-1].argmax())
    gone = next((b for b in range(len(effect)) if effect[b, first] < HALF), len(effect))
    if effect[0, first] < HALF or first == last or gone == len(effect):
        return ""
    words = [quoted(token) for token in dataset.token.values]
    answers = " or ".join(quoted(_answer(dataset, which)) for which in ("answer", "wrong"))
    return (
        f"Whether it says {answers} is read at {words[first]} up to block {names[gone - 1]}, and at"
        f" {words[last]} from block {names[gone]} on."
    )


def _answer(dataset: xr.Dataset, which: str) -> str:
    return str(dataset.attrs.get(which, "the answer" if which == "answer" else "the wrong one"))


def lens(dataset: xr.Dataset) -> str:
    """When predictions are settled."""
    first = float(dataset.attrs["mean_first_top1"])
    if not np.isfinite(first):
        return ""
    spread = float(dataset.first_top1_std) if "first_top1_std" in dataset else float("nan")
    around = f" (standard deviation {spread:.1f})" if np.isfinite(spread) else ""
    return (
        f"What it will say next becomes its first choice after {first:.1f} of"
        f" {counted(dataset.sizes['block'], 'block')} on average{around}."
    )


def linearity(dataset: xr.Dataset) -> str:
    """The block that a linear map replaces best."""
    recovered = dataset.recovered.values
    best = highest(recovered)
    if len(best) != 1 or recovered[best[0]] <= 0:
        return ""
    median = float(np.median(recovered[np.isfinite(recovered)]))
    return (
        f"A linear map in place of block {dataset.block.values[best[0]]} wins back"
        f" {recovered[best[0]]:.0%} of what skipping it costs; in the median block it is {median:.0%}."
    )


def swap(dataset: xr.Dataset) -> str:
    """The pair that changes places most cheaply."""
    cost = np.where(np.tril(np.ones(dataset.cost.shape), -1) > 0, dataset.cost.values, np.nan)
    cheap = lowest(cost.ravel())
    if len(cheap) != 1 or not differ(cost):
        return ""
    j, i = np.unravel_index(cheap[0], cost.shape)
    dear, names = highest(dataset.mean_cost.values), dataset.block.values
    said = f"Blocks {names[i]} and {names[j]} can change places for {signed(cost[j, i])} nats per token"
    if len(dear) != 1:
        return f"{said}."
    mean = signed(dataset.mean_cost.values[dear[0]], 2)
    return f"{said}; moving block {names[dear[0]]} costs {mean} on average."


def attention(dataset: xr.Dataset) -> str:
    """How many heads copy what came next last time, and the strongest of them."""
    if "induction" not in dataset or not np.isfinite(dataset.induction.values).any():
        return ""
    table = dataset.induction.values
    block, head = np.unravel_index(int(np.nanargmax(table)), table.shape)
    if table[block, head] < COPIES:
        return ""
    name = dataset.block.values[block]
    return (
        f"Head {head} of block {name} copies what came next last time: {table[block, head]:.0%} of its"
        " attention falls there in random tokens read twice."
    )


def contributions(dataset: xr.Dataset) -> str:
    """The part that adds most to the true token's logit."""
    added, total = dataset.contribution.values, float(dataset.logit.mean())
    most = highest(added)
    if len(most) != 1 or added[most[0]] <= 0 or not np.isfinite(total):
        return ""
    name = str(dataset.contributor.values[most[0]])
    return (
        f"Of the true next token's logit, {total:.1f} on average, {'block ' if name.isdigit() else ''}{name}"
        f" adds most: {signed(added[most[0]], 1)}."
    )


def quantize(dataset: xr.Dataset) -> str:
    """What four bits cost by the best recipe."""
    if "recipe_loss" not in dataset:
        return ""
    losses, clean = dataset.recipe_loss.values, float(dataset.attrs["clean_loss"])
    best = lowest(losses)
    if not best or not np.isfinite(clean):
        return ""
    name, share = dataset.recipe.values[best[0]], float(dataset.recipe_bytes.values[best[0]])
    share /= float(dataset.attrs["clean_bytes"])
    return (
        f"Rounded to 4 bits on average, the blocks take {share:.0%} of their bytes and the loss changes by"
        f" {signed(losses[best[0]] - clean)} nats per token (by the best of"
        f" {len(losses)} ways to share the bits out, {name})."
    )


def shuffle(dataset: xr.Dataset) -> str:
    """Whether the order of the blocks is found again."""
    blocks = dataset.sizes["place"]
    exact = [
        str(m) for m, share in zip(dataset.method.values, dataset.in_place.values, strict=True) if share == 1
    ]
    if blocks < 2 or not exact:
        return ""
    which = exact[0] if len(exact) == 1 else f"{len(exact)} methods"
    return capital(f"{which} found the order of all {blocks} blocks again after they were shuffled.")


def bottleneck(dataset: xr.Dataset) -> str:
    """The block that restores most of the answer, where it is one for all kinds of prompts."""
    best = [highest(dataset.restored_effect.sel(kind=kind).values) for kind in dataset.kind.values]
    if not best or any(one != best[0] or len(one) != 1 for one in best):
        return ""
    low, high = (of(dataset.restored_effect.isel(block=best[0][0]).values) for of in (np.min, np.max))
    return (
        f"Block {dataset.block.values[best[0][0]]} restores most of a lost answer on every kind of prompt"
        f" ({low:.0%} to {high:.0%})."
    )


def noise(dataset: xr.Dataset) -> str:
    """Whether blocks damp noise, and where it hurts most."""
    if "loss" not in dataset or dataset.loss.dims != ("block", "level"):
        return ""
    last = dataset.loss.values[:, -1]
    worst = highest(last)
    if len(worst) != 1:
        return ""
    return (
        f"Noise as strong as {float(dataset.level.values[-1]):g} of the stream hurts most in front of block"
        f" {dataset.block.values[worst[0]]}: the loss is {last[worst[0]]:.2f} nats per token."
    )


HEADLINES: Mapping[str, Of] = {
    "knockout": knockout,
    "patch": patch,
    "lens": lens,
    "attention": attention,
    "contributions": contributions,
    "linearity": linearity,
    "swap": swap,
    "quantize": quantize,
    "shuffle": shuffle,
    "bottleneck": bottleneck,
    "noise": noise,
}
"""Headlines by experiment, the most telling first."""
