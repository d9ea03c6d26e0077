"""Folded figures of single components: push, patching, ablation; and all figures of direct logit
attribution."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import (
    DIVERGING,
    FIRST,
    MUTED,
    Drawing,
    Panel,
    axis_labels,
    bars,
    base,
    heatmap,
    lines,
    panel,
    plain_text,
    quoted,
    ranked_bars,
    token_labels,
)
from regraft.reporting.wording import counted, highest

MOST_TARGETS = 2
"""Targets whose ranked lists are drawn; the others are in the data."""
SHOWN = 14
"""Columns whose tokens can be read."""
NOTHING = 1e-9
"""Share of the largest part under which a part is rounding."""
LISTED = 20
"""Neurons of a list that is drawn."""


def push_panels(data: xr.Dataset) -> list[Panel]:
    """Ranked lists of each target, attentions and whole blocks, what heads look at, what is common."""
    targets = [str(t) for t in data.target.values][:MOST_TARGETS]
    found = [_ranking(data, target) for target in targets]
    for kind, title, reading in (
        ("attention", "Push of every attention as a whole", "All heads of a block together."),
        ("block", "Push of every block", "Attention and MLP together: what they push alone need not add up."),
    ):
        some = data.isel(component=data.kind.values == kind)
        if some.sizes["component"]:
            series = {quoted(t): some.push.sel(target=t).values for t in targets}
            figure = lines(some.component_block.values, series, "block", "nats")
            found.append(Panel(title, figure, reading))
    if "looks_at" in data:
        found.append(_looks(data))
    several = data.attrs.get("pairs", 1) > 1
    for name, title in (
        ("common_push", "What all questions push alike"),
        ("push_beyond", f"Push beyond that of “{data.attrs.get('minus', '')}”"),
    ):
        if name in data and (several or name != "common_push"):
            values = data[name].sel(target=targets[0]).values
            order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:LISTED]
            figure = ranked_bars(
                data.component.values[order], values[order], f"nats, towards {quoted(targets[0])}"
            )
            found.append(panel(data, name, title, figure))
    return found


def _ranking(data: xr.Dataset, target: str) -> Panel:
    names, values = data.ranked.sel(target=target).values.T, data.ranked_push.sel(target=target).values.T
    figure = heatmap(
        values,
        data.ranked_kind.values,
        np.arange(1, len(values) + 1),
        "nats",
        True,
        text=[[plain_text(name) for name in row] for row in names],
        texttemplate="%{text}",
        hovertemplate="%{text}<br>%{z:+.3f} nats<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", title="place")
    return panel(data, "ranked", f"Ranked towards {quoted(target)}", figure)


def _looks(data: xr.Dataset) -> Panel:
    words = token_labels(data.question_token.values)
    figure = heatmap(data.looks_at.values, words, data.looking_head.values, "weight", zmin=0, zmax=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="token of the question, and its place", tickangle=0)
    figure.update_layout(height=170 + 30 * data.sizes["looking_head"])
    return panel(data, "looks_at", "What the foremost heads look at from the question's end", figure)


def patch_panels(data: xr.Dataset) -> list[Panel]:
    """The logit of the answer alone: a map, or a line with both runs' levels where a block is one cell."""
    if "answer_effect" not in data or not np.isfinite(data.answer_effect.values).any():
        return []
    column = str(data.answer_effect.dims[1])
    if data.sizes[column] == 1:
        return [_answer_line(data)]
    figure = heatmap(
        data.answer_effect.values, data[column].values, data.block.values, "effect on the answer alone", True
    )
    figure.update_traces(zmin=-1, zmax=1, zmid=None, colorscale=DIVERGING)
    figure.update_layout(xaxis_title=column, yaxis_title="block")
    return [panel(data, "answer_effect", "The answer's logit alone", figure)]


def _answer_line(data: xr.Dataset) -> Panel:
    figure = base(340)
    figure.add_scatter(
        x=axis_labels(data.block.values),
        y=list(data.answer_logit.values[:, 0]),
        mode="lines+markers",
        line_color=FIRST,
        hovertemplate="block %{x}: %{y:.3f}<extra></extra>",
    )
    for name, words in (("answer_source", "activations come from"), ("answer_target", "run that is patched")):
        level = float(data[name])
        figure.add_hline(y=level, line_color=MUTED, line_dash="dot", annotation_text=f"{words}: {level:.2f}")
    figure.update_xaxes(title="patched block", type="category")
    figure.update_yaxes(title="logit of the answer")
    return panel(data, "answer_logit", "The answer's logit, with the levels of both runs", figure)


