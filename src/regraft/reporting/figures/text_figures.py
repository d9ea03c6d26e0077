"""Figures of what is measured on texts that differ in one respect: contrastive trajectories and neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.trajectory_panels import trajectory_panels
from regraft.reporting.theme import Drawing, axis_labels, banded, base, heatmap, lines, plain_text
from regraft.reporting.wording import capital, counted, highest

LONGEST_LABEL = 42
"""Characters of a label before it takes the room of the figure."""


def _curves(dataset: xr.Dataset, name: str, place: str) -> dict[str, tuple[Any, ...]]:
    one = dataset.sel(place=place)
    return {
        str(relation): tuple(
            one[f"{name}_{part}"].sel(relation=relation).values for part in ("mean", "low", "high")
        )
        for relation in dataset.relation.values
    }


def trajectory_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Cosines at the pivot and over the completion, distances, lens divergence, and CKA."""
    depth = dataset.depth.values
    drawn = [
        (
            "Cosine with the base, at the first token that differs (95% bands over groups)",
            "cosine",
            "pivot",
            "cosine",
        ),
        ("The same, over the whole completion", "cosine", "completion", "cosine"),
        ("Distance from the base at the first token that differs", "distance", "pivot", "of the mean length"),
        ("KL of the lens distributions at the first token that differs", "kl", "pivot", "nats"),
    ]
    found = [
        (caption, banded(depth, _curves(dataset, name, place), "depth (blocks passed)", y_title))
        for caption, name, place, y_title in drawn
        if np.isfinite(dataset[name].values).any()
    ]
    cka = {str(r): dataset.cka.sel(relation=r, place="pivot").values for r in dataset.relation.values}
    return [
        *found,
        (
            "Linear CKA over the groups, at the first token that differs",
            lines(depth, cka, "depth", "linear CKA"),
        ),
    ]


def trajectory_finding(dataset: xr.Dataset) -> str:
    """Where synonyms and antonyms end and whether they cross, from measured numbers."""
    one = dataset.sel(place="pivot")
    last = {str(r): float(one.cosine_mean.sel(relation=r).values[-1]) for r in dataset.relation.values}
    ends = ", ".join(f"{relation} {value:.2f}" for relation, value in last.items() if np.isfinite(value))
    if not ends:
        return (
            "No kind of alternative has a cosine with the base at the last depth: there is nothing to"
            " compare."
        )
    sentence = (
        f"Over {counted(dataset.attrs['groups'], 'group')}, mean cosine with the base at the last depth:"
        f" {ends}."
    )
    return f"{sentence} {_crossing(one)}".strip()


def _crossing(one: xr.Dataset) -> str:
    """Where synonyms come to lie above antonyms, and where antonyms fall away; nothing where one of the two
    is missing."""
    curves = [
        one.cosine_mean.sel(relation=r).values for r in ("synonym", "antonym") if r in one.relation.values
    ]
    if len(curves) < 2 or not np.isfinite(curves).all():
        return ""
    crossing, start = float(one.crossover), float(one.onset)
    if np.isfinite(crossing):
        bounds = [float(one.crossover_low), float(one.crossover_high)]
        band = (
            f" (95% of resamples that cross: {bounds[0]:.1f} to {bounds[1]:.1f})"
            if np.isfinite(bounds).all()
            else ""
        )
        sentence = f"From depth {crossing:.1f} on{band} synonyms are closer than antonyms."
    else:
        above, below = (curves[0] > curves[1]), (curves[0] < curves[1])
        which = {
            (True, False): "Synonyms are the closer ones at every depth at which the two differ",
            (False, True): "Antonyms are the closer ones at every depth at which the two differ",
            (False, False): "Synonyms and antonyms do not part",
            (True, True): "Synonyms and antonyms do not part for good",
        }[bool(above.any()), bool(below.any())]
        sentence = f"{which}: the curves do not cross ({float(one.crossover_share):.0%} of resamples do)."
    mark = "the synonyms' mean - 2 standard deviations"
    if np.isfinite(start):
        return f"{sentence} Antonyms fall below {mark} at depth {start:.0f}."
    return f"{sentence} Antonyms never fall below {mark}."


