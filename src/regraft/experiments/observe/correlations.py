"""Rank correlations between everything that the experiments measure once for each block.

Shapes: Q quantities, L blocks, n blocks that two quantities share, P permutations.
"""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import false_discovery_control, rankdata

from regraft.core.registry import DOES_NOT_APPLY, experiments
from regraft.core.signatures import TextFile
from regraft.data.own_texts import first_of
from regraft.experiments.observe.cross_experiment import cross_quantities
from regraft.experiments.observe.paired import FEWEST, rank_correlation
from regraft.experiments.running import measured, refused
from regraft.model.model import Model

SOURCES = (
    "lens", "geometry", "spectra", "linearity", "knockout", "swap", "repeat", "noise", "replacement",
    "bottleneck", "quantize",
)  # fmt: skip
"""Every experiment that measures something once for each block, in the order of a report's chapters."""
PERMUTATIONS, LEVEL = 20_000, 0.05
"""Orders that a p-value is taken from where there are more than 20,000 (up to seven blocks all are); the
level of the test."""
POSITION = "position in the model"


def correlations(
    model: Model,
    of: list[str] | None = None,
    prompts: list[str] | None = None,
    count: int = 0,
    corpus: TextFile = "",
    sample: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Correlate every quantity that experiments measure for each block with every other, by ranks over the
    blocks.

    Spearman's rank correlation; two-sided p-values from permutations (all of them up to seven blocks, else
    20,000), corrected for the number of pairs by the false discovery rate of Benjamini and Hochberg (1995).

    Args:
        of: names of the experiments to take quantities from; each is run where it has not been run yet, with
            its defaults for all that is not given here.
        prompts: texts for every one of them that reads prompts; without them, what each reads by itself.
        count: how many prompts each of them measures; 0 for all that are given, or what each measures by
            itself.
        corpus: a text file for every one of them that reads one.
        sample: how many tokens derivatives are taken at; 0 for as many as linearity takes by itself.
        seed: of everything drawn at random.

    Raises:
        ValueError: an experiment that does not exist, a negative count, or fewer than two quantities.

    Examples:
        >>> data = regraft.correlations(model, of=["knockout", "geometry"], count=2)
        >>> dict(data["rho"].sizes), data["rho"].attrs["units"]
        ({'quantity': 10, 'other': 10}, "Spearman's rank correlation over blocks")
    """
    names = tuple(of or SOURCES)
    unknown = [name for name in names if name not in experiments() or name == "correlations"]
    if unknown:
        known = ", ".join(name for name in experiments() if name != "correlations")
        raise ValueError(
            f"there is no experiment {unknown[0]!r} to take quantities from: choose among {known}"
        )
    given = _given(prompts, count, corpus, sample)
    results, left_out = [], []
    for name in names:
        known = {parameter.name for parameter in experiments()[name].parameters}
        try:
            results.append(
                measured(model, name, seed, **{key: value for key, value in given.items() if key in known})
            )
        except DOES_NOT_APPLY as error:
            if not refused(error, name):
                raise
            left_out.append(f"{name} is left out: {' '.join(str(error).split())}")
    found = quantities(results, [block.address for block in model.blocks])
    dataset = correlated(found, seed)
    crossed, compared = cross_quantities(results, dataset.block.values.tolist())
    dataset = dataset.assign(crossed).assign_coords(compared)
    left_out += [
        f"{label} has no value in {FEWEST} blocks, or does not vary" for label in found.attrs["dropped"]
    ]
    return dataset.assign_attrs(
        of=", ".join(r.attrs["experiment"] for r in results), notes="; ".join(left_out)
    )


def _given(prompts: list[str] | None, count: int, corpus: str, sample: int) -> dict[str, Any]:
    """What is handed on to the experiments: what was given, and nothing in place of what was not."""
    kept = first_of(prompts or [], count, "prompts")
    found = {"prompts": kept, "count": min(count, len(kept)) if kept else count, "corpus": corpus}
    found["sample"] = sample
    return {key: value for key, value in found.items() if value}


def quantities(results: list[xr.Dataset], blocks: list[str]) -> xr.DataArray:
    """Every variable that is marked for it, (quantity, block): one row for each label of a second
    dimension."""
    rows = {POSITION: np.arange(len(blocks), dtype=float)}
    for result in results:
        source = result.attrs["experiment"]
        for variable in result.data_vars.values():
            if "correlate" not in variable.attrs:
                continue
            placed = variable.assign_coords(block=variable.block.astype(str)).reindex(block=blocks)
            others = [dim for dim in variable.dims if dim != "block"]
            label = f"{source}: {variable.attrs['correlate']}"
            if not others:
                rows[label] = placed.values.astype(float)
            for entry in variable[others[0]].values if others else ():
                rows[f"{label}, {entry}"] = placed.sel({others[0]: entry}).values.astype(float)
    spread = {
        name: row for name, row in rows.items() if np.isfinite(row).sum() >= FEWEST and np.nanstd(row) > 0
    }
    if len(spread) < 2 or len(blocks) < FEWEST:
        raise ValueError(
            f"{len(spread)} quantities over {len(blocks)} blocks are too few to correlate: two, over"
            f" {FEWEST} blocks, are needed"
        )
    dropped = [name for name in rows if name not in spread]
    kept = {"quantity": list(spread), "block": blocks}
    return xr.DataArray(
        np.stack(list(spread.values())), kept, ("quantity", "block"), attrs={"dropped": dropped}
    )


def correlated(values_QL: xr.DataArray, seed: int) -> xr.Dataset:
    """Rank correlation, p-value, corrected p-value and number of blocks of every pair."""
    count = len(values_QL)
    rho, p, shared = np.eye(count), np.full((count, count), np.nan), np.zeros((count, count), dtype=int)
    drawn: dict[int, np.ndarray] = {}
    for i, j in combinations(range(count), 2):
        both = np.isfinite(values_QL.values[[i, j]]).all(0)
        one, other = values_QL.values[i, both], values_QL.values[j, both]
        n = len(one)
        shared[i, j] = shared[j, i] = n
        if n >= FEWEST and n not in drawn:
            drawn[n] = orders(n, np.random.default_rng(seed))
        found = spearman(one, other, drawn[n]) if n >= FEWEST else (np.nan, np.nan)
        (rho[i, j], p[i, j]) = (rho[j, i], p[j, i]) = found
    corrected = np.full_like(p, np.nan)
    upper = np.triu(np.isfinite(p), 1)
    if upper.any():
        corrected[upper] = false_discovery_control(p[upper], method="bh")
        corrected.T[upper] = corrected[upper]
    square = ("quantity", "other")
    return xr.Dataset(
        {
            "rho": (square, rho, {"units": "Spearman's rank correlation over blocks"}),
            "p": (square, p, {"units": "two-sided, from permutations"}),
            "p_corrected": (square, corrected, {"units": "false discovery rate over all pairs"}),
            "blocks": (square, shared, {"units": "blocks that both have"}),
            "value": (("quantity", "block"), values_QL.values, {"units": "as measured"}),
        },
        coords={
            "quantity": values_QL["quantity"].values,
            "other": values_QL["quantity"].values,
            "block": values_QL["block"].values,
        },
        attrs={
            "pairs": int(upper.sum()),
            "significant": int((corrected[upper] < LEVEL).sum()),
            "level": LEVEL,
        },
    )


def orders(n: int, generator: np.random.Generator) -> np.ndarray:
    """Orders of n things, (P, n): all of them where there are no more than 20,000, else that many at
    random."""
    if factorial(n) <= PERMUTATIONS:
        return np.array(list(permutations(range(n))))
    return generator.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)


def spearman(one_n: np.ndarray, other_n: np.ndarray, orders_Pn: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation and its permutation p-value; NaN where one side does not vary."""
    x, y = (r - r.mean() for r in (rankdata(one_n), rankdata(other_n)))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    rho = rank_correlation(one_n, other_n)
    if not np.isfinite(rho):
        return rho, rho
    shuffled = np.abs(y[orders_Pn] @ x / scale)
    as_far = int((shuffled >= abs(rho) - 1e-12).sum())
    every = len(orders_Pn) == factorial(len(x))
    return rho, as_far / len(orders_Pn) if every else (as_far + 1) / (len(orders_Pn) + 1)
