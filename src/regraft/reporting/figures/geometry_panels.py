"""Folded figures of residual geometry: what makes the last state, how the stream turns, how the cloud
spreads."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regraft.reporting.theme import Panel, bars, heatmap, lines, panel

ROUNDING_DECADES = 6
"""Powers of ten under the largest singular value from which on a value of float32 states is rounding."""


def geometry_panels(data: xr.Dataset) -> list[Panel]:
    """Shares of the last state, drift, updates, spectrum, norms, categories."""
    return [*_decomposition(data), *_turning(data), *_spread(data), *_kinds(data)]


def _decomposition(data: xr.Dataset) -> list[Panel]:
    share = bars(
        data.contributor.values,
        data.residual_share.values,
        "part",
        "share of the last state",
        "of its length",
    )
    share.update_yaxes(tickformat=".0%")
    alike = heatmap(
        data.update_correlation.values, data.other_block.values, data.block.values, "cosine", True
    )
    alike.update_layout(xaxis_title="block", yaxis_title="block")
    onto = bars(data.contributor.values, data.residual_projection.values, "part", "along the last state", "")
    onto.update_traces(error_y={"type": "data", "array": list(data.residual_projection_std.values)})
    sizes = {
        "length of the update": data.update_norm.values,
        "its part along the last state": data.update_final_abs.values,
    }
    lengths = lines(data.block.values, sizes, "block", "mean length")
    lengths.update_yaxes(type="log")
    return [
        panel(data, "residual_share", "What the last state is made of (adds up to 100%)", share),
        panel(
            data, "residual_projection", "The same in units of the stream, with its spread over tokens", onto
        ),
        panel(data, "update_norm", "Length of each block's update (logarithmic)", lengths),
        panel(data, "update_correlation", "Do blocks push the same way?", alike),
    ]


def _turning(data: xr.Dataset) -> list[Panel]:
    depth, blocks = data.depth.values, data.block.values
    known = [g for g in data.gap.values if data.drift.sel(gap=g).notnull().any()]
    drift = {f"{g} block{'s' if g > 1 else ''}": data.drift.sel(gap=g).values for g in known}
    cosines = {
        "update with the stream": data.update_cosine.values,
        "update with the end": data.update_persistence.values,
        "stream behind with before": data.direction_preserved.values,
    }
    sizes = {
        "over the stream that enters": data.update_size.values,
        "over the stream that leaves": data.update_share_leaving.values,
    }
    ends = {"with the embedding": data.embedding_persistence.values, "with the end": data.persistence.values}
    relative = lines(blocks, sizes, "block", "update / stream")
    relative.update_yaxes(type="log")
    return [
        panel(
            data,
            "drift",
            "Drift: cosine with the state some blocks before",
            lines(depth, drift, "depth", "cosine"),
        ),
        panel(
            data,
            "direction_preserved",
            "Cosines of each block's update",
            lines(blocks, cosines, "block", "cosine"),
        ),
        panel(data, "update_share_leaving", "Size of each block's update, both ways (logarithmic)", relative),
        panel(
            data, "embedding_persistence", "Where from and where to", lines(depth, ends, "depth", "cosine")
        ),
    ]


def _spread(data: xr.Dataset) -> list[Panel]:
    depth = data.depth.values
    first = {f"first {k}": data.variance_topk.sel(directions=k).values for k in data.directions.values}
    flat = {"spectral flatness": data.spectral_flatness.values, "1 - first direction": data.isoscore.values}
    norms = {name: data[f"norm_{name}"].values for name in ("min", "max")}
    norms = {"mean": data.mean_norm.values, "standard deviation": data.norm_std.values, **norms}
    spectrum = (
        heatmap(
            _without_floor(data.log_singular_values.values),
            range(1, data.sizes["direction"] + 1),
            depth,
            "log10 of the singular value",
        )
        if data.sizes["direction"]
        else None
    )
    length = lines(depth, norms, "depth", "length of the stream")
    length.update_yaxes(type="log")
    found = [
        panel(
            data,
            "variance_topk",
            "Share of the variance in the first directions",
            lines(depth, first, "depth", "share"),
        ),
        panel(data, "spectral_flatness", "Flatness of the spectrum", lines(depth, flat, "depth", "0 to 1")),
        panel(data, "norm_max", "Lengths of the states (logarithmic)", length),
    ]
    if spectrum is not None:
        spectrum.update_layout(xaxis_title="direction", yaxis_title="depth")
        spectrum.update_xaxes(nticks=11)
        spectrum.update_traces(xgap=0, ygap=0)
        found.append(panel(data, "log_singular_values", "Singular values of the centred states", spectrum))
    return found


def _without_floor(log_values: np.ndarray) -> np.ndarray:
    """Values that are rounding left blank: less than a millionth of the largest of their depth."""
    return np.where(log_values > log_values.max(axis=1, keepdims=True) - ROUNDING_DECADES, log_values, np.nan)


def _kinds(data: xr.Dataset) -> list[Panel]:
    if data.sizes["category"] < 2:
        return []
    depth = data.depth.values
    cosines = {"within": data.category_intra.values, "between": data.category_inter.values}
    apart = {
        "between variance / within variance": data.separation.values,
        "(within - between) / |between|": data.category_separation.values,
    }
    means = heatmap(
        data.centroid_cosine.values, data.other_category.values, data.category.values, "cosine", True
    )
    means.update_layout(margin_l=120, margin_b=110)
    return [
        panel(
            data,
            "category_intra",
            "Cosines within and between categories of prompts",
            lines(depth, cosines, "depth", "cosine"),
        ),
        panel(
            data,
            "category_separation",
            "Separation of the categories, ours and as published",
            lines(depth, apart, "depth", "separation"),
        ),
        panel(data, "centroid_cosine", "Means of the categories at the last depth", means),
    ]
