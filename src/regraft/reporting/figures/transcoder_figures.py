"""The figures of transcoder adapters: what they recover by model, where the stream still differs, how many
features are active."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import FIRST, MUTED, Drawing, axis_labels, bars, base, heatmap, lines


def transcoder_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Losses of the four models, error of the stream by depth, active features by block."""
    losses = base(340, barmode="group")
    for place, name in enumerate(map(str, data.domain.values)):
        losses.add_bar(
            x=axis_labels(data.model.values), y=data.loss.sel(domain=name).values.tolist(), name=name,
            marker_color=FIRST if not place else MUTED,
            hovertemplate=f"%{{x}}, {name}: %{{y:.4f}} nats per token<extra></extra>",
        )  # fmt: skip
    losses.update_yaxes(title="nats per token")
    losses.update_layout(showlegend=data.sizes["domain"] > 1)
    errors = lines(
        data.depth.values,
        {str(name): data.nmse.sel(domain=name).values for name in data.domain.values},
        "blocks run",
        "squared error over the target's",
    )
    active = bars(
        axis_labels(data.block.values), data.active.mean("domain").values, "block",
        "active features of a token", "features",
    )  # fmt: skip
    return [
        ("Loss of base, target, hybrid and adapted model", losses),
        ("Error of the residual stream against the target's, by depth", errors),
        ("Active features of a token, by block", active),
    ]


def transcoder_finding(data: xr.Dataset) -> str:
    """What is recovered on each domain, and how few features do it."""
    parts = []
    for name in map(str, data.domain.values):
        share = float(data.recovered.sel(domain=name))
        parts.append(
            f"{share:.1%} of the target's gain over the hybrid on {name}"
            if np.isfinite(share)
            else f"nothing that could be told on {name}, where the target is no better than the hybrid"
        )
    active = float(data.active.mean())
    return (
        f"The adapters recover {' and '.join(parts)}, with {active:.1f} of {data.attrs['features']:,}"
        " features above zero for a token, mean over blocks."
    )


def pareto_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Divergence over active features, and active features by block."""
    figure = base(420)
    swept = np.array(["," not in str(name) for name in data.fit.values])
    one = data.isel(domain=0)
    for chosen, mode, colour in ((swept, "lines+markers+text", FIRST), (~swept, "markers+text", MUTED)):
        some = one.isel(fit=chosen)
        figure.add_scatter(
            x=some.active_mean.values.tolist(), y=some.kl.values.tolist(), mode=mode, line_color=colour,
            text=axis_labels(some.fit.values), textposition="top center",
            hovertemplate="%{text}: %{x:.2f} features, %{y:.4f} nats per token<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="active features of a token, mean over blocks", type="log")
    figure.update_yaxes(title="divergence from the target, nats per token")
    # as many fits as one likes: lines would run out of colours
    active = heatmap(
        one.active.values, axis_labels(data.block.values), axis_labels(data.fit.values), "features"
    )
    active.update_xaxes(title="block")
    return [
        (f"Divergence from the target over active features, {one.domain.item()}", figure),
        ("Active features of a token, by block", active),
    ]


def pareto_finding(data: xr.Dataset) -> str:
    """What the sparsest fit recovers, and what the densest adds."""
    one = data.isel(domain=0)
    order = np.argsort(one.active_mean.values)
    few, many = (one.isel(fit=int(place)) for place in (order[0], order[-1]))
    return (
        f"With {float(few.active_mean):.1f} active features of a token ({few.fit.item()}) adapters recover"
        f" {float(few.recovered):.1%} of the target's gain over the hybrid, with"
        f" {float(many.active_mean):.1f} ({many.fit.item()}) {float(many.recovered):.1%}."
    )


PARETO = Drawing(
    "Sparsity of transcoder adapters",
    "How much does it cost to say the difference with fewer features?",
    "Each point is a set of adapters that was trained with one weight of the features' sizes, measured on"
    " text that it was not trained on. Down and to the left is better: fewer features, nearer to the target."
    " Grey points are controls.",
    pareto_figures,
    pareto_finding,
    ("l1", "loss", "kl", "recovered", "recovered_from_base", "active_mean", "never", "error"),
)
TRANSCODER = Drawing(
    "Transcoder adapters",
    "How much of what tuning changed do sparse features beside the MLPs say?",
    "Base and target read the same text, which the adapters were not trained on. The hybrid has the target's"
    " attention, norms, embeddings and head and the base's MLPs, without adapters: what it lacks of the"
    " target is what adapters in it can recover. Few active features and a small error by depth mean that"
    " the difference is sparse and that the adapted model reaches the target's answers by the target's way.",
    transcoder_figures,
    transcoder_finding,
    ("loss", "kl", "top1", "recovered", "recovered_from_base", "right", "closed", "length"),
)
