"""Figures of activation patching."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.component_panels import patch_panels
from regraft.reporting.markup import Marked
from regraft.reporting.theme import (
    DIVERGING,
    FIRST,
    MUTED,
    Drawing,
    Label,
    Listing,
    axis_labels,
    base,
    heatmap,
    lines,
    plain_text,
    quoted,
)
from regraft.reporting.wording import (
    highest,
)

LEVEL_LABELS = 10
"""Tokens whose names have room beside each other; more are written aslant."""
HALF = 0.5
"""A patch works where it carries half of the difference between the two runs."""


def patch_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The map of effects."""
    column = dataset.effect.dims[1]
    if dataset.sizes[column] == 1:
        return [(_patched(dataset), effect_line(dataset)), *_estimated(dataset)]
    labels = axis_labels(dataset[column].values)
    if "token" in dataset.coords:
        between = "<br>" if len(labels) <= LEVEL_LABELS else " "
        labels = [
            Label(f"{plain_text(str(t).strip() or '·')}{between}{p}")
            for t, p in zip(dataset.token.values, labels, strict=True)
        ]
    figure = heatmap(
        dataset.effect.values, labels, dataset.block.values, "normalised effect", True,
        hovertemplate=f"block %{{y}}, {column} %{{x}}<br>effect %{{z:.3f}}<extra></extra>",
    )  # fmt: skip
    sizes = np.abs(dataset.effect.values[np.isfinite(dataset.effect.values)])
    largest = max(1.0, float(sizes.max(initial=0.0)))
    figure.update_traces(zmin=-largest, zmax=largest, zmid=None, colorscale=DIVERGING)
    many = len(labels) > LEVEL_LABELS and "token" in dataset.coords
    figure.update_xaxes(title=f"{column} of the patched activation", tickangle=-45 if many else 0)
    figure.update_yaxes(title="block")
    return [(_patched(dataset), figure), *_estimated(dataset)]


def patch_listings(dataset: xr.Dataset) -> list[Listing]:
    """Both prompts with what differs marked, and what each goes on with; of several cases the first."""
    attrs = dataset.attrs
    if not {"clean", "corrupt", "answer", "wrong"} <= attrs.keys():
        return []
    first = f", the first of {attrs['pairs']} pairs" if attrs.get("pairs", 1) > 1 else ""
    clean, corrupt = marked(attrs["clean"], attrs["corrupt"])
    rows = [
        ("clean", clean, f"{quoted(attrs['answer'])}, the answer"),
        ("corrupted", corrupt, f"{quoted(attrs['wrong'])}, the wrong answer"),
    ]
    return [Listing(f"The two prompts{first}, what differs marked", ("run", "prompt", "goes on with"), rows)]


def marked(one: str, other: str) -> tuple[Marked, Marked]:
    """Two texts with the words marked in which they differ.

    >>> [str(text.pieces) for text in marked("at 3 am, so", "at 3 pm, so")]
    ["('at 3 ', 'am,', ' so')", "('at 3 ', 'pm,', ' so')"]
    """
    words = [re.findall(r"\s+|\S+", text) for text in (one, other)]
    pieces: tuple[list[str], list[str]] = ([""], [""])
    for kind, *ends in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        for side, row, begin, end in zip(pieces, words, ends[::2], ends[1::2], strict=True):
            text = "".join(row[begin:end])
            if kind == "equal":
                side[-1] += text
            elif text:
                side.extend([text, ""])
    return Marked(tuple(pieces[0])), Marked(tuple(pieces[1]))


def _patched(dataset: xr.Dataset) -> str:
    """What was patched, as a caption."""
    over = f", mean over {dataset.attrs['pairs']} pairs" if dataset.attrs["pairs"] > 1 else ""
    wide = f", {dataset.attrs['window']} blocks at once" if dataset.attrs["window"] > 1 else ""
    return f"Effect of patching {dataset.attrs['site']}, {dataset.attrs['direction']} direction{over}{wide}"


