"""Folded figures of spectra, linearity and correlations."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import MUTED, Panel, bars, heatmap, lines, panel, ranked_bars, scatter

HEAVY = ("q", "k", "v", "o", "gate", "up", "down")
"""Roles in the order in which they are drawn."""


def scree(dataset: xr.Dataset, block: str) -> go.Figure:
    """Singular values over their rank, relative to the largest, for one block's matrices."""
    series, longest = {}, 0
    for role in [r for r in HEAVY if r in dataset.role.values]:
        of_role = (dataset.matrix_block.values == block) & (dataset.matrix_role.values == role)
        if of_role.any():
            sigma = dataset.singular_values.values[of_role][0]
            series[role] = sigma / sigma[0]
            longest = max(longest, int(np.isfinite(sigma).sum()))
    figure = lines(
        np.arange(1, longest + 1),
        {name: y[:longest] for name, y in series.items()},
        "place",
        "of the largest",
    )
    figure.update_traces(mode="lines")
    figure.update_yaxes(type="log")
    return figure


def by_role(dataset: xr.Dataset, name: str) -> dict[str, list[float]]:
    """A measure of the matrices as one row over the blocks for each role."""
    found = {}
    for role in [r for r in HEAVY if r in dataset.role.values]:
        rows = [
            (dataset.matrix_block.values == b) & (dataset.matrix_role.values == role)
            for b in dataset.block.values
        ]
        found[role] = [float(dataset[name].values[row].mean()) if row.any() else float("nan") for row in rows]
    return found


def spectra_panels(data: xr.Dataset) -> list[Panel]:
    """Groups of roles, noise of the same shape, laws, ranks at shares of the energy, early and late blocks,
    other blocks and what stands outside them."""
    blocks = [str(block) for block in data.block.values]
    groups = {str(g): data.group_rank_ratio.sel(group=g).values for g in data.group.values}
    known = {name: row for name, row in groups.items() if np.isfinite(row).any()}
    found = [
        panel(
            data,
            "group_rank_ratio",
            "Effective rank by what matrices do",
            lines(blocks, known, "block", "ratio"),
        ),
        panel(
            data,
            "rank_over_random",
            "Effective rank over that of noise of the same shape",
            lines(blocks, by_role(data, "rank_over_random"), "block", "ratio"),
        ),
        panel(
            data,
            "power_law_full",
            "Exponent over the whole spectrum",
            lines(blocks, by_role(data, "power_law_full"), "block", "exponent"),
        ),
        panel(
            data,
            "spectral_entropy",
            "Entropy of the energy",
            lines(blocks, by_role(data, "spectral_entropy"), "block", "0 to 1"),
        ),
        panel(
            data,
            "rank_at_energy",
            "Directions that hold half, 90% and 99% of the energy (median over blocks)",
            _at_energy(data),
        ),
        panel(data, "early_late_diff", "Late blocks against early ones", _early_late(data)),
        panel(data, "stable_rank_ratio", "Stable rank against effective rank", _two_ranks(data)),
    ]
    apart = bars(blocks, data.vo_minus_qk.values, "block", "difference of the ratios", "")
    found.append(panel(data, "vo_minus_qk", "Values and output less queries and keys", apart))
    sizes = lines(blocks, by_role(data, "frobenius_norm"), "block", "Frobenius norm")
    found.append(panel(data, "frobenius_norm", "Size of each matrix", sizes))
    for name, title in (("block_frobenius_norm", "norm"), ("block_entropy_rank", "entropy rank")):
        if name in data:
            caption = f"Mean {title} of the blocks' matrices over depth, stack by stack"
            found.append(panel(data, name, caption, over_depth(data, name, title)))
    others = dict.fromkeys([blocks[0], blocks[-1]])
    for block in others:
        caption = f"Singular values in block {block} (logarithmic)"
        found.append(
            Panel(caption, scree(data, block), "The sharper the first bend, the fewer directions count.")
        )
    outside = _outside(data)
    return [*found, *outside]


PHASES = (5 / 36, 22 / 36)
"""Where the published phases of a speech model of 36 blocks end (blocks 4 and 21), as shares of the depth."""
STACKS, PHASED = 6, 8
"""Stacks that one figure of lines tells apart; blocks from which on a stack can have phases."""