def neuron_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """How many neurons are consistent where, their activations in every text, and the contexts they fire
    in."""
    counts = heatmap(
        dataset.consistent.values, dataset.block.values, dataset.feature.values, "neurons", zmin=0,
        hovertemplate="%{y}, block %{x}: %{z} neurons<extra></extra>",
    )  # fmt: skip
    counts.update_layout(xaxis_title="block", height=150 + 26 * dataset.sizes["feature"], margin_l=120)
    counts.update_yaxes(autorange="reversed", tickmode="linear")
    drawn = [("Neurons that a set has in common and no other text has, by block", counts)]
    if not dataset.sizes["neuron"]:
        return drawn
    values = dataset.activation.values
    labels = [f"{n} ({f})" for n, f in zip(dataset.neuron.values, dataset.neuron_feature.values, strict=True)]
    texts = [f"{i}: {f}" for i, f in enumerate(dataset.text_feature.values)]
    hover = np.array(
        [[plain_text(str(p)[-LONGEST_LABEL * 2 :]) for p in dataset.prompt.values]] * len(labels)
    )
    shown = values / np.maximum(np.abs(values).max(1, keepdims=True), np.finfo(float).tiny)
    figure = heatmap(
        shown, texts, labels, "activation / the neuron's largest", True,
        customdata=np.dstack([hover, values.round(3).astype(str)]),
        hovertemplate="%{y}<br>…%{customdata[0]}<br>activation %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(height=190 + 20 * len(labels), margin=dict(l=170, b=110))
    figure.update_xaxes(tickangle=-60)
    figure.update_yaxes(autorange="reversed", tickmode="linear")
    drawn.append(("Each neuron in each text", figure))
    return (
        [*drawn, ("Where each is most active in running text", contexts(dataset))]
        if dataset.sizes["place"]
        else drawn
    )


def contexts(dataset: xr.Dataset) -> go.Figure:
    """Each neuron's strongest context as a bar of its activation with the text beside it."""
    labels = [f"{n} ({f})" for n, f in zip(dataset.neuron.values, dataset.neuron_feature.values, strict=True)]
    figure = base(max(240, 120 + 26 * len(labels)))
    strength = dataset.context_activation.values[:, 0]
    known = strength[np.isfinite(strength)]
    sentence = [plain_text(t) for t in dataset.context.values[:, 0]]
    figure.add_bar(
        y=axis_labels(labels), x=list(strength), orientation="h", text=sentence, textposition="outside",
        cliponaxis=False,
        hovertext=["<br>".join(plain_text(t) for t in row if t) for row in dataset.context.values],
        hovertemplate="%{y}: %{x:.3g}<br>%{hovertext}<extra></extra>", marker_color="#8a919c",
    )  # fmt: skip
    figure.update_layout(margin=dict(l=170, r=430))
    figure.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    figure.update_xaxes(
        title="activation at the token in brackets",
        range=[known.min(initial=0.0), known.max(initial=1e-6)],
    )
    return figure


def neurons_finding(dataset: xr.Dataset) -> str:
    """How many were found and the strongest with its context."""
    attrs, found = dataset.attrs, int(dataset.attrs["found"])
    sentence = (
        f"{counted(found, 'neuron')} {'is' if found == 1 else 'are'} among"
        f" {'its' if found == 1 else 'their'} block's top "
    )
    sentence = capital(f"{sentence}{attrs['k']} in every text of a set")
    sentence += " and in no other text" if attrs["control"] else " (there is no control set)"
    strength = dataset.context_activation.values[:, 0] if dataset.sizes["place"] else []
    first = highest(strength)
    if not first or strength[first[0]] <= 0:
        return sentence + "."
    return (
        f"{sentence}. {dataset.neuron.values[first[0]]} ({dataset.neuron_feature.values[first[0]]}) is most"
        f" active at “{dataset.context.values[first[0], 0]}”."
    )


TRAJECTORIES = Drawing(
    "Contrastive trajectories",
    "At which depth does the model part two meanings, and where only two wordings?",
    "Every line compares one kind of alternative with the base completion of the same prompt. Where synonyms"
    " come to lie above antonyms, meaning has overtaken wording and use; a model that only predicts words"
    " keeps opposites close, since they stand in the same places. The unrelated line is how far apart any two"
    " completions lie.",
    trajectory_figures,
    trajectory_finding,
    ("cosine_mean", "cosine_low", "cosine_high", "distance_mean", "kl_mean", "cka"),
    trajectory_panels,
)
NEURONS = Drawing(
    "Neurons",
    "Which neurons answer to what a set of texts has in common?",
    "A neuron is listed where it is among the most active of its block in every text of one set and in no"
    " text of another. Where each neuron is drawn in each text, such a row is far from zero over one set."
    " Sets of two or three texts have some in common by chance: the contexts in running text show whether"
    " a neuron means what the set means.",
    neuron_figures,
    neurons_finding,
    ("context_activation", "context"),
)
