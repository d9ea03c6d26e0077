"""Figures of the experiments in `observe/`."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.report.drawing import FIRST, MUTED, SECOND, Drawing, axis_labels, bars, base, draws, heatmap

SHOWN_TOKENS = 14


def lens_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The lens table of one prompt, the crystallization depths, and the hurt rates."""
    prompt = json.loads(dataset.attrs["completions"])[int(shown_prompt(dataset).prompt.values[0])]["prompt"]
    return [
        (f"What the model would say next after each block, continuing \u201c{prompt}\u201d", lens_table(dataset)),
        ("Where predictions settle", crystallization(dataset)),
        ("Blocks through which the true token's rank got worse", hurt_rates(dataset)),
    ]


def shown_prompt(dataset: xr.Dataset) -> xr.Dataset:
    """The tokens of the prompt with the longest completion, cut to what fits a page."""
    numbers, counts = np.unique(dataset.prompt.values, return_counts=True)
    chosen = dataset.isel(token=dataset.prompt.values == numbers[counts.argmax()])
    return chosen.isel(token=slice(0, SHOWN_TOKENS))


def visible(piece: str) -> str:
    """A token as a reader sees it: a leading space as a small mark, a line break as a sign."""
    if piece.startswith("<|") and piece.endswith("|>"):
        return "⟨end⟩" if "end" in piece else "⟨special⟩"
    return piece.replace("\n", "⏎").replace(" ", "·") if piece.strip() == "" or "\n" in piece else piece.strip()


def lens_table(dataset: xr.Dataset) -> go.Figure:
    """Depth by token: the text is the token ranked first, the colour its probability, hover shows the first five."""
    one = shown_prompt(dataset)
    top, chance = one.top.values, one.top_probability.values
    hover = np.array(
        [
            [
                "<br>".join(f"{t!r} {p:.3f}" for t, p in zip(top[d, n], chance[d, n], strict=True))
                + f"<br>true {one.text.values[n]!r}: rank {one['rank'].values[d, n]}, p {one.probability.values[d, n]:.4f}"
                for n in range(one.sizes["token"])
            ]
            for d in range(one.sizes["depth"])
        ]
    )
    labels = [f"{visible(str(t))}<br>{i}" for i, t in enumerate(one.text.values)]
    figure = heatmap(
        chance[:, :, 0], labels, one.depth.values, "probability of the token ranked first", zmin=0, zmax=1,
        text=[[visible(str(t))[:9] for t in row] for row in top[:, :, 0]], texttemplate="%{text}", customdata=hover,
        hovertemplate="depth %{y}<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(height=90 + 30 * one.sizes["depth"])
    figure.update_xaxes(title="true next token, and its place in the completion", tickangle=0)
    figure.update_yaxes(title="depth (blocks passed)")
    return figure


def crystallization(dataset: xr.Dataset) -> go.Figure:
    """Share of tokens by the depth at which they crystallize and are first ranked first."""
    figure = base(barmode="group")
    depths = dataset.depth.values
    for name, label, colour in (
        ("crystallization", "stays in the top k", FIRST),
        ("first_top1", "first ranked first", SECOND),
    ):
        values = dataset[name].values
        share = [float((values == depth).mean()) for depth in depths]
        hover = f"{label}<br>depth %{{x}}: %{{y:.1%}} of tokens<extra></extra>"
        figure.add_bar(x=axis_labels(depths), y=share, name=label, marker_color=colour, hovertemplate=hover)
    figure.update_layout(showlegend=True, legend=dict(orientation="h", y=1.12, x=0))
    figure.update_xaxes(title="depth (blocks passed)", type="category")
    figure.update_yaxes(title="share of tokens", tickformat=".0%")
    return figure


def hurt_rates(dataset: xr.Dataset) -> go.Figure:
    """Share of tokens that each block moved away from the truth."""
    figure = bars(dataset.block.values, dataset.hurt_rate.values, "block", "share of tokens", "of tokens got worse")
    figure.update_yaxes(tickformat=".0%")
    figure.update_traces(marker_color=MUTED)
    return figure


def lens_finding(dataset: xr.Dataset) -> str:
    """What the lens says about this model, in one sentence from measured numbers."""
    attrs = dataset.attrs
    worst = int(dataset.hurt_rate.values.argmax())
    return (
        f"Over {attrs['scored_tokens']} tokens, the true next token enters the top 10 for good at depth "
        f"{attrs['mean_crystallization']:.1f} on average and is first ranked first at depth {attrs['mean_first_top1']:.1f} of "
        f"{dataset.sizes['block']}; block {worst} worsens the rank of {float(dataset.hurt_rate[worst]):.0%} of tokens, more "
        f"than any other. The last depth differs from the model's own logits by {attrs['last_depth_difference']:.1g}."
    )


draws(
    "lens",
    Drawing(
        "Logit lens",
        "What would the model say if it stopped after each block?",
        "Each cell shows the token that the residual stream at that depth ranks first when it is read through the final norm "
        "and the output matrix; darker means more probable. Read a column upwards to watch one prediction form, and hover to "
        "see the first five tokens and how far the true one still is.",
        lens_figures,
        lens_finding,
        ("rank", "probability", "entropy"),
    ),
)