def over_depth(data: xr.Dataset, name: str, title: str) -> go.Figure:
    """One line for each stack over its own blocks, and the published phases at their shares of the depth."""
    stacks: dict[str, list[float]] = {}
    for block, value in zip(data.block.values, data[name].values, strict=True):
        stacks.setdefault(str(block).rpartition(".")[0] or "blocks", []).append(float(value))
    series = dict(sorted(stacks.items(), key=lambda one: -len(one[1]))[:STACKS])
    longest = max(map(len, series.values()), default=0)
    figure = lines(range(longest), series, "block of its stack", title)
    figure.update_xaxes(tickformat="d", nticks=min(longest, 20))
    if longest < PHASED:
        return figure
    for share in PHASES:
        figure.add_vline(x=share * longest - 0.5, line_color=MUTED, line_dash="dot")
    figure.add_annotation(
        x=PHASES[0] * longest - 0.5, y=0, yref="paper", text="published phases", showarrow=False,
        xanchor="left", yanchor="bottom", font_color=MUTED,
    )  # fmt: skip
    return figure


def _at_energy(data: xr.Dataset):
    roles = [role for role in HEAVY if role in data.role.values]
    series = {}
    for level in data.level.values:
        rows = data.rank_at_energy.sel(level=level).values
        series[f"{level:.0%}"] = [
            float(np.nanmedian(rows[data.matrix_role.values == role])) for role in roles
        ]
    return lines(roles, series, "role", "directions")


def _early_late(data: xr.Dataset):
    corrected = data.early_late_p_corrected.values
    names = [
        f"{role} (p {p:.2g})" if np.isfinite(p) else str(role)
        for role, p in zip(data.role.values, corrected, strict=True)
    ]
    return ranked_bars(names, data.early_late_diff.values, "difference of the mean ratio, late - early")


def _two_ranks(data: xr.Dataset):
    roles = [role for role in HEAVY if role in data.role.values]
    rows = [data.matrix_role.values == role for role in roles]
    x, y = (
        [float(data[n].values[row].mean()) for row in rows]
        for n in ("effective_rank_ratio", "stable_rank_ratio")
    )
    return scatter(x, y, roles, "effective rank ratio", "stable rank ratio")


def _outside(data: xr.Dataset) -> list[Panel]:
    outer = np.flatnonzero(data.matrix_block.values == "")
    if not len(outer):
        return []
    series = {}
    for row in outer[:6]:
        sigma = data.singular_values.values[row]
        series[str(data.tensor.values[row])] = sigma / sigma[0]
    longest = max(int(np.isfinite(y).sum()) for y in series.values())
    figure = lines(
        np.arange(1, longest + 1), {n: y[:longest] for n, y in series.items()}, "place", "of the largest"
    )
    figure.update_traces(mode="lines")
    figure.update_yaxes(type="log")
    return [
        Panel(
            "Singular values outside the blocks (logarithmic)",
            figure,
            "A first value far above the others is a direction that all tokens share; a straight line, none.",
        )
    ]


def linearity_panels(data: xr.Dataset) -> list[Panel]:
    """Order, amplification, recovered loss, what goes with what, and the published version where it was
    measured."""
    blocks = data.block.values
    found = [
        Panel(
            "Order of the gap",
            lines(blocks, _of_parts(data, "order"), "block", "order"),
            "2 is a quadratic bend, 1 a kink; it means nothing where the fit is below 0.5.",
        ),
        Panel(
            "Amplification",
            lines(blocks, _of_parts(data, "amplification"), "block", "mean length of J d"),
            "How much a small random change of the stream grows in what the part adds.",
        ),
    ]
    if np.isfinite(data.recovered.values).any():
        won = bars(blocks, data.recovered.values, "block", "share of the knockout's loss", "won back")
        hurt = data.knockout_loss.values - data.attrs["clean_loss"]
        gap = data.gap.sel(part="block").values
        found += [
            Panel(
                "Loss that a linear map wins back",
                won,
                "1: the linear map is as good as the block; 0: as bad as nothing in its place.",
            ),
            panel(
                data,
                "gap_criticality_r",
                f"Curved and critical? (Pearson {float(data.gap_criticality_r):.2f})",
                scatter(gap, hurt, blocks, "gap", "nats that skipping adds"),
            ),
            panel(
                data,
                "fit_recovered_r",
                f"Fitted and replaceable? (Pearson {float(data.fit_recovered_r):.2f})",
                scatter(data.linear_fit.values, data.recovered.values, blocks, "R squared", "loss won back"),
            ),
        ]
    return found + (_published(data) if "gap_all_positions" in data else [])


