"""A few dozen variants of every kind that a model of any family must bear, for sweeps beside the naive
reference."""

from __future__ import annotations

import torch

import naive
from regraft.sweeps.metrics import stream_distance
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Replace, Scale, Variant, Zero
from small import METRIC, recorded


def all_sites(model, block):
    names = (
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "cross_out",
        "mixer_out",
        "mlp_out",
        "q",
        "k",
        "v",
        "z",
    )
    address = model.blocks[block].address
    found = [f"{address}.{name}" for name in (*names, "mlp_act") if model.taps.exists(block, name)]
    if model.taps.exists(block, "z") and model.tap(f"{address}.z").heads:
        found.append(f"{address}.head.1")
    if model.taps.exists(block, "mlp_act"):
        found += [f"{address}.neuron.3", f"{address}.neuron.7"]
    return found


def some_variants(model, recording, other):
    count = len(model.blocks)
    variants = []
    for block in (0, count - 2, count - 1):
        for site in all_sites(model, block):
            variants.append(Variant([Zero(site)]))
            variants.append(Variant([Replace(site, other[site], position=2)]))
            variants.append(Variant([Scale(site, 1.5, position=[1, -1])]))
            variants.append(Variant([Add(site, 0.1 * other[site], position=4), Zero(site, position=5)]))
    first = model.parts.stacks[-1].first
    variants += [Variant(route=Route.skip(count, {block})) for block in range(count)]
    variants += [
        Variant(route=Route.swap(count, first, count - 1)),
        Variant(route=Route.skip(count, {first, count - 1})),
    ]
    variants += [Variant(route=Route.repeat(count, count - 2, 3))]
    edit = Scale(f"{model.blocks[-1].address}.resid_pre", 0.5)
    variants += [Variant([edit], Route.swap(count, count - 2, count - 1))]
    return variants


def described(variant):
    stops = [stop.block for stop in variant.route.stops] if variant.route else "clean"
    return f"{[(type(e).__name__, e.site, e.position) for e in variant.edits]} on {stops}"


def swept_and_wanted(model):
    """A recording, some variants, the metric, their sweep, and the same by full forwards with hooks."""
    recording, other = recorded(model, 7, 7), recorded(model, 7, 7, seed=50)
    variants = some_variants(model, recording, other)
    headless = model.parts.head is None
    metric = stream_distance(-1) if headless else METRIC
    result = sweep(recording, variants, metric)
    wanted = torch.stack([naive.logits(model, recording, v)[:, -1] for v in variants])
    if headless:
        clean = naive.logits(model, recording, Variant())[:, -1]
        wanted = (wanted - clean).norm(dim=-1) / clean.norm(dim=-1)
    else:
        wanted = wanted[..., 7] - wanted[..., 9]
    return recording, variants, metric, result, wanted
