"""Folded figures of contrastive trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from regraft.reporting.theme import MUTED, PALETTE, Panel, banded, base, heatmap, lines, panel, plain_text

DEPTH = "depth (blocks passed)"
CONTRASTED = ("synonym", "antonym")


def trajectory_panels(data: xr.Dataset) -> list[Panel]:
    """The other direction of the divergence, synonyms against antonyms, prefixes, single groups, whole
    completions, and the free check."""
    depth = data.depth.values
    found = []
    if np.isfinite(data.kl_reverse.values).any():
        pivot = data.sel(place="pivot")
        reverse: dict[str, tuple[Any, ...]] = {
            str(r): tuple(
                pivot[f"kl_reverse_{part}"].sel(relation=r).values for part in ("mean", "low", "high")
            )
            for r in data.relation.values
        }
        found += [
            Panel(
                "KL from the other's lens to the base's (as published)",
                banded(depth, reverse, DEPTH, "nats"),
                "The same divergence asked the other way round: surprise of the base at the other's words.",
            ),
            panel(data, "kl_contrast", "KL of synonyms less that of antonyms", _contrast(data)),
            panel(data, "kl_by_prefix", "KL to the base by relation and prefix", _prefix(data)),
        ]
    if np.isfinite(data.alternative_rank.values).any():
        ranks = {
            str(r): 1 + np.median(data.alternative_rank.sel(relation=r).values, axis=0)
            for r in data.relation.values
        }
        figure = lines(depth, ranks, DEPTH, "1 + rank, median over groups")
        figure.update_yaxes(type="log")
        found.append(panel(data, "alternative_rank", "How near was the alternative? (logarithmic)", figure))
    cka = {str(r): data.completion_cka.sel(relation=r).values.mean(0) for r in data.relation.values}
    shared = {str(r): data.shared_cosine.sel(relation=r).values.mean(0) for r in data.relation.values}
    return [
        *found,
        panel(
            data,
            "completion_cka",
            "CKA over the tokens of a completion",
            lines(depth, cka, DEPTH, "linear CKA"),
        ),
        *(_groups(data, relation) for relation in CONTRASTED),
        _traces(data),
        panel(
            data,
            "shared_cosine",
            "Free check: the last position that both share",
            lines(depth, shared, DEPTH, "mean cosine"),
        ),
    ]


def _contrast(data: xr.Dataset):
    series = {
        f"{direction}, {subset}": data.kl_contrast.sel(direction=direction, subset=subset).values
        for direction in data.direction.values
        for subset in data.subset.values
    }
    known = {name: row for name, row in series.items() if np.isfinite(row).any()}
    figure = lines(data.depth.values, known, DEPTH, "nats")
    figure.add_hline(y=0.0, line_color=MUTED, line_width=1, line_dash="dot")
    return figure


def _prefix(data: xr.Dataset):
    counts = dict(zip(data.prefix_kind.values, data.groups_by_prefix.values, strict=True))
    series = {
        f"{relation}, {kind} ({counts[kind]})": data.kl_by_prefix.sel(
            relation=relation, prefix_kind=kind
        ).values
        for relation in CONTRASTED
        for kind in data.prefix_kind.values
        if counts[kind]
    }
    return lines(data.depth.values, series, DEPTH, "KL to the base, nats, mean")


def _groups(data: xr.Dataset, relation: str) -> Panel:
    values = data.cosine.sel(relation=relation, place="pivot").values
    prompts = np.array([[plain_text(p)] * values.shape[1] for p in data.prompt.values])
    figure = heatmap(
        values,
        data.depth.values,
        np.arange(len(values)),
        "cosine",
        zmin=min(0.0, float(np.nanmin(values))),
        zmax=1,
        customdata=prompts,
        hovertemplate="%{customdata}<br>depth %{x}: %{z:.3f}<extra></extra>",
    )
    figure.update_layout(xaxis_title=DEPTH, yaxis_title="group", height=160 + 9 * len(values))
    reading = (
        "Every row is one group: a row of low cosines among high ones is a pair that the model keeps apart."
    )
    return Panel(f"Every group at every depth: {relation}s", figure, reading)


def _traces(data: xr.Dataset) -> Panel:
    figure = base(340)
    for relation, colour in zip(CONTRASTED, PALETTE, strict=False):
        values = data.cosine.sel(relation=relation, place="pivot").values
        for number, row in enumerate(values):
            figure.add_scatter(
                x=list(data.depth.values),
                y=list(row),
                mode="lines",
                name=relation,
                legendgroup=relation,
                showlegend=number == 0,
                line=dict(color=colour, width=1),
                opacity=0.45,
                hovertemplate=f"{relation}, group {number}<br>depth %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_xaxes(title=DEPTH)
    figure.update_yaxes(title="cosine at the pivot")
    reading = "Where the two bundles lie in one another, a mean curve says little about a single pair."
    return Panel("Single traces of synonyms and antonyms", figure, reading)
