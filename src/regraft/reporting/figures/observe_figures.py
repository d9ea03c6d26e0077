"""Figures of the experiments in `observe/`."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.geometry_panels import geometry_panels
from regraft.reporting.figures.lens_panels import lens_panels
from regraft.reporting.theme import (
    MUTED,
    Drawing,
    Label,
    Listing,
    bars,
    grouped_bars,
    heatmap,
    lines,
    plain_text,
    quoted,
)
from regraft.reporting.wording import capital, counted, differ, highest, lowest, named_blocks

SHOWN_TEXTS, LONGEST_TEXT = 12, 240
"""Texts that a table shows, and letters of one."""
SHOWN_TOKENS, CELL = 14, 9
"""Columns whose tokens can be read, and letters that a cell has room for."""


def lens_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The lens table of one prompt, the crystallization depths, and the hurt rates."""
    prompt = json.loads(dataset.attrs["completions"])[int(shown_prompt(dataset).prompt.values[0])]["prompt"]
    return [
        (
            f"What the model would say next after each block, continuing \u201c{prompt}\u201d{_cut(dataset)}",
            lens_table(dataset),
        ),
        (_settling(dataset), crystallization(dataset)),
        ("Blocks through which the true token's rank got worse", hurt_rates(dataset)),
        ("Where predictions settle, by kind of token", by_type(dataset)),
    ]


def _cut(dataset: xr.Dataset) -> str:
    """How much of the completion is shown, where that is not all."""
    whole = int(np.unique(dataset.prompt.values, return_counts=True)[1].max())
    return f" (the first {SHOWN_TOKENS} of {whole} tokens)" if whole > SHOWN_TOKENS else ""


def _settling(dataset: xr.Dataset) -> str:
    """The caption of the depths at which tokens settle, with their middle and spread."""
    middle, spread, gap = (
        float(dataset[name])
        for name in ("crystallization_median", "crystallization_std", "crystallization_gap")
    )
    if not np.isfinite([middle, spread, gap]).all():
        return "Where predictions settle"
    return (
        f"Where predictions settle: half of the tokens by depth {middle:g} (standard deviation {spread:.1f}),"
        f" on average {gap:.1f} depths before they are first ranked first"
    )


def shown_prompt(dataset: xr.Dataset) -> xr.Dataset:
    """The tokens of the prompt with the longest completion, cut to what fits a page."""
    numbers, counts = np.unique(dataset.prompt.values, return_counts=True)
    chosen = dataset.isel(token=dataset.prompt.values == numbers[counts.argmax()])
    return chosen.isel(token=slice(0, SHOWN_TOKENS))


def visible(piece: str) -> str:
    """A token as a reader sees it: a leading space as a small mark, a line break as a sign."""
    if piece.startswith("<|") and piece.endswith("|>"):
        return "⟨end⟩" if "end" in piece else "⟨special⟩"
    return (
        piece.replace("\n", "⏎").replace(" ", "·") if piece.strip() == "" or "\n" in piece else piece.strip()
    )


def short_token(piece: str) -> str:
    """A token that fits a cell."""
    shown = visible(piece)
    return shown if len(shown) <= CELL else f"{shown[: CELL - 1]}…"


