"""The figures of transcoder adapters: what they recover by model, where the stream still differs, how many
features are active."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import FIRST, MUTED, Drawing, axis_labels, bars, base, lines


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