def _estimated(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The measured cells against their estimates, where there are any."""
    if not np.isfinite(dataset.attribution.values).any():
        return []
    caption = "Each cell measured, against its first-order estimate from one backward pass"
    return [(caption, attribution_figure(dataset))]


def effect_line(dataset: xr.Dataset) -> go.Figure:
    """One effect for each block as a line, with the levels of both runs."""
    series = {"normalised effect": dataset.effect.values[:, 0]}
    figure = lines(dataset.block.values, series, "patched block", "normalised effect")
    figure.update_xaxes(type="category")
    for level in (0.0, 1.0):
        figure.add_hline(y=level, line_color=MUTED, line_width=1, line_dash="dot")
    return figure


def attribution_figure(dataset: xr.Dataset) -> go.Figure:
    """Measured effect over attribution, one point for each cell, and the line on which both are the same."""
    effect, estimate = dataset.effect.values, dataset.attribution.values
    column = str(dataset.effect.dims[1])
    hover = np.array(
        [
            [plain_text(f"block {b}, {column} {c}") for c in dataset[column].values]
            for b in dataset.block.values
        ]
    )
    figure = base(340)
    known = np.concatenate([values[np.isfinite(values)] for values in (effect, estimate)])
    ends = [float(known.min(initial=0.0)), float(known.max(initial=0.0))]
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dict(color=MUTED, dash="dot"), hoverinfo="skip")
    figure.add_scatter(
        x=estimate.ravel(), y=effect.ravel(), mode="markers", marker=dict(color=FIRST, size=6),
        text=hover.ravel(),
        hovertemplate="%{text}<br>measured %{y:.3f}<br>estimated %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="attribution: difference times gradient")
    figure.update_yaxes(title="measured effect")
    return figure


def patch_finding(dataset: xr.Dataset) -> str:
    """Where the answer's information sits, and between which blocks it moves, from measured numbers."""
    effect = dataset.effect.values
    attrs = dataset.attrs
    same = f"{attrs['target_value']:+.1f}" == f"{attrs['source_value']:+.1f}"
    mean = f", mean over {attrs['pairs']:,} pairs" if attrs.get("pairs", 1) > 1 else ""
    measured = f"Logit of the answer minus the wrong one{mean}: {attrs['target_value']:+.1f}"
    span = f"{measured} in both runs. "
    if not same:
        span = (
            f"{measured} in the run that is patched, {attrs['source_value']:+.1f} in the run that the"
            " activations come from. "
        )
    if np.isfinite(attrs["attribution_correlation"]):
        correlation = attrs["attribution_correlation"]
        span += (
            "Attribution, from one backward pass, correlates with the measured effects by"
            f" {correlation:.3f}. "
        )
    return f"{span}{_carrier(dataset, effect)}".strip()


def _carrier(dataset: xr.Dataset, effect: np.ndarray) -> str:
    """Which head, neuron or token carries the difference; that none does, where none does."""
    place, names = highest(effect.ravel()), dataset.block.values
    if not place:
        return "The two runs do not differ in it: there is no difference that an activation could carry."
    row, column = np.unravel_index(place[0], effect.shape)
    most = effect[row, column]
    for kind, called in (
        ("neuron", f"N{column}@L{names[row]}"),
        ("head", f"Head {column} of block {names[row]}"),
    ):
        if kind in dataset.dims:
            share = f"{most:.3f}" if kind == "neuron" else f"{most:.2f}"
            only = effect.size == 1 or len(place) > 1
            sentence = f"{called} carries {share}" if only else f"{called} carries most, {share}"
            return (
                f"{sentence} of the difference."
                if float(share) > 0
                else f"No {kind} carries any of the difference alone."
            )
    if "token" not in dataset.coords or effect.shape[0] < 2 or not np.isfinite(effect).all():
        return ""
    return _moved(effect, [quoted(token) for token in dataset.token.values], names)


def _moved(effect: np.ndarray, words: list[str], names: np.ndarray) -> str:
    """Between which blocks the effect moves from one token to another."""
    first, last = effect[0].argmax(), effect[-1].argmax()
    if effect[0, first] < HALF:
        return "In front of the first block no single token carries half of the difference."
    moved = next((b for b in range(len(effect)) if effect[b, first] < HALF), len(effect))
    if moved == len(effect):
        return f"The effect stays with {words[first]}."
    gone = (
        f"At {words[first]} the patch works (effect above one half) up to block {names[moved - 1]} and no"
        f" more from block {names[moved]} on"
    )
    arrived = next((b for b in range(len(effect)) if effect[b, last] > HALF), len(effect))
    if first == last or arrived == len(effect):
        return f"{gone}."
    return (
        f"{gone}; at {words[last]} it works from block {names[arrived]} on: the information moves between"
        f" blocks {names[moved - 1]} and {names[moved]}."
    )


def paths_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The map of senders."""
    figure = heatmap(
        dataset.effect.values, axis_labels(dataset.sender.values), dataset.block.values, "normalised effect",
        True, hovertemplate="block %{y}, %{x}<br>effect %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="head that sends, or the MLP")
    figure.update_yaxes(title="block of the sender")
    over = f", mean over {dataset.attrs['pairs']} pairs" if dataset.attrs["pairs"] > 1 else ""
    between = "MLPs between answer" if dataset.attrs["through"] == "mlps" else "all else held still"
    name = (
        f"Direct paths to {plain_text(dataset.attrs['receivers'])}, {between}, {dataset.attrs['direction']}"
    )
    return [(f"{name} direction{over}", figure)]


def paths_finding(dataset: xr.Dataset) -> str:
    """Which sender tells the receivers most, and what all of them tell together."""
    effect, attrs = dataset.effect.values, dataset.attrs
    known = np.isfinite(effect)
    strongest = [int(i) for i in np.argsort(-np.abs(np.where(known, effect, 0.0)).ravel())[:3]]
    told = []
    for flat in strongest:
        row, column = np.unravel_index(flat, effect.shape)
        sender = str(dataset.sender.values[column])
        name = f"head {sender}" if sender.isdigit() else f"the {sender}"
        if f"{abs(effect[row, column]):.2f}" != "0.00":
            told.append(f"{name} of block {dataset.block.values[row]} ({effect[row, column]:+.2f})")
    if not told:
        return f"No head or MLP tells {attrs['receivers']} any of the difference directly."
    return (
        f"Most of what {attrs['receivers']} are told directly comes from {', '.join(told)}; the"
        f" {int(known.sum())} paths add up to {effect[known].sum():+.2f} of the difference."
    )


PATHS = Drawing(
    "Path patching",
    "Which part tells which other part directly?",
    "Each cell lets one head or MLP say what it says in the other run, holds everything between it and the"
    " receivers still, and gives the receivers alone what arrives: the share of the difference between the"
    " two runs that goes this one way. What goes through other parts on its way is not in it.",
    paths_figures,
    paths_finding,
    ("logit_difference", "effect", "effect_error"),
)


PATCH = Drawing(
    "Activation patching",
    "Where in the model is the answer's information, and when does it move?",
    "Each cell or point puts one activation of the other run into this one: 1 (full blue) means that this"
    " single activation makes the answer as likely as in the run that it came from, 0 that it changes"
    " nothing."
    " Where the columns are tokens, follow the strong cells upwards to see at which token the information"
    " sits and between which blocks it moves on; resid_pre is what enters a block, resid_post what leaves"
    " it.",
    patch_figures,
    patch_finding,
    ("logit_difference", "effect", "attribution", "effect_error"),
    patch_panels,
    patch_listings,
)
