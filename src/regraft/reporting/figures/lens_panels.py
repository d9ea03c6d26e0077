"""Folded figures of the lens: everything that it says over depth, by kinds and prompts, and through a tuned
lens."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from regraft.reporting.theme import MUTED, PALETTE, Panel, bars, heatmap, lines, panel

DEPTH = "depth (blocks passed)"
LOGARITHMIC = "1 + tokens ahead of the true one"


def lens_panels(data: xr.Dataset) -> list[Panel]:
    """Accuracy, rank, probability, entropy, blocks, kinds, prompts; the tuned lens where one was read."""
    depth = data.depth.values
    accuracy = {f"top {k}": data.topk_accuracy.sel(k=k).values for k in data.k.values}
    found = [
        panel(data, "topk_accuracy", "Accuracy over depth", _shares(depth, accuracy)),
        panel(data, "rank_mean", "Rank of the true token, mean and median (logarithmic)", _ranks(data)),
        panel(
            data,
            "target_probability",
            "Mean probability of the true token",
            lines(depth, {"probability": data.target_probability.values}, DEPTH, "probability"),
        ),
        panel(
            data,
            "entropy_mean",
            "Mean entropy",
            lines(depth, {"entropy": data.entropy_mean.values}, DEPTH, "nats"),
        ),
        panel(data, "accuracy_gain", "Gain of accuracy by block", _by_block(data, "accuracy_gain")),
        panel(
            data,
            "hurt_rate_top100",
            "Hurt rate among tokens that were near",
            _by_block(data, "hurt_rate_top100"),
        ),
        *_by_kind(data),
        _prompt_map(data),
    ]
    return found + (_tuned(data) if "tuned_topk_accuracy" in data else [])


def _shares(depth: np.ndarray, series: dict[str, np.ndarray]):
    figure = lines(depth, series, DEPTH, "share of tokens")
    figure.update_yaxes(tickformat=".0%")
    return figure


def _ranks(data: xr.Dataset):
    series = {"mean": 1 + data.rank_mean.values, "median": 1 + data.rank_median.values}
    figure = lines(data.depth.values, series, DEPTH, LOGARITHMIC)
    figure.update_yaxes(type="log")
    return figure


def _by_block(data: xr.Dataset, name: str):
    figure = bars(data.block.values, data[name].values, "block", "share of tokens", "of tokens")
    figure.update_yaxes(tickformat=".1%")
    figure.update_traces(marker_color=MUTED)
    return figure


def _by_kind(data: xr.Dataset) -> list[Panel]:
    """Rank for each kind of token as lines where the palette tells them apart, accuracy by category as a
    map."""
    kinds = [str(kind) for kind in data.by_type.values][: len(PALETTE)]
    ranks = {kind: 1 + data.rank_mean_by_type.sel(by_type=kind).values for kind in kinds}
    figure = lines(data.depth.values, ranks, DEPTH, LOGARITHMIC)
    figure.update_yaxes(type="log")
    first_of = {kind: data.topk_accuracy_by_type.sel(by_type=kind).isel(k=0).values for kind in kinds}
    chances, entropies = (
        {kind: data[f"{name}_by_type"].sel(by_type=kind).values for kind in kinds}
        for name in ("target_probability", "entropy_mean")
    )
    first = data.topk_accuracy_by_category.isel(k=0)
    names = [
        f"{c} ({n})" for c, n in zip(first.by_category.values, data.tokens_by_category.values, strict=True)
    ]
    by_category = heatmap(first.values, data.depth.values, names, "share ranked first", zmin=0, zmax=1)
    by_category.update_layout(xaxis_title=DEPTH, margin_l=150, height=140 + 26 * len(names))
    return [
        panel(data, "rank_mean_by_type", "Mean rank by kind of token (logarithmic)", figure),
        panel(
            data,
            "topk_accuracy_by_type",
            "Share ranked first by kind of token",
            _shares(data.depth.values, first_of),
        ),
        panel(
            data,
            "target_probability_by_type",
            "Mean probability by kind of token",
            lines(data.depth.values, chances, DEPTH, "probability"),
        ),
        panel(
            data,
            "entropy_mean_by_type",
            "Mean entropy by kind of token",
            lines(data.depth.values, entropies, DEPTH, "nats"),
        ),
        Panel(
            "Accuracy by category of prompt (tokens)",
            by_category,
            "A row that nears 1 early is a category whose continuations are found early.",
        ),
    ]


def _prompt_map(data: xr.Dataset) -> Panel:
    texts = [one["prompt"] for one in json.loads(data.attrs["completions"])]
    figure = heatmap(
        data.rank_by_prompt.values, data.depth.values, np.arange(len(texts)), "ln(1 + mean rank)", zmin=0
    )
    figure.update_layout(
        xaxis_title=DEPTH, yaxis_title="prompt, in the order of the table", height=140 + 18 * len(texts)
    )
    return panel(data, "rank_by_prompt", "Every prompt at every depth", figure)


def _tuned(data: xr.Dataset) -> list[Panel]:
    depth = data.depth.values
    first = {
        "plain": data.topk_accuracy.isel(k=0).values,
        "tuned": data.tuned_topk_accuracy.isel(k=0).values,
    }
    away = {"plain": data.kl_mean.values, "tuned": data.tuned_kl_mean.values}
    return [
        panel(data, "tuned_topk_accuracy", "Plain and tuned lens: share ranked first", _shares(depth, first)),
        panel(
            data,
            "tuned_kl_mean",
            "Plain and tuned lens: distance from what the model says at the end",
            lines(depth, away, DEPTH, "nats"),
        ),
    ]