def ablate_panels(data: xr.Dataset) -> list[Panel]:
    """The neurons that matter, one by one."""
    if not data.sizes["listed"]:
        return []
    some = data.isel(listed=slice(0, LISTED))
    several = data.attrs.get("prompts", 1) > 1
    names = [
        f"N{n}@L{block}{f', prompt {prompt}' if several else ''} → {quoted(top)} ({why})"
        for n, block, prompt, top, why in zip(
            some.listed_neuron.values,
            some.listed_block.values,
            some.listed_prompt.values,
            some.listed_top.values,
            some.listed_condition.values,
            strict=True,
        )
    ]
    figure = ranked_bars(names, some.listed_change.values, "change of the answer's probability")
    figure.update_layout(margin_l=270)
    return [
        panel(
            data,
            "listed_change",
            "Neurons that matter: the most likely token without each, and why it is listed",
            figure,
        )
    ]


def contribution_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Shares of the mean logit by part, by branch, and by head."""
    felt = np.abs(data.contribution) > NOTHING * float(np.abs(data.contribution).max())
    some = data.contribution.where(felt, drop=True)
    whole = bars(some.contributor.values, some.values, "part", "logits", "logits")
    branches = {
        str(branch): data.by_branch.sel(branch=branch).mean("token").values
        for branch in data.branch.values
        if np.isfinite(data.by_branch.sel(branch=branch).values).any()
    }
    drawn = [("What the logit of the true token is made of, mean over tokens", whole)]
    if branches:
        drawn.append(
            ("Attention and MLP of each block", lines(data.block.values, branches, "block", "logits"))
        )
    if np.isfinite(data.head_contribution.values).any():
        heads = heatmap(
            data.head_contribution.values, data["head"].values, data.block.values, "logits", True,
            hovertemplate="L%{y}H%{x}<br>%{z:+.3f} logits<extra></extra>",
        )  # fmt: skip
        heads.update_layout(xaxis_title="head", yaxis_title="block")
        drawn.append(("Single heads", heads))
    return drawn


def contribution_panels(data: xr.Dataset) -> list[Panel]:
    """Every token of the longest completion by itself."""
    numbers, counts = np.unique(data.prompt.values, return_counts=True)
    one = data.isel(token=data.prompt.values == numbers[counts.argmax()]).isel(token=slice(0, SHOWN))
    words = token_labels(one.text.values)
    figure = heatmap(one.by_block.values, words, data.block.values, "logits", True)
    figure.update_layout(yaxis_title="block")
    figure.update_xaxes(title="true next token, and its place in the completion", tickangle=0)
    return [panel(data, "by_block", "Every token of one completion", figure)]


def contribution_finding(data: xr.Dataset) -> str:
    """The part that adds most, and the head."""
    values, names = data.contribution.values, [str(name) for name in data.contributor.values]
    total = float(values.sum())
    less = " above the mean of the vocabulary" if data.attrs["against"] == "mean" else ""
    over = counted(data.attrs["scored_tokens"], "token")
    sentence = f"Over {over}, the true next token's logit is {total:.1f}{less}"
    most = highest(values)
    if len(most) != 1:
        return f"{sentence}."
    what = names[most[0]]
    which = f"block {what}" if what in data.block.values else what
    sentence = f"{sentence}; {which} adds more than any other part ({values[most[0]]:+.1f})"
    heads = data.head_contribution.values
    if not np.isfinite(heads).any():
        return f"{sentence}."
    row, head = np.unravel_index(int(np.nanargmax(np.abs(heads))), heads.shape)
    most_of_heads = f"head {head} of block {data.block.values[row]} ({heads[row, head]:+.2g})"
    return f"{sentence}, and of single heads {most_of_heads}."


CONTRIBUTIONS = Drawing(
    "Direct logit attribution",
    "Which parts write the answer themselves?",
    "The last state is a sum, and the final norm, held at its own scale, and the output matrix are linear: so"
    " every part has its share of the answer's logit, and the bars of the first figure add up to it. A part"
    " with a small share may still matter: by what it changes in later parts, which counts there.",
    contribution_figures,
    contribution_finding,
    ("contribution",),
    contribution_panels,
)
