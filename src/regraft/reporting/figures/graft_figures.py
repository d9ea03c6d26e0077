"""The figures of a certificate: what grafts change by domain and by depth, and what they weigh and take."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import (
    FIRST,
    MUTED,
    Drawing,
    Label,
    Panel,
    axis_labels,
    base,
    heatmap,
    lines,
    panel,
    plain_text,
    quoted,
)
from regraft.reporting.wording import signed

LABEL, TOKEN = 34, 9
"""Characters of a sentence beside a figure, as many as a margin of 270 pixels holds with its state; and of a
token in a tenth of the figure."""
COSTS = {
    "part_parameters": "parameters of the parts",
    "parameters": "parameters of the model",
    "bytes": "bytes of the model",
    "forward": "time of a forward pass",
    "forward_peak": "memory of a forward pass",
    "step": "time of a training step",
    "step_peak": "memory of a training step",
}


def certificate_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Bits per byte, error by depth, costs as ratios."""
    text = base(340, barmode="group")
    for name, colour, sentence in (
        ("bits_per_byte_before", MUTED, "before"),
        ("bits_per_byte_after", FIRST, "after"),
    ):
        hover = f"%{{x}}, {sentence}: %{{y:.4f}} bits per byte<extra></extra>"
        text.add_bar(
            x=axis_labels(data.domain.values),
            y=data[name].values.tolist(),
            name=sentence,
            marker_color=colour,
            hovertemplate=hover,
        )
    text.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    text.update_yaxes(title="bits per byte")
    depth = lines(
        data.depth.values,
        {str(name): data.nmse.sel(domain=name).values for name in data.domain.values},
        "blocks run",
        "squared error over mean square",
    )
    kinds = base(420, barmode="group")
    for name, colour, sentence in (
        ("group_kl", MUTED, "behind such a token"),
        ("group_excess", FIRST, "such a token to come"),
    ):
        hover = f"%{{y}}, {sentence}: %{{x:.4f}} nats<extra></extra>"
        kinds.add_bar(
            y=axis_labels(data.group.values), x=data[name].values.tolist(), name=sentence, orientation="h",
            marker_color=colour,
            hovertemplate=hover,
        )  # fmt: skip
    kinds.update_layout(
        showlegend=True,
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
        margin_t=64,
        margin_l=190,
    )
    kinds.update_xaxes(title="nats per token: divergence behind it, loss added where it was to come")
    kinds.update_yaxes(autorange="reversed")
    ratios = [float(data[name].sel(state="after")) / float(data[name].sel(state="before")) for name in COSTS]
    costs = base(320)
    costs.add_bar(
        y=list(COSTS.values()), x=ratios, orientation="h", marker_color=FIRST,
        hovertemplate="%{y}: %{x:.3g} times what it was<extra></extra>",
    )  # fmt: skip
    costs.add_vline(x=1, line_color=MUTED, line_dash="dot")
    costs.update_layout(margin_l=190)
    costs.update_xaxes(title="after, in times before")
    costs.update_yaxes(autorange="reversed")
    return [
        ("Bits per byte of text, before and after", text),
        ("Error of the residual stream by depth", depth),
        ("What changes by length, frequency and type of the token", kinds),
        ("What the parts weigh and take, after in times before", costs),
    ]


def certificate_finding(data: xr.Dataset) -> str:
    """Each domain's change in one clause, and the worst token."""
    sentence = []
    for name in map(str, data.domain.values):
        one = data.sel(domain=name)
        change, same = float(one.bits_per_byte_after - one.bits_per_byte_before), float(one.top1)
        top = f" (same first token in {same:.1%})" if np.isfinite(same) else ""
        sentence.append(
            f"on {name} "
            + (
                f"{signed(change, 4)} bits per byte{top}"
                if np.isfinite(change)
                else "no finite number of bits"
            )
        )
    begun = (
        f"With the {data.attrs.get('grafts', 'graft')} in place: {'; '.join(sentence)}." if sentence else ""
    )
    places = [place for place in range(data.sizes["worst"]) if float(data.excess.values[place]) > 0]
    if not places:
        return f"{begun} No token suffers.".strip()
    worst = data.isel(worst=places[0])
    return (
        f"{begun} The token that suffers most is {quoted(worst.token.item())} behind"
        f" {quoted(worst.context.item())}: {signed(float(worst.excess), 2)} nats."
    ).strip()


def probe_tokens(data: xr.Dataset) -> go.Figure:
    """Both states' next tokens behind each sentence: two rows for a sentence, coloured by probability."""
    both = data.stack(row=("probe", "state")).transpose("row", "place", ...)
    rows = [Label(f"{plain_text(_short(probe))} · {state}") for probe, state in both.row.values]
    texts = [[plain_text(str(token)[:TOKEN]) for token in row] for row in both.probe_token.values]
    tokens = [[plain_text(token) for token in row] for row in both.probe_token.values]
    figure = heatmap(
        both.probe_probability.values, [str(n) for n in data.place.values], rows, "probability",
        text=texts, texttemplate="%{text}", textfont_size=10, customdata=tokens,
        hovertemplate="%{y}<br>place %{x}: %{customdata}, %{z:.4f}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(height=150 + 26 * len(rows), margin_l=270)
    figure.update_xaxes(title="place among the most probable next tokens")
    figure.update_yaxes(autorange="reversed", tickmode="linear")
    return figure


def continuations(data: xr.Dataset) -> go.Figure:
    """What both states write behind each sentence, a line for each."""
    both = data.stack(row=("probe", "state")).transpose("row", ...)
    rows = [Label(f"{plain_text(_short(probe))} · {state}") for probe, state in both.row.values]
    figure = base(110 + 26 * len(rows))
    figure.add_scatter(
        x=[0] * len(rows), y=rows, mode="text", textposition="middle right", hoverinfo="skip",
        text=[plain_text(text) for text in both.continuation.values],
    )  # fmt: skip
    figure.update_layout(margin_l=270)
    figure.update_xaxes(range=[0, 1], visible=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed", tickmode="linear")
    return figure


def _short(text: object) -> str:
    """A sentence as a label: its end, where it is long."""
    words = str(text)
    return words if len(words) <= LABEL else f"…{words[-LABEL:]}"


def certificate_panels(data: xr.Dataset) -> list[Panel]:
    """Fixed sentences: next tokens, and what is written on."""
    if "probe" not in data:
        return []
    rates = data.decode_rate.values
    return [
        panel(
            data, "probe_probability", "The ten next tokens behind fixed sentences, before and after",
            probe_tokens(data),
        ),
        Panel(
            "What is written behind them", continuations(data),
            f"Greedily, inside generate: {float(rates[0]):.1f} tokens/s before, {float(rates[1]):.1f} after.",
        ),
    ]  # fmt: skip


CERTIFICATE = Drawing(
    "Certificate",
    "What does the graft change, measured against the model that it came from?",
    "Both models read the same text, which should not be what the graft was trained on. Bits per byte say how"
    " well each predicts it, the error by depth how far the inner stream is moved, the last figure what the"
    " new part weighs and takes in times of the old one; times are medians of turns, memory is the highest"
    " beyond the weights.",
    certificate_figures,
    certificate_finding,
    ("bits_per_byte_before", "bits_per_byte_after", "kl", "top1", "top5", "decode_rate"),
    certificate_panels,
)