def _of_parts(data: xr.Dataset, name: str) -> dict[str, np.ndarray]:
    rows = {str(part): data[name].sel(part=part).values for part in data.part.values}
    return {part: row for part, row in rows.items() if np.isfinite(row).any()}


def _published(data: xr.Dataset) -> list[Panel]:
    blocks = data.block.values
    gaps = {
        "along the data's directions": data.gap_on_manifold.values,
        "along random, shared": data.gap_off_shared.values,
        "along random, each position its own": data.gap_off_manifold.values,
    }
    alike = {
        "mean response of a prompt": data.consistency_prompt.values,
        "single tokens (ours)": data.consistency.sel(part="block").values,
    }
    by_prompt = heatmap(
        data.gap_by_prompt.sel(part="block").values, blocks, np.arange(data.sizes["prompt"]), "gap", zmin=0
    )
    by_prompt.update_layout(xaxis_title="block", yaxis_title="prompt")
    drawn = [
        panel(
            data,
            "gap_all_positions",
            "Gap with all positions moved at once",
            lines(blocks, _of_parts(data, "gap_all_positions"), "block", "share of the change"),
        ),
        panel(
            data,
            "gap_on_manifold",
            "Gap on and off the data's own directions",
            lines(blocks, gaps, "block", "share of the change"),
        ),
        panel(
            data,
            "gap_order",
            "Order with all positions moved",
            lines(blocks, _of_parts(data, "gap_order"), "block", "order"),
        ),
        panel(
            data,
            "consistency_prompt",
            "Do prompts, and do tokens, see the same linear map?",
            lines(blocks, alike, "block", "mean cosine"),
        ),
        panel(data, "gap_by_prompt", "Gap of every prompt", by_prompt),
    ]
    drawn += _published_scatters(data)
    for name, title in (
        ("fit_recovered", "Loss won back by each linear map"),
        ("fit_r2", "R squared of each linear map"),
    ):
        rows = data[name].dropna("fit", how="all")
        shown = np.clip(rows.values, -1, 1)
        figure = heatmap(
            shown,
            blocks,
            rows.fit.values,
            "share (cut at -1)",
            True,
            customdata=rows.values,
            hovertemplate="block %{x}, %{y}<br>%{customdata:.3f}<extra></extra>",
        )
        figure.update_layout(xaxis_title="block", margin_l=100)
        drawn.append(panel(data, name, title, figure))
    return drawn


def _published_scatters(data: xr.Dataset) -> list[Panel]:
    """What goes with what over the blocks, as it was published."""
    blocks, gap = data.block.values, data.gap_all_positions.sel(part="block").values
    hurt = data.knockout_loss.values - data.attrs.get("clean_loss", np.nan)
    r2, won = (data[name].sel(fit="residual").values for name in ("fit_r2", "fit_recovered"))
    pairs = (
        (
            "published_gap_criticality_r",
            "Curved and critical, all positions moved",
            gap,
            hurt,
            ("gap", "nats"),
        ),
        (
            "published_gap_consistency_r",
            "Curved and consistent, all positions moved",
            gap,
            data.consistency_prompt.values,
            ("gap", "mean cosine"),
        ),
        ("r2_recovered_r", "Fitted and replaceable, as published", r2, won, ("R squared", "loss won back")),
        (
            "manifold_r2_r",
            "Curved along the data, and fitted",
            data.gap_on_manifold.values,
            r2,
            ("gap", "R squared"),
        ),
    )
    return [
        panel(data, name, f"{title} (Pearson {float(data[name]):.2f})", scatter(x, y, blocks, *axes))
        for name, title, x, y, axes in pairs
    ]


def correlation_panels(data: xr.Dataset) -> list[Panel]:
    """Ranks of the weights against four measures, and criticality against the size of the weights."""
    found = []
    if np.isfinite(data.rank_cross_r.values).any():
        figure = ranked_bars(data.compared.values, data.rank_cross_r.values, "Pearson over blocks")
        figure.update_xaxes(range=[-1, 1])
        found.append(panel(data, "rank_cross_r", "What goes with the weights' mean rank ratio", figure))
    if np.isfinite(float(data.criticality_norm_r)):
        title = f"Critical and large? (Pearson {float(data.criticality_norm_r):.2f})"
        figure = scatter(
            data.weight_norm.values, data.criticality.values, data.block.values, "Frobenius norm", "nats"
        )
        found.append(panel(data, "criticality_norm_r", title, figure))
    return found
