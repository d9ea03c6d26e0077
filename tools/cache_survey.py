"""Measure strategies for keys and values on the specimens: `python -m tools.cache_survey` writes the tables
of docs/cache.md and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xarray as xr

import regraft
from benchmarks.measured_part import table, write_measured
from benchmarks.pages import draw
from regraft.experiments.intervene.cache import STRATEGIES
from regraft.reporting.figures.cache_figures import cache_figures, front_of

PAGE = Path(__file__).parent.parent / "docs" / "cache.md"
ALSO = (
    "heads:merge=2,fit=queries", "rank:r=16,rotation=undone", "rank:r=8,rotation=undone", "latent:r=48",
    "latent:r=24",
)  # fmt: skip
"""Strategies that ask for queries and rotations, which not every model has."""
CODED = {"int8": 1728, "int4": 960, "int3": 768, "int2": 576}
"""Bytes a token of the specimens in fewer bits, groups of 32."""
WHOLE = 6144
DROPPED = ("window", "h2o", "snapkv", "pyramid", "random")
RECALL_PREFIX = 448
COLUMNS = {
    "bytes": ("bytes a token", "{:,.0f}"),
    "ratio": ("times less", "{:.1f}"),
    "kl": ("nats from the whole", "{:.4f}"),
    "top1_agreement": ("same next token", "{:.1%}"),
    "loss_added": ("loss added", "{:+.4f}"),
    "needle_accuracy": ("facts told again", "{:.0%}"),
}
"""What the tables say of each strategy, and how."""


def _strategies(data: xr.Dataset, columns: list[str]) -> list[str]:
    """The table of every strategy, what nothing beats in bold, and transformers' own behind them."""
    front, rows = set(front_of(data)), []
    for number, name in enumerate(data.strategy.values):
        told = f"**`{name}`**" if number in front else f"`{name}`"
        rows.append([told, *(COLUMNS[c][1].format(float(data[c][number])) for c in columns)])
    theirs = {"bytes": "peer_bytes", "kl": "peer_kl", "top1_agreement": "peer_top1"}
    theirs["loss_added"] = "peer_loss_added"
    for number, name in enumerate(data.peer.values):
        if np.isfinite(data.peer_kl[number]):
            cells = [
                COLUMNS[c][1].format(float(data[theirs[c]][number])) if c in theirs else "" for c in columns
            ]
            rows.append([f"transformers' {name}", *cells])
    return table(["strategy", *(COLUMNS[c][0] for c in columns)], rows)


def _equal_bytes(data: xr.Dataset) -> list[str]:
    """Fewer bits beside fewer tokens, at the bytes of each width."""
    told = dict(zip(data.strategy.values, data.needle_accuracy.values, strict=True))
    rows = [
        [f"`{bits}`", f"{size:,}", f"{told[bits]:.0%}",
         *(f"{told[_budget(kind, size)]:.0%}" for kind in DROPPED)]
        for bits, size in CODED.items()
    ]  # fmt: skip
    return table(["fewer bits", "bytes a token", "told again", *(f"`{kind}`" for kind in DROPPED)], rows)


def _budget(kind: str, size: int) -> str:
    return f"{kind}:budget={100 * size / WHOLE:g}%"


def main() -> None:
    """Write tables and pictures."""
    plain = regraft.cache(regraft.load(), strategies=[*STRATEGIES, *ALSO])
    same = [_budget(kind, size) for size in CODED.values() for kind in DROPPED]
    asked = list(dict.fromkeys([*STRATEGIES, *ALSO, *same]))
    recalled = regraft.cache(regraft.load("specimen:recall"), strategies=asked, prefix=RECALL_PREFIX)
    whole = [f"{n:,} tokens {share:.0%}" for n, share in zip(
        recalled.needle_length.values, recalled.needle_whole.values.mean(1), strict=True)]  # fmt: skip
    missing = json.loads(plain.attrs["peers_missing"])
    lines = [
        "### `specimen:recall`",
        "",
        f"{recalled.attrs['texts']} texts of the almanac, a prefix of {RECALL_PREFIX} tokens,"
        f" {recalled.attrs['suffix']} behind it, float32, seed 0. Facts are asked for in prefixes of three"
        f" lengths, at five depths each; from the whole cache the specimen tells again: {', '.join(whole)}."
        " The same bytes in fewer bits and in fewer tokens:",
        "",
        *_equal_bytes(recalled),
        "",
        "![Facts told again, over what is kept](images/cache-recall.png)",
        "",
        *_strategies(recalled, list(COLUMNS)),
        "",
        "### `specimen:qwen3`",
        "",
        f"{plain.attrs['texts']} texts, a prefix of {plain.attrs['prefix']} tokens and"
        f" {plain.attrs['suffix']} behind it; in bold, here as above, what none beats in bytes and nats.",
        "",
        *_strategies(plain, [c for c in COLUMNS if c != "needle_accuracy"]),
        "",
        "![What a cache loses, over what it keeps](images/cache.png)",
        "",
        "Of transformers' own caches these did not run here: "
        + "; ".join(f"{name} ({why.rstrip()})" for name, why in missing.items())
        + ".",
    ]
    write_measured(PAGE, lines)
    figures = dict(cache_figures(recalled))
    draw({
        "cache.png": cache_figures(plain)[0][1],
        "cache-recall.png": figures["Facts told again, over what is kept"],
    })  # fmt: skip


if __name__ == "__main__":
    main()