def lens_table(dataset: xr.Dataset) -> go.Figure:
    """Depth by token: the text is the token ranked first, the colour its probability, hover shows the first
    five."""
    one = shown_prompt(dataset)
    top, chance = one.top.values, one.top_probability.values[:, :, 0]
    hover = [[_ranked(one, d, n) for n in range(one.sizes["token"])] for d in range(one.sizes["depth"])]
    labels = [Label(f"{plain_text(visible(str(t)))}<br>{i}") for i, t in enumerate(one.text.values)]
    figure = heatmap(
        chance, labels, one.depth.values, "probability of the token ranked first", zmin=0, zmax=1,
        text=[[plain_text(short_token(str(t))) for t in row] for row in top[:, :, 0]], texttemplate="%{text}",
        customdata=hover,
        hovertemplate="depth %{y}<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(height=90 + 30 * one.sizes["depth"])
    figure.update_xaxes(title="true next token, and its place in the completion", tickangle=0)
    figure.update_yaxes(title="depth (blocks passed)")
    return figure


def _ranked(one: xr.Dataset, depth: int, token: int) -> str:
    """The first tokens at a depth with their probabilities, and where the true one is."""
    first = zip(one.top.values[depth, token], one.top_probability.values[depth, token], strict=True)
    rows = [f"{plain_text(quoted(text))} {chance:.3f}" for text, chance in first]
    rank, chance = int(one["rank"].values[depth, token]), float(one.probability.values[depth, token])
    return "<br>".join(
        [
            *rows,
            f"true {plain_text(quoted(one.text.values[token]))}: rank {rank} (0 is first), p {chance:.4f}",
        ]
    )


def crystallization(dataset: xr.Dataset) -> go.Figure:
    """Share of tokens by the depth at which they crystallize and are first ranked first."""
    depths = dataset.depth.values
    series = {
        label: [float((dataset[name].values == depth).mean()) for depth in depths]
        for name, label in _both_ways(dataset, "crystallization", "first_top1")
    }
    figure = grouped_bars(depths, series, "depth (blocks passed)", "share of tokens")
    figure.update_yaxes(tickformat=".0%")
    return figure


def _both_ways(dataset: xr.Dataset, kept: str, first: str) -> list[tuple[str, str]]:
    """The two ways in which a token settles: what each is called in the result, and in a legend."""
    return [(kept, f"stays in the top {dataset.attrs.get('k', 'k')}"), (first, "first ranked first")]


def hurt_rates(dataset: xr.Dataset) -> go.Figure:
    """Share of tokens that each block moved away from the truth."""
    figure = bars(
        dataset.block.values, dataset.hurt_rate.values, "block", "share of tokens", "of tokens got worse"
    )
    figure.update_yaxes(tickformat=".0%")
    figure.update_traces(marker_color=MUTED)
    return figure


def by_type(dataset: xr.Dataset) -> go.Figure:
    """Mean depths of settling for each kind of token."""
    labels = [
        f"{kind} ({n})" for kind, n in zip(dataset.by_type.values, dataset.tokens_by_type.values, strict=True)
    ]
    series = {
        label: dataset[name].values
        for name, label in _both_ways(dataset, "crystallization_by_type", "first_top1_by_type")
    }
    return grouped_bars(labels, series, "kind of token (tokens)", "mean depth")


def completion_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """How long the completions are."""
    figure = bars(dataset.prompt.values, dataset.completion_tokens.values, "prompt", "tokens", "tokens")
    return [("Length of each completion", figure)]


def completion_listings(dataset: xr.Dataset) -> list[Listing]:
    """Each prompt, and what the model says next."""
    rows = [
        (str(number), str(kind), shown_text(prompt), shown_text(completion))
        for number, (kind, prompt, completion) in enumerate(
            zip(dataset.category.values, dataset.text.values, dataset.completion.values, strict=True)
        )
    ]
    few = f"The first {SHOWN_TEXTS} prompts" if len(rows) > SHOWN_TEXTS else "Each prompt"
    return [
        Listing(
            f"{few}, and what the model says next", ("", "kind", "prompt", "completion"), rows[:SHOWN_TEXTS]
        )
    ]


def shown_text(text: object) -> str:
    """A text as a table shows it: line breaks as a sign, a long one cut."""
    one = str(text).replace("\n", "⏎")
    return one if len(one) <= LONGEST_TEXT else f"{one[:LONGEST_TEXT]}…"


def completions_finding(dataset: xr.Dataset) -> str:
    """How much was said, in one sentence."""
    prompts, kinds = dataset.sizes["prompt"], len(set(dataset.category.values.tolist()))
    sentence = (
        f"{counted(prompts, 'prompt')} of"
        f" {counted(kinds, 'kind')} {'was' if prompts == 1 else 'were'} continued by"
    )
    return capital(f"{sentence} {counted(dataset.attrs['scored_tokens'], 'token')} in all.")


def geometry_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Dimension, norms, cosines, updates, and the similarity of depths."""
    depth = dataset.depth.values
    ratio = lines(depth, {"participation ratio": dataset.participation_ratio.values}, "depth", "dimensions")
    norm = lines(depth, {"mean norm": dataset.mean_norm.values}, "depth", "length of the stream")
    norm.update_yaxes(type="log")
    cosines = {
        "pairs, raw": dataset.cosine_raw.values,
        "pairs, around their mean": dataset.cosine_centred.values,
        "with the last depth": dataset.persistence.values,
    }
    update = bars(
        dataset.block.values, dataset.update_size.values, "block", "update / stream", "of the stream's length"
    )
    update.update_traces(marker_color=MUTED)
    cka = heatmap(dataset.cka.values, dataset.other.values, depth, "linear CKA", zmin=0, zmax=1)
    cka.update_layout(xaxis_title="depth", yaxis_title="depth")
    return [
        ("Participation ratio: how many directions the cloud of states uses", ratio),
        ("Mean norm (logarithmic)", norm),
        ("Mean cosines", lines(depth, cosines, "depth", "cosine")),
        ("Size of each block's update", update),
        ("Similarity of depths", cka),
    ]


def geometry_finding(dataset: xr.Dataset) -> str:
    """The shape of the cloud from measured numbers."""
    ratio, norm, update = (
        dataset.participation_ratio.values,
        dataset.mean_norm.values,
        dataset.update_size.values,
    )
    over = f"Over {counted(dataset.attrs['tokens'], 'token')}"
    low, largest = lowest(ratio), highest(update)
    parts = []
    width = dataset.attrs["width"]
    if not low:
        parts.append(f"{over} the cloud spreads in no direction")
    elif differ(ratio):
        parts.append(
            f"{over} the cloud uses fewest directions at depth {low[0]} ({ratio[low[0]]:.1f} of {width})"
        )
    else:
        parts.append(f"{over} the cloud uses {ratio[low[0]]:.1f} of {width} directions")
    if np.isfinite([norm[0], norm[-1]]).all():
        parts[0] += f"; the norm goes from {norm[0]:.3g} to {norm[-1]:.3g}"
    centred, raw = (
        values[np.isfinite(values)] for values in (dataset.cosine_centred.values, dataset.cosine_raw.values)
    )
    if len(centred) and len(raw):
        parts.append(
            f"Around their mean, pairs of states have a mean cosine of {centred.mean():.3f} over all depths,"
            f" raw up to {raw.max():.2f}"
        )
    if len(largest) == 1 and update[largest[0]] > 0:
        which = f"Block {dataset.block.values[largest[0]]}"
        most = "most, " if differ(update) else ""
        parts.append(f"{which} moves the stream {most}by {update[largest[0]]:.1f} times its length")
    return ". ".join(parts) + "."


def lens_finding(dataset: xr.Dataset) -> str:
    """What the lens says about this model, from measured numbers."""
    attrs = dataset.attrs
    over = f"Over {counted(attrs['scored_tokens'], 'token')}"
    settled, first = attrs["mean_crystallization"], attrs["mean_first_top1"]
    enters = f"enters the top {attrs['k']} for good at depth {settled:.1f} on average"
    if not np.isfinite(settled):
        enters = f"never enters the top {attrs['k']} for good"
    ranked = f"is first ranked first at depth {first:.1f} of {dataset.sizes['block']}"
    if not np.isfinite(first):
        ranked = "is never ranked first"
    gap = attrs["last_depth_difference"]
    last = (
        "equals the model's own logits" if gap == 0 else f"differs from the model's own logits by {gap:.1g}"
    )
    told = f"{over}, the true next token {enters} and {ranked}; {_hurting(dataset)}. The last depth {last}."
    if "tuned_kl_mean" not in dataset:
        return told
    plain, tuned = (float(dataset[name].values[:-1].mean()) for name in ("kl_mean", "tuned_kl_mean"))
    return (
        f"{told} Over the depths before it the tuned lens is {tuned:.2f} nats from it, the plain one"
        f" {plain:.2f}."
    )


def _hurting(dataset: xr.Dataset) -> str:
    """Which block worsens the rank of the most tokens, where one does."""
    rate = dataset.hurt_rate.values
    worst = highest(rate)
    if not worst or rate[worst[0]] == 0:
        return "no block worsens the rank of any token"
    names, share = dataset.block.values[worst], f"{float(rate[worst[0]]):.0%}"
    share = share if share != "0%" else "fewer than 1%"
    if len(worst) == 1:
        return f"block {names[0]} worsens the rank of {share} of tokens" + (
            ", more than any other" if len(rate) > 1 else ""
        )
    return f"{named_blocks(names)} worsen the rank of {share} of tokens each" + (
        ", more than any other" if differ(rate) else ""
    )


LENS = Drawing(
    "Logit lens",
    "What would the model say if it stopped after each block?",
    "Each cell shows the token that the residual stream at that depth ranks first when it is read through the"
    " final norm and the output matrix; the colour bar says how probable it is. Read a column upwards to"
    " watch one prediction form, and hover to see the first five tokens and how far the true one still is.",
    lens_figures,
    lens_finding,
    ("first", "rank", "probability", "entropy", "tuned_rank", "tuned_probability", "tuned_entropy"),
    lens_panels,
)
GEOMETRY = Drawing(
    "Residual geometry",
    "How is the cloud of residual states shaped, and how does each block move it?",
    "A participation ratio of 1 means that all states lie along one direction, a large one that they spread"
    " over many; raw cosines above the centred ones are owed to a direction that all states share. In the"
    " matrix, a strong square along the diagonal is a run of depths whose clouds are alike up to a rotation.",
    geometry_figures,
    geometry_finding,
    ("participation_ratio", "mean_norm", "cosine_raw", "cosine_centred", "persistence", "separation"),
    geometry_panels,
)
COMPLETIONS = Drawing(
    "Completions",
    "What does the model itself say next?",
    "These are the model's own most likely continuations, and the only tokens that a loss here counts. A bar"
    " at the limit is a completion that was cut there; a shorter one was ended by the model.",
    completion_figures,
    completions_finding,
    ("category", "prompt_tokens", "completion_tokens", "text", "completion"),
    listings=completion_listings,
)
