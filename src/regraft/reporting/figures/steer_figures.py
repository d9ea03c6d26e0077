"""Figures of steering: what a vector moves, on which texts, and what it costs."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import Drawing, lines


def steer_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """What the vector moves on other texts over what it costs, a line for each block; and on which texts."""
    strengths = dataset.strength.values
    order = np.argsort(strengths)
    blocks = [str(block) for block in dataset.block.values]
    reach = lines(
        strengths[order],
        {
            **{f"block {b}, own texts": dataset.effect.values[i][order] for i, b in enumerate(blocks)},
            **{f"block {b}, other texts": dataset.held_out.values[i][order] for i, b in enumerate(blocks)},
        },
        "strength, times the vector",
        "nats per token",
    )
    cost = lines(
        strengths[order],
        {f"block {b}": dataset.fluency.values[i][order] for i, b in enumerate(blocks)},
        "strength, times the vector",
        "nats per token above clean",
    )
    return [
        ("How much more the texts steered to are preferred, on texts of the vector and on others", reach),
        ("What the model's own completions lose", cost),
    ]


def steer_finding(dataset: xr.Dataset) -> str:
    """The strongest effect on other texts that costs the model less than it moves, and what is written."""
    gain, cost = dataset.held_out.values, dataset.fluency.values
    fair = np.where(np.isfinite(gain) & np.isfinite(cost) & (cost < gain), gain, -np.inf)
    names, strengths = dataset.block.values, dataset.strength.values
    if not np.isfinite(fair).any():
        return "No strength moves other texts by more than it costs the model's own completions."
    row, column = np.unravel_index(int(np.argmax(fair)), fair.shape)
    return (
        f"Behind block {names[row]}, {strengths[column]:g} times the vector makes the model prefer other"
        f" texts of the kind by {gain[row, column]:.3f} nats per token (those of the vector by"
        f" {dataset.effect.values[row, column]:.3f}), for {cost[row, column]:.3f} on its own completions. The"
        f" vectors of both halves have a cosine of {float(dataset.agreement.values[row]):.2f}."
    )


STEER = Drawing(
    "Steering",
    "Does the difference of two kinds of text, added to the stream, move the model from one to the other?",
    "Each line is one block. A vector that reaches beyond the texts that it was made from has both lines of a"
    " block together; one that has only learnt its own texts has the second one flat. Where the cost rises"
    " faster than the effect, the text falls apart rather than turns.",
    steer_figures,
    steer_finding,
    ("effect", "held_out", "fluency", "written"),
)
